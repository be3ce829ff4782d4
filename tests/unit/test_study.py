"""Studies on a handful of digits: a whole run, its files and page."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_study import SMALL, TINY, laid_out

from noisewise.errors import SettingError
from noisewise.report.study_page import write_study
from noisewise.report.study_words import answers, headline, noise_sentences
from noisewise.workflow.predict import si
from noisewise.workflow.progress import Event
from noisewise.workflow.store import Store, closure
from noisewise.workflow.study.collect import collect, timing
from noisewise.workflow.study.collect_sampled import groups_table
from noisewise.workflow.study.layout import Layout
from noisewise.workflow.study.registry import find_study
from noisewise.workflow.study.run import cells_table, measure_noise, open_study, resolving, run_study, summary
from noisewise.workflow.study.timing import work_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of runs with the small study done for one seed, then for two."""
    folder = tmp_path_factory.mktemp("runs")
    store = Store(folder / "store")
    layout = laid_out(num_seeds=1, store=store)
    measure_noise(layout, store, quiet)
    assert run_study(layout, store, folder, quiet).changed
    (folder / "first.json").write_text(json.dumps(results(folder)))
    return folder


def quiet(event: Event) -> None:
    pass


def results(runs: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / "studies" / "small" / "tiny" / "results.json").read_text())
    return found


@pytest.fixture(scope="module")
def two_seeds(runs: Path) -> tuple[Layout, Store, Path, list[Event]]:
    store, events = Store(runs / "store"), []  # type: tuple[Store, list[Event]]
    layout = laid_out(num_seeds=2, store=store)
    outcome = run_study(layout, store, runs, events.append)
    write_study(outcome.folder)
    return layout, store, outcome.folder, events


Done = tuple[Layout, Store, Path, list[Event]]


def test_one_seed_says_that_it_knows_nothing_of_luck(runs: Path) -> None:
    found = json.loads((runs / "first.json").read_text())
    assert found["arms"][1]["frechet"]["deviation"] is None
    assert "One training seed" in answers(found)[-1]
    assert found["arms"][1]["difference"]["num_seeds"] == 1


def test_a_second_seed_does_only_its_own_steps(two_seeds: Done) -> None:
    layout, store, _, events = two_seeds
    titles = {event.step for event in events if event.kind == "started"}
    assert titles
    assert {title.partition(" · ")[0] for title in titles} == {"seed 6"}
    assert all(store.is_done(step) for step in layout.steps)


def test_again_changes_nothing_and_a_lost_step_comes_back_alone(two_seeds: Done, runs: Path) -> None:
    layout, store, folder, _ = two_seeds
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    assert not run_study(layout, store, runs, quiet).changed
    assert before == {path: path.stat().st_mtime_ns for path in before}
    old = results(runs)["arms"]
    shutil.rmtree(store.folder(layout.cells[0].row.evaluate))
    events: list[Event] = []
    assert not run_study(layout, store, runs, events.append).changed
    assert {event.kind for event in events if event.kind in ("started", "finished")} == {"started", "finished"}
    assert len({event.step for event in events}) == 1
    assert results(runs)["arms"] == old


