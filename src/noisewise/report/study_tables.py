"""A study's results as text: the columns of its table, what each difference says, and the markdown page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisewise.files import read_json
from noisewise.report.columns import MISSING, Scaling, decimals_of, format_value, scale_of
from noisewise.report.page_parts import duration, moment
from noisewise.report.results import Interval

Arm = Mapping[str, Any]
Value = Any  # a number, a spread over seeds ({"mean", "deviation"}), an Interval, words, or None
ONE_SEED = "One training seed: the intervals cover the choice of images, not the training's own luck."


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


def _difference(arm: Arm) -> Value:
    found = arm["difference"]
    return None if found is None else Interval(**{key: found[key] for key in ("value", "low", "high")})


def _relation(arm: Arm) -> Value:
    return "reference" if arm["difference"] is None else arm["difference"]["relation"]


def _active(arm: Arm) -> Value:
    known = [count for count in arm["active_parameters"] if count is not None]
    return (min(known), max(known)) if known else None


def _group(i: int) -> Callable[[Arm], Value]:
    return lambda arm: arm["group_test_loss"][i]


def columns_of(results: Mapping[str, Any]) -> list[Column]:
    """All columns; losses by group where all arms have the same groups."""
    metric, reference = results["metric"], label_of_reference(results)
    first = results["arms"][0]["groups"]
    same = len(first) > 1 and all(arm["groups"] == first for arm in results["arms"])
    groups = [
        Column("Loss on held-out images", f"group {i}", "", "The same, by group; group 0 lies nearest the data.",
               _group(i), "thousandths", 4)
        for i in range(len(first)) if same
    ]  # fmt: skip
    return [
        Column("Quality", "Fréchet distance", "", f"{metric['name']}, {metric['n']:,} images a side: mean over seeds "
               "± standard deviation. Lower is better.", lambda arm: arm["frechet"]),
        Column("Quality", "difference", "", f"Fréchet distance less that of “{reference}”, with its 95 % interval: "
               "paired by training seed and by the images' noise, from a bootstrap over seeds and images, at least as "
               "wide as Student's t over the seeds. Below zero is better.", _difference),
        Column("Quality", "says", "", "“no difference shown” where the interval covers zero.", _relation),
        Column("Quality", "KID", "", "Kernel distance of the same features, mean ± deviation over seeds.",
               lambda arm: arm["kid"], "thousandths"),
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


def _numbers(value: Value) -> list[float]:
    if value is None or isinstance(value, str):
        return []
    if isinstance(value, Mapping):
        return [value["mean"], *([value["deviation"]] if value["deviation"] is not None else [])]
    if isinstance(value, Interval):
        return [value.value, value.low or 0.0, value.high or 0.0]
    return list(value) if isinstance(value, tuple) else [value]


def _text(value: Value, factor: float, decimals: int) -> str:
    if isinstance(value, str):
        return value
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
        numbers = [x for value in values for x in _numbers(value)]
        factor, prefix = scale_of(column.scaling, numbers)
        decimals = decimals_of([x / factor for x in numbers], column.digits)
        units.append(f"{prefix} {column.unit}".strip() if column.unit in ("", "MACs") else prefix + column.unit)
        for line, value in zip(texts, values, strict=True):
            line.append(_text(value, factor, decimals))
    return StudyTable(columns, units, list(zip(arms, texts, strict=True)))


def answers(results: Mapping[str, Any]) -> list[str]:
    """What each arm's interval says against the reference, then the caveat of a single seed."""
    reference = label_of_reference(results)
    found = [_answer(arm, reference) for arm in results["arms"] if arm["difference"] is not None]
    return found + ([ONE_SEED] if len(results["seeds"]) == 1 else [])


def _answer(arm: Arm, reference: str) -> str:
    difference = _difference(arm)
    numbers = _numbers(difference)
    value, low, high = (format_value(x, 1, decimals_of(numbers, 3)) for x in numbers)
    interval = f"{value}, 95 % interval {low} to {high}"
    relation = arm["difference"]["relation"]
    if relation == "no difference shown":
        return f"{arm['label']}: no difference shown ({interval})."
    return f"{arm['label']}: {relation} than “{reference}” ({interval})."


