"""A study's table: its columns, and each arm's numbers as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisewise.files import read_json
from noisewise.report.columns import Scaling, decimals_of, define_text_score, format_value, scale_of
from noisewise.report.results import Interval

Arm = Mapping[str, Any]
Value = Any  # a number, a spread over seeds ({"mean", "deviation"}), an Interval, words, or None


@dataclass(frozen=True)
class Column:
    """One column of a study's table; numbers share a unit and decimals."""

    section: str
    title: str
    unit: str
    definition: str
    value: Callable[[Arm], Value]
    scaling: Scaling = "none"
    digits: int = 3


@dataclass(frozen=True)
class StudyTable:
    """The table ready to print: for each arm its cells' texts."""

    columns: list[Column]
    units: list[str]
    lines: list[tuple[Arm, list[str]]]

    def sections(self) -> Iterator[tuple[str, int]]:
        """Neighbouring columns of one section: its name and their number."""
        for name in dict.fromkeys(column.section for column in self.columns):
            yield name, sum(column.section == name for column in self.columns)


def load_study(folder: Path) -> dict[str, Any]:
    """Numbers of a finished study's folder."""
    return dict(read_json(folder / "results.json", "study"))


def label_of_reference(results: Mapping[str, Any]) -> str:
    return next(str(arm["label"]) for arm in results["arms"] if arm["key"] == results["reference"])


def label_against(results: Mapping[str, Any], arm: Arm) -> str:
    """Label of the arm that one is compared with."""
    return next(str(other["label"]) for other in results["arms"] if other["key"] == arm["against"])


def difference_of(arm: Arm) -> Value:
    found = arm["difference"]
    return None if found is None else Interval(**{key: found[key] for key in ("value", "low", "high")})


def _relation(arm: Arm) -> Value:
    return "reference" if arm["difference"] is None else arm["difference"]["relation"]


def _active(arm: Arm) -> Value:
    known = [count for count in arm["active_parameters"] if count is not None]
    return (min(known), max(known)) if known else None


def _group(i: int) -> Callable[[Arm], Value]:
    return lambda arm: arm["group_test_loss"][i]


def compared_spread(results: Mapping[str, Any], arm: Arm) -> Mapping[str, Any]:
    """What arms are compared by, over seeds: {"mean", "deviation", "values"}."""
    name = results["compared"]["name"]
    found: Mapping[str, Any] = arm[name] if name in arm else arm["own"][name]
    return found


def _own(name: str) -> Callable[[Arm], Value]:
    def value(arm: Arm) -> Value:
        found = arm["own"][name]
        return Interval(**found) if isinstance(found, Mapping) and "low" in found else found

    return value


def own_columns(results: Mapping[str, Any]) -> list[Column]:
    """Columns that one study alone has."""
    return [
        Column(own["section"], own["title"], own["unit"], own["definition"], _own(own["name"]), own["scaling"],
               own["digits"])
        for own in results["columns"]
    ]  # fmt: skip


def _beside(columns: list[Column], more: list[Column], before: str) -> list[Column]:
    """Both, sections whole: a column joins its section, or a new one that stands before section ``before``."""
    for column in more:
        known = [i for i, other in enumerate(columns) if other.section == column.section]
        first = next(i for i, other in enumerate(columns) if other.section == before)
        columns = [*columns[: (at := known[-1] + 1 if known else first)], column, *columns[at:]]
    return columns


def columns_of(results: Mapping[str, Any]) -> list[Column]:
    """All columns of the table."""
    own = own_columns(results)
    if results["metric"] is not None:
        return _beside(_sampled_columns(results), own, "Cost of an image")
    if not any(arm["difference"] for arm in results["arms"]):
        return own
    better = "above" if results["compared"]["higher_is_better"] else "below"
    title = results["compared"]["title"]
    return [
        *own,
        Column("Comparison", "difference", "", f"{title[0].upper()}{title[1:]} less that of {_against(results)}, with "
               f"its 95 % interval. {better.capitalize()} zero is better.", difference_of),
        Column("Comparison", "says", "", "“no difference shown” where the interval covers zero.", _relation),
    ]  # fmt: skip


def _against(results: Mapping[str, Any]) -> str:
    references = {label_against(results, arm) for arm in results["arms"]}
    return f"“{references.pop()}”" if len(references) == 1 else "the arm it is compared with"


