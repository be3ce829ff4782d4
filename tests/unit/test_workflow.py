"""From a recipe to results: which steps there are, what a change redoes, and a whole run on a handful of digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from noisewise.errors import SettingError, TrainingError
from noisewise.workflow.builder import build_graph
from noisewise.workflow.graph import Graph
from noisewise.workflow.progress import Event
from noisewise.workflow.recipe import Recipe, check_recipe
from noisewise.workflow.run import open_graph, open_run, run_only, run_recipe, states
from noisewise.workflow.verdict import verdict

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "sklearn-digits", "num_train": 64, "num_test": 32},
    "model": {"kind": "unet2d", "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 8},
    "base": {"num_images": 96, "batch_size": 32, "num_snapshots": 1, "num_threads": 1},
    "plan": {"num_groups": 3},
    "prune": {
        "timestep_stride": 300,
        "proposer": {"kind": "importance", "rounds": 1, "candidates": 2, "num_score_images": 16},
    },
    "finetune": {"num_images": 64, "batch_size": 32, "num_threads": 1},
    "sample": {"num_images": 8, "num_inference_steps": 5},
    "evaluate": {"num_loss_images": 8, "num_timing_images": 2},
    "compare": ["base", "base-continued", "base-fewer-steps", "unpruned", "uniform"],
}


def recipe(**changes: Any) -> Recipe:
    merged = {**TINY}
    for name, value in changes.items():
        merged[name] = {**TINY[name], **value} if isinstance(value, dict) and name in TINY else value
    return check_recipe(merged)


def graph(**changes: Any) -> Graph:
    return build_graph(recipe(**changes))


def quiet(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def usual() -> Graph:
    return graph()


def test_steps_of_the_method_and_its_rivals(usual: Graph) -> None:
    names = [step.name for step in usual.steps]
    assert len(names) == len(set(names))
    for name in ("base", "prune[0]", "prune[1]", "finetune[0]", "assemble[tdc]", "uniform", "timing"):
        assert name in names
    assert "prune[2]" not in names  # at the base's own cost: nothing to prune
    assert usual.step("assemble[tdc]").inputs["expert[2]"] is usual.step("unpruned[2]")
    for step in usual.steps:
        assert all(names.index(source.name) < names.index(step.name) for source in step.inputs.values())


def test_all_rows_but_the_base_saw_the_same_number_of_images(usual: Graph) -> None:
    images = {row.id: sum(step.num_images for step in row.training) for row in usual.rows}
    assert images.pop("base") == 96
    assert set(images.values()) == {96 + 3 * 64}


def test_every_group_of_single_stage_gets_its_share_of_the_total() -> None:
    found = graph(method="single-stage", compare=["base-continued"])
    row = next(row for row in found.rows if row.id == "single-stage")
    trained = [step for step in row.training if step.action == "train"]
    assert [step.name for step in trained] == ["scratch[0]", "scratch[1]", "scratch[2]"]
    assert sum(step.num_images for step in trained) == 96 + 3 * 64
    assert not any(step.name == "base" for step in row.training)


def test_distillation_is_a_row_of_its_own_beside_the_plain_one() -> None:
    found = graph(finetune={"distill_weight": 0.5})
    rows = {row.id: row for row in found.rows}
    plain, distilled = rows["tdc"].model.inputs["expert[0]"], rows["distilled"].model.inputs["expert[0]"]
    assert plain.settings["train"].distill_weight == 0
    assert distilled.settings["train"].distill_weight == 0.5
    assert distilled.inputs["teacher"].name == "base"
    assert plain.inputs["source"] is distilled.inputs["source"]


def test_empty_groups_train_nothing() -> None:
    found = graph(schedule={"kind": "cosine"}, plan={"num_groups": 10})
    empty = [group.index for group in found.plan.groups if group.is_empty]
    assert empty
    assert not any(f"[{group}]" in step.name for group in empty for step in found.steps)


def test_a_group_that_no_sampling_step_falls_into_is_named() -> None:
    ten = {"plan": {"num_groups": 10}}
    few = graph(sample={"num_images": 32, "num_inference_steps": 50}, **ten)  # DDIM's 0, 20, ..., 980
    assert few.plan.groups[1].t_start > 0
    assert few.plan.groups[1].t_stop <= 20
    assert [note for note in few.base.notes if "serve" in note] == [
        "group 1 serves none of the 50 calls of sampling: trained in vain, unless you sample with more steps"
    ]
    every = graph(sample={"num_images": 32, "num_inference_steps": 1000}, **ten)
    assert not any("serve" in note for note in every.base.notes)
    assert [step.id for step in few.steps if "[1]" in step.name] == [
        step.id for step in every.steps if "[1]" in step.name
    ]


def test_what_nothing_looks_at_is_said() -> None:
    ignored = graph(objective={"min_snr_gamma": 3.0, "p2_k": 2.0, "weighting": "min-snr"}, compare=[],
                    sample={"num_images": 8, "num_inference_steps": 5, "scheduler": "dpm++", "eta": 0.5})  # fmt: skip
    assert [note for note in ignored.base.notes if "ignored" in note] == [
        "objective.p2_k: 2 is ignored, it belongs to weighting p2", "sample.eta: 0.5 is ignored by dpm++"
    ]  # fmt: skip
    assert "ignored" not in str(graph(sample={"num_images": 8, "eta": 0.5}, compare=[]).base.notes)


ALL_TRAINING = {"base", "base-continued", "uniform", "finetune[0]", "finetune[1]", "unpruned[0]", "unpruned[2]"}


@pytest.mark.parametrize(
    ("change", "redone", "kept"),
    [
        ({"name": "other"}, set(), ALL_TRAINING | {"timing"}),
        ({"seed": 1}, ALL_TRAINING | {"prune[0]"}, {"reference"}),
        ({"base": {"learning_rate": 1e-3}}, ALL_TRAINING | {"sample[tdc]"}, {"reference"}),
        ({"finetune": {"learning_rate": 1e-3}}, ALL_TRAINING - {"base"} | {"loss[tdc]"}, {"base", "prune[0]", "cost"}),
        ({"prune": {"importance": "magnitude"}}, {"finetune[0]", "uniform"}, {"base", "unpruned[0]", "base-continued"}),
        ({"plan": {"min_cost": 0.6}}, {"prune[0]", "finetune[0]"}, {"base", "base-continued"}),
        ({"sample": {"seed": 5}}, {"sample[tdc]", "reference", "timing"}, ALL_TRAINING | {"loss[tdc]", "cost"}),
        ({"sample": {"num_inference_steps": 4}}, {"cost", "uniform"}, {"finetune[0]", "assemble[tdc]", "loss[tdc]"}),
        (
            {"evaluate": {"num_loss_images": 16}},
            {"loss[tdc]"},
            ALL_TRAINING | {"sample[tdc]", "evaluate[tdc]", "timing"},
        ),
        ({"evaluate": {"tap": "final"}}, {"evaluate[tdc]", "reference"}, {"sample[tdc]", "loss[tdc]", "timing"}),
        ({"compare": ["base"]}, {"timing"}, {"base", "finetune[0]", "sample[tdc]", "evaluate[tdc]"}),
        ({"data": {"num_train": 63}}, ALL_TRAINING | {"reference"}, set()),
    ],
)
def test_a_change_redoes_exactly_what_depends_on_it(
    change: dict[str, Any], redone: set[str], kept: set[str], usual: Graph
) -> None:
    before = {step.name: step.id for step in usual.steps}
    after = {step.name: step.id for step in graph(**change).steps}
    assert {name for name in redone if before[name] == after[name]} == set()
    assert {name for name in kept if before[name] != after[name]} == set()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sample": {"num_images": 33}}, "sample.num_images: 33 given; at most 32 are possible"),
        ({"model": {"block_out_chanels": [8]}}, "did you mean model.block_out_channels?"),
        ({"model": {"in_channels": 3}}, "model.in_channels: 3 given; it follows from the data"),
        ({"model": {"norm_num_groups": 3}}, "model: diffusers refuses this network"),
        ({"model": {"block_out_channels": [8] * 5}}, "need an image size divisible by 16, the images have 8"),
        ({"schedule": {"num_train_timesteps": 4}, "plan": {}}, "sample.num_inference_steps: 5 is refused"),
        ({"evaluate": {"features": "inception", "inception_path": "/no"}}, "evaluate.inception_path: /no does not"),
        ({"model": {"from": "/no/folder"}}, "model: /no/folder does not exist"),
        ({"name": "store"}, "name: 'store' given"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    settings = check_recipe({**TINY, **change}) if "from" in change.get("model", {}) else recipe(**change)
    with pytest.raises(SettingError) as caught:
        open_graph(settings, tmp_path / "runs")
    assert said in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; its folder."""
    runs = tmp_path_factory.mktemp("runs")
    found, store = open_graph(recipe(), runs)
    outcome = run_recipe(found, store, runs, quiet)
    assert outcome.changed
    return outcome.folder


