"""The real study command: listing, dry run, two processes, killed and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

RECIPE = {
    "name": "tiny",
    "data": {"kind": "sklearn-digits", "num_train": 80, "num_test": 80},
    "model": {"kind": "unet2d", "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 8},
    "base": {"num_images": 64, "batch_size": 32, "num_threads": 1},
    "plan": {"num_groups": 2},
    "prune": {"timestep_stride": 400, "proposer": {"kind": "importance", "rounds": 1, "candidates": 1}},
    "finetune": {"num_images": 32, "batch_size": 32, "num_threads": 1},
    "sample": {"num_images": 60, "num_inference_steps": 3, "num_threads": 1},
    "evaluate": {"num_loss_images": 8, "num_timing_images": 2, "num_threads": 1},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "noisewise", "study", *words]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=600)


def test_list_and_bad_input(recipe: Path, tmp_path: Path) -> None:
    listed = run()
    assert listed.returncode == 0
    assert "direction" in listed.stdout
    assert listed.stdout == run("LIST").stdout
    for words, said in (
        (("directoin",), "did you mean direction?"),
        (("direction",), "--recipe is missing; it needs a recipe with base and finetune"),
        (("direction", "--recipe", str(recipe), "--seeds", "0"), "--seeds: 0 given"),
        (("direction", "--recipe", str(tmp_path / "no.yaml")), "no such recipe"),
    ):
        failed = run(*words)
        assert failed.returncode == 2, failed.stderr
        assert said in failed.stderr
        assert failed.stderr.count("\n") == 1


def test_a_study_without_images_says_what_it_costs_and_resumes(recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    words = ("tdc-table4", "--recipe", str(recipe), "--runs", str(runs), "--progress", "lines")
    dry = run(*words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "2 arms x 1 seed = 2 cells" in dry.stdout
    assert "sample" not in dry.stdout
    first = run(*words)
    assert first.returncode == 0, first.stderr
    assert "metric:" not in first.stdout
    assert "Seconds of the whole method: importances alone:" in first.stdout
    done = {path: path.stat().st_mtime_ns for path in runs.rglob("*.json")}
    assert not list(runs.glob("store/*sample*"))
    assert run(*words).returncode == 0
    assert done == {path: path.stat().st_mtime_ns for path in done}


def test_dry_run_then_killed_then_resumed_by_two_processes(recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    words = ("tdc-figure7", "--recipe", str(recipe), "--runs", str(runs), "--jobs", "2", "--resamples", "20")
    dry = run(*words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "5 arms x 1 seed = 5 cells" in dry.stdout
    assert not runs.exists()
    process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 1_200
    while not list(runs.glob("store/base-*/artefact.json")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in runs.glob("store/*/artefact.json")}
    assert done
    assert not (runs / "studies/tdc-figure7/tiny/results.json").exists()
    again = run(*words)
    assert again.returncode == 0, again.stderr
    assert done == {path: path.stat().st_mtime_ns for path in done}
    folder = runs / "studies" / "tdc-figure7" / "tiny"
    assert again.stdout.rstrip().endswith(str(folder / "study.html"))
    assert "metric: real against real" in again.stdout
    found = json.loads((folder / "results.json").read_text())
    assert {arm["training_images"] for arm in found["arms"]} == {64 + 2 * 32}
    for name in ("study.html", "study.md", "cells.csv", "figures/differences.svg"):
        assert (folder / name).is_file()
