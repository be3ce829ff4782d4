"""Whole small runs of the multi-stage framework: what is trained, spent, measured, drawn and handed back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_multistage import DENOISER, FROM_BASE, graph, recipe

from noisewise.errors import SettingError
from noisewise.workflow.builder import build_graph
from noisewise.workflow.progress import Event
from noisewise.workflow.results import paper_flops, spent_macs
from noisewise.workflow.run import open_graph, open_run, run_only, run_recipe


def quiet(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; its folder."""
    runs = tmp_path_factory.mktemp("runs")
    settings = recipe(plan=DENOISER, compare=["base", "base-fewer-steps", "separate-tailored-early-stopped"])
    found, store = open_graph(settings, runs)
    return run_recipe(found, store, runs, quiet).folder


def test_results_say_what_was_spent_and_what_the_paper_would_count(done: Path) -> None:
    found, store = open_run(done)
    results = json.loads((done / "results.json").read_text())
    rows = {row["id"]: row for row in results["rows"]}
    decoders = found.base.decoders
    assert decoders is not None
    mean = sum(macs for macs in decoders.macs if macs is not None) / 3
    assert rows["base"]["training_macs"] == 3 * 192 * found.base.macs
    assert rows["multi-decoder"]["training_macs"] == pytest.approx(3 * 192 * mean)
    base, joint = found.step("base"), found.step("joint")
    assert rows["base"]["paper_flops"] == 192 / 32 * store.record(base).result["paper_macs"]
    assert rows["base"]["paper_flops"] < 192 / 32 * found.base.macs  # attention is left out
    assert rows["multi-decoder"]["paper_flops"] == paper_flops(joint, store)
    assert rows["multi-decoder"]["training_macs"] == spent_macs(joint, store)
    assert results["group_costs"] == pytest.approx([macs / found.base.macs for macs in decoders.macs if macs])
    assert rows["multi-decoder"]["resident_parameters"] == decoders.resident
    assert rows["multi-decoder"]["active_parameters"] == list(decoders.parameters)
    assert rows["base-fewer-steps"]["num_inference_steps"] >= rows["multi-decoder"]["num_inference_steps"]
    assert results["difficulty"]["cost_limit"][0] == pytest.approx(results["group_costs"][0])


def test_early_stopping_takes_the_snapshot_of_least_held_out_loss(done: Path) -> None:
    found, store = open_run(done)
    results = json.loads((done / "results.json").read_text())
    row = next(row for row in results["rows"] if row["id"] == "separate-tailored-early-stopped")
    picks = [step for step in found.steps if step.action == "pick"]
    assert row["training_images"] == 192
    assert row["needed_images"] == sum(store.record(step).result["num_images"] for step in picks) <= 192
    for step in picks:
        result = store.record(step).result
        assert len(result["losses"]) == 10
        assert result["losses"][str(result["num_images"])] == min(result["losses"].values())
        assert result["held_out_images"] == 3
        chosen = f"snapshot-{result['num_images']}/model/diffusion_pytorch_model.safetensors"
        weights = store.record(step).files["model/diffusion_pytorch_model.safetensors"]
        assert weights == store.record(step.inputs["source"]).files[chosen]


def test_the_report_draws_similarities_the_ideal_loss_and_a_curve_per_group(done: Path) -> None:
    from noisewise.report import write_report

    results = json.loads((done / "results.json").read_text())
    assert {"joint", "joint[0]", "joint[1]", "joint[2]"} <= set(results["training_curves"])
    ideal = results["ideal_loss"]
    assert len(ideal["t"]) == len(ideal["loss"]) == 40
    assert ideal["loss"][0] < 1e-6  # near the data every training image is known by heart
    page = write_report(done).read_text()
    assert 'id="figure-similarity"' in page
    assert 'id="figure-thresholds"' in page
    assert "optimal denoiser, on training images" in page
    for name in ("similarity", "thresholds", "loss"):
        assert (done / "figures" / f"{name}.svg").is_file()
        assert (done / "figures" / f"{name}.csv").is_file()


def test_the_pipeline_is_the_multi_decoder(done: Path) -> None:
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(done / "pipeline")
    assert type(pipeline.unet).__name__ == "MultiDecoderUNet2DModel"
    experts = pipeline.unet.experts
    assert experts[0].conv_in is experts[2].conv_in
    assert experts[0].up_blocks[0] is not experts[2].up_blocks[0]


def test_decoders_start_from_the_base_within_their_limits(tmp_path: Path) -> None:
    from noisewise.models.loading import load_denoiser

    found, store = open_graph(recipe(**FROM_BASE, compare=["base-fewer-steps"]), tmp_path)
    run_only(found, store, ["base"], quiet)
    run_only(found, store, ["decoders"], quiet)
    base: Any = load_denoiser(store.folder(found.step("base")) / "model")[0]
    model: Any = load_denoiser(store.folder(found.step("decoders")) / "model")[0]
    result = store.record(found.step("decoders")).result
    for group, macs in zip(found.plan.groups, result["macs"], strict=True):
        assert 0.98 * group.cost_limit <= macs / found.base.macs <= group.cost_limit
    for ours, theirs in zip(model.experts[2].down_blocks.parameters(), base.down_blocks.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    run_only(found, store, ["joint"], quiet)
    assert store.record(found.step("joint")).result["macs"] == result["macs"]
    bad = {**FROM_BASE["plan"], "min_cost": 0.05, "cost_schedule": "constant", "average_cost": 0.05}
    other, other_store = open_graph(recipe(**{**FROM_BASE, "plan": bad}, compare=[]), tmp_path)
    with pytest.raises(SettingError, match=r"plan: the cost limit of group \d is 0\.05, but"):
        run_recipe(other, other_store, tmp_path, quiet)


def test_the_gradient_variant_compares_trained_networks(tmp_path: Path) -> None:
    plan = {"method": "intervals", "interval_cost": "gradient", "num_draws": 4, "num_levels": 12}
    with pytest.raises(SettingError, match=r"plan\.gradients_of: missing"):
        graph(plan=plan)
    found, store = open_graph(recipe(), tmp_path)
    run_only(found, store, ["base"], quiet)
    folder = store.folder(found.step("base")) / "model"
    made = build_graph(recipe(plan={**plan, "gradients_of": [str(folder)]}), store).plan
    assert [group.is_empty for group in made.groups] == [False] * 3
    assert made.settings["interval_cost"] == "gradient"
    with pytest.raises(
        SettingError, match=r"^plan\.gradients_of: .* is no diffusers folder .*; did you mean .*/model\?$"
    ):
        build_graph(recipe(plan={**plan, "gradients_of": [str(folder.parent)]}), store)
