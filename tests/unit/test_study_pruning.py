"""Studies of pruning on a handful of digits: their arms, what is measured right after pruning, proposers, scores."""

from __future__ import annotations

import copy
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm_server import Request, serving
from scipy.stats import spearmanr

from noisewise.report.study_page import write_study
from noisewise.workflow.recipe import check_recipe
from noisewise.workflow.steps import read_lines
from noisewise.workflow.store import Store, closure
from noisewise.workflow.study.cells import Layout
from noisewise.workflow.study.definition import Arm, Study
from noisewise.workflow.study.layout import lay_out
from noisewise.workflow.study.pruning import PRUNING
from noisewise.workflow.study.registry import find_study
from noisewise.workflow.study.run import measure_noise, run_study
from noisewise.workflow.study.scores import rank_correlation

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "sklearn-digits", "num_train": 64, "num_test": 64},
    "model": {"kind": "unet2d", "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 8},
    "base": {"num_images": 128, "batch_size": 32, "num_threads": 1},
    "plan": {"num_groups": 2},
    "prune": {
        "timestep_stride": 500,
        "proposer": {"kind": "random", "rounds": 1, "candidates": 4, "num_score_images": 16},
    },
    "finetune": {"num_images": 512, "batch_size": 64, "num_threads": 1},
    "sample": {"num_images": 40, "num_inference_steps": 2, "num_threads": 1},
    "evaluate": {"num_loss_images": 8, "num_timing_images": 2, "num_threads": 1},
    "seed": 5,
}
WITHOUT_IMAGES = ("tdc-table4", "tdc-figure5", "pruning-score")
MODEL = {"kind": "llm", "base_url": "http://127.0.0.1:9/v1", "model": "some-model-7b", "rounds": 2, "candidates": 3}


def laid_out(name: str, num_seeds: int = 1, store: Store | None = None, **changes: Any) -> Layout:
    return lay_out(find_study(name), copy.deepcopy(TINY) | changes, num_seeds, store, 30)


def test_prunings_alone_share_a_budget_a_base_and_their_images() -> None:
    layout = laid_out("tdc-table5")
    assert [arm.label for arm in layout.arms][:2] == ["base, not pruned", "base, trained on"]
    assert len([step for step in layout.steps if step.name == "base"]) == 1
    for cell in layout.cells:
        prunings = [step for step in cell.row.training if step.action == "prune"]
        images = sum(step.num_images for step in cell.row.training)
        if cell.row.id == "tdc":
            assert [step.settings["budget"] for step in prunings] == [pytest.approx(0.7)]
            assert images == 128 + 512
        elif cell.row.id == "single-stage":  # its shape is the searched one's, whose training it does not count
            assert images == {"1x": 512, "4x": 2048, "the base's images": 128}[cell.arm.label.split(", ")[1]]
            search = next(c for c in layout.cells if c.arm.label == "evolutionary search")
            shapes = [step.inputs["shape"].id for step in cell.row.training if "shape" in step.inputs]
            assert shapes == [step.id for step in search.row.training if step.action == "prune"]


@pytest.mark.parametrize("name", ["tdc-table5", "tdc-table6", "tdc-table4", "tdc-figure5"])
def test_a_language_model_has_an_arm_of_its_name_where_the_recipe_has_one(name: str) -> None:
    without = find_study(name).arms(check_recipe(copy.deepcopy(TINY)))
    recipe = check_recipe(copy.deepcopy(TINY) | {"prune": {"proposer": MODEL}})
    given = [arm for arm in find_study(name).arms(recipe) if "language model" in arm.label]
    assert not [arm for arm in without if "language model" in arm.label]
    assert [arm.label for arm in given] == [("TDC, " if name == "tdc-table6" else "") + "language model some-model-7b"]
    assert "speaks for no other" in given[0].note
    proposers = [arm.overrides["prune.proposer"] for arm in find_study(name).arms(recipe) if arm.row == "tdc"]
    searches = [p for p in proposers if p["kind"] in ("llm", "evolution")]
    assert len({(p["rounds"], p["candidates"], p["num_score_images"]) for p in searches}) == 1
    assert (searches[0]["rounds"], searches[0]["candidates"]) == ((5, 3) if name == "tdc-figure5" else (2, 3))


@pytest.mark.parametrize("name", WITHOUT_IMAGES)
def test_studies_without_images_sample_none(name: str) -> None:
    layout = laid_out(name, 1 + (name == "tdc-figure5"))
    actions = {step.action for step in layout.steps}
    assert not actions & {"sample", "evaluate", "reference", "floor", "resample", "timing", "neighbours"}
    assert "train" in actions
    assert len({step.id for step in layout.steps if step.name == "base"}) == len(layout.seeds)


# ---- run