def test_numbers_are_those_of_the_steps(two_seeds: Done, runs: Path) -> None:
    layout, store, folder, _ = two_seeds
    found = results(runs)
    values = {
        (cell.arm.key, cell.seed): store.record(cell.row.evaluate).result["frechet"]["value"] for cell in layout.cells
    }
    for arm in found["arms"]:
        own = [values[arm["key"], seed] for seed in layout.seeds]
        assert arm["frechet"]["values"] == own
        assert arm["frechet"]["mean"] == pytest.approx(np.mean(own))
        assert arm["training_images"] == (64 if arm["row"] == "base" else 64 + 2 * 32)
    pair = [values["an-expert-per-group", s] - values["one-network", s] for s in layout.seeds]
    difference = found["arms"][1]["difference"]
    assert difference["value"] == pytest.approx(np.mean(pair))
    assert difference["low"] < difference["value"] < difference["high"]
    assert found["arms"][0]["difference"] is None
    assert len(found["metric"]["floor"]["values"]) == 20
    assert len(found["metric"]["sampled_twice"]) == 2
    assert found["metric"]["sampled_twice"][0] != found["metric"]["sampled_twice"][1]
    said = noise_sentences({**found, "metric": {**found["metric"], "sampled_twice": [102.117, 95.567]}})
    assert said[-1] == "One network, “one network”, sampled twice with other noise: 102.1 and 95.6."
    with (folder / "cells.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {(line["arm"], int(line["seed"])): float(line["frechet"]) for line in lines} == values
    groups, own = found["lists"]["groups"], found["arms"][1]
    assert [[g["t_start"], g["t_stop"]] for g in groups] == own["groups"]
    assert [g["parameters"] for g in groups] == own["active_parameters"]
    assert (folder / "groups.csv").is_file()
    line = {"label": "TDC", "group": 0, "t_start": 0, "t_stop": 237, "parameters": 268_911, "macs": 28_670_000}
    table = groups_table([line, {**line, "group": 1, "parameters": 114_000, "macs": None}])
    assert table["lines"] == [["TDC", "0", "0", "237", "268.9", "28.67"], ["TDC", "1", "0", "237", "114.0", "–"]]
    assert str(runs) not in json.dumps(found)


def test_cost_to_match_is_the_first_point_as_good_as_the_reference_at_its_best(two_seeds: Done, runs: Path) -> None:
    layout, store, _, _ = two_seeds
    found = results(runs)
    assert [(point["arm"], point["training_images"]) for point in found["snapshots"]] == [("the-base", 32)] * 2
    for line in found["match"]:
        frechet = {arm["key"]: arm["frechet"]["values"][layout.seeds.index(line["seed"])] for arm in found["arms"]}
        assert line["best"] == frechet["one-network"]
        own = {64: frechet["the-base"]} if line["arm"] == "the-base" else {128: frechet[line["arm"]]}
        if line["arm"] == "the-base":
            own |= {p["training_images"]: p["frechet"] for p in found["snapshots"] if p["seed"] == line["seed"]}
        good = [images for images, distance in own.items() if distance <= line["best"]]
        assert line["training_images"] == min(good, default=None)
    base = layout.cells[2].row.model
    half = next(p for p in found["snapshots"] if p["seed"] == layout.seeds[0])
    assert half["training_macs"] == 3 * 32 * store.record(base).result["macs"]


def test_time_is_accounted_for(two_seeds: Done) -> None:
    layout, store, _, _ = two_seeds
    found = timing(layout.steps, store, {"starting and waiting": 2.0})
    kinds = {kind["kind"]: kind["seconds"] for kind in found["kinds"]}
    in_steps = sum(store.record(step).all_seconds for step in layout.steps)
    assert sum(kinds.values()) == pytest.approx(in_steps + 2.0)
    assert kinds["training"] > 0
    three = sum(kinds[name] for name in ("training", "sampling", "feature extraction and distances"))
    assert found["share_outside"] == pytest.approx(1 - three / (in_steps + 2.0))


def test_time_before_an_interruption_counts(two_seeds: Done) -> None:
    _, store, _, _ = two_seeds
    cell = two_seeds[0].cells[0]
    record = store.record(cell.row.model)
    taken_up = replace(record, seconds=2.0, result={**record.result, "training_seconds": 9.0})
    assert taken_up.all_seconds == 9.0
    assert sum(work_of(cell.row.model, taken_up).values()) == 9.0
    assert record.all_seconds == record.seconds


def test_neighbours_of_held_out_images_are_found_by_brute_force(two_seeds: Done) -> None:
    from noisewise.data.load import load_data

    layout, store, _, _ = two_seeds
    cell = layout.cells[0]
    data = load_data(layout.recipe.data, cache=store.root / "data")
    images = np.load(store.folder(cell.row.sample) / "images.npy").reshape(-1, 64).astype(float)
    train = np.asarray(data.train.pixels).reshape(-1, 64).astype(float)
    nearest = np.sqrt(((images[:, None] - train[None]) ** 2).mean(-1)).min(1)
    assert store.record(cell.neighbours).result["median"] == pytest.approx(np.median(nearest))


def test_page_markdown_and_figures(two_seeds: Done, runs: Path) -> None:
    _, _, folder, _ = two_seeds
    page, text = (folder / "study.html").read_text(), (folder / "study.md").read_text()
    assert "Small &lt;study&gt;" in page
    assert "<study>" not in page
    assert not re.findall(r"(?:src|href)=\"https?:", page)
    assert page.count("data-arm=") == 3
    assert page.count("data:image/png") == 4
    for name in SMALL.figures:
        assert (folder / "figures" / f"{name}.svg").read_text().startswith("<?xml")
        assert f'id="figure-{name}"' in page
    assert headline(results(runs)) in text
    assert "−13.7 %" in text  # the paper's own relative difference, beside ours
    assert str(runs) not in page
    (table,) = [block for block in text.split("\n\n") if block.startswith("|  | Fréchet")]
    assert len({line.count(" | ") for line in table.splitlines()}) == 1


def test_cost_and_resolution_come_before_the_work(runs: Path, tmp_path: Path) -> None:
    layout, fresh = laid_out(num_seeds=2), Store(tmp_path / "store")
    assert "3 arms x 2 seeds = 6 cells" in summary(layout, fresh, 1)
    assert f"{2 * (64 + 2 * 32 + 2 * 32):,} training images" in summary(layout, fresh, 1)
    assert resolving(layout, fresh) == []  # nothing is known before real images were looked at
    table = cells_table(layout, fresh).splitlines()
    assert sum(int(line.split()[-3].replace(",", "")) for line in table[1:-1]) == 2 * (64 + 4 * 32)
    (base,) = [line for line in table if line.startswith("the base") and " 5 " in line]
    own = closure(layout.ends_of(next(cell for cell in layout.cells if cell.row.id == "base")))
    assert f" {len(own)} " in base  # its snapshots' samples and evaluations too
    assert any(step.name == "sample[base@32]" for step in own)
    store = Store(runs / "store")
    lines = resolving(laid_out(num_seeds=1, store=store), store, effect=1e-3)
    assert lines[-1].startswith("warning: an effect of 0.001")
    assert not any(line.startswith("warning") for line in resolving(layout, store, effect=1e6))


def test_sums_are_short_whatever_they_round_to() -> None:
    assert [si(value) for value in (999.4e9, 999.6e9, 1e12, 12.0)] == ["999 G", "1 T", "1 T", "12 "]


def test_a_damaged_file_of_resamples_is_refused_by_name(two_seeds: Done) -> None:
    layout, store, _, _ = two_seeds
    path = store.folder(layout.resamples[layout.seeds[0]]) / "resampled.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    try:
        with pytest.raises(SettingError, match=r"resampled\.npy: is not what the step wrote"):
            collect(layout, store, {})
    finally:
        path.write_bytes(whole)


def test_without_the_data_a_dry_run_says_what_a_study_costs(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.yaml"
    data = {"kind": "parquet", "train": "absent.parquet", "test": "absent.parquet", "image_size": 8, "channels": 1}
    path.write_text(json.dumps({**TINY, "data": data}))  # JSON is YAML
    layout, store = open_study("tdc-table1", path, [], 1, tmp_path / "runs", dry_run=True)
    said = cells_table(layout, store).splitlines()
    with_data = cells_table(laid_out(find_study("tdc-table1")), store).splitlines()
    assert said == with_data
    assert "cannot be read" in layout.cells[0].graph.base.notes[0]
    with pytest.raises(SettingError, match=r"^data\.train: absent\.parquet does not exist"):
        open_study("tdc-table1", path, [], 1, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