def headline(results: Mapping[str, Any]) -> str:
    """One sentence: how many arms differ from the reference, and which."""
    reference = label_of_reference(results)
    by: dict[str, list[str]] = {"better": [], "worse": []}
    for arm in results["arms"]:
        if arm["difference"] is not None and arm["difference"]["relation"] in by:
            by[arm["difference"]["relation"]].append(f"“{arm['label']}”")
    shown = [f"{relation} than “{reference}”: {', '.join(labels)}" for relation, labels in by.items() if labels]
    return f"Shown {'; '.join(shown)}." if shown else f"No difference from “{reference}” is shown."


def paper_lines(results: Mapping[str, Any]) -> list[list[str]]:
    """The paper's numbers beside ours: label, ours, ours relative to the reference, the paper's relative, its columns.

    Relative numbers are of the paper's first column, where the paper has the reference arm.
    """
    arms = results["arms"]
    own = next(arm for arm in arms if arm["key"] == results["reference"])
    base = _number_of(own["paper"])
    lines = []
    for arm in arms:
        if not arm["paper"]:
            continue
        printed = _number_of(arm["paper"])
        theirs = MISSING if base is None or printed is None else _percent(printed / base - 1)
        ours = _percent(arm["frechet"]["mean"] / own["frechet"]["mean"] - 1)
        columns = [*arm["paper"], *[MISSING] * (len(results["paper"]["columns"]) - len(arm["paper"]))]
        lines.append([str(arm["label"]), f"{arm['frechet']['mean']:.4g}", ours, theirs, *columns])
    for label, *printed in results["paper"]["others"]:
        lines.append([str(label), MISSING, MISSING, MISSING, *printed])
    return lines


def _number_of(printed: Sequence[str]) -> float | None:
    try:
        return float(printed[0])
    except (IndexError, ValueError):
        return None


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %".replace("-", "−")


def noise_sentences(results: Mapping[str, Any]) -> list[str]:
    """The metric's own noise, in words."""
    metric = results["metric"]
    floor = metric["floor"]
    found = [
        f"Real images against real ones score {floor['mean']:.3g} ± {floor['deviation']:.2g} (n = {floor['n']:,} a "
        f"side, {len(floor['values'])} random halves); with {_seeds(results)} differences below "
        f"{metric['resolution']:.2g} cannot be told from none, at best."
    ]
    if twice := metric.get("sampled_twice"):
        found.append(
            f"One network, “{label_of_reference(results)}”, sampled twice with other noise: {twice[0]:.4g} and "
            f"{twice[1]:.4g}."
        )
    return found


def _seeds(results: Mapping[str, Any]) -> str:
    number = len(results["seeds"])
    return "one seed" if number == 1 else f"{number} seeds"


def spoken(folder: Path) -> str:
    """Distances and answers for a terminal."""
    results = load_study(folder)
    distances = [f"{arm['label']}: {arm['frechet']['mean']:.4g}" for arm in results["arms"]]
    return "\n".join([f"Fréchet distance: {'; '.join(distances)}", headline(results), *answers(results)])


def markdown(results: Mapping[str, Any]) -> str:
    """`study.md`: the question, the answers, the tables and how they were made."""
    table = study_table(results)
    heads = [
        column.title if column.section == "Quality" else f"{column.section}: {column.title}" for column in table.columns
    ]
    heads = [f"{head}, {unit}" if unit else head for head, unit in zip(heads, table.units, strict=True)]
    lines = [[str(arm["label"]), *texts] for arm, texts in table.lines]
    paper = paper_lines(results)
    parts = [
        f"# {results['title']}",
        results["question"],
        headline(results),
        "\n".join(f"- {answer}" for answer in answers(results)),
        _grid(["", *heads], lines),
        " ".join(noise_sentences(results)),
        f"## The paper\n\n{results['paper']['source']}. {results['paper']['limits']}",
        *([_grid(["", "ours", "ours, relative", "the paper's, relative", *results["paper"]["columns"]], paper)]
          if paper else []),
        "## How it was made\n\n" + _made(results),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _made(results: Mapping[str, Any]) -> str:
    data, timing = results["data"], results["timing"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"    {results['command']}\n\n{moment(results['created'])}, {results['machine']}, "
        f"{duration(timing['seconds'])} of steps "
        f"({100 * timing['share_outside']:.1f} % outside training, sampling and feature extraction); "
        f"{versions}. Seeds {', '.join(map(str, results['seeds']))}; {data['name']}, {data['size']}x{data['size']}, "
        f"{data['num_train']:,} training and {data['num_test']:,} held-out images."
    )


def _grid(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, [":--", *["--:"] * (len(heads) - 1)], *lines]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
