"""The command line: quick help, one line and exit code 2 for mistakes, and each command's own work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDIMScheduler, UNet2DModel
from PIL import Image

from noisewise.cli import main
from noisewise.models.loading import save_pipeline

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained pipeline."""
    folder = tmp_path_factory.mktemp("models") / "pipeline"
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
    )
    save_pipeline(model, DDIMScheduler(), folder)
    return folder


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, noisewise.cli\n"
        "try: noisewise.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'diffusers', 'pydantic', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    for command in ("init", "plan", "run", "prune", "sample", "evaluate", "report", "status", "stitch", "merge"):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize(
    "command", ["init", "plan", "run", "prune", "sample", "evaluate", "report", "status", "stitch", "merge"]
)
def test_every_option_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    options = [line for line in said.splitlines() if line.startswith("│") and "--" in line[:8]]
    assert all(len(line.strip("│ ").split("  ", 1)[-1].strip()) > 10 for line in options)
    assert "set_" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", str(RECIPE), "--set", "plan.num_grups=3"], "did you mean plan.num_groups?"),
        (["run", "absent.yaml"], "absent.yaml: no such recipe"),
        (["run", str(RECIPE), "--jobs", "0"], "--jobs: 0 given"),
        (["run", str(RECIPE), "--only", "bas"], "did you mean base?"),
        (["rnu", str(RECIPE)], "run"),
        (["run", str(RECIPE), "--job", "2"], "--job"),
        (["run", str(RECIPE), "--set", "data={kind:", "folder}"], "folder}: too many words; a value with spaces needs"),
        (
            ["prune", "absent", "--budget", "0.7", "--out", "x", "--model-name", "y"],
            "--model-name: belongs to --propos",
        ),
        (["sample", "absent", "--out", "x"], "give a folder, or a name on the Hub (owner/name)"),
        (["status", "."], "is no run's folder"),
        (["report", "."], "results.json does not exist"),
        (["plan", "absent"], "absent: no such recipe"),
        (["plan", "."], "is no diffusers folder"),
        (["sample", "absent", "--out", "x"], "absent does not exist"),
        (["prune", "absent", "--budget", "0.7", "--out", "x"], "absent does not exist"),
        (["sample", "absent", "--out", "x", "--num-images", "0"], "--num-images: 0 given"),
        (["evaluate", "absent", "--recipe", str(RECIPE)], "absent does not exist"),
        (["init", "no/such/folder.yaml"], "the folder no/such does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_writes_nothing(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "data" not in path.parts]
    assert written == []


def test_init_writes_a_recipe_that_runs_and_never_overwrites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    assert main(["init", str(path)]) == 0
    assert main(["plan", str(path)]) == 0
    assert "average cost limit" in capsys.readouterr().out
    assert main(["init", str(path)]) == 2
    assert main(["init", "-"]) == 0
    assert capsys.readouterr().out == path.read_text()


def test_plan_prints_groups_routes_and_cost_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot, saved = tmp_path / "plan.svg", tmp_path / "plan.json"
    assert main(["plan", str(RECIPE), "--set", "plan.num_groups=10", "--plot", str(plot), "--save", str(saved)]) == 0
    said = capsys.readouterr().out
    assert "average cost limit 0.8327" in said
    assert "MACs an image" in said
    assert plot.read_text().lstrip().startswith("<?xml")
    assert len(json.loads(saved.read_text())["groups"]) == 10


def test_plan_by_the_data_is_kept_for_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [f"--set={name}" for name in ("plan.num_groups=3", "plan.num_draws=32", "plan.num_levels=12")]
    words = ["plan", str(RECIPE), "--method", "optimal-denoiser", *sets, "--runs", str(tmp_path / "runs")]
    assert main([*words, "--plot", str(tmp_path / "similarity.svg")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("plan: the optimal denoiser of 899 images, 32 draws at 12 noise levels")
    assert "pixels within" in (tmp_path / "similarity.svg").read_text()
    assert main(words) == 0
    again = capsys.readouterr().out
    assert "the optimal denoiser of" not in again
    assert again.splitlines()[1:4] == said.splitlines()[2:5]
    assert main(["plan", str(RECIPE), "--method", "equal-width", "--runs", str(tmp_path / "none")]) == 0
    assert not (tmp_path / "none").exists()


def test_a_sampler_must_be_of_the_models_schedule(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(pipeline), "--out", str(tmp_path / "x"), "--sampler", "edm-heun"]) == 2
    assert (
        "sampler: edm-heun does not sample the pipeline's vp schedule; allowed: ddpm, ddim" in capsys.readouterr().err
    )
    words = ["sample", str(pipeline), "--out", str(tmp_path / "x"), "--num-images", "2", "--num-inference-steps", "3"]
    assert main([*words, "--sampler", "dpm-solver-3"]) == 0


def test_plan_of_an_existing_model(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(pipeline), "--set", "plan.num_groups=3", "--num-inference-steps", "10"]) == 0
    said = capsys.readouterr().out
    assert "10 calls" in said
    assert "serves none of" not in said
    assert main(["plan", str(pipeline), "--set", "plan.num_groups=10", "--num-inference-steps", "5"]) == 0
    assert "serve none of the 5 calls of sampling" in capsys.readouterr().out
    assert main(["plan", str(pipeline), "--set", "plan.groups=3"]) == 2
    assert "did you mean plan.num_groups?" in capsys.readouterr().err


def test_a_folder_that_is_too_high_up_is_said_to_be(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(pipeline.parent)]) == 2
    assert f"; did you mean {pipeline}?" in capsys.readouterr().err
    (pipeline.parent / "recipe.yaml").touch()
    assert main(["run", str(pipeline.parent)]) == 2
    assert f"; did you mean {pipeline.parent / 'recipe.yaml'}?" in capsys.readouterr().err


