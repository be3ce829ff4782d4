"""The figures: each draws columns that `figure_data` made, nothing else. matplotlib loads when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from noisewise.report import figure_data
from noisewise.report.columns import scale_of
from noisewise.report.figure_data import Columns, numbers, select, unique
from noisewise.report.results import Difficulty, GroupOfPlan
from noisewise.report.style import BAND, INK, MUTED, OWN, PAPER, count_axis, legend_on_top, new_figure, style_of, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from noisewise.planning.plan import Plan

_FROM_BASE = ("base-continued", "base-fewer-steps", "deepcache", "unpruned", "tdc", "uniform", "distilled")
_FLOOR_ROOM = 4  # how far below the least measured loss the ideal one is followed
_AXIS_NAMES = {"timestep": "training timestep t", "sigma": "noise level σ", "flow-time": "flow time t"}


def plan_figure(plan: Plan) -> Figure:
    """SNR, cost and cost limit against t, with the plan's groups as bands; of a data set's plan its similarities."""
    if "curves" in plan.settings:
        from noisewise.report.clustering_figures import similarity_figure

        figure = similarity_figure(plan)
        figure.set_facecolor("white")
        return figure
    columns = {name: [float(x) for x in values] for name, values in plan.difficulty().items()}
    difficulty = Difficulty.model_validate(columns)
    groups = [GroupOfPlan(t_start=g.t_start, t_stop=g.t_stop, cost_limit=g.cost_limit) for g in plan.groups]
    figure = difficulty_figure(figure_data.plan_data(difficulty), groups, plan.coordinate)
    figure.set_facecolor("white")  # for a file of its own; the page's own figures have a clear ground
    return figure


def _time_axis(axis: Axes, t: Sequence[float], coordinate: str, named: bool = True) -> None:
    if coordinate == "sigma" and min(t) > 0:
        axis.set_xscale("log")
    axis.set_xlim(min(t), max(t))
    axis.grid(visible=False, axis="x")
    if named:
        axis.set_xlabel(_AXIS_NAMES.get(coordinate, coordinate))
        axis.annotate("data", (0, 0), (0, -21), "axes fraction", "offset points", color=MUTED, fontsize=8.5, va="top")
        axis.annotate("noise", (1, 0), (0, -21), "axes fraction", "offset points", color=MUTED, fontsize=8.5,
                      va="top", ha="right")  # fmt: skip


def _bands(axis: Axes, groups: Sequence[GroupOfPlan], t: Sequence[float], numbered: bool) -> None:
    """Every other group on a darker ground, numbered where there is room."""
    log = axis.get_xscale() == "log"
    low, high = axis.get_xlim()
    filled = [(i, group) for i, group in enumerate(groups) if not group.is_empty]
    for position, (i, group) in enumerate(filled):
        left, right = max(group.t_start, low), min(group.t_stop, high)
        if position % 2:
            axis.axvspan(left, right, color=BAND, lw=0, zorder=-1)
        share = math.log(right / left) / math.log(high / low) if log else (right - left) / (high - low)
        if numbered and share > 0.035:
            middle = math.sqrt(left * right) if log else (left + right) / 2
            axis.annotate(str(i), (middle, 1), (0, 3), ("data", "axes fraction"), "offset points", color=MUTED,
                          fontsize=8.5, ha="center")  # fmt: skip


@styled
def difficulty_figure(data: Columns, groups: Sequence[GroupOfPlan] = (), coordinate: str = "timestep") -> Figure:
    """Above: SNR in dB against t. Below: the cost each timestep deserves and its group's limit."""
    figure = new_figure(3.7)
    above, below = figure.subplots(2, 1, sharex=True)
    t = data["t"]
    for axis in (above, below):
        _time_axis(axis, t, coordinate, named=axis is below)
        _bands(axis, groups, t, numbered=axis is above)
    blue, orange = style_of("base-continued").light, style_of("tdc").light
    above.plot(t, numbers(data["snr_db"]), color=blue)
    above.set_ylabel("SNR, dB")
    if groups:
        above.annotate(
            "group", (0, 1), (-6, 3), "axes fraction", "offset points", color=MUTED, fontsize=8.5, ha="right"
        )
    limits = numbers(data["cost_limit"])
    below.step(t, limits, where="post", color=orange, label="limit of the group")
    if any(cost is not None for cost in data["cost"]):
        below.plot(t, numbers(data["cost"]), color=INK, lw=1, label="of the timestep")
        below.legend(loc="best")
    below.set_ylim(0, max([1.0, *(x for x in limits if x == x)]) * 1.06)
    below.set_ylabel("cost, share of base")
    return figure


