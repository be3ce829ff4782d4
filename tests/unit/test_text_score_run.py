"""CLIP's score in a recipe: the step, the table's column, `noisewise evaluate`, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_folder import save_clip, save_photos
from text_zoo import saved, stable_diffusion

from noisewise.cli import main
from noisewise.data.load import load_data
from noisewise.errors import SettingError
from noisewise.evaluation.text_score import TextImageEncoder, text_score
from noisewise.report import write_report
from noisewise.report.study_page import write_study
from noisewise.workflow import measure
from noisewise.workflow.builder import build_graph
from noisewise.workflow.graph import Graph
from noisewise.workflow.recipe import Recipe, check_recipe
from noisewise.workflow.run import open_graph, run_recipe
from noisewise.workflow.store import Store
from noisewise.workflow.study.definition import Arm, Paper, Study
from noisewise.workflow.study.layout import lay_out
from noisewise.workflow.study.run import run_study

Places = dict[str, Path]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("scored")
    return {
        "photos": save_photos(root / "photos", 48),
        "pipeline": saved(stable_diffusion(), root / "pipeline"),
        "clip": save_clip(root / "clip"),
        "runs": root / "runs",
    }


def raw(places: Places, **evaluate: Any) -> dict[str, Any]:
    return {
        "name": "scored",
        "data": {"kind": "folder", "folder": str(places["photos"]), "caption_column": "text", "test_fraction": 0.25},
        "model": {"from": str(places["pipeline"])},
        "base": {"num_images": 0},
        "plan": {"num_groups": 2},
        "prune": {"importance": "magnitude", "proposer": {"kind": "importance", "num_score_images": 4}},
        "finetune": {"num_images": 8, "batch_size": 4, "num_threads": 1},
        "sample": {"num_images": 8, "num_inference_steps": 2, "scheduler": "ddim"},
        "evaluate": {
            "num_loss_images": 8, "num_timing_images": 2, "text_image_encoder": str(places["clip"]), **evaluate
        },
        "compare": ["base"],
    }  # fmt: skip


def graph(places: Places, **evaluate: Any) -> Graph:
    return build_graph(check_recipe(raw(places, **evaluate)))


def test_the_step_reads_every_rows_images_and_leaves_the_others_as_they_are(places: Places) -> None:
    scored, plain = graph(places), graph(places, text_image_encoder=None)

    assert scored.text_score is not None
    assert set(scored.text_score.inputs) == {f"sample[{row.id}]" for row in scored.rows}
    assert plain.text_score is None
    others = {step.name: step.id for step in scored.steps if step.name != "text-score"}
    assert others == {step.name: step.id for step in plain.steps}


def test_another_encoder_is_another_step(places: Places, tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    settings = clip / "processor_config.json"
    settings.write_text(settings.read_text().replace('"shortest_edge": 16', '"shortest_edge": 20'))
    before, after = graph(places).text_score, graph(places, text_image_encoder=str(clip)).text_score
    assert before is not None
    assert after is not None
    assert before.id != after.id


def test_a_run_has_the_column_and_evaluate_says_the_same(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, store = open_graph(check_recipe(raw(places)), places["runs"])
    folder = run_recipe(found, store, places["runs"], lambda event: None).folder
    results = json.loads((folder / "results.json").read_text())

    test, encoder = load_data(found.recipe.data).test, TextImageEncoder(places["clip"])
    real = measure.chosen(test, 8, 0)
    assert real.captions is not None
    sets = {row.id: np.load(store.folder(row.sample) / measure.IMAGES) for row in found.rows}
    expected = {row: text_score(encoder, images, real.captions) for row, images in sets.items()}
    assert {row["id"]: row["text_score"]["value"] for row in results["rows"]} == {
        row: pytest.approx(score.value) for row, score in expected.items()
    }
    tdc = next(row for row in results["rows"] if row["id"] == "tdc")["text_score"]
    assert expected["tdc"].standard_error is not None
    assert tdc["high"] - tdc["low"] == pytest.approx(2 * 1.959964 * expected["tdc"].standard_error)
    metric = results["metric"]
    assert metric["text_score"]["value"] == pytest.approx(text_score(encoder, real.pixels, real.captions).value)
    assert metric["text_encoder"]["encoder_sha256"] == encoder.sha256

    page = write_report(folder).read_text()
    assert "CLIP score" in page
    assert f"clip, {encoder.sha256[:8]}" in page

    recipe, numbers = tmp_path / "recipe.json.yaml", tmp_path / "numbers.json"
    recipe.write_text(json.dumps(raw(places)))  # JSON is YAML
    capsys.readouterr()
    assert main(["evaluate", str(folder / "pipeline"), "--recipe", str(recipe), "--json-file", str(numbers)]) == 0
    said, alone = capsys.readouterr().out, json.loads(numbers.read_text())["text_score"]
    assert alone["value"] == pytest.approx(expected["tdc"].value, abs=0.5)  # captions in float16 there
    assert alone["real"]["value"] == pytest.approx(metric["text_score"]["value"])
    assert f"clip_score {alone['value']:.3f} ± {alone['standard_error']:.3f}; real images clip_score" in said


def test_a_study_scores_every_arm_and_seed(places: Places) -> None:
    def two_arms(recipe: Recipe) -> list[Arm]:
        return [Arm("the pipeline", "base"), Arm("in fewer steps", "base", {"sample.num_inference_steps": 1})]

    study = Study("scored", "Scored", "Which is nearer its captions?", "any", two_arms, "the pipeline", Paper(""))
    settings = {**raw(places), "name": "study"}
    store = Store(places["runs"] / "store")
    layout = lay_out(study, settings, 2, store, 20)
    folder = run_study(layout, store, places["runs"], lambda event: None).folder
    write_study(folder)
    results = json.loads((folder / "results.json").read_text())

    encoder = TextImageEncoder(places["clip"])
    for cell, found in zip(layout.cells, results["cells"], strict=True):
        real = measure.chosen(load_data(cell.graph.recipe.data).test, 8, cell.graph.recipe.sample.seed)
        assert real.captions is not None
        images = np.load(store.folder(cell.row.sample) / measure.IMAGES)
        assert found["text_score"]["value"] == pytest.approx(text_score(encoder, images, real.captions).value)
    arm = results["arms"][1]["text_score"]
    assert arm["mean"] == pytest.approx(np.mean([cell["text_score"]["value"] for cell in results["cells"][1::2]]))
    assert "text_score_low" in (folder / "cells.csv").read_text().splitlines()[0]
    assert "CLIP score" in (folder / "study.md").read_text()
    assert f"own images: {results['metric']['text_score']['value']:.2f}" in (folder / "study.html").read_text()


def test_an_encoder_that_cannot_be_used_is_refused_before_anything_runs(places: Places, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"evaluate\.text_image_encoder: .* does not exist"):
        graph(places, text_image_encoder=str(tmp_path / "nowhere"))
    with pytest.raises(SettingError, match=r"evaluate\.text_image_encoder: .* is no CLIP model"):
        graph(places, text_image_encoder=str(places["pipeline"] / "unet"))


def test_an_encoder_without_captions_is_refused(places: Places, tmp_path: Path) -> None:
    recipe = raw(places)
    recipe["data"] = {"kind": "sklearn-digits"}
    recipe["model"] = {"block_out_channels": [8, 16], "norm_num_groups": 8}
    recipe["base"] = {"num_images": 64}
    with pytest.raises(SettingError, match=r"used without captions; set data\.caption_column"):
        build_graph(check_recipe(recipe))
