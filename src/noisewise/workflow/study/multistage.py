"""Method B's studies: the multi-stage framework with a multi-decoder network, arXiv:2312.09181."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from noisewise.errors import SettingError
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.study.definition import Arm, Paper, Study

OTHER_SCALE = (
    "The paper's numbers are FID on CIFAR-10 with networks and budgets far larger; only the order of the arms and the "
    "relative differences can be compared. At 50k iterations its multi-decoder network is worse than the single one "
    "and crosses over by 150k, so a short training says little."
)
NEEDS = "a recipe of method multi-decoder (recipes/multistage-digits.yaml)"
SINGLE, MULTI = "single network", "multi-decoder"
EQUAL_COST = f"{SINGLE}, equal cost"
SAME_DRAWS = f"{SINGLE}, same draws"
EVALUATIONS = (5, 10, 15, 20, 35, 50)
EDM: dict[str, Any] = {
    "schedule": {"kind": "edm"},
    "objective": {},
    "sample.scheduler": "edm-heun",
    "sample.num_inference_steps": 18,
    "multi_decoder.group_draws": "host",  # the paper's: as EDM draws noise levels
}
GROUPS = (2, 3, 4, 5)


def _table_1(recipe: Recipe) -> Sequence[Arm]:
    dpm = {"sample.scheduler": "dpm-solver-3", "sample.num_inference_steps": 20}
    return (
        Arm(SINGLE, "base", dpm, "DPM-Solver-3, 20 evaluations", ("2.73", "20")),
        Arm(EQUAL_COST, "base-fewer-steps", dpm, "in as many steps as the multi-decoder's cost allows"),
        Arm(MULTI, "multi-decoder", dpm, "DPM-Solver-3, 20 evaluations", ("2.35", "20")),
        Arm(f"{SINGLE}, EDM", "base", EDM, "Heun, 35 evaluations", ("2.05", "35"), against=f"{SINGLE}, EDM"),
        Arm(f"{MULTI}, EDM", "multi-decoder", EDM, "Heun, 35 evaluations", ("1.96", "35"), against=f"{SINGLE}, EDM"),
    )


def _evaluations(recipe: Recipe) -> Sequence[Arm]:
    from noisewise.sampling.kinds import num_evaluations, steps_within

    arms = []
    for wanted in EVALUATIONS:
        try:
            steps = steps_within(recipe.sample.scheduler, wanted)
        except SettingError:  # fewer than the sampler can do
            continue
        done = num_evaluations(recipe.sample.scheduler, steps)
        single = f"{SINGLE}, {done}"
        for label, row in ((single, "base"), (f"{MULTI}, {done}", "multi-decoder")):
            line = SINGLE if row == "base" else MULTI
            arms.append(
                Arm(label, row, {"sample.num_inference_steps": steps}, x=float(done), line=line, against=single)
            )
    return arms


def _single_at_20(recipe: Recipe) -> str:
    """The single network at 20 evaluations, or the most below that the sampler can do (edm-heun 19)."""
    from noisewise.sampling.kinds import num_evaluations, steps_within

    kind = recipe.sample.scheduler
    return f"{SINGLE}, {num_evaluations(kind, steps_within(kind, 20))}"


def _table_2(recipe: Recipe) -> Sequence[Arm]:
    if recipe.base.num_snapshots < 3:
        raise SettingError(
            f"study multistage-table2: base.num_snapshots is {recipe.base.num_snapshots}; 3 or more are needed to see "
            "when a distance was reached (--set base.num_snapshots=9)"
        )
    return (
        Arm(SINGLE, "base", paper=("2.73", "450 k", "7.94")),
        Arm(MULTI, "multi-decoder", paper=("2.71", "250 k", "4.66")),
    )


def _table_3(recipe: Recipe) -> Sequence[Arm]:
    return (
        Arm(SINGLE, "base", paper=("2.73",)),
        Arm(EQUAL_COST, "base-fewer-steps", note="in as many steps as the multi-decoder's cost allows"),
        Arm(SAME_DRAWS, "base-same-draws", note="sees noise levels as often as the multi-decoder does"),
        Arm("separate networks", "separate", note="one per group, like the single one", paper=("2.87",)),
        Arm("separate, early stopped", "separate-early-stopped", note="each at its least held-out loss",
            paper=("2.80",)),
        Arm("separate, tailored", "separate-tailored", note="the multi-decoder's sizes", paper=("2.68",)),
        Arm("separate, both", "separate-tailored-early-stopped", note="tailored and early stopped", paper=("2.52",)),
        Arm(MULTI, "multi-decoder", note="one encoder, a decoder per group", paper=("2.35",)),
    )  # fmt: skip


OPTIMAL = "optimal denoiser"


def _table_4(recipe: Recipe) -> Sequence[Arm]:
    """The split by gradient needs trained networks (`plan.gradients_of`): that arm is there where they are given."""
    groups = recipe.plan.groups

    def intervals(cost: str, **more: Any) -> dict[str, Any]:
        return {"plan": {"method": "intervals", "interval_cost": cost, "num_groups": groups, **more}}

    given = recipe.plan.model_dump(mode="json", exclude_defaults=True)
    sizes: dict[str, Any] = {name: given[name] for name in ("num_draws", "num_levels", "seed") if name in given}
    optimal = given if recipe.plan.method == "optimal-denoiser" else {"method": "optimal-denoiser", **sizes}
    arms = [
        Arm(OPTIMAL, "multi-decoder", {"plan": {**optimal, "num_groups": groups}}, paper=("2.35", ".442", ".631")),
        Arm("by timestep", "multi-decoder", intervals("timestep"), paper=("3.12", ".330", ".670")),
        Arm("by SNR", "multi-decoder", intervals("snr"), paper=("2.72", ".348", ".709")),
    ]
    if networks := given.get("gradients_of"):
        by_gradient = intervals("gradient", gradients_of=networks, **sizes)
        arms.append(Arm("by gradient", "multi-decoder", by_gradient, paper=("2.75", ".360", ".660")))
    return arms


def _groups(recipe: Recipe) -> Sequence[Arm]:
    """All plans by the exact dynamic programme, since the two thresholds make three groups only."""
    own = recipe.multi_decoder.decoders
    if own is None:
        raise SettingError("study multistage-groups: multi_decoder.decoders is missing; its widths are spread")
    arms = [Arm("1 group", "base", note="the single network", x=1.0, line="as wide as the single network")]
    for k in GROUPS:
        plan = {"method": "optimal-denoiser", "num_groups": k, "cut": "dynamic-programming"}
        widths = [own[i] for i in np.round(np.linspace(0, len(own) - 1, k)).astype(int)]
        for label, decoders in (("as wide as the single network", [1.0] * k), ("widths as the recipe's", widths)):
            settings = {"plan": plan, "multi_decoder.decoders": decoders}
            note = f"decoders {', '.join(map(str, decoders))}"
            arms.append(Arm(f"{k} groups, {label}", "multi-decoder", settings, note, x=float(k), line=label))
    return arms


STUDIES = (
    Study(
        "multistage-table1",
        "The multi-decoder network against a single one",
        "At equal training images, does one encoder with a decoder per group beat one network?",
        NEEDS + " and schedule vp",
        _table_1,
        SINGLE,
        Paper("Multi-stage framework, Table 1: CIFAR-10", ("FID", "evaluations"), OTHER_SCALE, effect=0.38 / 2.73),
        figures=("differences", "cost"),
    ),
    Study(
        "multistage-evaluations",
        "Quality against evaluations",
        "From 5 to 50 evaluations of the network an image, where is the multi-decoder network better?",
        NEEDS,
        _evaluations,
        _single_at_20,
        Paper("Multi-stage framework: at 20 evaluations 2.73 against 2.35", (), OTHER_SCALE, effect=0.38 / 2.73),
        axis="evaluations an image",
        figures=("axis", "differences"),
    ),
    Study(
        "multistage-table2",
        "Cost to match",
        "What does the multi-decoder network cost to train until it is as good as the single one at its best?",
        NEEDS + " and base.num_snapshots of 3 or more",
        _table_2,
        SINGLE,
        Paper("Multi-stage framework, Table 2: CIFAR-10, DPM-Solver", ("FID", "iterations", "PFLOPs"),
              OTHER_SCALE + " Its PFLOPs are iterations times MACs of one forward pass, without batch and backward.",
              effect=0.38 / 2.73),
        figures=("training", "images", "differences"),
        cost_to_match=True,
    ),
    Study(
        "multistage-table3",
        "Which part helps: separation, early stopping, sizes or the shared encoder",
        "Does sharing the encoder beat separate networks, early stopped, tailored in size, or both?",
        NEEDS,
        _table_3,
        SINGLE,
        Paper("Multi-stage framework, Table 3: CIFAR-10, FID", ("FID",), OTHER_SCALE, effect=0.38 / 2.73),
        figures=("differences", "cost"),
    ),
    Study(
        "multistage-table4",
        "Four ways to cut the noise range",
        "Under the same network, does the optimal denoiser's split beat splits by timestep, SNR or gradient?",
        NEEDS + " (and plan.gradients_of for the split by gradient)",
        _table_4,
        OPTIMAL,
        Paper("Multi-stage framework, Table 4: CIFAR-10, FID, t1, t2", ("FID", "t1", "t2"), OTHER_SCALE,
              effect=0.37 / 2.35),
        figures=("differences", "cost"),
    ),
    Study(
        "multistage-groups",
        "Number of groups",
        "How many groups, from one to five, with decoders all alike or sized as the recipe's?",
        NEEDS,
        _groups,
        "1 group",
        Paper("The multi-stage framework uses three groups and prints no others", (), OTHER_SCALE),
        axis="groups",
        figures=("axis", "differences", "cost"),
    ),
)  # fmt: skip
