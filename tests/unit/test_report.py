"""The page: complete, self-contained, true to results.json, and whole however little a run holds."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_fixture import made_up_results, write_run

from noisewise.errors import SettingError
from noisewise.report import load_results, model_card, write_card, write_report

SECTIONS = ["verdict", "table", "samples", "plan", "loss", "cost", "images", "widths", "bank", "curves", "routes",
            "timing", "made"]  # fmt: skip
FIGURES = ["bank", "cost", "curves", "images", "loss", "plan", "widths"]
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: ids, links, the comparison's cells, text, and tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.cells: dict[str, list[str | None]] = {}
        self.images: list[dict[str, str | None]] = []
        self.drawings: list[dict[str, str | None]] = []
        self.scripts = 0
        self.open: list[str] = []
        self.text = ""
        self._row: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[name] or "" for name in ("src", "href", "xlink:href", "action") if name in values]
        self.scripts += tag == "script"
        if tag == "img":
            self.images.append(values)
        if tag == "svg":
            self.drawings.append(values)
        if tag == "tr" and "data-row" in values:
            self._row = values["data-row"] or ""
            self.cells[self._row] = []
        if tag == "td" and self._row is not None:
            self.cells[self._row].append(values.get("data-value"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        if tag == "tr":
            self._row = None

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("report") / "run", made_up_results())
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def html(run_folder: Path) -> str:
    return (run_folder / "report.html").read_text(encoding="utf-8")


def test_every_section_is_there_once_and_in_order(html: str) -> None:
    page = Page(html)

    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert [f"figure-{name}" in page.ids for name in FIGURES] == [True] * len(FIGURES)


def test_nothing_is_fetched_from_anywhere(html: str) -> None:
    page = Page(html)

    assert page.scripts == 0
    for link in page.links:
        assert link.startswith(("data:", "#")), link[:80]
        assert not link.startswith("#") or link[1:] in page.ids, f"{link} points nowhere"
    assert "@import" not in html
    assert [found for found in re.findall(r"url\(([^)]*)\)", html) if not found.startswith("#")] == []


def test_pictures_and_figures_say_what_they_show(html: str, run_folder: Path) -> None:
    page, results = Page(html), load_results(run_folder)

    assert len(page.images) == len(results.rows) + 1
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in page.images)  # type: ignore[union-attr]
    assert len(page.drawings) == len(FIGURES)
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.drawings)


def test_the_table_holds_the_numbers_of_the_results(html: str) -> None:
    values, page = made_up_results(), Page(html)

    for row in values["rows"]:
        active = row["active_parameters"]
        expected = [
            row["frechet"], row["kid"]["value"], row["test_loss"], *row["group_test_loss"], row["macs_per_image"],
            row["num_inference_steps"], row["seconds_per_image"], (min(active), max(active)),
            row["resident_parameters"], row["training_images"], row["training_macs"],
        ]  # fmt: skip
        shown = [tuple(map(float, cell.split())) for cell in page.cells[row["id"]] if cell]
        assert [cell if len(cell) > 1 else cell[0] for cell in shown] == expected
    floor = page.cells["floor"]
    assert floor[:3] == [repr(values["metric"]["floor"]), repr(values["metric"]["kid_floor"]["value"]), None]


def test_colours_come_from_variables_that_exist_for_light_and_dark(html: str) -> None:
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    light, dark = re.findall(r":root \{ (--ink[^}]*) \}", html)

    for name in used - {"--sans", "--mono"}:
        assert f"{name}:" in light, name
        assert f"{name}:" in dark, name
    assert light != dark


def test_figures_lie_beside_the_page_with_their_data(run_folder: Path) -> None:
    values = made_up_results()
    for name in FIGURES:
        svg = (run_folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert "<svg" in svg
        assert "<dc:date>" not in svg
    with (run_folder / "figures" / "cost.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == [row["id"] for row in values["rows"]]
    assert [float(line["frechet"]) for line in lines] == [row["frechet"] for row in values["rows"]]


def test_the_same_results_give_the_same_bytes(run_folder: Path, html: str) -> None:
    figures = {path.name: path.read_bytes() for path in (run_folder / "figures").iterdir()}

    write_report(run_folder)

    assert (run_folder / "report.html").read_text(encoding="utf-8") == html
    assert {path.name: path.read_bytes() for path in (run_folder / "figures").iterdir()} == figures


def test_text_of_the_run_cannot_become_markup(tmp_path: Path) -> None:
    hostile = '<script>alert("x")</script>'
    values = made_up_results()
    values |= {"name": hostile, "verdict": hostile, "warnings": [hostile], "command": hostile, "machine": hostile}
    values["recipe"] = {"name": hostile, hostile: 1}
    values["rows"][0] |= {"label": hostile, "note": hostile, "provenance": {hostile: {hostile: hostile}}}
    values["training_curves"] = {hostile: [{"images": 1, "loss": 0.1}, {"images": 2, "loss": 0.1}]}
    values["plan"]["notes"] = [hostile]
    folder = write_run(tmp_path / "run", values)

    html = write_report(folder).read_text(encoding="utf-8")

    page = Page(html)
    assert page.scripts == 0
    assert page.open == []
    assert page.text.count(hostile) >= 10


OPTIONAL = sorted(set(made_up_results()) - {"format"})


@pytest.mark.parametrize("absent", [[], ["rows", "metric"], ["metric"], ["plan"], ["difficulty"]], ids=str)
def test_what_is_missing_leaves_a_sentence(tmp_path: Path, absent: list[str]) -> None:
    values = made_up_results()
    values |= dict.fromkeys(absent or OPTIONAL, None)
    values["name"] = "run"
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(values))

    html = write_report(folder).read_text(encoding="utf-8")

    page = Page(html)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    if not absent:
        assert html.count('class="missing"') == len(SECTIONS) - 1  # the verdict has a sentence of its own
        assert list((folder / "figures").iterdir()) == []


def test_holes_inside_the_parts_do_no_harm(tmp_path: Path) -> None:
    values = made_up_results()
    for row in values["rows"]:
        row |= dict.fromkeys(set(row) - {"id", "frechet", "group_test_loss", "macs_per_image"})
        row["group_test_loss"] = [None, 0.1, None, None]
    values["loss_per_timestep"]["tdc"] = [None] * 40
    values["memory_bank"] = [dict(c, loss=None, accepted=False) for c in values["memory_bank"]]
    values["training_curves"] = {"base": [{"images": 10, "loss": None}], "finetune[0]": []}
    values["widths"] = [None, dict(values["widths"][0], axes=None), None, None]
    values["difficulty"].pop("cost")
    folder = write_run(tmp_path / "run", values)

    page = Page(write_report(folder).read_text(encoding="utf-8"))

    assert page.cells["tdc"][:2] == [repr(values["rows"][3]["frechet"]), None]


def test_samples_outside_the_run_are_not_embedded(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", made_up_results())
    (tmp_path / "secret.png").write_bytes(b"secret")
    values = made_up_results()
    values["rows"][0]["samples"] = "../secret.png"
    (folder / "results.json").write_text(json.dumps(values))

    page = Page(write_report(folder).read_text(encoding="utf-8"))

    assert all("c2VjcmV0" not in (image["src"] or "") for image in page.images)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is not JSON"), ("[]", "format 'list'"), ('{"format": 2}', "format 2 is not one this version reads"),
     ('{"format": 1, "rows": [{"id": "tdc", "frechet": "low"}]}', "rows.0.frechet")],
)  # fmt: skip
def test_results_that_cannot_be_read_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "results.json").write_text(text)

    with pytest.raises(SettingError, match=re.escape(said)) as error:
        write_report(tmp_path)

    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"results\.json does not exist"):
        write_report(tmp_path)


def test_the_card_says_what_the_page_says(run_folder: Path) -> None:
    card = model_card(load_results(run_folder))

    assert card.startswith("---\nlibrary_name: diffusers\n")
    assert "| TDC | **31.2** |" in card
    assert "num_inference_steps=50" in card
    assert write_card(run_folder) is None
    (run_folder / "pipeline").mkdir()
    path = write_card(run_folder)
    assert path is not None
    assert path.read_text(encoding="utf-8") == card
