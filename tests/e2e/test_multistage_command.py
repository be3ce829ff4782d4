"""The multi-stage framework by the real commands, on digits at a small budget."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from whole_commands import run, weights

RECIPE = Path(__file__).parents[2] / "recipes" / "multistage-digits.yaml"
SMALL = {
    "name": "multistage-e2e",
    "base.num_images": "6_000",
    "base.num_snapshots": "0",
    "plan.num_draws": "256",
    "sample.num_images": "128",
    "sample.num_inference_steps": "9",
    "evaluate.num_loss_images": "64",
    "evaluate.num_timing_images": "32",
    "compare": "[base, base-fewer-steps, separate]",
}


def command(what: str, runs: Path, *words: str, **changes: str) -> list[str]:
    sets = [word for name, value in {**SMALL, **changes}.items() for word in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "noisewise", what, str(RECIPE), "--runs", str(runs), *sets, *words]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run, planned first and done by two processes."""
    folder = tmp_path_factory.mktemp("runs")
    planned = run(command("plan", folder, "--plot", str(folder / "plan.svg")))
    assert planned.returncode == 0, planned.stderr
    (folder / "planned.txt").write_text(planned.stdout)
    done = run(command("run", folder, "--jobs", "2"))
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_the_plan_says_its_cost_first_and_is_made_once(runs: Path) -> None:
    first, *rest = (runs / "planned.txt").read_text().splitlines()
    assert first.startswith("plan: the optimal denoiser of 899 images, 256 draws at 50 noise levels")
    assert any(line.startswith("multi-decoder, encoder and decoder of each group: group 0 ") for line in rest)
    assert "<svg" in (runs / "plan.svg").read_text()
    assert "the optimal denoiser of" not in (runs / "stdout.txt").read_text()
    assert len(list((runs / "store" / "plans").glob("*.json"))) == 1


def test_run_ends_with_the_table_and_the_page(runs: Path) -> None:
    folder = runs / "multistage-e2e"
    said = (runs / "stdout.txt").read_text()
    assert said.rstrip().endswith(str(folder / "report.html"))
    assert "to do: 18,000 training images" in said
    results = json.loads((folder / "results.json").read_text())
    rows = {row["id"]: row for row in results["rows"]}
    assert set(rows) == {"base", "base-fewer-steps", "separate", "multi-decoder"}
    assert {row["training_images"] for row in rows.values()} == {6_000}
    assert rows["base-fewer-steps"]["macs_per_image"] <= rows["multi-decoder"]["macs_per_image"]
    assert rows["base-fewer-steps"]["num_inference_steps"] > rows["base"]["num_inference_steps"]
    losses = rows["multi-decoder"]["group_test_loss"]
    assert losses[0] > losses[1] > losses[2] < 0.2  # it has learned something everywhere
    assert "single network" in results["verdict"]


def test_the_same_command_again_does_and_changes_nothing(runs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (runs / "multistage-e2e").rglob("*.*") if path.name != ".lock"}
    done = run(command("run", runs))
    assert done.returncode == 0, done.stderr
    assert ": started" not in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_pipeline_reloads_in_a_fresh_process(runs: Path) -> None:
    code = (
        "import sys, torch, diffusers, noisewise\n"
        "pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "pipe.set_progress_bar_config(disable=True)\n"
        "images = pipe(batch_size=2, num_inference_steps=6, generator=torch.manual_seed(0)).images\n"
        "print(type(pipe.unet).__name__, type(pipe.scheduler).__module__, len(images), images[0].size)\n"
    )
    done = run([sys.executable, "-c", code, str(runs / "multistage-e2e" / "pipeline")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "MultiDecoderUNet2DModel"
    assert done.stdout.rstrip().endswith("2 (8, 8)")


def test_a_killed_joint_training_resumes_to_the_same_weights(runs: Path, tmp_path: Path) -> None:
    words = command("run", tmp_path)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "store").glob("joint-*/checkpoint/*")):
            assert first.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.05)
        first.kill()
    assert not list((tmp_path / "store").glob("joint-*/artefact.json"))
    done = run([*words, "--only", "joint"])
    assert done.returncode == 0, done.stderr
    record = json.loads(next((tmp_path / "store").glob("joint-*/artefact.json")).read_text())
    assert record["result"]["resumed_at"] > 0
    ours = weights(tmp_path)
    assert any(name.startswith("joint-") for name in ours)
    assert ours.items() <= weights(runs).items()


def test_two_processes_train_the_joint_network_together(tmp_path: Path) -> None:
    """Batches of both processes hold samples of all groups: none has a parameter without a gradient for good."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]
    small = {"base.num_images": "512", "sample.num_images": "120", "sample.num_inference_steps": "3", "compare": "[]"}
    done = run([*launcher, *command("run", tmp_path, **small)[2:]])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("joint: done") == 1  # the second process is silent
    results = json.loads((tmp_path / "multistage-e2e" / "results.json").read_text())
    assert [row["id"] for row in results["rows"]] == ["multi-decoder"]