def test_results_hold_a_full_row_for_every_rival(done: Path) -> None:
    results = json.loads((done / "results.json").read_text())
    rows = {row["id"]: row for row in results["rows"]}
    assert set(rows) == {"base", "base-continued", "base-fewer-steps", "unpruned", "uniform", "tdc"}
    for row in rows.values():
        assert row["kid"]["low"] < row["kid"]["value"] < row["kid"]["high"]
        assert len(row["group_test_loss"]) == 3
        assert row["seconds_per_image"] > 0
        assert row["provenance"]["samples"]["num_images"] == results["metric"]["n"] == 8
        assert (done / row["samples"]).is_file()
    tdc = rows["tdc"]
    assert 0.98 * 0.5 < tdc["macs_per_image"] / rows["unpruned"]["macs_per_image"] < 1
    assert rows["base-fewer-steps"]["macs_per_image"] <= tdc["macs_per_image"]
    assert rows["base-fewer-steps"]["num_inference_steps"] == 4
    assert 0.98 <= rows["uniform"]["macs_per_image"] / tdc["macs_per_image"] <= 1
    assert tdc["resident_parameters"] == sum(tdc["active_parameters"])
    assert len(results["routes"]) == 5
    assert [widths is None for widths in results["widths"]] == [False, False, True]
    assert {record["group"] for record in results["memory_bank"]} == {0, 1}
    assert [point["strategy"] for point in results["quality_against_images"]][:2] == ["base", "base"]
    assert results["loss_per_timestep"]["tdc"]
    assert str(done.parent) not in json.dumps(results)


