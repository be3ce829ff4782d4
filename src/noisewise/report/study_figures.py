"""A study's figures: differences from the reference arm, quality against cost, along an axis, and along training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from noisewise.report.columns import scale_of
from noisewise.report.style import INK, MUTED, PAPER, STYLES, Style, count_axis, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Any]
MANY = 10_000  # along an axis: shown as 10k
_LOOKS = [STYLES[name] for name in STYLES if name != "base"]


def arm_styles(results: Results) -> dict[str, Style]:
    """A look per arm: grey for the reference, the others in their order."""
    others = [arm["key"] for arm in results["arms"] if arm["key"] != results["reference"]]
    return {results["reference"]: STYLES["base"]} | {key: _LOOKS[i % len(_LOOKS)] for i, key in enumerate(others)}


@styled
def differences_figure(results: Results) -> Figure:
    """Each arm's difference from the reference with its interval; small marks are single seeds."""
    arms = [arm for arm in results["arms"] if arm["difference"] is not None]
    by_key = {arm["key"]: arm for arm in results["arms"]}
    references = {arm["against"] for arm in arms}
    looks = arm_styles(results)
    figure = new_figure(0.9 + 0.36 * len(arms), 5.2)
    axis = figure.subplots()
    axis.axvline(0, color=INK, lw=1)
    for y, arm in enumerate(arms):
        found, look = arm["difference"], looks[arm["key"]]
        axis.plot([found["low"], found["high"]], [y, y], color=look.light, lw=1.8, solid_capstyle="butt")
        pairs = zip(arm["frechet"]["values"], by_key[arm["against"]]["frechet"]["values"], strict=True)
        single = [own - other for own, other in pairs]
        if len(single) > 1:
            axis.plot(single, [y + 0.22] * len(single), "|", color=look.light, ms=6, mew=1.2)
        axis.plot([found["value"]], [y], look.marker, color=look.light, mec=PAPER, mew=0.6, ms=6.5)
    axis.set_yticks(range(len(arms)), [arm["label"] for arm in arms])
    axis.tick_params(axis="y", colors=INK, length=0)
    axis.set_ylim(len(arms) - 0.5, -0.6)
    axis.grid(visible=False, axis="y")
    one = f"“{by_key[references.pop()]['label']}”" if len(references) == 1 else "the arm it is compared with"
    axis.set_xlabel(f"Fréchet distance less that of {one}", loc="right")  # long words grow below the labels, not out
    for x, words, side in ((0, "better", "left"), (1, "worse", "right")):
        axis.annotate(words, (x, 1), (0, 3), "axes fraction", "offset points", color=MUTED, fontsize=8.5, ha=side)
    return figure


def _quality(axis: Axes, results: Results, values: Sequence[float]) -> None:
    floor = results["metric"]["floor"]["mean"]
    axis.axhline(floor, color=MUTED, lw=1, ls=(0, (4, 2)))
    axis.annotate("real against real", (1, floor), (0, 3), ("axes fraction", "data"), "offset points", color=MUTED,
                  fontsize=8.5, ha="right")  # fmt: skip
    axis.set_ylim(0, 1.12 * max(*values, floor))
    axis.set_ylabel("Fréchet distance")


def _point(axis: Axes, x: float, arm: Mapping[str, Any], look: Style, label: str | None) -> None:
    """An arm's mean with its spread over seeds."""
    axis.errorbar([x], [arm["frechet"]["mean"]], [arm["frechet"]["deviation"] or 0.0], color=look.light,
                  marker=look.marker, mec=PAPER, mew=0.6, ms=6.5, lw=0, elinewidth=1.3, label=label)  # fmt: skip


