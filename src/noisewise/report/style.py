"""How figures look, and how they become SVG: the same colour, marker and dash for a row wherever it appears.

Figures are drawn in fixed colours on a clear ground. Inside the page every one of those colours becomes a CSS variable,
so that one drawing serves light and dark; a file of its own gets a white ground.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from html import escape
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

INK, MUTED, GRID, PAPER, BAND = "#1b1f25", "#5b6471", "#dfe3e8", "#fefefe", "#f0f2f5"
_DARK = {INK: "#e7e9ec", MUTED: "#a3acb8", GRID: "#343a43", PAPER: "#15181c", BAND: "#1e2228"}
_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", BAND: "band"}


@dataclass(frozen=True)
class Style:
    """One row's look: colour on light and on dark ground (at least 3:1 against either), marker, dash."""

    light: str
    dark: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]] = "-"


# The hues of Okabe and Ito, which people with any colour vision tell apart, darkened or lightened to contrast.
STYLES = {
    "base": Style("#6a7380", "#9aa5b3", "s", (0, (1, 1.4))),
    "base-continued": Style("#0069a8", "#56acea", "o"),
    "unpruned": Style("#2b91c9", "#8fd0f5", "^", (0, (5, 1.6))),
    "tdc": Style("#cf5200", "#ff8a3d", "D"),
    "merged": Style("#1c5f6b", "#7fc4d0", "8", (0, (5, 1.6))),
    "uniform": Style("#008a64", "#2cc79a", "v", (0, (5, 1.6))),
    "base-fewer-steps": Style("#b04e87", "#e58dbd", "P", (0, (1, 1.4))),
    "deepcache": Style("#7a4a9e", "#c79be6", "H", (0, (3, 1.2, 1, 1.2))),
    "distilled": Style("#967000", "#e0b030", "X", (0, (3, 1.2, 1, 1.2))),
    "single-stage": Style("#5f54b5", "#aaa0f5", "h", (0, (3, 1.2, 1, 1.2))),
    "multi-decoder": Style("#c01048", "#ff7f9f", "*"),
    "base-same-draws": Style("#4a5a2a", "#a8bd7c", "s", (0, (5, 1.6))),
    "separate": Style("#00808c", "#4cc8d4", "d", (0, (5, 1.6))),
    "separate-early-stopped": Style("#6b7f00", "#bccb45", "<", (0, (3, 1.2, 1, 1.2))),
    "separate-tailored": Style("#8f5bb0", "#cfa0ea", ">", (0, (5, 1.6))),
    "separate-tailored-early-stopped": Style("#a0602a", "#dca775", "p", (0, (3, 1.2, 1, 1.2))),
}
_SPARE = (
    Style("#8a5a3c", "#d0a080", "p", (0, (5, 1.6))),
    Style("#4d7a22", "#9ccc65", "<", (0, (3, 1.2, 1, 1.2))),
    Style("#9c3340", "#f08a95", ">", (0, (1, 1.4))),
)
# Which row a training step belongs to, where its name is not the row's.
ROW_OF = {"finetune": "tdc", "distil": "distilled", "scratch": "single-stage", "joint": "multi-decoder"}
OWN = ("tdc", "multi-decoder")  # a method's own row, drawn over its rivals


def style_of(name: str, others: tuple[str, ...] = ()) -> Style:
    """The look of a row or strategy; names nobody foresaw take the spare looks in the order of ``others``."""
    name = ROW_OF.get(name, name)
    if name in STYLES:
        return STYLES[name]
    unknown = [other for other in others if ROW_OF.get(other, other) not in STYLES]
    return _SPARE[unknown.index(name) % len(_SPARE) if name in unknown else 0]


def variables() -> dict[str, tuple[str, str, str]]:
    """CSS variables of the page: name -> (drawn colour, on light, on dark)."""
    plain = {f"--{name}": (colour, colour, _DARK[colour]) for colour, name in _NAMES.items()}
    plain["--paper"] = (PAPER, "#ffffff", _DARK[PAPER])
    styles = {f"--row-{name}": style for name, style in STYLES.items()}
    styles |= {f"--row-spare-{i}": style for i, style in enumerate(_SPARE)}
    return plain | {name: (style.light, style.light, style.dark) for name, style in styles.items()}


def variable_of(style: Style) -> str:
    """The CSS variable that holds a style's colour."""
    return next(name for name, (drawn, _, _) in variables().items() if drawn == style.light)


_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "figure.facecolor": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.4,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "noisewise",
}


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib's settings for all figures, whatever the user's own are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that draws with `drawing`'s settings."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with drawing():
            return draw(*args, **kwargs)

    return inside


def new_figure(height: float, width: float = 4.4) -> Figure:
    """An empty figure, in inches; its width suits a phone as well as half of a desk's screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def count_axis(axis: Axes, most_ticks: int = 6) -> None:
    """Large counts along x as 20k, 1.5M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_major_locator(MaxNLocator(most_ticks))


def legend_on_top(figure: Figure, axis: Axes, entries: int) -> None:
    """A legend above all panels; none for a single entry."""
    if entries > 1:
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2)


def svg_of(figure: Figure) -> str:
    """The figure as SVG text, the same bytes for the same figure; no date, no clipping by fonts."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with drawing():
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": "noisewise"})
    return text.getvalue()


def standalone_svg(svg: str) -> str:
    """The drawing on a white ground, for a file of its own."""
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return re.sub(r"(<svg [^>]*>)", lambda found: f"{found[1]}\n {ground}", svg, count=1)


def inline_svg(svg: str, name: str, alt: str) -> str:
    """The drawing for the page: colours as CSS variables, the page's font, ids of its own, an accessible name."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for variable, (drawn, _, _) in variables().items():
        svg = svg.replace(drawn, f"var({variable})")
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "var(--sans)", svg)
    referred = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in referred else "", svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", svg)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}" class="chart">'
    svg = re.sub(r"<svg [^>]*>", lambda _: opening, svg, count=1)
    return svg.replace("xlink:href", "href")