def test_run_folder_holds_what_it_should(done: Path) -> None:
    import diffusers

    for name in ("recipe.yaml", "plan.json", "metrics.jsonl", "results.json", "samples/real.png"):
        assert (done / name).is_file()
    steps = {json.loads(line)["step"] for line in (done / "metrics.jsonl").read_text().splitlines()}
    assert {"base", "finetune[0]", "unpruned[2]", "uniform"} <= steps
    pipeline = diffusers.DiffusionPipeline.from_pretrained(done / "pipeline")
    assert type(pipeline.unet).__name__ == "ExpertDenoiser"
    assert not list(done.parent.glob("store/*/checkpoint"))


def test_again_changes_nothing_and_status_says_so(done: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file() and path.name != ".lock"}
    found, store = open_run(done)
    outcome = run_recipe(found, store, done.parent, quiet)
    assert not outcome.changed
    assert {state.state for state in states(found, store)} == {"done"}
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_lost_step_is_redone_alone_with_the_same_weights(done: Path) -> None:
    found, store = open_run(done)
    step = found.step("finetune[0]")
    before = store.record(step).files["model/diffusion_pytorch_model.safetensors"]
    import shutil

    shutil.rmtree(store.folder(step))
    events: list[Event] = []
    assert run_only(found, store, ["finetune[0]"], events.append)
    assert {event.step for event in events} == {"finetune[0]"}
    assert store.record(step).files["model/diffusion_pytorch_model.safetensors"] == before
    assert not run_only(found, store, ["finetune[0]"], events.append)


def test_single_steps_need_their_inputs(tmp_path: Path) -> None:
    found, store = open_graph(recipe(), tmp_path)
    with pytest.raises(SettingError, match=r"step prune\[0\] needs base, which is not done"):
        run_only(found, store, ["prune[0]"], quiet)
    with pytest.raises(SettingError, match=r"no such step; there are reference, base, .*; did you mean prune\[0\]\?"):
        run_only(found, store, ["prune0"], quiet)


