"""The rows a table may have: their order, what they are called, and what each needs of a recipe."""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["tdc", "single-stage", "multi-decoder"]
RowId = Literal[
    "base", "base-continued", "base-fewer-steps", "deepcache", "unpruned", "uniform",
    "base-same-draws", "separate", "separate-early-stopped", "separate-tailored", "separate-tailored-early-stopped",
    "merged", "single-stage", "tdc", "distilled", "multi-decoder",
]  # fmt: skip
ORDER: tuple[RowId, ...] = get_args(RowId)  # context first, a method's own row after its rivals

NEED_STAGE_2 = ("base-continued", "deepcache", "unpruned", "merged", "uniform", "tdc", "distilled")
SEPARATE = ("separate", "separate-early-stopped", "separate-tailored", "separate-tailored-early-stopped")
NEED_DECODERS = ("multi-decoder", "separate-tailored", "separate-tailored-early-stopped")
FROM_SCRATCH = ("base-same-draws", *SEPARATE)
METHOD_B = ("multi-decoder", *FROM_SCRATCH)

_LABELS: dict[RowId, tuple[str, str]] = {
    "base": ("base, stage 1 alone", "for context: fewer training images than the others"),
    "base-continued": ("base, trained on", "one network for all timesteps, the images of stage 2 included"),
    "base-fewer-steps": ("base, fewer steps", "the base trained on, in as many steps as {rival}'s cost allows"),
    "deepcache": ("base, DeepCache", "the base trained on; deep features are reused over steps, at {rival}'s cost"),
    "unpruned": ("TDC without pruning", "an expert per group, each as large as the base"),
    "merged": ("unpruned, merged", "the unpruned experts folded into one network; weights found on held-out loss"),
    "uniform": ("uniformly pruned", "one pruned network for all timesteps, at {rival}'s cost per image"),
    "tdc": ("TDC", "an expert per group, pruned to the group's cost limit and fine-tuned"),
    "distilled": ("TDC, distilled", "TDC whose fine-tuning also follows the base's predictions"),
    "single-stage": ("single stage", "an expert per group from scratch, at the same total of training images"),
    "base-same-draws": (
        "single network, same draws",
        "one network from scratch that sees noise levels as often as the multi-decoder does",
    ),
    "separate": ("separate networks", "a network like the base per group, from scratch, nothing shared"),
    "separate-early-stopped": ("separate, early stopped", "each group's network at its least held-out loss"),
    "separate-tailored": ("separate, tailored", "the multi-decoder's sizes per group, nothing shared"),
    "separate-tailored-early-stopped": (
        "separate, tailored, early stopped",
        "the multi-decoder's sizes per group, nothing shared, each at its least held-out loss",
    ),
    "multi-decoder": ("multi-decoder", "one encoder for all groups and a decoder for each, trained together"),
}
_ONE_STAGE: dict[RowId, tuple[str, str]] = {
    "base": ("single network", "one network for all timesteps, from scratch"),
    "base-fewer-steps": (
        "single network, equal cost",
        "the single network in as many steps as {rival}'s cost per image allows",
    ),
}


def label_of(row: RowId, method: Method, two_stages: bool) -> tuple[str, str]:
    """What a row is called and a note about it.

    Args:
        two_stages: whether the recipe has a stage 2, so that the base alone saw fewer images than the other rows.
    """
    label, note = _LABELS[row] if two_stages else _ONE_STAGE.get(row, _LABELS[row])
    return label, note.format(rival=_LABELS[method][0])
