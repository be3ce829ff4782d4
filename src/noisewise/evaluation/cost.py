"""What an image and a training cost: multiply-accumulates (MACs), and seconds.

A forward pass is counted by `noisewise.models.cost.count_macs`; this module adds up forward passes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.planning.plan import Plan

TRAINING_FACTOR = 3  # forward, gradient with respect to activations, gradient with respect to weights


@dataclass(frozen=True)
class ImageCost:
    """MACs of one sampled image."""

    macs: int
    visits: tuple[int, ...]  # forward passes per group
    macs_per_group: tuple[int, ...]  # visits x MACs of the group's expert


def image_cost(
    macs_per_group: Sequence[int | None], plan: Plan, visited: Sequence[float] | np.ndarray, *, guidance: bool = False
) -> ImageCost:
    """Cost of an image: the sum over the visited steps of the routed expert's MACs.

    Args:
        macs_per_group: one forward pass of each group's expert for one image; None for an empty group.
        visited: where the scheduler calls the model, in the plan's coordinate, repeats included (Heun: twice a step).
        guidance: two forward passes a call, as with classifier-free guidance.
    """
    if len(macs_per_group) != len(plan.groups):
        raise SettingError(f"macs_per_group: {len(macs_per_group)} costs for a plan of {len(plan.groups)} groups")
    groups = np.asarray(plan.group_of(np.asarray(visited, dtype=np.float64)))
    visits = np.bincount(groups, minlength=len(plan.groups)) * (2 if guidance else 1)
    parts = []
    for group, (num, macs) in enumerate(zip(visits, macs_per_group, strict=True)):
        if num and macs is None:
            raise SettingError(f"macs_per_group: group {group} serves {num} steps and has no cost")
        parts.append(int(num) * int(macs or 0))
    return ImageCost(sum(parts), tuple(int(num) for num in visits), tuple(parts))


def steps_at_cost(macs_budget: float, macs_per_step: int) -> int:
    """Most steps of one model that cost at most ``macs_budget`` an image, at least one."""
    return max(1, math.floor(macs_budget / macs_per_step + 1e-9))


def training_macs(macs: int, num_images: int, *, teacher_macs: int = 0) -> int:
    """MACs of training on ``num_images``, by convention 3 x a forward pass each (backward costs two).

    Args:
        macs: one forward pass for one image.
        teacher_macs: one forward pass of a teacher, which only runs forward.
    """
    return (TRAINING_FACTOR * macs + teacher_macs) * num_images


@dataclass(frozen=True)
class Latency:
    """Seconds of repeated calls."""

    median: float
    low: float  # quartiles
    high: float
    seconds: tuple[float, ...]


def latency(
    call: Callable[..., Any],
    example_inputs: Mapping[str, Any] | None = None,
    *,
    repeats: int = 5,
    warm_up: int = 1,
) -> Latency:
    """Time a model on its example inputs, or any function; the accelerator finishes before the clock is read."""
    return interleaved_latency({"": call}, example_inputs, repeats=repeats, warm_up=warm_up)[""]


def interleaved_latency(
    calls: Mapping[str, Callable[..., Any]],
    example_inputs: Mapping[str, Any] | None = None,
    *,
    repeats: int = 5,
    warm_up: int = 1,
) -> dict[str, Latency]:
    """Time several calls in turns, so that a machine that slows down slows all of them.

    Args:
        calls: models that take ``example_inputs``, or functions of none.
    """
    if repeats < 1:
        raise SettingError(f"repeats: {repeats} is below 1")
    inputs = dict(example_inputs or {})
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for turn in range(warm_up + repeats):
            for name, call in calls.items():
                _synchronise()
                start = time.perf_counter()
                call(**inputs)
                _synchronise()
                if turn >= warm_up:
                    seconds[name].append(time.perf_counter() - start)
    return {name: _summary(values) for name, values in seconds.items()}


def _summary(seconds: list[float]) -> Latency:
    low, high = np.quantile(seconds, [0.25, 0.75])
    return Latency(statistics.median(seconds), float(low), float(high), tuple(seconds))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