def _sampled_columns(results: Mapping[str, Any]) -> list[Column]:
    """Columns of a study of images; losses by group where all arms have the same groups."""
    metric, against = results["metric"], _against(results)
    first = results["arms"][0]["groups"]
    same = len(first) > 1 and all(arm["groups"] == first for arm in results["arms"])
    groups = [
        Column("Loss on held-out images", f"group {i}", "", "The same, by group; group 0 lies nearest the data.",
               _group(i), "thousandths", 4)
        for i in range(len(first)) if same
    ]  # fmt: skip
    captions = []
    if "text_score" in metric:
        meaning = define_text_score(metric["text_encoder"], "over seeds ± standard deviation")
        own = f"the captions' own images: {metric['text_score']['value']:.2f}"
        captions = [Column("Captions", "CLIP score", "", f"{meaning}; {own}.", lambda arm: arm["text_score"])]
    return [
        Column("Quality", "Fréchet distance", "", f"{metric['name']}, {metric['n']:,} images a side: mean over seeds "
               "± standard deviation. Lower is better.", lambda arm: arm["frechet"]),
        Column("Quality", "difference", "", f"Fréchet distance less that of {against}, with its 95 % interval: "
               "paired by training seed and by the images' noise, from a bootstrap over seeds and images, at least as "
               "wide as Student's t over the seeds. Below zero is better.", difference_of),
        Column("Quality", "says", "", "“no difference shown” where the interval covers zero.", _relation),
        Column("Quality", "KID", "", "Kernel distance of the same features, mean ± deviation over seeds.",
               lambda arm: arm["kid"], "thousandths"),
        *captions,
        Column("Loss on held-out images", "all t", "", "Held-out loss of the predicted noise, mean ± deviation over "
               "seeds, on the same draws for all arms of a seed.", lambda arm: arm["test_loss"], "thousandths", 4),
        *groups,
        Column("Cost of an image", "compute", "MACs", "Multiply-accumulates of one image, attention included.",
               lambda arm: arm["macs_per_image"]["mean"], "up"),
        Column("Cost of an image", "steps", "", "Sampling steps.", lambda arm: arm["num_inference_steps"]),
        Column("Cost of an image", "measured time", "s", "Seconds of one image on this machine, arms in turns.",
               lambda arm: arm["seconds_per_image"], "milli"),
        Column("Parameters", "active", "", "At one timestep, smallest to largest group.", _active, "up"),
        Column("Parameters", "resident", "", "All experts together.", lambda arm: arm["resident_parameters"], "up"),
        Column("Training", "images", "", "Training images, all stages and groups together.",
               lambda arm: arm["training_images"], "up"),
        Column("Training", "compute", "MACs", "Multiply-accumulates of the training.",
               lambda arm: arm["training_macs"]["mean"], "up"),
        Column("Memorisation", "near copies", "%", "Samples nearer to a training image than all but 1 % of held-out "
               "images are: about 1 % without memorisation.", lambda arm: 100 * arm["near_copies"]["mean"]),
        Column("Memorisation", "distance", "", "Median distance to the nearest training image, in pixels' levels, as "
               "a ratio to that of held-out images: 1 is healthy, well below 1 is copying.",
               lambda arm: arm["neighbour_distance"]["mean"] / arm["neighbour_distance_held_out"]["mean"]),
    ]  # fmt: skip


def numbers_of(value: Value) -> list[float]:
    if value is None or isinstance(value, str):
        return []
    if isinstance(value, Mapping):
        return [value["mean"], *([value["deviation"]] if value["deviation"] is not None else [])]
    if isinstance(value, Interval):
        return [value.value, value.low or 0.0, value.high or 0.0]
    return list(value) if isinstance(value, tuple) else [value]


def decimals_beside_zero(interval: Interval, factor: float, decimals: int) -> int:
    """Decimals that keep an interval's end from looking like 0 where the interval leaves 0 out."""
    if interval.low is None or interval.high is None or interval.low <= 0 <= interval.high:
        return decimals
    near = min(abs(interval.low), abs(interval.high)) / factor
    return next((more for more in range(decimals, decimals + 12) if round(near, more)), decimals)


def _text(value: Value, factor: float, decimals: int) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Interval):
        decimals = decimals_beside_zero(value, factor, decimals)
    if isinstance(value, Mapping):
        mean = format_value(value["mean"], factor, decimals)
        deviation = value["deviation"]
        return mean if deviation is None else f"{mean} ± {format_value(deviation, factor, decimals)}"
    return format_value(value, factor, decimals)


def study_table(results: Mapping[str, Any]) -> StudyTable:
    """The comparison of all arms."""
    columns, arms = columns_of(results), results["arms"]
    units, texts = [], [[] for _ in arms]  # type: tuple[list[str], list[list[str]]]
    for column in columns:
        values = [column.value(arm) for arm in arms]
        numbers = [x for value in values for x in numbers_of(value)]
        factor, prefix = scale_of(column.scaling, numbers)
        decimals = decimals_of([x / factor for x in numbers], column.digits)
        units.append(f"{prefix} {column.unit}".strip() if column.unit in ("", "MACs") else prefix + column.unit)
        for line, value in zip(texts, values, strict=True):
            line.append(_text(value, factor, decimals))
    return StudyTable(columns, units, list(zip(arms, texts, strict=True)))
