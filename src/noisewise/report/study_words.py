"""What a study says, in words: its answers, the paper beside them, the metric's noise, and the whole as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from noisewise.report.columns import MISSING, decimals_of, format_value, scale_of
from noisewise.report.page_parts import duration, moment, number
from noisewise.report.study_tables import (
    Arm,
    compared_spread,
    decimals_beside_zero,
    difference_of,
    label_against,
    label_of_reference,
    load_study,
    numbers_of,
    study_table,
)

ONE_SEED = "One training seed: the intervals cover the choice of images, not the training's own luck."
ONE_SEED_BARE = "One training seed: nothing is said of the training's own luck."


def answers(results: Mapping[str, Any]) -> list[str]:
    """What each arm's interval says against the reference, then the caveat of a single seed."""
    several = len({arm["against"] for arm in results["arms"]}) > 1
    found = [
        _answer(arm, label_against(results, arm), several) for arm in results["arms"] if arm["difference"] is not None
    ]
    caveat = ONE_SEED if results["metric"] is not None else ONE_SEED_BARE
    return found + ([caveat] if len(results["seeds"]) == 1 else [])


def _answer(arm: Arm, reference: str, several: bool) -> str:
    difference = difference_of(arm)
    numbers = numbers_of(difference)
    decimals = decimals_beside_zero(difference, 1, decimals_of(numbers, 3))
    value, low, high = (format_value(x, 1, decimals) for x in numbers)
    interval = f"{value}, 95 % interval {low} to {high}"
    relation = arm["difference"]["relation"]
    if relation == "no difference shown":
        against = f" from “{reference}”" if several else ""
        return f"{arm['label']}: no difference{against} shown ({interval})."
    return f"{arm['label']}: {relation} than “{reference}” ({interval})."


def headline(results: Mapping[str, Any]) -> str:
    """One sentence: which arms differ from the arm they are compared with."""
    compared = [arm for arm in results["arms"] if arm["difference"] is not None]
    if not compared:
        return f"{results['compared']['title'].capitalize()}: {_values(results)}."
    several = len({arm["against"] for arm in compared}) > 1
    by = {
        relation: [f"“{arm['label']}”" for arm in compared if arm["difference"]["relation"] == relation]
        for relation in ("better", "worse")
    }
    reference = f"“{label_of_reference(results)}”"
    if not any(by.values()):
        said = "no difference is shown" if several else f"no difference from {reference} is shown"
    elif several:
        counts = " and ".join(f"{len(arms)} {relation}" for relation, arms in by.items() if arms)
        said = f"of {len(compared)} arms, {counts} than the arm compared with"
    else:
        said = "; ".join(f"{relation} than {reference}: {', '.join(arms)}" for relation, arms in by.items() if arms)
    if len(results["seeds"]) == 1:
        return f"With one training seed, {said}."
    return f"{said[0].upper()}{said[1:]}."


def paper_lines(results: Mapping[str, Any]) -> list[list[str]]:
    """The paper's numbers beside ours: label, ours, ours relative to the reference, the paper's relative, its columns.

    Relative numbers are of the paper's first column, where the paper has the reference arm.
    """
    arms, lines = results["arms"], []
    for arm in arms:
        if not arm["paper"]:
            continue
        own = next(other for other in arms if other["key"] == arm["against"])
        base = _number_of(own["paper"])
        printed = _number_of(arm["paper"])
        theirs = MISSING if base is None or printed is None else _percent(printed / base - 1)
        mean = compared_spread(results, arm)["mean"]
        ours = _percent(mean / compared_spread(results, own)["mean"] - 1)
        columns = [*arm["paper"], *[MISSING] * (len(results["paper"]["columns"]) - len(arm["paper"]))]
        lines.append([str(arm["label"]), f"{mean:.4g}", ours, theirs, *columns])
    for label, *printed in results["paper"]["others"]:
        lines.append([str(label), MISSING, MISSING, MISSING, *(text or MISSING for text in printed)])
    return lines


