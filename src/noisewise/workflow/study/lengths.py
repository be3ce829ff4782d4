"""How much training specialists need: TDC training, arXiv:2312.13307, Fig. 3, and a curve over the base's length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from noisewise.workflow.foundation import num_trained_groups
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.study.definition import Arm, Paper, Study
from noisewise.workflow.study.tdc import NEEDS, OTHER_SCALE, check_stage_2

BASE_SHARES = (1 / 8, 1 / 4, 1 / 2, 1, 2)  # of base.num_images
STAGE_2_SHARES = (1 / 4, 1 / 2, 1, 2)  # of finetune.num_images
CONTINUED, EXPERTS, PRUNED = "base, trained on", "an expert per group", "TDC"


def _base_lengths(recipe: Recipe) -> Sequence[Arm]:
    check_stage_2(recipe)
    arms = []
    for share in BASE_SHARES:
        images = _base_images(recipe, share)
        overrides: dict[str, Any] = {} if share == 1 else {"base.num_images": images, "base.num_snapshots": 0}
        continued = f"{CONTINUED}, {images:,}"
        for line, row in (("base alone", "base"), (CONTINUED, "base-continued"), (EXPERTS, "unpruned")):
            arms.append(
                Arm(f"{line}, {images:,}", row, overrides, _NOTES[row], x=float(images), line=line, against=continued)
            )
    return arms


_NOTES = {
    "base": "fewer images than the others",
    "base-continued": "one network for all timesteps, the images of stage 2 included",
    "unpruned": "each as large as the base, the same images of stage 2",
}


def _base_images(recipe: Recipe, share: float) -> int:
    return max(1, round(share * recipe.base.num_images))


def _figure_3(recipe: Recipe) -> Sequence[Arm]:
    check_stage_2(recipe)
    arms = [Arm("base alone", "base", x=float(recipe.base.num_images), line=CONTINUED)]
    (groups,) = num_trained_groups(recipe, recipe.plan.groups)
    for share in STAGE_2_SHARES:
        per_group = max(1, round(share * recipe.stage_2.num_images))
        total = recipe.base.num_images + per_group * groups
        continued = f"{CONTINUED}, {share:g}x"
        for line, row in ((CONTINUED, "base-continued"), (EXPERTS, "unpruned"), (PRUNED, "tdc")):
            overrides = {} if share == 1 else {"finetune.num_images": per_group}
            arms.append(
                Arm(f"{line}, {share:g}x", row, overrides, "of the recipe's stage 2", x=float(total), line=line,
                    against=continued)
            )  # fmt: skip
    return arms


STUDIES = (
    Study(
        "tdc-base-length",
        "How long the base must be",
        "From which length of the base on do specialists pay, against training the base on for as many images?",
        NEEDS,
        _base_lengths,
        lambda recipe: f"{CONTINUED}, {recipe.base.num_images:,}",
        Paper("TDC starts from a long base (200k of 280k steps on CIFAR-10) and shows no other", (), OTHER_SCALE),
        axis="images of stage 1",
        figures=("axis", "differences"),
        log_axis=True,
    ),
    Study(
        "tdc-figure3",
        "Quality against training images",
        "Which strategy makes the most of further training images?",
        NEEDS,
        _figure_3,
        f"{CONTINUED}, 1x",
        Paper("TDC, Fig. 3, draws FID against training steps per strategy and prints no numbers", (), OTHER_SCALE),
        axis="training images, both stages",
        figures=("axis", "differences"),
    ),
)
