"""The report: one HTML page that needs nothing but itself, and the figures beside it as SVG and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.files import write_atomic
from noisewise.report import figure_data, figures, panels
from noisewise.report.class_table import class_table
from noisewise.report.columns import table_of
from noisewise.report.figure_data import Columns, csv_of
from noisewise.report.page_parts import (
    Picture,
    data_uri,
    duration,
    flattened,
    group_lines,
    kinds_of_steps,
    moment,
    number,
    pictures,
    reconstructions,
    route_spans,
    share,
    verdict_of,
    whole_groups,
)
from noisewise.report.results import Results, load_results
from noisewise.report.style import inline_svg, standalone_svg, style_of, svg_of, variable_of, variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """A figure ready for the page; ``alt`` says in words what it shows."""

    name: str
    svg: str
    csv_uri: str
    alt: str


def _described(results: Results) -> list[tuple[str, Columns, Figure | None, str]]:
    """Every figure: name, data, drawing (None where there is nothing to draw), and what it shows in words."""
    metric, groups = results.metric, results.groups
    coordinate = results.plan.coordinate if results.plan else "timestep"
    floor = metric.floor if metric else None
    kid_floor = metric.kid_floor.value if metric and metric.kid_floor else None
    plan, loss = figure_data.plan_data(results.difficulty), figure_data.loss_data(results)
    cost, images = figure_data.cost_data(results), figure_data.images_data(results)
    widths, bank, curves = (
        figure_data.widths_data(results), figure_data.bank_data(results), figure_data.curves_data(results),
    )  # fmt: skip
    draw = [
        ("plan", plan, "t", lambda: figures.difficulty_figure(plan, groups, coordinate),
         f"Signal-to-noise ratio and cost limit against {coordinate}, in {len(groups)} groups"),
        ("loss", loss, "t", lambda: figures.loss_figure(loss, groups, coordinate),
         "Held-out loss per timestep of each model, and its ratio to the base"),
        ("cost", cost, "row", lambda: figures.cost_figure(cost, floor, kid_floor),
         "Fréchet distance and KID of each row against its multiply-accumulates per image"),
        ("images", images, "strategy", lambda: figures.images_figure(images, floor),
         "Fréchet distance against the number of training images, one line per strategy"),
        ("widths", widths, "axis", lambda: panels.widths_figure(widths),
         "Channels kept per layer axis and group, as numbers on a blue scale"),
        ("bank", bank, "group", lambda: panels.bank_figure(bank),
         "Loss of every candidate, the mean of each round and the best so far, per group"),
        ("curves", curves, "step", lambda: panels.curves_figure(curves),
         "Training loss against images seen, per step and group"),
    ]  # fmt: skip
    drawn = [(name, data, make() if data[key] else None, alt) for name, data, key, make, alt in draw]
    return drawn + _similarities(results)


def _similarities(results: Results) -> list[tuple[str, Columns, Figure | None, str]]:
    """Figures of a plan that the optimal denoiser made; they read nothing of it but its settings."""
    from noisewise.report import clustering_figures as clusters

    plan: Any = results.plan
    if plan is None or not plan.settings.get("curves"):
        return []
    found: list[tuple[str, Columns, Figure | None, str]] = [
        ("similarity", clusters.similarity_data(plan.settings), clusters.similarity_figure(plan),
         "Similarity of the optimal denoiser at each noise level to that at either end, and where the groups are cut"),
        ("thresholds", clusters.threshold_data(plan.settings), clusters.threshold_figure(plan),
         "Where the first group ends and the last begins, against the least similarity asked for"),
    ]  # fmt: skip
    return found


def write_figures(results: Results, folder: Path) -> dict[str, Chart]:
    """Write ``<name>.svg`` and ``<name>.csv`` for every figure that has data; the same figures for the page."""
    folder.mkdir(parents=True, exist_ok=True)
    charts = {}
    for name, data, figure, alt in _described(results):
        if figure is None:
            continue
        svg, text = svg_of(figure), csv_of(data)
        write_atomic(folder / f"{name}.svg", standalone_svg(svg))
        write_atomic(folder / f"{name}.csv", text)
        charts[name] = Chart(name, inline_svg(svg, name, alt), data_uri("text/csv;charset=utf-8", text.encode()), alt)
    return charts


def _colours(column: int) -> str:
    """CSS declarations of all colours, on light (1) or dark (2) ground."""
    return "".join(f"{name}:{values[column]};" for name, values in variables().items())


def render(
    results: Results, charts: Mapping[str, Chart], grids: Sequence[Picture], reconstructed: Picture | None = None
) -> str:
    """The page as HTML; all text of the run is escaped."""
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "duration": duration,
        "share": share,
        "moment": moment,
        "breakable": lambda text: Markup(escape(text).replace("_", Markup("_<wbr>"))),
    }
    names = tuple(row.id for row in results.rows)
    known_costs = [step.cost for step in results.routes if step.cost is not None]
    return environment.get_template("page.html.jinja").render(
        results=results,
        table=table_of(results),
        classes=class_table(results),
        verdict=verdict_of(results),
        charts=charts,
        drawings={name: Markup(chart.svg) for name, chart in charts.items()},  # drawn here, its texts escaped
        grids=grids,
        reconstructions=reconstructed,
        keys={name: variable_of(style_of(name, names)) for name in names},
        groups=group_lines(results),
        routes=route_spans(results),
        route_total=sum(known_costs) if results.routes and len(known_costs) == len(results.routes) else None,
        recipe=yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True, width=88) if results.recipe else "",
        provenance=[(row.name, flattened(row.provenance)) for row in results.rows if row.provenance],
        metric_provenance=flattened(results.metric.provenance) if results.metric else [],
        timing=kinds_of_steps(results),
        whole_groups=whole_groups(results),
        seconds=sum(step.seconds or 0 for step in results.timing),
        light=Markup(_colours(1)),
        dark=Markup(_colours(2)),
    )


def write_report(run_folder: Path) -> Path:
    """Read ``run_folder/results.json`` and write ``report.html`` and ``figures/`` beside it.

    Returns:
        The page's path.
    """
    run_folder = Path(run_folder)
    results = load_results(run_folder)
    charts = write_figures(results, run_folder / "figures")
    page = run_folder / "report.html"
    write_atomic(page, render(results, charts, pictures(results, run_folder), reconstructions(results, run_folder)))
    return page
