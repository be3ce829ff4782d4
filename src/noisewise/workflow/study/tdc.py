"""Method A's studies: TDC training, arXiv:2312.13307."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from noisewise.errors import SettingError
from noisewise.workflow.conditioning import is_guided
from noisewise.workflow.foundation import num_trained_groups
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.settings import ExistingModel
from noisewise.workflow.study.definition import Arm, Paper, Study, only_plan

MATCHED = 0.75  # share of the base's MACs at which arms meet, where the recipe names none
OTHER_SCALE = (
    "The paper's numbers are FID on other data, with networks and budgets far larger; only the order of the arms and "
    "the relative differences can be compared, and those only where the base is near convergence."
)
NEEDS = "a recipe with base and finetune"


def _table_1(recipe: Recipe) -> Sequence[Arm]:
    return (
        Arm("base, stage 1 alone", "base", note="fewer training images than the others"),
        Arm("base, trained on", "base-continued", note="the images of stage 2 included",
            paper=("4.08", "8.14 G", "52.5 M", "500 k")),
        Arm("base, fewer steps", "base-fewer-steps", note="the base trained on, at TDC's MACs per image"),
        *_cached(recipe),
        Arm("uniformly pruned", "uniform", note="one pruned network, at TDC's MACs per image"),
        Arm("TDC without pruning", "unpruned", paper=("3.52", "8.14 G", "52.5 M", "280 k")),
        Arm("TDC", "tdc", paper=("3.76", "6.56 G", "48.7 M", "450 k")),
    )  # fmt: skip


def _cached(recipe: Recipe) -> list[Arm]:
    """DeepCache, for the networks that it is written for, and without guidance."""
    settings = recipe.model
    if isinstance(settings, ExistingModel) or "Skip" in str(settings.model_dump()):
        return []
    if is_guided(recipe.sample.guidance_scale):
        return []
    return [Arm("base, DeepCache", "deepcache", note="deep features reused over steps, at TDC's MACs per image")]


def matched_cost(recipe: Recipe) -> float:
    """Mean cost at which all arms of a study meet."""
    return recipe.plan.average_cost or MATCHED


def _direction(recipe: Recipe) -> Sequence[Arm]:
    cost = matched_cost(recipe)

    def plan(**changes: Any) -> dict[str, Any]:
        return only_plan(recipe, average_cost=cost, **changes)

    share = f"at {cost:g} of the base's MACs"
    return (
        Arm("equal sizes", "tdc", plan(cost_schedule="constant"), f"every group alike, {share}"),
        Arm("large at the noise", "tdc", plan(big_model_at="noise"), f"the TDC paper's direction, {share}"),
        Arm("large at the data", "tdc", plan(big_model_at="data"), f"the reverse, {share}"),
        Arm("one pruned network", "uniform", plan(cost_schedule="constant"), f"no groups, {share}"),
        Arm("equal sizes, not pruned", "unpruned", note="every group as large as the base: for context"),
        Arm("base, trained on", "base-continued", note="one network, not pruned: for context"),
        *_multistage_split(recipe, cost),
    )


def _multistage_split(recipe: Recipe, cost: float) -> Sequence[Arm]:
    """The same on the groups that the optimal denoiser gives: method B's split, its direction and the reverse."""
    equal = "optimal-denoiser groups, equal sizes"
    share = f"at {cost:g} of the base's MACs"
    (own,) = num_trained_groups(recipe, recipe.plan.groups)
    images = stage_2_images(recipe, own, 3)

    def arm(label: str, note: str, **changes: Any) -> Arm:
        plan = {"method": "optimal-denoiser", "min_cost": recipe.plan.least_cost, "average_cost": cost, **changes}
        settings = {"plan": plan, "finetune.num_images": images}
        return Arm(label, "tdc", settings, f"{note}, {share}", against=equal)

    return (
        arm(equal, "three groups alike", cost_schedule="constant"),
        arm("optimal-denoiser groups, large at the data", "the multi-stage paper's direction", big_model_at="data"),
        arm("optimal-denoiser groups, large at the noise", "the reverse", big_model_at="noise"),
    )


COSTS = ("snr", "constant", "increasing", "decreasing")


def _table_2(recipe: Recipe) -> Sequence[Arm]:
    paper = {
        "snr": ("3.76", "6.56 G", "48.7 M"),
        "constant": ("3.91", "6.79 G", "49.5 M"),
        "increasing": ("3.88", "6.85 G", "43.2 M"),
        "decreasing": ("4.11", "6.21 G", "45.1 M"),
    }
    labels = {"snr": "by SNR", "constant": "constant", "increasing": "increasing in t", "decreasing": "decreasing in t"}
    cost = matched_cost(recipe)
    printed = [
        Arm(labels[kind], "tdc", only_plan(recipe, cost_schedule=kind), "as printed: costs differ", paper[kind],
            against=labels["constant"])
        for kind in COSTS
    ]  # fmt: skip
    matched = [
        Arm(f"{labels[kind]}, matched", "tdc", only_plan(recipe, cost_schedule=kind, average_cost=cost),
            f"at {cost:g} of the base's MACs")
        for kind in COSTS
    ]  # fmt: skip
    reverse = Arm("by SNR reversed, matched", "tdc", only_plan(recipe, big_model_at="data", average_cost=cost),
                  f"large at the data, at {cost:g} of the base's MACs")  # fmt: skip
    return (*printed, *matched, reverse)