def reference_of(rows: Sequence[str]) -> str | None:
    """The row that others are compared with: the base trained on, or the base."""
    return next((name for name in ("base-continued", "base") if name in rows), None)


@styled
def loss_figure(data: Columns, groups: Sequence[GroupOfPlan] = (), coordinate: str = "timestep") -> Figure:
    """Above: held-out loss against t, before and after, and the ideal one. Below: the same as a ratio to the base."""
    rows = [row for row in unique(data["row"]) if row not in ("base-fewer-steps", "deepcache", figure_data.IDEAL)]
    reference = reference_of(rows)
    figure = new_figure(4.3)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.25, 1])
    t = unique(data["t"])
    for axis in (above, below):
        _time_axis(axis, t, coordinate, named=axis is below)
        _bands(axis, groups, t, numbered=axis is above)
    base = numbers(select(data, "row", reference)["loss"]) if reference else []
    for row in rows:
        line, style = select(data, "row", row), style_of(row, tuple(rows))
        look = {"color": style.light, "linestyle": style.dash, "zorder": 4 if row in OWN else 3}
        above.plot(line["t"], numbers(line["loss"]), label=line["label"][0], **look)
        if base:
            ratio = [after / before if before else math.nan for after, before in zip(numbers(line["loss"]), base,
                                                                                    strict=False)]  # fmt: skip
            below.plot(line["t"][: len(ratio)], ratio, **look)
    above.set_yscale("log")
    ideal = select(data, "row", figure_data.IDEAL)
    if ideal["t"]:
        _ideal_line(above, ideal, [x for row in rows for x in select(data, "row", row)["loss"] if x])
    above.set_ylabel("held-out loss")
    below.set_ylabel(f"ratio to\n{select(data, 'row', reference)['label'][0]}" if reference else "ratio")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _ideal_line(axis: Axes, ideal: Columns, measured: Sequence[float]) -> None:
    """The optimal denoiser's loss, which vanishes near the data: followed only a little below what was measured."""
    axis.plot(ideal["t"], numbers(ideal["loss"]), color=MUTED, lw=1.2, ls=(0, (4, 2)), label=ideal["label"][0])
    known = [x for x in ideal["loss"] if x]
    if measured:
        lowest = min(measured) / _FLOOR_ROOM
        axis.set_ylim(bottom=max(lowest, min([*known, min(measured)]) * 0.8))


def _floor(axis: Axes, value: float | None) -> None:
    if value is not None:
        axis.axhline(value, color=MUTED, lw=1, ls=(0, (4, 2)))
        axis.annotate("real against real", (1, value), (0, 3), ("axes fraction", "data"), "offset points", color=MUTED,
                      fontsize=8.5, ha="right")  # fmt: skip


def _from_zero(axis: Axes, values: Sequence[float]) -> None:
    """A y axis from zero (or from the smallest KID below it), with room above."""
    if values:
        low, high = min(0.0, *values), max(values)
        axis.set_ylim(low * 1.1, high + 0.14 * (high - low or 1))


