"""Figures of the studies of pruning: candidates round by round, where the time went, what scores predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from noisewise.report.style import MUTED, PAPER, STYLES, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = Mapping[str, Any]
KINDS = ("stage_1", "pruning", "stage_2", "rest")


@styled
def times_figure(results: Results) -> Figure:
    """Seconds of every arm by kind of work, stacked."""
    figure = new_figure(1.3 + 0.5 * len(results["arms"]), 5.2)
    axis = figure.subplots()
    titles = {column["name"]: column["title"] for column in results["columns"]}
    looks = dict(zip(KINDS, ("base", "tdc", "base-continued", "uniform"), strict=True))
    for y, arm in enumerate(results["arms"]):
        left = 0.0
        for kind in KINDS:
            seconds = arm["own"][kind]["mean"]
            axis.barh(y, seconds, 0.6, left, color=STYLES[looks[kind]].light, ec=PAPER, lw=0.5,
                      label=titles[kind] if y == 0 else None)  # fmt: skip
            left += seconds
    axis.set_yticks(range(len(results["arms"])), [arm["label"] for arm in results["arms"]])
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("seconds, mean over seeds")
    figure.legend(loc="outside upper left", ncols=4)
    return figure


@styled
def rounds_figure(results: Results) -> Figure:
    """Best, mean and worst loss of each round, a panel per arm; thin lines are single seeds' best so far."""
    arms = results["arms"]
    columns = 2
    rows = -(-len(arms) // columns)
    figure = new_figure(0.7 + 1.9 * rows, 6.4)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    look = STYLES["base-continued"]
    for axis, arm in zip(axes.flat, arms, strict=False):
        lines = [line for line in results["lists"]["rounds"] if line["arm"] == arm["key"]]
        seeds = sorted({line["seed"] for line in lines})
        numbers = sorted({line["round"] for line in lines})
        mean = {
            name: [_mean([line[name] for line in lines if line["round"] == number]) for number in numbers]
            for name in ("best", "mean", "worst")
        }
        shown = [number + 1 for number in numbers]
        axis.fill_between(
            shown, mean["best"], mean["worst"], color=look.light, alpha=0.18, lw=0, label="best to worst of a round"
        )
        axis.plot(shown, mean["mean"], color=look.light, marker=look.marker, ms=4, label="mean of a round")
        for i, seed in enumerate(seeds):
            own = sorted((line for line in lines if line["seed"] == seed), key=lambda line: line["round"])
            axis.plot(shown, [line["best_so_far"] for line in own], color=STYLES["tdc"].light, lw=0.9,
                      label="best so far, each seed" if i == 0 else None)  # fmt: skip
        axis.set_title(arm["label"])
        axis.set_xticks(shown)
    for axis in axes.flat[len(arms) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("loss right after pruning")
    for axis in axes[-1]:
        axis.set_xlabel("round")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


@styled
def correlations_figure(results: Results) -> Figure:
    """Rank correlation of every score with the loss after fine-tuning, against what a candidate's score costs."""
    figure = new_figure(0.9 + 0.36 * len(results["arms"]), 5.2)
    axis = figure.subplots()
    for y, arm in enumerate(results["arms"]):
        found, look = arm["own"]["interval"], STYLES["base-continued" if arm["difference"] else "tdc"]
        axis.plot([found["low"], found["high"]], [y, y], color=look.light, lw=1.8, solid_capstyle="butt")
        values = arm["own"]["rank_correlation"]["values"]
        if len(values) > 1:
            axis.plot(values, [y + 0.22] * len(values), "|", color=look.light, ms=6, mew=1.2)
        axis.plot([found["value"]], [y], look.marker, color=look.light, mec=PAPER, mew=0.6, ms=6.5)
    axis.axvline(0, color=MUTED, lw=1)
    axis.set_yticks(range(len(results["arms"])), [arm["label"] for arm in results["arms"]])
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlim(right=1.02)
    axis.set_xlabel("rank correlation with the loss after fine-tuning")
    return figure


@styled
def scores_figure(results: Results) -> Figure:
    """Each score against the loss after fine-tuning, a panel per arm, a mark per scheme; colours tell seeds apart."""
    arms = results["arms"]
    columns = 3
    rows = -(-len(arms) // columns)
    figure = new_figure(0.5 + 1.9 * rows, 6.8)
    axes = figure.subplots(rows, columns, squeeze=False)
    looks = [STYLES[name] for name in ("base-continued", "tdc", "uniform", "base-fewer-steps", "distilled")]
    for axis, arm in zip(axes.flat, arms, strict=False):
        for i, seed in enumerate(results["seeds"]):
            points = [p for p in results["lists"]["points"] if p["seed"] == seed and p["arm"] == arm["key"]]
            look = looks[i % len(looks)]
            axis.plot([p["score"] for p in points], [p["loss"] for p in points], look.marker, color=look.light, ms=3)
        axis.set_title(arm["label"], fontsize=8.5)
        axis.locator_params(axis="x", nbins=4)
    for axis in axes.flat[len(arms) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("after fine-tuning")
    figure.supxlabel("score (loss; importance: share lost)", fontsize=9.5)
    return figure


DRAW = {"times": times_figure, "rounds": rounds_figure, "correlations": correlations_figure, "scores": scores_figure}
ALT = {
    "times": "Seconds of each arm by kind of work",
    "rounds": "Best, mean and worst candidate of each round, by proposer",
    "correlations": "Rank correlation of each score with the loss after fine-tuning, with its 95 % interval",
    "scores": "Each random scheme's score against its held-out loss after fine-tuning",
}