def test_dry_run_lists_every_step_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(RECIPE), "--dry-run"]) == 0
    said = capsys.readouterr().out
    for name in ("base ", "prune[0]", "finetune[2]", "assemble[tdc]", "evaluate[uniform]", "timing"):
        assert any(line.startswith(name) and "to run" in line for line in said.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_prune_meets_the_budget_and_the_result_samples(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, images = tmp_path / "small", tmp_path / "images"
    assert main(["prune", str(pipeline), "--budget", "0.7", "--out", str(small)]) == 0
    info = json.loads((small / "pruning.json").read_text())
    assert 0.7 * 0.98 <= info["achieved"] <= 0.7
    words = ["--num-images", "5", "--num-inference-steps", "3", "--batch-size", "2"]
    assert main(["sample", str(small), "--out", str(images), *words]) == 0
    assert sorted(path.name for path in images.iterdir()) == ["0.png", "1.png", "2.png", "3.png", "4.png", "grid.png"]
    assert Image.open(images / "0.png").size == (8, 8)
    again = tmp_path / "again"
    assert main(["sample", str(small), "--out", str(again), *words[:-1], "5"]) == 0
    for i in range(5):
        pair = [np.asarray(Image.open(folder / f"{i}.png"), dtype=int) for folder in (images, again)]
        assert abs(pair[0] - pair[1]).max() <= 1
    assert main(["sample", str(small), "--out", str(images)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert (
        main(["prune", str(pipeline), "--budget", "0.7", "--out", str(tmp_path / "x"), "--importance", "taylor"]) == 2
    )
    assert "--recipe" in capsys.readouterr().err


def test_taylor_prunes_by_a_recipes_images(pipeline: Path, tmp_path: Path) -> None:
    words = ["--importance", "taylor", "--recipe", str(RECIPE), "--timesteps", "0", "4"]
    assert main(["prune", str(pipeline), "--budget", "0.5", "--out", str(tmp_path / "small"), *words]) == 0
    assert json.loads((tmp_path / "small" / "pruning.json").read_text())["importance"] == "taylor"


def test_evaluate_prints_numbers_with_their_provenance(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statistics, numbers = tmp_path / "samples.npz", tmp_path / "numbers.json"
    sets = ["--set", "sample.num_images=130", "--set", "sample.num_inference_steps=2"]
    words = ["evaluate", str(pipeline), "--recipe", str(RECIPE), *sets]
    assert main([*words, "--save-statistics", str(statistics), "--json-file", str(numbers)]) == 0
    said = capsys.readouterr().out
    assert "fd_efficientnet_lite0_block10: " in said
    assert '"num_inference_steps": 2' in said
    found = json.loads(numbers.read_text())
    assert found["kid"]["low"] < found["kid"]["value"] < found["kid"]["high"]
    assert main([*words, "--reference", str(statistics)]) == 0
    assert "fd_efficientnet_lite0_block10: 0.000" in capsys.readouterr().out.replace("-0.000", "0.000")