Done = tuple[Layout, Store, dict[str, Any], Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def done(study: Study | str, runs: Path, num_seeds: int, **changes: Any) -> Done:
    store = Store(runs / "store")
    layout = laid_out(study, num_seeds, store, **changes) if isinstance(study, str) else lay_out(
        study, copy.deepcopy(TINY), num_seeds, store, 20
    )  # fmt: skip
    measure_noise(layout, store, lambda event: None)
    outcome = run_study(layout, store, runs, lambda event: None)
    assert outcome.changed
    write_study(outcome.folder)
    return layout, store, json.loads((outcome.folder / "results.json").read_text()), outcome.folder


@pytest.fixture(scope="module")
def alone(runs: Path) -> Done:
    """The study of pruning alone, with three of its arms, and DeepCache at the pruned network's cost."""
    whole = find_study("tdc-table5")

    def few(recipe: Any) -> list[Any]:
        chosen = [arm for arm in whole.arms(recipe) if arm.label in ("base, not pruned", "random", "from scratch, 1x")]
        return [*chosen, Arm("cached", "deepcache", chosen[1].overrides)]

    small = Study("alone", whole.title, whole.question, whole.needs, few, "random", whole.paper, own=PRUNING)
    return done(small, runs, 1)


def test_every_pruning_is_measured_before_fine_tuning_on_the_draws_of_the_loss_after(alone: Done) -> None:
    layout, store, results, folder = alone
    base, random, scratch, _ = results["arms"]
    cell = next(cell for cell in layout.cells if cell.arm.label == "random")
    before, after = cell.own["after_pruning"], cell.row.loss
    assert {**before.settings} == {**after.settings}
    assert random["own"]["loss_after_pruning"]["mean"] == store.record(before).result["mean"]
    assert random["own"]["loss_after_pruning"]["mean"] != random["test_loss"]["mean"]
    assert base["own"]["loss_after_pruning"] is scratch["own"]["loss_after_pruning"] is None
    prune, tuned = (
        next(s for s in cell.row.training if s.action == a and s.name != "base") for a in ("prune", "train")
    )
    assert random["own"]["pruning_seconds"]["mean"] == store.record(prune).seconds
    assert random["own"]["stage_2_seconds"]["mean"] == store.record(tuned).result["training_seconds"]
    text = (folder / "study.md").read_text()
    assert "Loss on held-out images: right after pruning" in text
    assert "the paper's proxy, GPT-4" in text
    with (folder / "cells.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert float(lines[1]["loss_after_pruning"]) == random["own"]["loss_after_pruning"]["mean"]


def test_deepcache_is_the_base_in_as_many_whole_calls_as_the_cost_allows(alone: Done) -> None:
    layout, store, results, _ = alone
    _, random, _, cached = results["arms"]
    base = store.record(next(step for step in layout.steps if step.name == "base")).result["macs"]
    assert 0.4 * 2 * base < cached["macs_per_image"]["mean"] <= random["macs_per_image"]["mean"] < 2 * base
    sampled = store.record(layout.cells[-1].row.sample).result
    assert len(sampled["whole_calls"]) == 1
    assert sampled["num_inference_steps"] == random["num_inference_steps"] == 2
    assert cached["training_images"] == random["training_images"]
    assert cached["seconds_per_image"] > 0


@pytest.fixture(scope="module")
def proposers(runs: Path) -> Done:
    """Two proposers of the study, in two rounds of two."""
    whole = find_study("tdc-figure5")

    def few(recipe: Any) -> list[Any]:
        chosen = [arm for arm in whole.arms(recipe) if arm.label in ("random proposals", "evolutionary search")]
        short = {"rounds": 2, "candidates": 2}
        return [
            replace(arm, overrides={**arm.overrides, "prune.proposer": {**arm.overrides["prune.proposer"], **short}})
            for arm in chosen
        ]

    return done(replace(whole, name="proposers", arms=few), runs, 2)


def test_rounds_are_those_of_the_memory_banks(proposers: Done) -> None:
    layout, store, results, folder = proposers
    for cell in layout.cells:
        bank = read_lines(store.folder(cell.own["prune"]) / "memory_bank.jsonl")
        assert len(bank) == 4
        rounds = [
            line for line in results["lists"]["rounds"] if (line["arm"], line["seed"]) == (cell.arm.key, cell.seed)
        ]
        for line in rounds:
            losses = [r["loss"] for r in bank if r["round"] == line["round"]]
            assert (line["best"], line["worst"]) == (min(losses), max(losses))
            assert line["mean"] == pytest.approx(np.mean(losses))
            assert line["best_so_far"] == min(r["loss"] for r in bank if r["round"] <= line["round"])
    random, *others = results["arms"]
    assert random["difference"] is None
    for arm in others:
        gaps = np.subtract(arm["own"]["best"]["values"], random["own"]["best"]["values"])
        assert arm["difference"]["value"] == pytest.approx(gaps.mean())
        assert arm["difference"]["low"] < gaps.min()
    page = (folder / "study.html").read_text()
    assert 'id="figure-rounds"' in page
    assert "Fréchet" not in page
    assert (folder / "rounds.csv").read_text().count("\n") == 1 + 2 * 2 * 2


@pytest.fixture(scope="module")
def scored(runs: Path) -> Done:
    return done("pruning-score", runs, 1)


def test_scores_are_the_search_s_own_and_correlations_right(scored: Done) -> None:
    layout, store, results, folder = scored
    labels = [arm["label"] for arm in results["arms"]]
    assert labels[3:] == ["after least squares", "after 256 images", "after fine-tuning again"]
    first = layout.cells[0]
    known = [scheme["scores"] for scheme in store.record(first.own["schemes"]).result["schemes"]]
    bank = read_lines(store.folder(first.own["schemes"].inputs["bank"]) / "memory_bank.jsonl")
    assert [scores["paired"] for scores in known] == pytest.approx([record["loss"] for record in bank])
    assert all(scores["unpaired"] != scores["paired"] for scores in known)
    assert any(scores["recovered"] < scores["paired"] for scores in known)
    assert all(0 < scores["importance"] < 1 for scores in known)
    points = results["lists"]["points"]
    for cell in layout.cells:
        own = [p for p in points if (p["arm"], p["seed"]) == (cell.arm.key, cell.seed)]
        assert len(own) == len(known) == 4
        expected = spearmanr([p["score"] for p in own], [p["loss"] for p in own]).statistic
        arm = next(arm for arm in results["arms"] if arm["key"] == cell.arm.key)
        assert arm["own"]["rank_correlation"]["values"][layout.seeds.index(cell.seed)] == pytest.approx(expected)
    finals = {(p["seed"], p["scheme"], p["loss"]) for p in points}
    assert len(finals) == 4  # every arm is held against the same losses
    for arm in results["arms"]:
        found = arm["own"]["interval"]
        assert -1 <= found["low"] <= found["value"] <= found["high"] <= 1
        assert arm["own"]["seconds"]["mean"] > 0
    seconds = {arm["label"]: arm["own"]["seconds"]["mean"] for arm in results["arms"]}
    assert (
        seconds["importance lost"] < seconds["right after pruning, shared draws"] < seconds["after fine-tuning again"]
    )
    for name in ("study.html", "points.csv", "figures/correlations.svg", "figures/scores.svg"):
        assert (folder / name).is_file()


def test_training_draws_are_alike_for_all_schemes_and_differ_the_second_time(scored: Done) -> None:
    layout, store, _, _ = scored
    again = next(cell for cell in layout.cells if cell.arm.label == "after fine-tuning again")
    trainings = [again.own[f"loss[{i}]"].inputs["model"] for i in range(4)]
    assert len({json.dumps(step.settings["names"]) for step in trainings}) == 1
    assert len({step.settings["scheme"] for step in trainings}) == 4
    assert again.own["again[0]"].inputs["model"].settings["names"] != trainings[0].settings["names"]
    losses = [store.record(again.own[f"{kind}[0]"]).result["mean"] for kind in ("loss", "again")]
    assert losses[0] != losses[1]


def test_rank_correlation_takes_ties_and_constants() -> None:
    one, other = np.array([[1.0, 2, 2, 5], [3, 3, 3, 3]]), np.array([[2.0, 1, 4, 9], [1, 2, 3, 4]])
    found = rank_correlation(one, other)
    assert found[0] == pytest.approx(spearmanr(one[0], other[0]).statistic)
    assert found[1] == 0


@pytest.fixture(scope="module")
def times(runs: Path) -> Done:
    """With a language model behind a server whose every reply is right."""

    def behaviour(request: Request) -> None:
        request.say("ready") if request.body.get("max_tokens") == 16 else request.advise()

    with serving(behaviour) as server:
        model = {"kind": "llm", "base_url": server.base_url, "model": "alpha", "rounds": 1, "candidates": 2}
        proposer = {**model, "num_score_images": 16, "alignment": 1}
        found = done("tdc-table4", runs, 1, prune={"timestep_stride": 500, "proposer": proposer})
        asked = [request for request in server.requests if request.body.get("max_tokens") != 16]
        assert len(asked) == 1  # besides the check: one round of the one group that is pruned
        return found


def test_times_add_up(times: Done) -> None:
    layout, store, results, folder = times
    labels = ["importances alone", "evolutionary search", "language model alpha"]
    assert [arm["label"] for arm in results["arms"]] == labels
    for cell, line in zip(layout.cells, results["cells"], strict=True):
        own = line["own"]
        assert own["total"] == pytest.approx(sum(own[name] for name in ("stage_1", "pruning", "stage_2", "rest")))
        asked = line["label"] == labels[-1]
        assert (own["language_model"] is not None) == asked
        assert not asked or 0 < own["language_model"] < own["pruning"]
        prunings = [step for step in layout.steps if step.action == "prune" and step.id in _behind(cell)]
        assert own["pruning"] == pytest.approx(sum(store.record(step).seconds for step in prunings))
    assert "> 3800" in (folder / "study.md").read_text()
    assert (folder / "figures" / "times.svg").is_file()


def _behind(cell: Any) -> set[str]:
    return {step.id for step in closure(cell.ends)}