def _number_of(printed: Sequence[str]) -> float | None:
    try:
        return float(printed[0])
    except (IndexError, ValueError):
        return None


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %".replace("-", "−")


def noise_sentences(results: Mapping[str, Any]) -> list[str]:
    """The metric's own noise, in words; nothing of a study without images."""
    metric = results["metric"]
    if metric is None:
        return []
    floor = metric["floor"]
    found = [
        f"Real images against real ones score {floor['mean']:.3g} ± {floor['deviation']:.2g} (n = {floor['n']:,} a "
        f"side, {len(floor['values'])} random halves); over {_seeds(results)} two unpaired sets "
        f"of them differ by up to {metric['resolution']:.2g} by chance (95 %). Arms are paired, which can tell less."
    ]
    if twice := metric.get("sampled_twice"):
        once, again = (format_value(distance, 1, decimals_of(twice, 4)) for distance in twice)
        which = f"“{label_of_reference(results)}”"
        found.append(f"One network, {which}, sampled twice with other noise: {once} and {again}.")
    return found


def _seeds(results: Mapping[str, Any]) -> str:
    number = len(results["seeds"])
    return "one seed" if number == 1 else f"{number} seeds"


def match_lines(results: Mapping[str, Any]) -> list[list[str]]:
    """Cost to match: label, seed, the distance to reach, and the training images and MACs when it was reached."""
    known = [line["training_macs"] for line in results["match"] if line["training_macs"]]
    factor, prefix = scale_of("up", known)
    lines = []
    for line in results["match"]:
        reached = line["training_images"] is not None
        images = number(line["training_images"]) if reached else "not reached"
        macs = f"{number(line['training_macs'] / factor, ',.3g')} {prefix} MACs" if reached else MISSING
        lines.append([str(line["label"]), str(line["seed"]), f"{line['best']:.4g}", images, macs])
    return lines


MATCH_HEADS = ("seed", "distance to reach", "training images", "training compute")


def spoken(folder: Path) -> str:
    """What arms are compared by, and answers, for a terminal."""
    results = load_study(folder)
    title = results["compared"]["title"]
    values = f"{title[0].upper()}{title[1:]}: {_values(results)}"
    return "\n".join(dict.fromkeys([values, headline(results), *answers(results)]))


def _values(results: Mapping[str, Any]) -> str:
    return "; ".join(f"{arm['label']}: {compared_spread(results, arm)['mean']:.4g}" for arm in results["arms"])


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
        *(f"## {table['title']}\n\n{table['lead']}\n\n{_grid(table['heads'], table['lines'])}"
          for table in results["tables"]),
        *filter(None, [" ".join(noise_sentences(results))]),
        *(["## Cost to match\n\n" + _grid(["", *MATCH_HEADS], match_lines(results))] if results["match"] else []),
        f"## The paper\n\n{results['paper']['source']}. {results['paper']['limits']}",
        *([_grid(["", "ours", "ours, relative", "the paper's, relative", *results["paper"]["columns"]], paper)]
          if paper else []),
        "## How it was made\n\n" + _made(results),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _made(results: Mapping[str, Any]) -> str:
    data, timing = results["data"], results["timing"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"    {results['command']}\n\n{moment(results['created'])}, {results['machine']}, "
        f"{duration(timing['seconds'])} of steps "
        f"({100 * timing['share_outside']:.1f} % outside training, sampling and feature extraction, "
        f"{100 * timing['share_overhead']:.1f} % loading, saving, starting and waiting); "
        f"{versions}. Seeds {', '.join(map(str, results['seeds']))}; {data['name']}, {data['size']}x{data['size']}, "
        f"{data['num_train']:,} training and {data['num_test']:,} held-out images."
    )


def _grid(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, [":--", *["--:"] * (len(heads) - 1)], *lines]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