def test_altered_weights_stop_the_step_that_reads_them(done: Path) -> None:
    found, store = open_run(done)
    weights = store.folder(found.step("base")) / "model" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    changed = build_graph(recipe(seed=0, finetune={"num_images": 32}), store)
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(SettingError, match=r"checksum.*to redo step base"):
            run_only(changed, store, ["unpruned[0]"], quiet)
    finally:
        weights.write_bytes(whole)


def test_an_existing_model_is_taken_as_it_is_or_trained_on(done: Path, tmp_path: Path) -> None:
    found, store = open_run(done)
    folder = store.folder(found.step("base")) / "model"
    settings = {**TINY, "model": {"from": str(folder)}, "compare": ["base"]}
    taken = check_recipe({**settings, "base": {"num_images": 0}})
    other, other_store = open_graph(taken, tmp_path)
    assert other.step("base").action == "take"
    assert run_only(other, other_store, ["base"], quiet)
    weights = "model/diffusion_pytorch_model.safetensors"
    assert other_store.record(other.step("base")).files[weights] == store.record(found.step("base")).files[weights]
    assert build_graph(check_recipe(settings)).step("base").action == "train"


def test_another_schedule_than_the_models_own_is_refused(done: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    from noisewise import NoiseSchedule
    from noisewise.models.loading import save_pipeline
    from noisewise.sampling.schedulers import build_scheduler

    found, store = open_run(done)
    model = UNet2DModel.from_pretrained(store.folder(found.step("base")) / "model")
    save_pipeline(model, build_scheduler("ddpm", NoiseSchedule.named("linear", 500)), tmp_path / "pipe")
    settings = {**TINY, "model": {"from": str(tmp_path / "pipe")}, "base": {"num_images": 0}}
    with pytest.raises(SettingError, match="500"):
        build_graph(check_recipe({**settings, "schedule": {"kind": "linear", "num_train_timesteps": 1000}}))
    taken = build_graph(check_recipe(settings))
    assert taken.plan.num_train_timesteps == 500


def test_a_loss_that_is_no_number_stops_the_step_and_status_says_why(tmp_path: Path) -> None:
    settings = recipe(base={"learning_rate": 1e18, "clip_norm": None, "warmup_images": 0, "num_images": 640})
    found, store = open_graph(settings, tmp_path)
    with pytest.raises(TrainingError, match="the loss is not a number"):
        run_only(found, store, ["base"], quiet)
    failed = {state.step.name: state for state in states(found, store) if state.state == "failed"}
    assert "not a number" in failed["base"].message


def test_a_budget_that_no_width_meets_is_refused_before_training(tmp_path: Path) -> None:
    found, store = open_graph(recipe(plan={"min_cost": 0.001, "num_groups": 100}), tmp_path)
    with pytest.raises(SettingError, match=r"plan: the cost limit of group \d+ is 0\.0\d+, but no legal widths"):
        run_recipe(found, store, tmp_path, quiet)
    assert not (tmp_path / "tiny").exists()


def row(name: str, low: float, high: float, macs: float) -> dict[str, Any]:
    kid = {"value": (low + high) / 2, "low": low, "high": high}
    return {"id": name, "label": name, "frechet": 10 * low, "kid": kid, "macs_per_image": macs}


@pytest.mark.parametrize(
    ("rivals", "said"),
    [
        ([row("uniform", 3, 4, 1.0), row("base-continued", 0, 0.5, 2.0)], "tdc wins: at its cost"),
        ([row("uniform", 1.5, 4, 1.0)], "No win shown"),
        ([row("uniform", 0.1, 0.5, 0.9)], "tdc does not win: at its cost per image or less, a rival is better"),
        ([row("uniform", 3, 4, 1.0), row("base-fewer-steps", 1, 2, 1.0)], "does not win outright"),
        ([row("unpruned", 3, 4, 2.0)], "No rival at tdc's cost"),
        ([], "was compared with nothing"),
    ],
)
def test_verdict_claims_only_what_the_intervals_show(rivals: list[dict[str, Any]], said: str) -> None:
    assert said in verdict([*rivals, row("tdc", 1, 2, 1.0)], "tdc")