@styled
def cost_figure(results: Results) -> Figure:
    """Fréchet distance against MACs per image; bars are standard deviations over seeds."""
    figure, looks = new_figure(3.6), arm_styles(results)
    axis = figure.subplots()
    factor, prefix = scale_of("up", [arm["macs_per_image"]["mean"] for arm in results["arms"]])
    for arm in results["arms"]:
        _point(axis, arm["macs_per_image"]["mean"] / factor, arm, looks[arm["key"]], arm["label"])
    _quality(axis, results, [value for arm in results["arms"] for value in arm["frechet"]["values"]])
    axis.set_xlim(0, 1.08 * max(arm["macs_per_image"]["mean"] for arm in results["arms"]) / factor)
    axis.set_xlabel(f"{prefix} MACs per image".strip())
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _log_ticks(axis: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with a tick at each value."""
    from matplotlib.ticker import EngFormatter, NullLocator

    axis.set_xscale("log")
    axis.set_xticks(values)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


@styled
def axis_figure(results: Results) -> Figure:
    """Fréchet distance along the study's axis, one line per kind of arm; small marks are single seeds."""
    figure = new_figure(3.3)
    axis = figure.subplots()
    placed = [arm for arm in results["arms"] if arm["x"] is not None]
    lines = list(dict.fromkeys(arm["line"] for arm in placed))
    for i, name in enumerate(lines):
        look = STYLES["base"] if i == 0 and len(lines) > 1 else _LOOKS[i]
        arms = sorted((arm for arm in placed if arm["line"] == name), key=lambda arm: arm["x"])
        means = [arm["frechet"]["mean"] for arm in arms]
        axis.plot([arm["x"] for arm in arms], means, color=look.light, ls=look.dash, marker=look.marker, mec=PAPER,
                  mew=0.6, label=name)  # fmt: skip
        for arm in arms:
            values = arm["frechet"]["values"]
            axis.plot([arm["x"]] * len(values), values, "_", color=look.light, ms=5, mew=1)
    _quality(axis, results, [value for arm in placed for value in arm["frechet"]["values"]])
    axis.set_xlabel(results["axis"])
    places = sorted({arm["x"] for arm in placed})
    if results["log_axis"]:
        _log_ticks(axis, places)
    elif places[-1] >= MANY:
        count_axis(axis)
    elif all(x == int(x) for x in places):
        axis.set_xticks([int(x) for x in places])
    if len(lines) > 1:
        figure.legend(loc="outside upper left", ncols=2)
    return figure


@styled
def images_figure(results: Results) -> Figure:
    """Fréchet distance against training images: networks on their way, then the arms; bars are deviations."""
    figure = _along_training(results, "training_images", 1.0)
    count_axis(figure.axes[0])
    figure.axes[0].set_xlabel("training images")
    return figure


@styled
def training_figure(results: Results) -> Figure:
    """Fréchet distance against the training's multiply-accumulates."""
    factor, prefix = scale_of("up", [arm["training_macs"]["mean"] for arm in results["arms"]])
    figure = _along_training(results, "training_macs", factor)
    figure.axes[0].set_xlabel(f"training, {prefix} MACs".replace("  ", " "))
    return figure


def _along_training(results: Results, name: str, factor: float) -> Figure:
    """Mean distance over seeds against ``name``, snapshots joined to the arm they belong to."""
    figure, looks = new_figure(3.6), arm_styles(results)
    axis = figure.subplots()
    by_arm: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for point in results["snapshots"]:
        by_arm.setdefault(point["arm"], {}).setdefault(point["training_images"], []).append(point)
    for arm in results["arms"]:
        points = list(by_arm.get(arm["key"], {}).values())
        mean = arm[name]["mean"] if isinstance(arm[name], Mapping) else arm[name]
        x = [*(points_[0][name] / factor for points_ in points), mean / factor]
        y = [*(sum(p["frechet"] for p in points_) / len(points_) for points_ in points), arm["frechet"]["mean"]]
        look = looks[arm["key"]]
        axis.plot(x, y, color=look.light, ls=look.dash, marker=look.marker, ms=3.5, lw=1.2)
        _point(axis, mean / factor, arm, look, arm["label"])
    values = [value for arm in results["arms"] for value in arm["frechet"]["values"]]
    _quality(axis, results, [*values, *(point["frechet"] for point in results["snapshots"])])
    axis.set_xlim(left=0)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


DRAW = {"differences": differences_figure, "cost": cost_figure, "axis": axis_figure, "images": images_figure,
        "training": training_figure}  # fmt: skip
ALT = {
    "differences": "Each arm's difference of Fréchet distance from the reference arm, with its 95 % interval",
    "cost": "Fréchet distance of each arm against its multiply-accumulates per image",
    "axis": "Fréchet distance along the study's axis",
    "images": "Fréchet distance against the number of training images",
    "training": "Fréchet distance against the multiply-accumulates spent in training",
}
