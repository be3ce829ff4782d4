"""The distances class by class as a table: rows of the comparison against classes, real images last."""

from __future__ import annotations

from dataclasses import dataclass

from noisewise.report.columns import MISSING, Cell, Line, decimals_of, format_value, scale_of
from noisewise.report.results import Results
from noisewise.report.tables import escaped


@dataclass(frozen=True)
class ClassTable:
    """``lines`` are empty where nothing was measured; ``why`` then says what is missing."""

    names: list[str]
    title: str
    unit: str
    why: str
    lines: list[Line]


def class_table(results: Results) -> ClassTable | None:
    """None for runs without classes. The best of a class is not marked: intervals are in results.json."""
    found = results.classes
    if found is None:
        return None
    why = f"{found.why[:1].upper()}{found.why[1:]}." if found.why else ""
    if found.metric is None:
        return ClassTable(found.names, "", "", why, [])
    is_kid = found.metric.startswith("kid")
    title = f"{'KID' if is_kid else 'Fréchet distance'} ({found.metric})"
    values = {row.name: found.rows.get(row.id, []) for row in results.rows} | {"Real against real": found.floor}
    numbers = [each.value for line in values.values() for each in line]
    factor, prefix = scale_of("thousandths", numbers)
    decimals = decimals_of([x / factor for x in numbers], 3)
    lines = [
        Line(None, label, None, [Cell(format_value(each.value, factor, decimals), each.value) for each in line])
        for label, line in values.items()
        if line
    ]
    return ClassTable(found.names, title, prefix, why, lines)


def class_markdown(results: Results) -> str:
    """The same as a GitHub table, for documents; empty where nothing was measured."""
    table = class_table(results)
    if table is None or not table.lines:
        return ""
    heads = [f"{table.title}{f', {table.unit}' if table.unit else ''}", *map(escaped, table.names)]
    lines = [f"| {' | '.join(heads)} |", "|:--|" + "--:|" * len(table.names)]
    for line in table.lines:
        cells = " | ".join(cell.text for cell in line.cells) or MISSING
        lines.append(f"| {escaped(line.label)} | {cells} |")
    return "\n".join([*lines, "", table.why]) + "\n"
