"""The real commands on digits at a small budget: run, run again, kill and resume, two at once, reload."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from whole_commands import run, weights

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"
SMALL = {
    "name": "digits-e2e",
    "base.num_images": "24_000",
    "base.num_snapshots": "0",
    "finetune.num_images": "2_000",
    "prune.proposer": "{kind: evolution, rounds: 1, candidates: 2, num_score_images: 256}",
    "prune.timestep_stride": "50",
    "sample.num_images": "400",
    "sample.num_inference_steps": "20",
    "evaluate.num_loss_images": "128",
    "evaluate.num_timing_images": "32",
    "compare": "[base-continued, base-fewer-steps, unpruned, uniform]",
}
# At these few images the base's digits are rough. Noise alone scores above 2000, an untrained network the same.
FRECHET_BOUND = 400.0
ROWS = {"base-continued", "base-fewer-steps", "unpruned", "uniform", "tdc"}


def command(runs: Path, *words: str, **changes: str) -> list[str]:
    sets = [word for name, value in {**SMALL, **changes}.items() for word in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "noisewise", "run", str(RECIPE), "--runs", str(runs), *sets, *words]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run, done by two processes."""
    folder = tmp_path_factory.mktemp("runs")
    done = run(command(folder, "--jobs", "2"))
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_run_ends_with_the_table_and_the_page(runs: Path) -> None:
    said = (runs / "stdout.txt").read_text()
    page = runs / "digits-e2e" / "report.html"
    assert said.rstrip().endswith(str(page))
    assert "to do: 54,000 training images" in said
    assert "Real against real" in said
    assert "<html" in page.read_text()
    results = json.loads((page.parent / "results.json").read_text())
    rows = {row["id"]: row for row in results["rows"]}
    assert set(rows) == ROWS
    assert {row["training_images"] for row in rows.values()} == {24_000 + 4 * 2_000}
    assert rows["base-continued"]["frechet"] < FRECHET_BOUND
    assert results["metric"]["floor"] < 20
    assert results["verdict"]
    assert rows["base-fewer-steps"]["macs_per_image"] <= rows["tdc"]["macs_per_image"]
    assert rows["tdc"]["macs_per_image"] < 0.9 * rows["base-continued"]["macs_per_image"]


def test_the_same_command_again_does_and_changes_nothing(runs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (runs / "digits-e2e").rglob("*.*") if path.name != ".lock"}
    done = run(command(runs, "--jobs", "2"))
    assert done.returncode == 0, done.stderr
    assert ": started" not in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_pipeline_reloads_in_a_fresh_process_without_the_pruner(runs: Path) -> None:
    code = (
        "import sys, torch, diffusers, noisewise\n"  # diffusers loads from no package that was not imported
        "pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "pipe.set_progress_bar_config(disable=True)\n"
        "pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)\n"
        "images = pipe(batch_size=2, num_inference_steps=4, generator=torch.manual_seed(0)).images\n"
        "print(type(pipe).__name__, type(pipe.unet).__name__, len(images), images[0].size)\n"
        "print('torch_pruning' in sys.modules, 'noisewise.pruning' in sys.modules)\n"
    )
    done = run([sys.executable, "-c", code, str(runs / "digits-e2e" / "pipeline")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["DDPMPipeline ExpertDenoiser 2 (8, 8)", "False False"]


def test_killed_run_resumes_to_the_same_weights(runs: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of the base, then of stage 2; the rest is one plain command in one process."""
    with subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first:
        wait_for(tmp_path, "base-*/checkpoint/*", first)
        first.kill()
    store = tmp_path / "store"
    assert not list(store.glob("base-????????/artefact.json"))
    with subprocess.Popen(
        command(tmp_path, "--jobs", "2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as second:
        wait_for(tmp_path, "uniform-*/checkpoint/*", second)
        second.kill()
    assert list(store.glob("base-????????/artefact.json"))
    done = run(command(tmp_path))
    assert done.returncode == 0, done.stderr
    base = next(iter(store.glob("base-????????/artefact.json")))
    assert json.loads(base.read_text())["result"]["resumed_at"] > 0
    assert weights(tmp_path) == weights(runs)


def wait_for(runs: Path, pattern: str, process: subprocess.Popen[Any], seconds: float = 1_200) -> None:
    deadline = time.monotonic() + seconds
    while not list((runs / "store").glob(pattern)):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, f"{pattern} never appeared"
        time.sleep(0.05)


def test_second_process_is_told_and_an_interrupted_one_says_how_to_go_on(tmp_path: Path) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    long = command(tmp_path, **{"base.num_images": "2_400_000", "base.checkpoint_images": "2_000"})
    with subprocess.Popen(long, **pipes, start_new_session=True) as first:
        wait_for(tmp_path, "base-*/checkpoint/*", first)
        second = run(long)
        assert second.returncode == 2
        assert f"another process (process {first.pid}) is working on this run" in second.stderr
        assert len(second.stderr.strip().splitlines()) == 1
        status = run([sys.executable, "-m", "noisewise", "status", str(tmp_path / "digits-e2e")])
        assert any(line.split()[:2] == ["base", "running"] for line in status.stdout.splitlines())
        os.kill(first.pid, signal.SIGTERM)
        assert first.wait(60) == 130
        assert first.stderr is not None
        assert "the same command goes on" in first.stderr.read()
