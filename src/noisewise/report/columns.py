"""The columns of the comparison: what each is called, means and looks like. Page, terminal and markdown read only this.

A column has one unit and one number of decimals for all of its rows, so that numbers compare at a glance; the exact
value travels with every cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from noisewise.report.results import Interval, Metric, Results, Row

Scaling = Literal["none", "up", "milli", "thousandths"]
Value = float | Interval | tuple[float, float] | None

MISSING = "–"
_PREFIXES = [(1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")]


@dataclass(frozen=True)
class Column:
    """One column: ``value`` takes it from a row, ``floor`` from two halves of real images."""

    key: str
    section: str
    title: str
    unit: str  # what is counted, e.g. "MACs"; the prefix is chosen for the whole column
    definition: str
    value: Callable[[Row], Value]
    scaling: Scaling = "none"
    digits: int = 3  # significant ones, of the column's largest value
    floor: Callable[[Metric], Value] = lambda metric: None
    is_quality: bool = False  # lower is better, and marked where the intervals can tell


@dataclass(frozen=True)
class Cell:
    """A shown number: its text, the exact value behind it, and whether it is marked as (one of) the best."""

    text: str
    value: Value = None
    marked: bool = False

    @property
    def exact(self) -> str:
        """The value as `results.json` writes it; of an interval the estimate, of a range both ends."""
        if self.value is None:
            return ""
        if isinstance(self.value, Interval):
            return repr(self.value.value)
        return " ".join(map(repr, self.value)) if isinstance(self.value, tuple) else repr(self.value)


@dataclass(frozen=True)
class Line:
    """One row of the table; ``id`` is None for the floor."""

    id: str | None
    label: str
    note: str | None
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """The comparison, ready to print: columns with their units and lines with their cells, in the same order."""

    columns: list[Column]
    units: list[str]
    lines: list[Line]
    footnote: str

    def sections(self) -> Iterator[tuple[str, list[int]]]:
        """Neighbouring columns of one section, by index."""
        names = list(dict.fromkeys(column.section for column in self.columns))
        for name in names:
            yield name, [i for i, column in enumerate(self.columns) if column.section == name]


def _span(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None


def _group_loss(group: int) -> Callable[[Row], Value]:
    return lambda row: row.group_test_loss[group] if group < len(row.group_test_loss) else None


def _class_metric(results: Results) -> str:
    metric = results.classes.metric if results.classes else None
    return "KID" if (metric or "").startswith("kid") else f"Fréchet distance ({metric})"


def define_text_score(encoder: Mapping[str, Any] | None, spread: str) -> str:
    """What the CLIP score is, with its encoder by name and the start of its checksum."""
    name = f"{encoder['encoder']}, {encoder['encoder_sha256'][:8]}" if encoder else "encoder not named"
    return (
        "How well images show the captions they were made of: 100 times the cosine of CLIP's features, 0 where "
        f"negative, mean {spread} ({name}). Higher is better"
    )


def columns_of(results: Results) -> list[Column]:
    """All columns of the comparison; one per group of the plan for the loss."""
    metric = results.metric or Metric()
    n = f"{metric.n:,} images a side" if metric.n else "equal numbers of images"
    columns = [
        Column("frechet", "Quality", "Fréchet distance", "", f"Fréchet distance between the features of "
               f"sampled and real images ({metric.name or 'features not named'}, {n}, all rows and the floor against "
               "the same real images). Lower is better; it depends on n.",
               lambda row: row.frechet, floor=lambda m: m.floor, is_quality=True),
        Column("kid", "Quality", "KID", "", "Kernel distance (KID, unbiased) of the same features, "
               "with its 95 % interval. Lower is better; slightly negative means not told from real images.",
               lambda row: row.kid, "thousandths", floor=lambda m: m.kid_floor, is_quality=True),
        Column("precision", "Coverage", "precision", "", "Share of sampled images that lie among the real ones' "
               "nearest neighbours in feature space (k = 3): how many look real. Higher is better; it depends on n.",
               lambda row: row.precision, floor=lambda m: m.precision),
        Column("recall", "Coverage", "recall", "", "Share of real images that lie among the sampled ones' nearest "
               "neighbours: how much of reality is covered. Higher is better; it depends on n.",
               lambda row: row.recall, floor=lambda m: m.recall),
        Column("class_distance", "Coverage", "by class", "", f"Mean over the classes of the {_class_metric(results)} "
               "between sampled and real images of the class. Lower is better.",
               lambda row: row.class_distance, "thousandths", floor=lambda m: m.class_distance),
        Column("text_score", "Captions", "CLIP score", "", define_text_score(metric.text_encoder, "with its "
               "95 % interval") + "; the last line has the captions' own images.",
               lambda row: row.text_score, floor=lambda m: m.text_score),
        Column("test_loss", "Loss on held-out images", "all t", "", "Mean squared error of the predicted noise on "
               "held-out images over all timesteps, without weighting, on the same draws for every row.",
               lambda row: row.test_loss, "thousandths", digits=4),
    ]  # fmt: skip
    if results.num_groups > 1:
        for i in range(results.num_groups):
            definition = "The same, over the timesteps of each group; group 0 lies nearest the data." if i == 0 else ""
            columns.append(Column(f"group_test_loss.{i}", "Loss on held-out images", f"group {i}", "", definition,
                                  _group_loss(i), "thousandths", digits=4))  # fmt: skip
    columns += [
        Column("macs_per_image", "Cost of an image", "compute", "MACs", "Multiply-accumulates of one image, attention "
               "products included: the sum over the sampling steps of the model that serves each.",
               lambda row: row.macs_per_image, "up"),
        Column("num_inference_steps", "Cost of an image", "steps", "", "Sampling steps of one image.",
               lambda row: row.num_inference_steps),
        Column("seconds_per_image", "Cost of an image", "measured time", "s", "Measured wall-clock time of one image "
               "on the machine named above, in batches.", lambda row: row.seconds_per_image, "milli"),
        Column("active_parameters", "Parameters", "active", "", "Parameters that work at one timestep, smallest to "
               "largest group.", lambda row: _span(row.active_parameters), "up"),
        Column("resident_parameters", "Parameters", "resident", "", "Parameters of all experts together, as they lie "
               "in memory.", lambda row: row.resident_parameters, "up"),
        Column("training_images", "Training", "images", "", "Images seen in training, all stages and groups together.",
               lambda row: row.training_images, "up"),
        Column("training_macs", "Training", "compute", "MACs", "Multiply-accumulates of the training, all stages and "
               "groups together; by convention three times those of the forward passes.",
               lambda row: row.training_macs, "up"),
        Column("paper_flops", "Training", "paper's count", "FLOPs", "The training as the multi-stage paper counts it: "
               "iterations times multiply-accumulates of one forward pass on one image, attention left out.",
               lambda row: row.paper_flops, "up"),
        Column("needed_images", "Training", "images needed", "", "Images seen by the snapshots that early stopping "
               "chose; what the whole trainings saw stands under images.", lambda row: row.needed_images, "up"),
    ]  # fmt: skip
    # of the multi-stage framework's rows, of runs with classes, and what older runs have not measured
    optional = ("paper_flops", "needed_images", "class_distance", "precision", "recall", "text_score")
    return [c for c in columns if c.key not in optional or any(c.value(row) is not None for row in results.rows)]


def parts_of(value: Value) -> list[float]:
    """The numbers that a value is printed with."""
    if value is None:
        return []
    if isinstance(value, Interval):
        return [x for x in (value.value, value.low, value.high) if x is not None]
    return list(value) if isinstance(value, tuple) else [value]


def scale_of(scaling: Scaling, numbers: Sequence[float]) -> tuple[float, str]:
    """The factor that a column's numbers are divided by, and its prefix: 2.5e9 and 3e8 become 2,500 and 300 M."""
    largest = max((abs(x) for x in numbers), default=0.0)
    if scaling == "thousandths":
        return (1e-3, "×10⁻³") if 0 < largest < 1 else (1.0, "")
    if scaling == "milli":
        return (1e-3, "m") if 0 < largest < 1 else (1.0, "")
    if scaling == "up":
        smallest = min((abs(x) for x in numbers if x), default=0.0)
        return next(((factor, prefix) for factor, prefix in _PREFIXES if smallest >= factor), (1.0, ""))
    return 1.0, ""


