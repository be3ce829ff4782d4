"""A sweep of switch points as a table, a figure and a model card, from the numbers in its `stitch.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.files import write_atomic
from noisewise.report.style import INK, MUTED, PAPER, new_figure, standalone_svg, style_of, styled, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Any]
TABLE, SVG, PNG = "stitch.md", "stitch.svg", "stitch.png"
_HEADS = ("switch at", "small's calls", "MACs/image", "cost", "distance", "KID", "held-out loss")


def write_stitch(folder: Path, results: Results) -> list[Path]:
    """The table (markdown) and the figure (SVG, PNG) beside the numbers."""
    import io

    write_atomic(folder / TABLE, markdown(results))
    write_atomic(folder / SVG, standalone_svg(svg_of(stitch_figure(results))))
    picture, figure = io.BytesIO(), stitch_figure(results)
    figure.set_facecolor("white")
    figure.savefig(picture, format="png", dpi=200)
    write_atomic(folder / PNG, picture.getvalue())
    return [folder / TABLE, folder / SVG, folder / PNG]


def rows(results: Results) -> list[tuple[str, ...]]:
    """One line per switch point, from the large network alone to the small one; ``*``: nothing cheaper is as good."""
    found: list[tuple[str, ...]] = []
    for point in results["points"]:
        kid = point["kid"]
        interval = f" [{kid['low']:.4g}, {kid['high']:.4g}]"
        found.append(
            (
                switch_name(point),
                f"{point['small_calls']} of {results['num_calls']}",
                _si(point["macs_per_image"]),
                f"{point['cost']:.3f}",
                f"{point['frechet']:.2f}" + (" *" if point["best"] else ""),
                f"{kid['value']:.4g}" + interval,
                f"{point['loss']:.5f}",
            )
        )
    return found


def switch_name(point: Mapping[str, Any]) -> str:
    if point["t"] is None:
        return "small alone" if point["small_calls"] else "large alone"
    return f"{point['t']:.6g}"


def text_table(results: Results) -> str:
    """The table for a terminal, and what it says."""
    lines = [_HEADS, *rows(results)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADS))]
    aligned = ["  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([*aligned, *notes(results)])


def notes(results: Results) -> list[str]:
    """What the columns mean and the cheapest point that costs no quality."""
    metric = results["metric"]
    at = "noisy steps" if results["small_at"] == "noise" else "steps nearest the data"
    lines = [
        f"The small network serves the {at}. Distance: {metric['name']}, {metric['n']:,} images a side, real against "
        f"real {metric['floor']:.2f}; * nothing cheaper is as good.",
    ]
    points = results["points"]
    whole = points[0]
    able = [point for point in points[1:] if point["frechet"] <= whole["frechet"]]
    if able:
        least = min(able, key=lambda point: point["macs_per_image"])
        name = switch_name(least)
        where = name if least["t"] is None else f"switching at {name}"
        lines.append(
            f"Cheapest at no larger distance than the large network alone: {where}, {least['cost']:.3f} of its "
            f"cost at {least['frechet']:.2f} against {whole['frechet']:.2f}."
        )
    else:
        lines.append("Every switch point is at a larger distance than the large network alone.")
    if results.get("decode_macs"):
        lines.append(f"Not counted: decoding an image's latents, {_si(results['decode_macs'])} MACs at every point.")
    return lines


def markdown(results: Results) -> str:
    """The table as markdown with its notes."""
    lines = [
        "| " + " | ".join(_HEADS) + " |",
        "|" + "|".join("--:" for _ in _HEADS) + "|",
        *("| " + " | ".join(cells).replace("*", "\\*") + " |" for cells in rows(results)),
        "",
        *(note.replace("*", "\\*") for note in notes(results)),
        "",
    ]
    return "\n".join(lines)


@styled
def stitch_figure(results: Results) -> Figure:
    """Distance and held-out loss against the cost of an image; hollow marks: something cheaper is as good."""
    figure = new_figure(5.2, 5.2)
    above, below = figure.subplots(2, 1, sharex=True)
    points = results["points"]
    colour = style_of("tdc").light
    cost = [point["cost"] for point in points]
    for axis, name in ((above, "frechet"), (below, "loss")):
        values = [point[name] for point in points]
        axis.plot(cost, values, color=colour, lw=1.2, zorder=2)
        for point, x, y in zip(points, cost, values, strict=True):
            hollow = name == "frechet" and not point["best"]
            axis.plot([x], [y], "s" if point["t"] is None else "o", color=colour, mfc=PAPER if hollow else colour,
                      mec=colour, ms=5.5, zorder=3)  # fmt: skip
    _name_points(above, points, "frechet")
    floor = results["metric"]["floor"]
    above.axhline(floor, color=MUTED, lw=1, ls=(0, (4, 2)))
    above.annotate("real against real", (1, floor), (0, 3), ("axes fraction", "data"), "offset points", color=MUTED,
                   fontsize=8.5, ha="right")  # fmt: skip
    above.set_ylim(0, 1.15 * max(floor, *(point["frechet"] for point in points)))
    above.set_ylabel("Fréchet distance")
    below.set_ylabel("held-out loss")
    below.set_xlim(0, 1.08)
    below.set_xlabel("MACs per image, share of the large network's")
    return figure


def _name_points(axis: Axes, points: Sequence[Mapping[str, Any]], name: str) -> None:
    """The switch point beside each mark, on the side where a falling curve leaves room."""
    for point in points:
        last = point["cost"] > 0.9
        beside = (0, -14) if last else (4, 6)
        axis.annotate(switch_name(point), (point["cost"], point[name]), beside, "data", "offset points",
                      color=INK if point["best"] else MUTED, fontsize=8, ha="center" if last else "left")  # fmt: skip


def stitch_card(results: Results, at: float) -> str:
    """The model card of the pipeline that switches at ``at``."""
    import yaml

    front = {"library_name": "diffusers", "tags": ["diffusion", "noisewise"]}
    ends = ("from there on", "below it") if results["small_at"] == "noise" else ("below it", "from there on")
    small, large = (Path(results[name]).name for name in ("small", "large"))
    settings = results["settings"]
    sampler = f"{settings['sample']['scheduler']}, {settings['sample']['num_inference_steps']} steps"
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
            "# Two networks, stitched\n",
            f"One denoiser made of two trained networks. It changes at {results['coordinate']} {at:g}: `{small}` "
            f"serves {ends[0]}, `{large}` {ends[1]}. Nothing was trained for it.\n",
            "```python\nimport noisewise  # the denoiser's class\nfrom diffusers import DiffusionPipeline\n\n"
            'pipe = DiffusionPipeline.from_pretrained("path/to/this/folder")\n```\n',
            "## Measured\n",
            f"{sampler}; seed {settings['sample']['seed']}.\n",
            markdown(results),
            "## Limits\n",
            "- Both networks have to be held in memory.\n"
            "- The table holds for this data, sampler and number of steps; distances compare within it only.",
            f"- Made by `{results['command']}`.\n",
        ]
    )


def _si(value: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.4g} {prefix}"
    return f"{value:.4g}"
