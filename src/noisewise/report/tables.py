"""The comparison as text: plain for terminals and logs, rich for terminals with colour, markdown for documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from noisewise.report.columns import Table, table_of
from noisewise.report.results import Results

if TYPE_CHECKING:
    from rich.text import Text

_ASCII = str.maketrans({"é": "e", "–": "-", "−": "-", "×": "x", "⁻": "-", "³": "3", "─": "-", "·": ".", "’": "'"})


def to_ascii(text: str) -> str:
    """The same text for terminals that know no more than ASCII; what has no likeness becomes a question mark."""
    text = text.replace("×10⁻³", "1e-3").translate(_ASCII)
    return text.encode("ascii", "replace").decode()


def heading(table: Table, index: int) -> str:
    """A column's title with its unit: ``compute, G MACs``."""
    title, unit = table.columns[index].title, table.units[index]
    return f"{title}, {unit}" if unit else title


def _blocks(table: Table, width: int) -> list[list[int]]:
    """Whole sections of columns beside each other as long as they fit into ``width`` characters."""
    names = max(len(line.label) for line in table.lines)
    blocks: list[list[int]] = []
    room = 0
    for _, indices in table.sections():
        needed = sum(2 + _column_width(table, i) for i in indices)
        if not blocks or needed > room:
            blocks.append([])
            room = width - names
        blocks[-1] += indices
        room -= needed
    return blocks


def _text(table: Table, line: int, column: int) -> str:
    cell = table.lines[line].cells[column]
    return cell.text + " *" if cell.marked else cell.text


def _column_width(table: Table, column: int) -> int:
    cells = [len(_text(table, line, column)) for line in range(len(table.lines))]
    return max(len(table.columns[column].title), len(table.units[column]), *cells)


def _above(table: Table, block: Sequence[int], widths: Sequence[int]) -> str:
    """The sections' names, each over the first of its columns."""
    text, position = "", 0
    starts = {indices[0]: section for section, indices in table.sections()}
    for column, width in zip(block, widths, strict=True):
        if column in starts:
            text = text.ljust(position) + "  " + starts[column]
        position += 2 + width
    return text


def summary_table(results: Results, ascii: bool = False, width: int = 110) -> str:
    """The comparison as aligned plain text of at most about ``width`` characters a line; ``*`` marks the best."""
    table = table_of(results)
    names = max(len(line.label) for line in table.lines)
    lines: list[str] = []
    for block in _blocks(table, width):
        widths = [_column_width(table, column) for column in block]
        lines.append((" " * names + _above(table, block, widths)).rstrip())
        for parts in ([table.columns[i].title for i in block], [table.units[i] for i in block]):
            cells = "".join("  " + part.rjust(w) for part, w in zip(parts, widths, strict=True))
            lines.append((" " * names + cells).rstrip())
        lines.append("─" * (names + sum(widths) + 2 * len(widths)))
        for i, line in enumerate(table.lines):
            shown = "".join("  " + _text(table, i, c).rjust(w) for c, w in zip(block, widths, strict=True))
            lines.append(line.label.ljust(names) + shown)
        lines.append("")
    lines.append(table.footnote)
    text = "\n".join(lines)
    return to_ascii(text) if ascii else text


def rich_table(results: Results, width: int = 110) -> Text:
    """The comparison for `rich`: the plain table, best values bold, headings and the floor dimmed."""
    from rich.text import Text

    text = Text(summary_table(results, width=width), no_wrap=True, overflow="ignore")
    text.highlight_regex(r"\S+( \[[^\]]*\])? \*", "bold")
    text.highlight_regex(r"(?m)^(Real against real .*|  +.*|─+)$", "dim")
    return text


def markdown_table(results: Results, sections: Sequence[str] | None = None) -> str:
    """The comparison as a GitHub table; ``sections`` keeps only those, e.g. ``["Quality", "Training"]``."""
    table = table_of(results)
    kept = [i for section, indices in table.sections() if sections is None or section in sections for i in indices]
    section_of = {i: section for section, indices in table.sections() for i in indices}
    heads = [heading(table, i) if section_of[i] == "Quality" else f"{section_of[i]}: {heading(table, i)}" for i in kept]
    lines = ["| | " + " | ".join(escaped(head) for head in heads) + " |", "|:--|" + "--:|" * len(kept)]
    for line in table.lines:
        cells = [f"**{line.cells[i].text}**" if line.cells[i].marked else line.cells[i].text for i in kept]
        lines.append(f"| {escaped(line.label)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", table.footnote]) + "\n"


def escaped(text: str) -> str:
    """Text that a markdown cell shows as it is."""
    for character in "\\|*_<>`":
        text = text.replace(character, "&lt;" if character == "<" else "\\" + character)
    return text