def decimals_of(numbers: Sequence[float], digits: int) -> int:
    """Decimals that show ``digits`` significant digits of the largest number, one more if small ones need it."""
    sizes = [abs(x) for x in numbers if x]
    if not sizes or all(float(x).is_integer() and abs(x) < 1e4 for x in numbers):
        return 0

    def needed(size: float, digits: int) -> int:
        return digits - 1 - math.floor(math.log10(size))

    enough = max(0, needed(max(sizes), digits))
    return min(max(enough, needed(min(sizes), 2)), enough + 1)


def format_value(value: Value, factor: float, decimals: int) -> str:
    """``12.3``, ``12.3 [11.0, 13.6]`` for an interval, ``12.3–15.6`` for a range of two different ends."""

    def number(x: float) -> str:
        shown = f"{x / factor:,.{decimals}f}"
        return shown.replace("-", "−" if shown.strip("-0.,") else "")  # no minus before a zero

    if value is None:
        return MISSING
    if isinstance(value, Interval):
        known = value.low is not None and value.high is not None
        return number(value.value) + (f" [{number(value.low)}, {number(value.high)}]" if known else "")  # type: ignore[arg-type]
    if isinstance(value, tuple):
        low, high = number(value[0]), number(value[1])
        return low if low == high else f"{low}–{high}"
    return number(value)


