"""Where a study's time went, by kind of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from noisewise.workflow.store import Record, StepSpec, Store

FEATURE_STEPS = ("evaluate", "reference", "floor")
KINDS = {"loss": "held-out losses", "prune": "pruning", "schemes": "pruning", "probe": "training",
         "neighbours": "nearest neighbours", "timing": "sampling",
         "resample": "resampling for the intervals"}  # fmt: skip
SAVING, WAITING = "loading and saving", "starting and waiting"
OVERHEAD = (SAVING, WAITING)  # what no arm asked for


def timing(steps: Sequence[StepSpec], store: Store, commands: Mapping[str, float]) -> dict[str, Any]:
    """Where the time went, by kind, whichever command did the steps; and the share outside the three that must be."""
    spent: dict[str, float] = {"training": 0.0, "sampling": 0.0, "feature extraction and distances": 0.0}
    main = tuple(spent)
    number: dict[str, int] = {}
    for step in steps:
        for kind, seconds in work_of(step, store.record(step)).items():
            spent[kind] = spent.get(kind, 0.0) + seconds
            number[kind] = number.get(kind, 0) + 1
    spent |= {kind: spent.get(kind, 0.0) + seconds for kind, seconds in commands.items()}
    total = sum(spent.values())
    outside = total - sum(spent[kind] for kind in main)
    overhead = sum(seconds for kind, seconds in spent.items() if kind in OVERHEAD)
    return {
        "kinds": [{"kind": kind, "seconds": seconds, "steps": number.get(kind, 0)} for kind, seconds in spent.items()],
        "seconds": total,
        "share_outside": outside / total if total else 0.0,
        "share_overhead": overhead / total if total else 0.0,
    }


def work_of(step: StepSpec, record: Record) -> dict[str, float]:
    """A step's seconds: what its kind of work took, and the rest (loading, saving, checksums)."""
    if step.action in FEATURE_STEPS:
        return {"feature extraction and distances": record.seconds}
    if step.action in KINDS:
        return {KINDS[step.action]: record.seconds}
    own = {"train": ("training", "training_seconds"), "sample": ("sampling", "seconds")}.get(step.action)
    if own is None:
        return {SAVING: record.seconds}
    worked = record.result[own[1]]
    return {own[0]: worked, SAVING: max(0.0, record.all_seconds - worked)}
