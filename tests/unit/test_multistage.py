"""The multi-stage framework through the recipe: which steps there are, and plans kept in the store."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from noisewise.errors import SettingError
from noisewise.workflow import plans
from noisewise.workflow.builder import build_graph
from noisewise.workflow.graph import Graph, Row
from noisewise.workflow.recipe import Recipe, check_recipe
from noisewise.workflow.store import Store

SEPARATE = ["separate", "separate-early-stopped", "separate-tailored", "separate-tailored-early-stopped"]
TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "sklearn-digits", "num_train": 64, "num_test": 32},
    "schedule": {"kind": "vp", "num_train_timesteps": 1000},
    "method": "multi-decoder",
    "model": {"kind": "unet2d", "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 8},
    "base": {"num_images": 192, "batch_size": 32, "num_threads": 1},
    "plan": {"method": "given", "bounds": [200, 800]},
    "multi_decoder": {"decoders": [1.5, 1, 0.5]},
    "sample": {"num_images": 8, "scheduler": "dpm-solver-3", "num_inference_steps": 4},
    "evaluate": {"num_loss_images": 8, "num_timing_images": 2},
    "compare": ["base", "base-fewer-steps", *SEPARATE],
}
FROM_BASE: dict[str, Any] = {
    "multi_decoder": {"start": "base"},
    "plan": {"method": "given", "bounds": [200, 800], "min_cost": 0.7, "big_model_at": "data"},
    "prune": {"importance": "magnitude"},
    "finetune": {"num_images": 32, "batch_size": 32, "num_threads": 1},
}
BARE: dict[str, Any] = {"method": "single-stage", "compare": ["base"]}  # where only the plan matters
DENOISER = {"method": "optimal-denoiser", "num_draws": 32, "num_levels": 12}


def recipe(**changes: Any) -> Recipe:
    return check_recipe({**TINY, **changes})


def graph(**changes: Any) -> Graph:
    return build_graph(recipe(**changes)) if changes else usual_graph()


@cache
def usual_graph() -> Graph:
    return build_graph(recipe())


def row_of(found: Graph, row_id: str) -> Row:
    return next(row for row in found.rows if row.id == row_id)


# ---- the graph


def test_every_row_sees_the_same_number_of_images() -> None:
    found = graph()
    assert {sum(step.num_images for step in row.training) for row in found.rows} == {192}
    joint = row_of(found, "multi-decoder").model
    assert (joint.name, joint.action) == ("joint", "train")
    assert joint.settings["ranges"] == [(0, 200), (200, 800), (800, 1000)]
    assert joint.settings["train"] == row_of(found, "base").model.settings["train"]
    assert [step.num_images for step in row_of(found, "separate").training if step.action == "train"] == [64, 64, 64]


def test_the_single_network_may_see_the_joint_trainings_draws() -> None:
    found = graph(compare=["base", "base-same-draws"])
    same, joint, base = (row_of(found, row).model for row in ("base-same-draws", "multi-decoder", "base"))
    assert {name: same.settings[name] for name in ("ranges", "group_draws", "train")} == {
        name: joint.settings[name] for name in ("ranges", "group_draws", "train")
    }
    assert (same.settings["network"], same.settings["names"]) == (base.settings["network"], base.settings["names"])
    assert same.macs == base.macs
    with pytest.raises(SettingError, match="base-same-draws trains from scratch"):
        recipe(
            model={"from": "somewhere"},
            compare=["base-same-draws"],
            **{k: v for k, v in FROM_BASE.items() if k != "model"},
        )


def test_separate_networks_split_the_images_as_the_joint_training_draws_its_groups() -> None:
    found = graph(multi_decoder={"decoders": [1.5, 1, 0.5], "group_draws": "host"})
    assert [step.num_images for step in row_of(found, "separate").training if step.action == "train"] == [39, 115, 38]
    edm = graph(
        schedule={"kind": "edm"},
        plan={"method": "given", "bounds": [2.5103, 7.6577]},
        multi_decoder={"decoders": [1.5, 1, 0.5], "group_draws": "host"},
        sample={"num_images": 8, "scheduler": "edm-heun", "num_inference_steps": 4},
        base={"num_images": 100_000},
    )
    trained = [step for step in row_of(edm, "separate").training if step.action == "train"]
    assert [step.num_images / 1e5 for step in trained] == pytest.approx([0.961, 0.035, 0.0035], abs=1e-3)
    assert sum(step.num_images for step in trained) == 100_000
    assert row_of(edm, "multi-decoder").model.settings["shares"] == pytest.approx([0.961, 0.035, 0.0035], abs=1e-3)


def test_tailored_networks_cost_what_the_multi_decoder_costs_and_share_nothing() -> None:
    found = graph()
    decoders = found.base.decoders
    assert decoders is not None
    assert decoders.macs[1] == found.base.macs  # a factor of 1 is the base itself
    assert decoders.macs[0] > decoders.macs[1] > decoders.macs[2]
    assert decoders.resident < sum(decoders.parameters)
    tailored = row_of(found, "separate-tailored").model.inputs
    assert [step.settings["network"]["group"] for step in tailored.values()] == [0, 1, 2]
    assert [step.macs / step.num_images / 3 for step in tailored.values()] == list(decoders.macs)


def test_early_stopping_holds_training_images_out_and_picks_among_ten_snapshots() -> None:
    pick = row_of(graph(), "separate-early-stopped").model.inputs["expert[0]"]
    training = pick.inputs["source"]
    assert (pick.action, training.action) == ("pick", "train")
    assert training.settings["held_out"] == pick.settings["held_out"] == 20
    assert training.settings["snapshots"] == [64 * (i + 1) // 10 for i in range(10)]


def test_a_stage_2_goes_to_every_row_but_the_base() -> None:
    found = graph(**FROM_BASE, compare=["base", "base-continued", "tdc", "separate", "separate-tailored"])
    images = {row.id: sum(step.num_images for step in row.training) for row in found.rows}
    assert images.pop("base") == 192
    assert set(images.values()) == {192 + 3 * 32}
    assert row_of(found, "multi-decoder").model.inputs["source"].name == "decoders"
    assert row_of(found, "base").label == "base, stage 1 alone"
    assert row_of(graph(), "base").label == "single network"


def test_a_proposer_that_decoders_do_not_ask_is_noted() -> None:
    settings = {**FROM_BASE, "prune": {"importance": "magnitude", "proposer": {"kind": "evolution"}}, "compare": []}
    assert any("evolution proposes nothing for decoders" in note for note in graph(**settings).base.notes)


def test_decoders_that_no_row_needs_are_noted() -> None:
    stage_2 = {"method": "tdc", "finetune": {"num_images": 64}, "compare": []}
    assert any("multi_decoder.decoders: ignored" in note for note in graph(**stage_2).base.notes)
    assert not any("ignored" in note for note in graph().base.notes)


def test_rows_at_equal_cost_wait_for_the_decoders_only_where_they_are_pruned() -> None:
    given, pruned = graph(), graph(**FROM_BASE, compare=["base-fewer-steps"])
    assert given.step("cost").inputs == {}
    assert given.step("cost").settings["macs"] == given.base.decoders.macs  # type: ignore[union-attr]
    assert set(pruned.step("cost").inputs) == {"decoders"}


ALL = {"base", "joint", "separate[0]", "separate-tailored[2]", "separate-early-stopped[1]"}


@pytest.mark.parametrize(
    ("change", "redone", "kept"),
    [
        ({"base": {**TINY["base"], "learning_rate": 1e-3}}, ALL, {"reference", "ideal-loss"}),
        ({"multi_decoder": {"decoders": [1.5, 1, 1]}}, {"joint", "separate-tailored[2]"}, {"base", "separate[2]"}),
        ({"multi_decoder": {**TINY["multi_decoder"], "group_draws": "balanced"}}, {"joint"}, ALL - {"joint"}),
        ({"plan": {"method": "given", "bounds": [200, 700]}}, {"joint", "separate[1]"}, {"base", "separate[0]"}),
        ({"compare": ["base"]}, {"timing"}, {"base", "joint", "evaluate[multi-decoder]"}),
    ],
)
def test_a_change_redoes_exactly_what_depends_on_it(change: dict[str, Any], redone: set[str], kept: set[str]) -> None:
    before = {step.name: step.id for step in graph().steps}
    after = {step.name: step.id for step in graph(**change).steps}
    assert {name for name in redone if before[name] == after[name]} == set()
    assert {name for name in kept if before[name] != after[name]} == set()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"multi_decoder": {"decoders": [1.5, 1]}}, "multi_decoder.decoders: 2 given, the plan has 3 groups"),
        ({"multi_decoder": {"decoders": [1.5, 1, 0.3]}}, "multi_decoder.decoders.2: 4.8 channels are not"),
        ({"plan": {"method": "given", "bounds": [800, 200]}}, "plan.bounds: [800.0, 200.0] do not rise"),
        ({"plan": {**DENOISER, "alpha": 0.2}}, "plan.alpha: 0.2 leaves a group empty"),
        ({"sample": {**TINY["sample"], "scheduler": "edm-heun"}}, "edm-heun"),
        ({"model": {**TINY["model"], "time_embedding_type": "fourier"}}, "its timestep, here timesteps from 0 on"),
        (
            {
                "model": {**TINY["model"], "time_embedding_type": "fourier"},
                "schedule": {"kind": "edm"},
                "sample": {**TINY["sample"], "scheduler": "edm-heun"},
            },
            "model.time_embedding_type: fourier takes the logarithm",
        ),
        ({"objective": {"prediction_type": "edm"}}, "objective.prediction_type: 'edm' is not one of"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        graph(**change)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_group_has_no_decoder_and_says_so() -> None:
    settings = {
        "schedule": {"kind": "cosine", "num_train_timesteps": 1000},
        "plan": {"num_groups": 10},
        "multi_decoder": {"decoders": [1] * 10},
        "sample": {"num_images": 8, "num_inference_steps": 4},
    }
    found = graph(**settings, compare=["separate"])
    empty = [group.index for group in found.plan.groups if group.is_empty]
    assert empty
    assert found.base.decoders is not None
    assert [i for i, macs in enumerate(found.base.decoders.macs) if macs is None] == empty
    assert any(f"group {empty[0]} is empty, so that its decoder" in note for note in found.base.notes)


def test_a_plan_of_images_of_another_size_is_refused(tmp_path: Path) -> None:
    graph(plan=DENOISER).plan.save(tmp_path / "plan.json")
    settings = {"plan": {"method": "given", "path": str(tmp_path / "plan.json")}}
    assert len(graph(**settings).plan.groups) == 3
    with pytest.raises(SettingError, match=r"images of 1x8x8 .*; these are 1x4x4"):
        graph(**settings, data={**TINY["data"], "image_size": 4})


# ---- plans that look at the data


def test_a_plan_that_looks_at_the_data_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = plans._from_data
    monkeypatch.setattr(plans, "_from_data", lambda *given: made.append(1) or real(*given))
    with ThreadPoolExecutor(4) as pool:  # flock tells open files apart, also those of one process
        graphs = list(pool.map(lambda _: build_graph(recipe(plan=DENOISER, **BARE), Store(tmp_path)), range(3)))
    assert len(made) == 1
    assert len(list((tmp_path / plans.FOLDER).glob("*.json"))) == 1
    assert len({json.dumps(found.plan.to_dict()) for found in graphs}) == 1
    build_graph(recipe(plan=DENOISER, **BARE, seed=3), Store(tmp_path))
    assert len(made) == 1
    build_graph(recipe(plan={**DENOISER, "alpha": 0.85}, **BARE), Store(tmp_path))
    build_graph(recipe(plan=DENOISER, **BARE, data={**TINY["data"], "num_train": 63}), Store(tmp_path))
    assert len(made) == 3


def test_its_curves_are_the_reports_and_no_steps(tmp_path: Path) -> None:
    found = graph(plan=DENOISER)
    assert "curves" in found.plan.settings
    assert "curves" not in json.dumps(found.base.plan_facts)
    assert "curves" not in json.dumps(found.base.decoders.network())  # type: ignore[union-attr]


def test_what_it_costs_is_said_first() -> None:
    said: list[str] = []
    build_graph(recipe(plan={**DENOISER, "seed": 11}, **BARE), say=said.append)
    assert len(said) == 1
    assert "the optimal denoiser of 64 images, 32 draws at 12 noise levels" in said[0]
    assert "on this machine" in said[0]
