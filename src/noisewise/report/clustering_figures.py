"""Figures of a plan that the optimal denoiser made: similarity per noise level, t1 and t2 against alpha, all pairs.

They draw what ``plan.settings["curves"]`` holds, so that neither images nor the denoiser are needed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.report.figure_data import Columns
from noisewise.report.style import INK, MUTED, new_figure, style_of, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from noisewise.planning.plan import Plan

_AXIS_NAMES = {"timestep": "training timestep t", "sigma": "noise level σ", "flow-time": "flow time t"}
_LABELS = {
    "to_start": "to the denoiser at no noise",
    "to_end": "to the denoiser at the last level",
    "to_mean": "to the data's mean, same level",
    "t1": "t1",
    "t2_end": "t2, against the last level",
    "t2_mean": "t2, against the data's mean",
}
_ROWS = {"start": "base-continued", "t1": "base-continued", "end": "tdc", "mean": "uniform"}


def curves_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The curves in a plan's settings; a plan of another method has none."""
    curves = settings.get("curves")
    if curves is None:
        raise SettingError(
            f"plan.method: {settings.get('method')} has no similarity curves; optimal-denoiser makes them"
        )
    return dict(curves)


def similarity_data(settings: Mapping[str, Any]) -> Columns:
    """Columns of the similarity figure: mean and 95 % band per level and reference."""
    return _columns(curves_of(settings), "t", ("to_start", "to_end", "to_mean"))


def threshold_data(settings: Mapping[str, Any]) -> Columns:
    """Columns of the figure of t1 and t2 against alpha, with 95 % bands."""
    return _columns(curves_of(settings), "alphas", ("t1", "t2_end", "t2_mean"))


def _columns(curves: Mapping[str, Any], along: str, names: tuple[str, ...]) -> Columns:
    columns: Columns = {along.removesuffix("s"): list(curves[along])}
    for name in names:
        band = curves[name]
        columns |= {name: band["estimate"], f"{name}_low": band["low"], f"{name}_high": band["high"]}
    return columns


@styled
def similarity_figure(plan: Plan) -> Figure:
    """Similarity of every noise level to the references, and where the groups are cut."""
    settings = plan.settings
    data, coordinate = similarity_data(settings), curves_of(settings)["coordinate"]
    figure = new_figure(2.9)
    axis = figure.subplots()
    _level_axis(axis, "x", data["t"], coordinate)
    for name in ("to_start", "to_end", "to_mean"):
        _band(axis, data, "t", name)
    for number, bound in enumerate(curves_of(settings)["bounds"], 1):
        axis.axvline(bound, color=MUTED, lw=1, ls=(0, (4, 2)))
        row = -10 if number % 2 else -21  # neighbours take turns, so that close ones stay apart
        axis.annotate(f"t{number} = {bound:.4g}", (bound, 1), (3, row), ("data", "axes fraction"), "offset points",
                      color=INK, fontsize=8.5)  # fmt: skip
    axis.set_ylim(0, 1.25)
    axis.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axis.set_ylabel(f"pixels within η = {settings['eta']:.4f}")
    figure.legend(loc="outside upper left", ncols=1)
    return figure


@styled
def threshold_figure(plan: Plan) -> Figure:
    """t1 and t2 against alpha, for both references, with the bootstrap's bands; the plan's own choice as points."""
    settings = plan.settings
    data, curves = threshold_data(settings), curves_of(settings)
    figure = new_figure(3.1)
    axis = figure.subplots()
    _level_axis(axis, "y", curves["t"], curves["coordinate"])
    for name in ("t1", "t2_end", "t2_mean"):
        _band(axis, data, "alpha", name)
    if "alpha" in settings:
        reference = settings["reference"]
        points = (("t1", "t1"), ("t2", f"t2_{reference}"))
        axis.axvline(settings["alpha"], color=MUTED, lw=1, ls=(0, (4, 2)))
        for value, curve in points:
            axis.plot([settings["alpha"]], [settings[value]], "o", color=_colour(curve), ms=5, zorder=5)
    axis.set_xlim(data["alpha"][0], data["alpha"][-1])
    axis.set_xlabel("least mean similarity α")
    figure.legend(loc="outside upper left", ncols=1)
    return figure


@styled
def pairs_figure(plan: Plan) -> Figure:
    """Similarity of every pair of noise levels, with the groups' bounds; for plans by dynamic programming."""
    curves = curves_of(plan.settings)
    if "pairs" not in curves:
        raise SettingError("plan.cut: threshold keeps no similarities of pairs; dynamic-programming does")
    figure = new_figure(3.6)
    axis = figure.subplots()
    t = curves["t"]
    axis.grid(visible=False)
    mesh = axis.pcolormesh(t, t, curves["pairs"], vmin=0, vmax=1, cmap="viridis", shading="nearest", rasterized=True)
    figure.colorbar(mesh, ax=axis, label="mean similarity")
    for side in ("x", "y"):
        _level_axis(axis, side, t, curves["coordinate"])
    for bound in curves["bounds"]:
        axis.axvline(bound, color="white", lw=1)
        axis.axhline(bound, color="white", lw=1)
    axis.set_aspect("equal" if curves["coordinate"] != "sigma" else "auto")
    return figure


def _colour(name: str) -> str:
    return style_of(_ROWS[name.split("_")[-1]]).light


def _band(axis: Axes, data: Columns, along: str, name: str) -> None:
    style = style_of(_ROWS[name.split("_")[-1]])
    axis.fill_between(data[along], data[f"{name}_low"], data[f"{name}_high"], color=style.light, alpha=0.22, lw=0)
    axis.plot(data[along], data[name], color=style.light, ls=style.dash, label=_LABELS[name])


def _level_axis(axis: Axes, side: str, t: list[float], coordinate: str) -> None:
    """Noise levels along x or y, sigma in its logarithm."""
    name = _AXIS_NAMES.get(coordinate, coordinate)
    if side == "x":
        axis.set_xscale("log" if coordinate == "sigma" else "linear")
        axis.set_xlim(min(t), max(t))
        axis.set_xlabel(name)
    else:
        axis.set_yscale("log" if coordinate == "sigma" else "linear")
        axis.set_ylim(min(t), max(t))
        axis.set_ylabel(name)
