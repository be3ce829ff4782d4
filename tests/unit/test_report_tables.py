"""Columns, number formats, which values are marked, and the comparison as text."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from report_fixture import made_up_results

from noisewise.errors import SettingError
from noisewise.report import markdown_table, parse_results, rich_table, summary_table
from noisewise.report.class_table import class_markdown
from noisewise.report.columns import decimals_of, format_value, scale_of, table_of, unbeaten
from noisewise.report.page_parts import number
from noisewise.report.results import Interval, Row
from noisewise.report.study_tables import decimals_beside_zero
from noisewise.report.study_words import answers
from noisewise.sampling.grids import sample_grid


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return made_up_results()


def row(row_id: str, low: float, high: float) -> Row:
    return Row(id=row_id, kid=Interval(value=(low + high) / 2, low=low, high=high))


def test_best_is_marked_only_where_intervals_tell_rows_apart() -> None:
    assert unbeaten([row("a", 1, 2), row("b", 3, 4)]) == {"a"}
    assert unbeaten([row("a", 1, 3), row("b", 2, 4)]) == set()
    assert unbeaten([row("a", 1, 3), row("b", 2, 4), row("c", 5, 6)]) == {"a", "b"}
    assert unbeaten([Row(id="a"), row("b", 1, 2)]) == set()


def test_a_frechet_distance_that_contradicts_kid_is_not_marked(values: dict[str, Any]) -> None:
    rows = [dict(r, frechet=10.0) if r["id"] == "uniform" else r for r in values["rows"]]
    table = table_of(parse_results(values | {"rows": rows}))
    marked = {(line.id, table.columns[i].key) for line in table.lines for i, c in enumerate(line.cells) if c.marked}

    assert marked == {("tdc", "kid")}


def test_rows_that_cannot_be_told_apart_are_said_to_be(values: dict[str, Any]) -> None:
    kid = {"value": 0.01, "low": 0.0, "high": 0.02}
    results = parse_results(values | {"rows": [dict(r, kid=kid) for r in values["rows"]]})

    assert "*" not in summary_table(results)
    assert "do not tell these rows apart" in summary_table(results)


def test_a_column_has_one_unit_and_one_number_of_decimals() -> None:
    assert scale_of("up", [2.5e9, 3e8]) == (1e6, "M")
    assert scale_of("up", [12.0, 0.0]) == (1.0, "")
    assert scale_of("milli", [0.0131, 0.002]) == (1e-3, "m")
    assert scale_of("milli", [1.2, 0.4]) == (1.0, "")
    assert decimals_of([31.2, 8.1], 3) == 1
    assert decimals_of([0.07716, 0.0769], 4) == 5
    assert decimals_of([50, 41], 3) == 0
    assert decimals_of([1370.4, -0.3], 3) == 1
    assert scale_of("thousandths", [0.0128, -0.0004]) == (1e-3, "×10⁻³")
    assert scale_of("thousandths", [1370.4, 0.1]) == (1.0, "")
    assert format_value(-0.3, 1, 0) == "0"
    assert format_value(Interval(value=-0.0004, low=-0.001, high=0.0002), 1e-3, 1) == "−0.4 [−1.0, 0.2]"
    assert format_value((181e3, 287e3), 1e3, 0) == "181–287"
    assert format_value((287e3, 287e3), 1e3, 0) == "287"
    assert format_value(None, 1, 0) == "–"


@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize("width", [80, 110, 300])
def test_plain_text_is_aligned_and_keeps_to_its_width(values: dict[str, Any], ascii: bool, width: int) -> None:
    text = summary_table(parse_results(values), ascii=ascii, width=width)

    assert text.isascii() == ascii
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line.startswith(("Base", "TDC", "Uniformly", "Real"))]
    assert len(rows) % 7 == 0
    for block in range(0, len(rows), 7):
        assert len({len(line) for line in rows[block : block + 7]}) == 1
    assert "31.2 *" in text


def test_all_texts_show_the_same_cells(values: dict[str, Any]) -> None:
    from rich.console import Console

    results = parse_results(values)
    table = table_of(results)
    console = Console(width=110, file=io.StringIO(), force_terminal=True)
    console.print(rich_table(results))
    rich, plain, markdown = console.file.getvalue(), summary_table(results), markdown_table(results)  # type: ignore[attr-defined]

    for line in table.lines:
        for cell in line.cells:
            assert cell.text in plain
            assert cell.text in markdown
            assert cell.text in rich
    assert "\x1b[1m" in rich
    assert markdown.count("\n|") == len(table.lines) + 1


def test_markdown_survives_bars_and_tags(values: dict[str, Any]) -> None:
    rows = [dict(values["rows"][0], label="a|b <i>")]
    text = markdown_table(parse_results(values | {"rows": rows}), sections=["Quality"])

    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}
    assert "<i>" not in text


def test_names_of_classes_do_not_break_the_table(values: dict[str, Any]) -> None:
    distance = {"value": 1.0, "low": 0.5, "high": 1.5}
    classes = {"names": ["a|b", "<i>"], "metric": "kid_x", "floor": [distance] * 2, "rows": {"tdc": [distance] * 2}}
    text = class_markdown(parse_results(values | {"classes": classes}))

    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}
    assert "<i>" not in text


@pytest.mark.parametrize(
    ("value", "shown"), [(0.6534, "0.6534"), (1437.0, "1,437"), (1437.26, "1,437"), (12345.6, "12,346"), (None, "–")]
)
def test_numbers_of_the_text_are_never_powers_of_ten(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_an_interval_beside_zero_is_seen_to_leave_it_out() -> None:
    beside, around = Interval(value=-0.6, low=-1.2, high=-0.0004), Interval(value=-0.6, low=-1.2, high=0.0004)
    assert [decimals_beside_zero(interval, 1.0, 1) for interval in (beside, around)] == [4, 1]
    assert decimals_beside_zero(Interval(value=-0.6, low=-1.2, high=-0.2), 1.0, 1) == 1
    difference = {"value": -0.6, "low": -1.2, "high": -0.0004, "relation": "better"}
    arms = [{"key": "a", "label": "one", "against": "a", "difference": None},
            {"key": "b", "label": "two", "against": "a", "difference": difference}]  # fmt: skip
    (said,) = answers({"arms": arms, "metric": {}, "seeds": [0, 1]})
    assert said == "two: better than “one” (−0.6000, 95 % interval −1.2000 to −0.0004)."


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_enlarges_without_smoothing(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 8, 8), dtype=np.uint8)

    grid = sample_grid(images, columns=3, scale=4)

    assert grid.size == (3 * 32 + 2 * 4, 2 * 32 + 4)
    pixels = np.asarray(grid)
    tile = pixels[36:68, 36:68]  # the fifth image: second row, second column
    assert (tile[::4, ::4, :channels] == images[4].transpose(1, 2, 0)).all()
    assert (tile.reshape(8, 4, 8, 4, -1) == tile[::4, ::4].reshape(8, 1, 8, 1, -1)).all()
    assert (tile[..., -1] == 255).all()
    assert (pixels[32:36, :, -1] == 0).all()
    assert (pixels[36:, 72:, -1] == 0).all()


def test_a_grid_of_anything_else_is_refused() -> None:
    for images in (np.zeros((2, 8, 8), np.uint8), np.zeros((2, 2, 8, 8), np.uint8), np.zeros((2, 1, 8, 8))):
        with pytest.raises(SettingError, match="sample_grid"):
            sample_grid(images)
