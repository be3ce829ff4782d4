"""A class-conditional recipe from labels to the report: guidance by group, its cost, distances by class, refusals."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from noisewise.cli import main
from noisewise.errors import SettingError
from noisewise.models.labels import Classes, classes_of
from noisewise.models.loading import load_denoiser
from noisewise.report import load_results, model_card, write_report
from noisewise.workflow.builder import build_graph
from noisewise.workflow.graph import Graph
from noisewise.workflow.predict import si
from noisewise.workflow.recipe import Recipe, check_recipe
from noisewise.workflow.run import open_graph, run_recipe

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "sklearn-digits", "num_train": 90, "num_test": 90, "conditional": True},
    "conditioning": {"dropout": 0.2},
    "model": {"kind": "unet2d", "block_out_channels": [4, 8], "norm_num_groups": 4},
    "base": {"num_images": 64, "batch_size": 32, "num_threads": 1},
    "plan": {"num_groups": 2},
    "prune": {"importance": "magnitude", "proposer": {"kind": "importance", "rounds": 1, "candidates": 1}},
    "finetune": {"num_images": 32, "batch_size": 32, "num_threads": 1},
    "sample": {"num_images": 90, "num_inference_steps": 6, "guidance_scale": [1.0, 3.0]},
    "evaluate": {"num_loss_images": 8, "num_timing_images": 2},
    "compare": ["base-continued", "base-fewer-steps"],
}


def recipe(**changes: Any) -> Recipe:
    merged = copy.deepcopy(TINY)
    for name, value in changes.items():
        merged[name] = {**merged[name], **value} if isinstance(merged.get(name), dict) else value
    return check_recipe(merged)


def graph(**changes: Any) -> Graph:
    return _graph(json.dumps(changes))


@cache
def _graph(changes: str) -> Graph:
    return build_graph(recipe(**json.loads(changes)))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; its folder."""
    runs = tmp_path_factory.mktemp("runs")
    found, store = open_graph(recipe(), runs)
    return run_recipe(found, store, runs, lambda event: None).folder


def test_settings_reach_exactly_the_steps_they_concern() -> None:
    plain = graph(conditioning={"dropout": 0.0}, sample={"guidance_scale": 1.0})
    for step in plain.steps:
        assert "label_dropout" not in step.settings
        assert "guidance" not in step.settings
        assert "guidance_scale" not in step.settings.get("sample", {})
    dropping, one = graph(sample={"guidance_scale": 1.0}), graph(sample={"guidance_scale": 2.0})
    several, other_groups = graph(), graph(plan={"min_cost": 0.6})
    assert dropping.step("base").settings["label_dropout"] == 0.2
    assert dropping.step("base").id == one.step("base").id == several.step("base").id != plain.step("base").id
    assert one.step("sample[base-continued]").id != dropping.step("sample[base-continued]").id
    assert several.step("sample[base-continued]").settings["guidance"]["scale"] == [1.0, 3.0]
    assert (
        one.step("sample[base-continued]").id
        == graph(plan={"min_cost": 0.6}, sample={"guidance_scale": 2.0}).step("sample[base-continued]").id
    )  # one scale does not depend on the groups
    assert several.step("sample[base-continued]").id != other_groups.step("sample[base-continued]").id


def test_predictions_count_both_calls() -> None:
    once, twice, some = graph(sample={"guidance_scale": 1.0}), graph(sample={"guidance_scale": 2.0}), graph()
    assert (once.base.calls, twice.base.calls) == (6, 12)
    assert 6 < some.base.calls < 12


def test_networks_get_one_class_more_and_know_which(done: Path) -> None:
    model, _ = load_denoiser(done / "pipeline")
    assert classes_of(model) == Classes(10, 10)
    config = graph().base.network["config"]
    assert (config["num_class_embeds"], config["_null_class"]) == (11, 10)
    plain = graph(conditioning={"dropout": 0.0}, sample={"guidance_scale": 1.0}).base.network["config"]
    assert plain["num_class_embeds"] == 10
    assert "_null_class" not in plain


def test_results_count_guidance_and_tell_classes_apart(done: Path) -> None:
    results = json.loads((done / "results.json").read_text())
    rows = {row["id"]: row for row in results["rows"]}
    groups = [route["group"] for route in results["routes"]]
    calls = [1 if group == 0 else 2 for group in groups]
    assert 0 < groups.count(0) < 6
    macs = graph().base.macs
    assert rows["base-continued"]["macs_per_image"] == macs * sum(calls)
    costs = results["group_costs"]
    assert rows["tdc"]["macs_per_image"] == pytest.approx(
        macs * sum(costs[group] * number for group, number in zip(groups, calls, strict=True))
    )
    assert rows["base-fewer-steps"]["macs_per_image"] <= rows["tdc"]["macs_per_image"]
    assert rows["tdc"]["provenance"]["samples"]["guidance_scale"] == [1.0, 3.0]

    for row in rows.values():
        assert 0 <= row["precision"] <= 1
        assert 0 <= row["recall"] <= 1
    floor = results["metric"]
    assert floor["precision"] > rows["tdc"]["precision"]
    assert floor["class_distance"] < min(row["class_distance"] for row in rows.values())
    classes = results["classes"]
    assert classes["metric"] == "kid_efficientnet_lite0_block10"
    assert "fewer than the 112 features" in classes["why"]
    assert classes["names"] == [str(i) for i in range(10)]
    assert sum(classes["counts"]["held-out"]) == 90
    assert [len(classes["rows"][row]) for row in rows] == [10, 10, 10]
    by_hand = np.mean([each["value"] for each in classes["rows"]["tdc"]])
    assert rows["tdc"]["class_distance"] == pytest.approx(by_hand)


