"""What each figure shows, as columns of equal length: the CSV beside every SVG, and all that its drawing reads."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import Any

from noisewise.report.results import Difficulty, Results
from noisewise.report.style import ROW_OF

Columns = dict[str, list[Any]]


def csv_of(data: Columns) -> str:
    """Columns as CSV with a header; unknown numbers stay empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(data)
    writer.writerows(zip(*data.values(), strict=True))
    return text.getvalue()


def _columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Columns:
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def plan_data(difficulty: Difficulty | None) -> Columns:
    """SNR, cost and cost limit of every timestep."""
    if difficulty is None:
        return _columns(["t", "snr_db", "cost", "cost_limit"], [])
    cost = difficulty.cost or [None] * len(difficulty.t)
    return {
        "t": list(difficulty.t),
        "snr_db": list(difficulty.snr_db),
        "cost": list(cost),
        "cost_limit": list(difficulty.cost_limit),
    }


IDEAL = "ideal"  # the optimal denoiser among the rows of the loss figure


def loss_data(results: Results) -> Columns:
    """Loss per bin of noise levels, one line per row and bin; the optimal denoiser's at levels of its own, last."""
    bins = results.loss_per_timestep.get("t", [])
    rows = [
        (row_id, results.label(row_id), t, loss)
        for row_id, losses in results.loss_per_timestep.items()
        if row_id != "t"
        for t, loss in zip(bins, losses, strict=False)
    ]
    if rows and results.ideal_loss is not None:
        ideal = zip(results.ideal_loss.t, results.ideal_loss.loss, strict=True)
        rows += [(IDEAL, "optimal denoiser, on training images", t, loss) for t, loss in ideal]
    return _columns(["row", "label", "t", "loss"], rows)


def cost_data(results: Results) -> Columns:
    """Fréchet distance and KID against the cost of an image, for rows that have both."""
    names = ["row", "label", "macs_per_image", "seconds_per_image", "frechet", "kid", "kid_low", "kid_high"]
    rows = [
        (row.id, row.name, row.macs_per_image, row.seconds_per_image, row.frechet,
         *((row.kid.value, row.kid.low, row.kid.high) if row.kid else (None, None, None)))
        for row in results.rows
        if row.macs_per_image is not None and (row.frechet is not None or row.kid is not None)
    ]  # fmt: skip
    return _columns(names, rows)


def images_data(results: Results) -> Columns:
    """Fréchet distance against training images, per strategy in the order trained."""
    points = sorted(
        (p for p in results.quality_against_images if p.frechet is not None), key=lambda p: p.training_images
    )
    strategies = list(dict.fromkeys(p.strategy for p in results.quality_against_images))
    rows = [
        (name, results.label(name), p.training_images, p.frechet)
        for name in strategies
        for p in points
        if p.strategy == name
    ]
    return _columns(["strategy", "label", "training_images", "frechet"], rows)


def widths_data(results: Results) -> Columns:
    """Channels kept per axis and group, in the network's order."""
    experts = [expert for expert in results.widths if expert is not None]
    axes = list(dict.fromkeys(axis for expert in experts for axis in expert.axes))
    rows = [
        (axis, expert.group, *expert.axes[axis], expert.axes[axis][0] / max(expert.axes[axis][1], 1))
        for axis in axes
        for expert in experts
        if axis in expert.axes
    ]
    return _columns(["axis", "group", "kept", "full", "share"], rows)


def bank_data(results: Results) -> Columns:
    """Every candidate of the memory bank, by group and round."""
    candidates = sorted(results.memory_bank, key=lambda c: (c.group, c.round, c.candidate))
    rows = [(c.group, c.round, c.candidate, c.proposer, c.loss, c.cost, c.accepted) for c in candidates]
    return _columns(["group", "round", "candidate", "proposer", "loss", "cost", "accepted"], rows)


def curves_data(results: Results) -> Columns:
    """Training loss against images; a step whose name ends in a number in brackets belongs to that group."""
    rows = []
    for step, points in results.training_curves.items():
        strategy, group = split_step(step)
        label = results.label(ROW_OF.get(strategy, strategy))
        rows += [(step, strategy, label, group, point.images, point.loss) for point in points]
    return _columns(["step", "strategy", "label", "group", "images", "loss"], rows)


def split_step(step: str) -> tuple[str, int | None]:
    """``finetune[3]`` -> ("finetune", 3); ``base`` -> ("base", None)."""
    found = re.fullmatch(r"(.+?)\[(\d+)\]", step)
    return (found[1], int(found[2])) if found else (step, None)


def unique(values: Sequence[Any]) -> list[Any]:
    """The different values in order of first appearance."""
    return list(dict.fromkeys(values))


def select(data: Columns, column: str, value: Any) -> Columns:
    """The lines of ``data`` whose ``column`` is ``value``."""
    kept = [i for i, found in enumerate(data[column]) if found == value]
    return {name: [values[i] for i in kept] for name, values in data.items()}


def numbers(values: Sequence[float | None]) -> list[float]:
    """For drawing: unknown numbers as gaps."""
    return [math.nan if value is None else float(value) for value in values]
