"""A study's folder of results as a page: one HTML file that needs nothing but itself, markdown, and figures as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisewise.files import write_atomic
from noisewise.report import study_figures, study_pruning_figures
from noisewise.report.page_parts import Picture, data_uri, duration, flattened, moment, number
from noisewise.report.study_figures import arm_styles
from noisewise.report.study_tables import compared_spread, load_study, study_table
from noisewise.report.study_words import (
    MATCH_HEADS,
    answers,
    headline,
    markdown,
    match_lines,
    noise_sentences,
    paper_lines,
)
from noisewise.report.style import inline_svg, standalone_svg, svg_of, variable_of, variables

DRAW = {**study_figures.DRAW, **study_pruning_figures.DRAW}
ALT = {**study_figures.ALT, **study_pruning_figures.ALT}
PAGE, MARKDOWN, FIGURES = "study.html", "study.md", "figures"


def write_study(folder: Path) -> Path:
    """Read ``folder/results.json`` and write ``study.html``, ``study.md`` and ``figures/`` beside it.

    Returns:
        The page's path.
    """
    results = load_study(folder)
    (folder / FIGURES).mkdir(exist_ok=True)
    drawings = {}
    for name in _drawn(results):
        svg = svg_of(DRAW[name](results))
        write_atomic(folder / FIGURES / f"{name}.svg", standalone_svg(svg))
        drawings[name] = inline_svg(svg, name, ALT[name])
    write_atomic(folder / MARKDOWN, markdown(results))
    write_atomic(folder / PAGE, render(results, drawings, _pictures(results, folder)))
    return folder / PAGE


def _drawn(results: Mapping[str, Any]) -> list[str]:
    """The study's figures that have something to show."""
    has_differences = any(arm["difference"] is not None for arm in results["arms"])
    return [name for name in results["figures"] if name != "differences" or has_differences]


def _pictures(results: Mapping[str, Any], folder: Path) -> list[Picture]:
    shown = []
    for name, label in [*((arm["key"], arm["label"]) for arm in results["arms"]), ("real", "Real images")]:
        file = folder / "samples" / f"{name}.png"
        if file.is_file():
            note = "" if name != "real" else "of the held-out part"
            shown.append(Picture(label, note, data_uri("image/png", file.read_bytes()), f"Grid of images: {label}"))
    return shown


def render(results: Mapping[str, Any], drawings: Mapping[str, str], grids: list[Picture]) -> str:
    """The page as HTML; all text of the study is escaped."""
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration, "moment": moment}
    light, dark = ("".join(f"{name}:{values[i]};" for name, values in variables().items()) for i in (1, 2))
    return environment.get_template("study.html.jinja").render(
        results=results,
        table=study_table(results),
        headline=headline(results),
        answers=answers(results),
        noise=noise_sentences(results),
        paper=paper_lines(results),
        match=match_lines(results),
        match_heads=MATCH_HEADS,
        drawings={name: Markup(svg) for name, svg in drawings.items()},  # drawn here, its texts escaped
        captions=ALT,
        grids=grids,
        compared={arm["key"]: compared_spread(results, arm)["values"] for arm in results["arms"]},
        keys={key: variable_of(look) for key, look in arm_styles(results).items()},
        overrides=[(arm["label"], flattened(arm["overrides"])) for arm in results["arms"]],
        recipe=yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True, width=88),
        provenance=[] if results["metric"] is None else flattened(results["metric"]["provenance"]),
        light=Markup(light),
        dark=Markup(dark),
    )
