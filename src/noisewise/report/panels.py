"""The figures of pruning and training: widths kept, memory bank, training curves; drawn from columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from noisewise.report.figure_data import Columns, numbers, select, unique
from noisewise.report.style import MUTED, PAPER, count_axis, legend_on_top, new_figure, style_of, styled

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def widths_figure(data: Columns) -> Figure:
    """Share of channels kept, per axis (from the network's input down) and group, with the number kept."""
    from matplotlib.patches import Rectangle

    axes_names, groups = unique(data["axis"]), unique(data["group"])
    figure = new_figure(0.9 + 0.21 * len(axes_names))
    axis = figure.subplots()
    for name, group, kept, full in zip(data["axis"], data["group"], data["kept"], data["full"], strict=True):
        x, y, share = groups.index(group), axes_names.index(name), kept / max(full, 1)
        axis.add_patch(Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, facecolor=_ramp(share), lw=0))
        if len(groups) <= 10:
            axis.text(x + 0.5, y + 0.53, f"{kept}", ha="center", va="center", fontsize=8,
                      color="#fdfdfd" if share > 0.68 else "#10151a")  # fmt: skip
    full = dict(zip(data["axis"], data["full"], strict=True))
    axis.set_xlim(0, len(groups))
    axis.set_ylim(len(axes_names), 0)
    axis.set_xticks([x + 0.5 for x in range(len(groups))], [str(group) for group in groups])
    axis.set_yticks(
        [y + 0.5 for y in range(len(axes_names))], [f"{_short(name)}  {full[name]}" for name in axes_names], fontsize=8
    )
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    axis.set_xlabel("group, from data to noise")
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    return figure


def _short(axis: str) -> str:
    """``down_blocks.0.resnets.1.inner`` as ``down.0.res.1.inner``, for a narrow margin."""
    for long, short in (("_block", ""), ("s.", "."), ("resnet", "res"), ("attention", "attn"), ("sampler", "")):
        axis = axis.replace(long, short)
    return axis


def _ramp(share: float) -> str:
    """From pale to deep blue; legible on light and dark ground, and in grey."""
    pale, deep = (205, 224, 240), (13, 71, 130)
    share = min(max((share - 0.1) / 0.9, 0.0), 1.0)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(pale, deep, strict=True))


def _facets(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Small panels, two beside each other."""
    lines = math.ceil(len(titles) / 2)
    figure = new_figure(0.4 + 1.75 * lines)
    panels = list(figure.subplots(lines, 2, squeeze=False).flat)
    for panel, title in zip(panels, titles, strict=False):
        panel.set_title(title, fontsize=8.5)
    for panel in panels[len(titles) :]:
        panel.set_axis_off()
    return figure, panels


@styled
def bank_figure(data: Columns) -> Figure:
    """Per group: every candidate's loss, each round's mean, and the best so far, against the round."""
    from matplotlib.ticker import MaxNLocator

    groups = unique(data["group"])
    figure, panels = _facets([f"group {group}" for group in groups])
    orange = style_of("tdc").light
    for panel, group in zip(panels, groups, strict=False):
        found = select(data, "group", group)
        candidates = zip(found["round"], found["loss"], found["accepted"], strict=True)
        scored = [(r, x) for r, x, accepted in candidates if x is not None and accepted is not False]
        rounds = unique([r for r, _ in scored])
        by_round = [[x for at, x in scored if at == r] for r in rounds]
        best = list(accumulate((min(losses) for losses in by_round), min))
        panel.plot([r for r, _ in scored], [x for _, x in scored], "o", color=MUTED, ms=3.6, alpha=0.6, mew=0,
                   label="candidate")  # fmt: skip
        means = [sum(losses) / len(losses) for losses in by_round]
        panel.plot(rounds, means, color=MUTED, lw=1, ls=(0, (4, 2)), label="mean of the round")
        panel.plot(rounds, best, color=orange, lw=1.6, label="best so far")
        if scored:
            r, x = min(scored, key=lambda candidate: candidate[1])
            panel.plot([r], [x], "D", color=orange, ms=5, mec=PAPER, mew=0.6, label="chosen")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(4))
        panel.margins(x=0.12, y=0.12)
    figure.supxlabel("round", fontsize=9.5)
    figure.supylabel("loss on the group's fixed draws", fontsize=9.5)
    legend_on_top(figure, panels[0], 4)
    return figure


@styled
def curves_figure(data: Columns) -> Figure:
    """Training loss against images: first the models of all timesteps, then one panel per group."""
    groups = sorted(unique(data["group"]), key=lambda group: -1 if group is None else group)
    figure, panels = _facets(["all timesteps" if group is None else f"group {group}" for group in groups])
    strategies = unique(data["strategy"])
    labels: dict[str, Artist] = {}
    for panel, group in zip(panels, groups, strict=False):
        found = select(data, "group", group)
        for step in unique(found["step"]):
            line = select(found, "step", step)
            name, label = line["strategy"][0], line["label"][0]
            style = style_of(name, tuple(strategies))
            (drawn,) = panel.plot(line["images"], numbers(line["loss"]), color=style.light, lw=1.2, ls=style.dash)
            labels.setdefault(label, drawn)
        _loss_axis(panel, [loss for loss in found["loss"] if loss])
        panel.set_xlim(left=0)
        count_axis(panel, 4)
    figure.supxlabel("images seen in this step", fontsize=9.5)
    figure.supylabel("training loss", fontsize=9.5)
    if len(labels) > 1:
        figure.legend(labels.values(), labels.keys(), loc="outside upper left", ncols=2)
    return figure


def _loss_axis(axis: Axes, losses: Sequence[float]) -> None:
    """A log axis with plain numbers, also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.set_yscale("log")
    wide = bool(losses) and max(losses) > 12 * min(losses)
    axis.yaxis.set_major_locator(LogLocator(numticks=6) if wide else MaxNLocator(4))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axis.yaxis.set_minor_locator(NullLocator())