def unbeaten(rows: Sequence[Row]) -> set[str]:
    """Rows that no other beats by a KID interval wholly below theirs; none where that leaves every row."""
    known = {row.id: row.kid for row in rows if row.kid and row.kid.low is not None and row.kid.high is not None}
    lowest = min((kid.high for kid in known.values() if kid.high is not None), default=math.inf)
    best = {row_id for row_id, kid in known.items() if kid.low is not None and kid.low <= lowest}
    return best if len(best) < len(known) else set()


def _marks(column: Column, rows: Sequence[Row], best: set[str]) -> set[str]:
    """The rows to mark in a column: ``best``, unless the column's own order contradicts it."""
    if not column.is_quality or not best:
        return set()
    values = {row.id: (parts_of(column.value(row)) or [math.inf])[0] for row in rows}
    inside, outside = [values[i] for i in best], [x for i, x in values.items() if i not in best]
    return best if max(inside) < min(outside, default=math.inf) else set()


def table_of(results: Results) -> Table:
    """The comparison with one line per row and one for real images against real images."""
    rows, columns = results.rows, columns_of(results)
    best = unbeaten(rows)
    pools: dict[tuple[str, ...], list[float]] = {}  # columns of one section and unit share their prefix
    for column in columns:
        numbers = [x for row in rows for x in parts_of(column.value(row))]
        pools.setdefault((column.section, column.unit, column.scaling), []).extend(numbers)
    units: list[str] = []
    cells: list[list[Cell]] = [[] for _ in range(len(rows) + 1)]
    for column in columns:
        floor = column.floor(results.metric) if results.metric else None
        values = [*(column.value(row) for row in rows), floor]
        numbers = [x for value in values for x in parts_of(value)]
        factor, prefix = scale_of(column.scaling, pools[column.section, column.unit, column.scaling])
        decimals = decimals_of([x / factor for x in numbers], column.digits)
        marked = _marks(column, rows, best)
        units.append(f"{prefix} {column.unit}".strip() if column.unit in ("", "MACs") else prefix + column.unit)
        for line, value, row_id in zip(cells, values, [*(row.id for row in rows), None], strict=True):
            line.append(Cell(format_value(value, factor, decimals), value, row_id in marked))
    lines = [Line(row.id, row.name, row.note, line) for row, line in zip(rows, cells, strict=False)]
    lines.append(
        Line(None, "Real against real", "the floor: other real images, same number, same reference", cells[-1])
    )
    return Table(columns, units, lines, _footnote(best, rows))


def _footnote(best: set[str], rows: Sequence[Row]) -> str:
    if best:
        return "Marked: rows that no other row beats by a KID interval wholly below theirs."
    if sum(row.kid is not None for row in rows) > 1:
        return "Nothing is marked as best: the KID intervals do not tell these rows apart."
    return "Nothing is marked as best: there are no intervals to tell rows apart."
