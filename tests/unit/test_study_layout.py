"""Studies laid out: which steps there are, what is shared, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from small_study import TINY, laid_out

from noisewise.errors import SettingError
from noisewise.workflow.foundation import num_trained_groups
from noisewise.workflow.recipe import check_recipe
from noisewise.workflow.study.definition import Arm, Paper, Study
from noisewise.workflow.study.layout import lay_out
from noisewise.workflow.study.registry import STUDIES, find_study


@pytest.mark.parametrize("name", ["tdc-table1", "direction", "tdc-figure7"])
def test_every_cell_of_a_study_has_its_steps_and_shares_the_base(name: str) -> None:
    layout = laid_out(find_study(name), num_seeds=2)
    assert len(layout.cells) == 2 * len(layout.arms)
    assert len({arm.key for arm in layout.arms}) == len(layout.arms)
    bases = [step for step in layout.steps if step.name == "base"]
    assert len(bases) == 2  # one per seed, however many arms use it
    assert sorted(step.settings["seed"] for step in bases) == [5, 6]
    ids = [step.id for step in layout.steps]
    assert len(ids) == len(set(ids))
    for step in layout.steps:
        assert all(ids.index(source.id) < ids.index(step.id) for source in step.inputs.values())
    assert len(set(layout.titles.values())) == len(layout.titles)


def test_arms_of_a_study_at_equal_images_are_equal() -> None:
    for name in ("tdc-table1", "tdc-table3", "tdc-figure7"):
        layout = laid_out(find_study(name), finetune={"num_images": 60, "batch_size": 32})
        images = {
            cell.arm.label: sum(step.num_images for step in cell.row.training)
            for cell in layout.cells
            if cell.row.id != "base"
        }
        assert max(images.values()) - min(images.values()) <= 20, images  # shares are rounded per group


def test_empty_groups_take_no_images_from_their_arm() -> None:
    recipe = check_recipe({**copy.deepcopy(TINY), "schedule": {"kind": "cosine"}, "plan": {"num_groups": 10}})
    numbers = (1, 2, 4, 8, 10, 15, 20)
    filled = dict(zip(numbers, num_trained_groups(recipe, *numbers), strict=True))
    assert (filled[8], filled[10], filled[20]) == (8, 9, 17)
    for arm in find_study("tdc-table3").arms(recipe):
        assert arm.x is not None
        images = arm.overrides["finetune.num_images"] * filled[int(arm.x)]
        assert abs(images - 9 * 32) <= filled[int(arm.x)] / 2, arm.label


def test_direction_meets_at_one_cost_and_turns_the_plan_round() -> None:
    cells = {cell.arm.label: cell for cell in laid_out(find_study("direction")).cells}
    plans = {label: cell.graph.plan for label, cell in cells.items()}
    pruned = ("equal sizes", "large at the noise", "large at the data")
    assert [plans[label].average_cost for label in pruned] == pytest.approx([0.75] * 3)
    limits = {label: [group.cost_limit for group in plans[label].groups] for label in pruned}
    assert limits["large at the noise"][0] < limits["large at the noise"][1]
    assert limits["large at the data"][0] > limits["large at the data"][1]
    assert limits["equal sizes"][0] == pytest.approx(limits["equal sizes"][1])


MULTISTAGE: dict[str, Any] = {
    **{name: TINY[name] for name in ("data", "model", "sample", "evaluate")},
    "name": "tiny-stages",
    "schedule": {"kind": "vp"},
    "method": "multi-decoder",
    "base": {"num_images": 96, "batch_size": 32, "num_snapshots": 3},
    "plan": {"method": "optimal-denoiser", "num_draws": 8, "num_levels": 10},
    "multi_decoder": {"decoders": [1.5, 1, 0.5]},
}


def test_evaluations_of_a_sampler_of_two_calls_a_step_are_odd_and_so_is_the_reference() -> None:
    changes = {
        "schedule": {"kind": "edm"},
        "method": "multi-decoder",
        "plan": {"method": "given", "bounds": [1, 10]},
        "multi_decoder": {"decoders": [1, 1, 1]},
        "sample": {**TINY["sample"], "scheduler": "edm-heun"},
    }
    layout = laid_out(find_study("multistage-evaluations"), **changes)
    assert layout.reference.label == "single network, 19"
    assert {arm.x for arm in layout.arms} == {5, 9, 15, 19, 35, 49}


@pytest.mark.parametrize("name", [name for name in STUDIES if not name.startswith("multistage")])
def test_studies_of_two_stages_say_that_one_is_missing(name: str) -> None:
    raw = {**TINY, "method": "multi-decoder", "multi_decoder": {"decoders": [1, 1]}}
    del raw["finetune"]
    with pytest.raises(SettingError, match="finetune: missing"):
        lay_out(find_study(name), raw, 1, None)


@pytest.mark.parametrize("name", [name for name in STUDIES if name.startswith("multistage")])
def test_multistage_studies_lay_out_at_equal_images_with_one_network_shared(name: str) -> None:
    layout = lay_out(find_study(name), copy.deepcopy(MULTISTAGE), 1, None)
    images = {cell.arm.label: sum(step.num_images for step in cell.row.training) for cell in layout.cells}
    assert set(images.values()) == {96}
    trained = {step.id for step in layout.steps if step.name in ("base", "joint")}
    assert len(trained) == {"multistage-table1": 4, "multistage-groups": 9, "multistage-table4": 3}.get(name, 2)
    if name == "multistage-groups":
        numbers = {int(cell.arm.x or 0) for cell in layout.cells if cell.row.id == "multi-decoder"}
        assert numbers == {len(cell.graph.plan.groups) for cell in layout.cells if cell.row.id == "multi-decoder"}
    if name == "multistage-evaluations":
        assert {layout.against(arm).x for arm in layout.arms if arm.line == "multi-decoder"} == {5, 10, 15, 20, 35, 50}
    if name == "multistage-table2":
        assert [sorted(steps) for steps in layout.snapshots.values()] == [[24, 48, 72]] * 2


def test_images_are_paired_between_arms_and_new_with_every_seed() -> None:
    layout = laid_out(num_seeds=3)
    seeds = {(cell.seed, cell.row.sample.settings["sample"]["seed"]) for cell in layout.cells}
    assert seeds == {(5, 0), (6, 1), (7, 2)}
    for seed in layout.seeds:
        references = {cell.graph.reference.id for cell in layout.cells if cell.seed == seed}
        assert len(references) == 1
    assert layout.again.inputs["sample"].settings["sample"]["seed"] not in (0, 1, 2)


def test_what_cannot_be_compared_or_is_unknown_is_refused() -> None:
    with pytest.raises(SettingError, match=r"study tdc-tabel1: no such study; .* did you mean tdc-table1\?"):
        find_study("tdc-tabel1")
    with pytest.raises(SettingError, match="--seeds: 0 given"):
        laid_out(num_seeds=0)
    other = Study("x", "", "", "", lambda _: [Arm("a", "base"), Arm("b", "base", {"sample.num_images": 30})], "a",
                  Paper(""))  # fmt: skip
    with pytest.raises(SettingError, match="measured against different images"):
        laid_out(other)
    wrong = Study("x", "", "", "", lambda _: [Arm("a", "base", {"plan.num_group": 4})], "a", Paper(""))
    with pytest.raises(SettingError, match=r"a: plan\.num_group: unknown setting; did you mean plan\.num_groups\?"):
        laid_out(wrong)


def test_every_study_says_what_it_asks_and_needs() -> None:
    for name, study in STUDIES.items():
        assert name == study.name
        assert study.question.endswith("?")
        assert study.needs
        assert study.paper.source