@styled
def cost_figure(data: Columns, floor: float | None = None, kid_floor: float | None = None) -> Figure:
    """Fréchet distance, and KID with its interval, against MACs per image; circle areas grow with the MACs."""
    has_kid = any(value is not None for value in data["kid"])
    figure = new_figure(4.7 if has_kid else 3.1)
    axes = figure.subplots(2 if has_kid else 1, 1, sharex=True, squeeze=False)[:, 0]
    rows, most = data["row"], max(data["macs_per_image"], default=1) or 1
    factor, prefix = scale_of("thousandths", [x for x in data["kid"] if x is not None])
    markers = dict(zip(rows, (style_of(row, tuple(rows)) for row in rows), strict=True))
    for i, row in enumerate(rows):
        macs, colour = data["macs_per_image"][i], markers[row].light
        if data["frechet"][i] is not None:
            axes[0].scatter([macs], [data["frechet"][i]], s=40 + 460 * macs / most, color=colour, alpha=0.35, lw=0)
            axes[0].plot([macs], [data["frechet"][i]], markers[row].marker, color=colour, mec=PAPER, mew=0.6,
                         label=data["label"][i])  # fmt: skip
        if has_kid and data["kid"][i] is not None:
            aside = _aside(figure, axes[1], data["macs_per_image"], i)
            kid, low, high = ((data[name][i] or 0) / factor for name in ("kid", "kid_low", "kid_high"))
            if data["kid_low"][i] is not None and data["kid_high"][i] is not None:
                axes[1].plot([macs, macs], [low, high], color=colour, lw=1.4, solid_capstyle="butt", transform=aside)
            axes[1].plot([macs], [kid], markers[row].marker, color=colour, mec=PAPER, mew=0.6, transform=aside)
    axes[0].set_ylabel("Fréchet distance")
    _floor(axes[0], floor)
    _from_zero(axes[0], [x for x in [*data["frechet"], floor] if x is not None])
    if has_kid:
        axes[1].set_ylabel(f"KID, {prefix}" if prefix else "KID")
        _floor(axes[1], None if kid_floor is None else kid_floor / factor)
        _from_zero(axes[1], [x / factor for x in [*data["kid"], *data["kid_high"], *data["kid_low"]] if x is not None])
    axes[-1].set_xlabel("MACs per image")
    low = min(data["macs_per_image"], default=0)
    room = max(0.25 * (most - low), 0.08 * most)
    axes[-1].set_xlim(max(low - room, 0), most + room)
    count_axis(axes[-1])
    legend_on_top(figure, axes[0], len(rows))
    return figure


def _aside(figure: Figure, axis: Axes, macs: Sequence[float], i: int) -> Any:
    """Rows of (almost) the same cost stand a little apart, so that their intervals can be seen."""
    from matplotlib.transforms import ScaledTranslation

    near = sorted((x, j) for j, x in enumerate(macs) if abs(x - macs[i]) < 0.02 * max(macs))
    position = near.index((macs[i], i)) - (len(near) - 1) / 2
    return axis.transData + ScaledTranslation(position * 7 / 72, 0, figure.dpi_scale_trans)


def _last(data: Columns, strategy: str) -> tuple[float, float] | None:
    """A strategy's last point."""
    line = select(data, "strategy", strategy)
    return (line["training_images"][-1], line["frechet"][-1]) if line["frechet"] else None


@styled
def images_figure(data: Columns, floor: float | None = None) -> Figure:
    """Fréchet distance against training images, one line per strategy; those that go on from the base start there."""
    figure = new_figure(3.1)
    axis = figure.subplots()
    strategies = unique(data["strategy"])
    for name in strategies:
        line, style = select(data, "strategy", name), style_of(name, tuple(strategies))
        start = _last(data, "base") if name in _FROM_BASE else None
        if start and line["training_images"] and start[0] < line["training_images"][0]:
            axis.plot([start[0], line["training_images"][0]], [start[1], line["frechet"][0]], ls=style.dash,
                      color=style.light, lw=1)  # fmt: skip
        axis.plot(line["training_images"], line["frechet"], style.marker, ls=style.dash, color=style.light, mec=PAPER,
                  mew=0.6, label=line["label"][0])  # fmt: skip
    axis.set_ylabel("Fréchet distance")
    axis.set_xlabel("training images")
    axis.set_xlim(left=0)
    _floor(axis, floor)
    _from_zero(axis, [x for x in [*data["frechet"], floor] if x is not None])
    count_axis(axis)
    legend_on_top(figure, axis, len(strategies))
    return figure