def test_the_page_and_the_card_say_so(done: Path) -> None:
    page = write_report(done).read_text(encoding="utf-8")
    for words in ('id="classes"', "fewer than the 112 features", "precision", "by class", "Real against real"):
        assert words in page
    card = model_card(load_results(done))
    assert "class_labels=[0, 1]" in card
    assert "--guidance-scale 1 3" in card
    assert "| KID (kid_efficientnet_lite0_block10) | 0 | 1 |" in card


def test_the_stock_pipeline_tells_classes(done: Path) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(done / "pipeline")
    pipeline.set_progress_bar_config(disable=True)

    def draw(labels: list[int]) -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipeline(
            batch_size=2, class_labels=labels, num_inference_steps=3, generator=generator, output_type="np"
        ).images

    assert draw([3, 7]).shape == (2, 8, 8, 1)
    assert np.array_equal(draw([3, 7]), draw([3, 7]))
    assert not np.array_equal(draw([3, 7]), draw([3, 8]))


def test_sample_by_class_with_guidance(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def draw(name: str, *options: str) -> np.ndarray:
        out = tmp_path / name
        command = ["sample", str(done / "pipeline"), "--out", str(out), "--num-images", "3"]
        assert main([*command, "--num-inference-steps", "3", *options]) == 0, capsys.readouterr().err
        return np.stack([np.array(Image.open(out / f"{i}.png")) for i in range(3)])

    by_turns = draw("a", "--guidance-scale", "1", "3", "--class-labels", "0", "1")
    assert np.array_equal(by_turns, draw("b", "--guidance-scale", "1", "3", "--class-labels", "0", "1", "0"))
    assert not np.array_equal(by_turns, draw("c", "--guidance-scale", "2", "--class-labels", "0", "1"))
    for options, said in (
        (["--class-labels", "11"], "class_labels: 11 given; the network's num_class_embeds allow 0 to 9, and 10 for"),
        (["--guidance-scale", "1", "2", "3"], "guidance_scale: 3 values given, the plan has 2 groups"),
    ):
        command = ["sample", str(done / "pipeline"), "--out", str(tmp_path / "no"), "--num-images", "3", *options]
        assert main(command) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "no").exists()


def test_evaluate_and_plan_say_it_too(done: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    command = ["evaluate", str(done / "pipeline"), "--recipe", str(done / "recipe.yaml"), "--json-file", str(numbers)]
    assert main(command) == 0
    shown, found = capsys.readouterr().out, json.loads(numbers.read_text())
    results = json.loads((done / "results.json").read_text())
    tdc = next(row for row in results["rows"] if row["id"] == "tdc")
    assert found["precision"] == pytest.approx(tdc["precision"])
    assert [each["value"] for each in found["classes"]["values"]] == pytest.approx(
        [each["value"] for each in results["classes"]["rows"]["tdc"]]
    )
    assert f"precision {tdc['precision']:.4f}, recall {tdc['recall']:.4f}" in shown
    assert "class 7: kid_efficientnet_lite0_block10" in shown

    assert main(["plan", str(done / "recipe.yaml")]) == 0
    macs = graph().base.macs
    assert f"{si(macs)}MACs a call, {si(macs * graph().base.calls)}MACs an image" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"conditional": False}}, "conditioning.dropout: 0.2 given, and the images are used without labels"),
        (
            {"data": {"conditional": False}, "conditioning": {"dropout": 0.0}},
            "sample.guidance_scale: [1.0, 3.0] given, and the images are used without labels",
        ),
        (
            {"conditioning": {"dropout": 0.0}, "sample": {"guidance_scale": 2.0}},
            "sample.guidance_scale: 2.0 given, and no labels are dropped in training; guidance needs conditioning",
        ),
        ({"sample": {"guidance_scale": [1, 2, 3]}}, "3 values given, the plan has 2 groups; give one for each"),
        ({"sample": {"guidance_scale": -1}}, "sample.guidance_scale"),
        ({"conditioning": {"dropout": 1.0}}, "conditioning.dropout: 1.0 given"),
        ({"compare": ["deepcache"]}, "compare: deepcache is sampled without guidance"),
        ({"conditioning": {"labels": True}}, "conditioning.labels: unknown setting"),
    ],
)
def test_what_cannot_work_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        recipe(**change)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_existing_network_has_to_know_the_classes(done: Path) -> None:
    _, store = open_graph(recipe(), done.parent)
    base = store.folder(graph().step("base")) / "model"

    def graph_from(folder: Path, **changes: Any) -> Graph:
        own = {name: {**TINY[name], **changes.get(name, {})} for name in ("data", "conditioning", "sample")}
        return build_graph(check_recipe({**TINY, **own, "model": {"from": str(folder)}}))

    assert graph_from(base).base.network["from"] == str(base)
    with pytest.raises(SettingError, match=r"data.conditional: the network in model.from has 10.*data gives none"):
        graph_from(base, data={"conditional": False}, conditioning={"dropout": 0}, sample={"guidance_scale": 1})
    model, _ = load_denoiser(base)
    for folder, classes, said in (
        (done.parent / "ten", 10, "conditioning.dropout: 0.2 given; the network has no null class"),
        (done.parent / "eleven", 11, "the network in model.from has 11 classes, the data gives 10"),
    ):
        kind = type(model)
        kind(**{**model.config, "num_class_embeds": classes, "_null_class": None}).save_pretrained(folder)
        with pytest.raises(SettingError, match=said):
            graph_from(folder)