def _table_3(recipe: Recipe) -> Sequence[Arm]:
    paper = {4: "3.62", 8: "3.56", 10: "3.52", 15: "3.56", 20: "3.60"}
    numbers = (1, 2, *paper)
    own, *trained = num_trained_groups(recipe, recipe.plan.groups, *numbers)
    arms = []
    for number, groups in zip(numbers, trained, strict=True):
        shared = {**only_plan(recipe, num_groups=number), "finetune.num_images": stage_2_images(recipe, own, groups)}
        printed = (paper[number],) if number in paper else ()
        if number == 1:
            arms.append(Arm("1 group", "base-continued", shared, "one network for all timesteps", x=1))
        else:
            arms.append(Arm(f"{number} groups", "unpruned", shared, paper=printed, x=number))
    return arms


def check_stage_2(recipe: Recipe) -> None:
    """Refuse a recipe whose stage 2 is missing."""
    if recipe.finetune is None:
        raise SettingError("finetune: missing; this study needs a stage 2, at least finetune.num_images")


def stage_2_images(recipe: Recipe, own: int, trained: int) -> int:
    """Per group, so that ``trained`` groups together see the images that the recipe's ``own`` would.

    Both leave out empty groups, which see none.
    """
    check_stage_2(recipe)
    return max(1, round(recipe.stage_2.num_images * own / trained))


def _figure_7(recipe: Recipe) -> Sequence[Arm]:
    single = {"method": "single-stage"}
    return (
        Arm("two stages", "tdc", note="a base, then an expert per group"),
        Arm("one stage", "single-stage", single, "every expert from scratch, at the same total of training images"),
        Arm("two stages, not pruned", "unpruned"),
        Arm("one stage, not pruned", "single-stage", {**single, "single_stage.architecture": "base"}),
        Arm("base, trained on", "base-continued", note="one network for all timesteps"),
    )


def _figure_6(recipe: Recipe) -> Sequence[Arm]:
    return (
        Arm("base, trained on", "base-continued", note="one network for all timesteps", x=1.0),
        *(Arm(f"k = {k}", "tdc", only_plan(recipe, min_cost=k), x=k) for k in (0.3, 0.4, 0.5, 0.6, 0.7)),
    )


STUDIES = (
    Study(
        "tdc-table1",
        "TDC against one network for all timesteps",
        "Do experts per group of timesteps beat one network at equal training images, and does pruning them keep that?",
        NEEDS,
        _table_1,
        "base, trained on",
        Paper("TDC, Table I: CIFAR-10, DDIM with 100 steps, FID", ("FID", "MACs a call", "parameters", "steps"),
              OTHER_SCALE + " Its base has more training steps than its TDC; here all rows but the first have as many "
              "images. Its MACs leave out the products inside attention.",
              (("DDPM", "4.19", "6.06 G", "38.2 M", "800 k"), ("WaveDiff", "4.87", "6.06 G", "38.2 M", "800 k"),
               ("PNDM", "4.10", "6.06 G", "38.2 M", "800 k")), effect=0.56 / 4.08),
        figures=("differences", "cost", "images"),
    ),
    Study(
        "direction",
        "Which end of the noise range deserves the larger network",
        "At matched MACs per image: the larger network at the noise, at the data, or all groups alike?",
        NEEDS,
        _direction,
        "equal sizes",
        Paper("TDC, Table II, puts the larger network at the noise; most later work at the data (multi-stage, DDSM, "
              "T-Stitch, DyDiT)", (), "The paper's rows do not cost the same, so its Table II cannot settle this; "
              "here all pruned arms meet at one cost.", effect=0.15 / 3.91),
    ),
    Study(
        "tdc-table2",
        "Cost schedules",
        "How should the cost limits run over the groups, as the paper printed them and at matched cost?",
        NEEDS,
        _table_2,
        "constant, matched",
        Paper("TDC, Table II: CIFAR-10, FID", ("FID", "MACs a call", "parameters"), OTHER_SCALE, effect=0.15 / 3.91),
    ),
    Study(
        "tdc-table3",
        "Number of groups",
        "Into how many groups should the timesteps be split, at equal training images?",
        NEEDS,
        _table_3,
        "1 group",
        Paper("TDC, Table III: CIFAR-10, without pruning, FID", ("FID",), OTHER_SCALE, effect=0.10 / 3.62),
        axis="groups",
        figures=("differences", "axis"),
    ),
    Study(
        "tdc-figure6",
        "Smallest network k",
        "How small may the smallest expert be?",
        NEEDS,
        _figure_6,
        "base, trained on",
        Paper("TDC, Figs. 6 and 8, draw k from 0.3 to 0.7 and print no numbers", (), OTHER_SCALE),
        axis="k, cost of the smallest expert as a share of the base's",
        figures=("differences", "axis", "cost"),
    ),
    Study(
        "tdc-figure7",
        "One stage against two",
        "Is a shared first stage worth it, or may every expert start from scratch?",
        "a recipe with base and finetune, and a new network (no model.from)",
        _figure_7,
        "two stages",
        Paper("TDC, Fig. 7, draws two stages ahead of one and prints no numbers", (), OTHER_SCALE),
    ),
)  # fmt: skip
