"""A hostile new user, through the real commands: a mistake gets one line and an exit code, and leaves nothing half."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from noisewise.cli import main
from noisewise.models.loading import save_pipeline
from noisewise.workflow.store import run_lock

RECIPE = """\
name: tiny
data: {kind: sklearn-digits, num_train: 64, num_test: 32}
model: {kind: unet2d, block_out_channels: [8, 16], norm_num_groups: 4, attention_head_dim: 8}
base: {num_images: 512, batch_size: 32, checkpoint_images: 64, num_threads: 1}
plan: {num_groups: 2}
prune: {importance: magnitude, proposer: {kind: importance, rounds: 1, candidates: 1, num_score_images: 16}}
finetune: {num_images: 32, batch_size: 32, num_threads: 1}
sample: {num_images: 8, num_inference_steps: 3, num_threads: 1}
evaluate: {num_loss_images: 8, num_timing_images: 1}
compare: []
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a recipe."""
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs' folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "r.yaml").write_text(RECIPE)
    assert main(["run", str(folder / "r.yaml"), "--runs", str(folder / "runs")]) == 0
    return folder / "runs"


@pytest.fixture
def pipe(here: Path) -> Path:
    """An untrained pipeline that a test may break."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    model = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **sizes, **blocks)
    save_pipeline(model, DDPMScheduler(), here / "pipe")
    return here / "pipe"


@pytest.fixture
def images(here: Path) -> Path:
    """A folder of 30 images that a test may break."""
    folder = here / "images"
    folder.mkdir()
    for i in range(30):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 2) -> str:
    """The one line on stderr of a command that must end with ``code``."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    *before, line = capsys.readouterr().err.splitlines(keepends=True)
    assert line.startswith("noisewise: ")
    assert all(other.startswith("warning: ") for other in before)
    return line


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\x00\xff\x80", "not a text file"),
        (b"? [1, 2]\n: 3\n", "line 1, column 3: not YAML: a key is no word"),
        (b"name: 2020-13-45\n", "not YAML: month must be in 1..12"),
        (b"a: !!python/object:os.system 1\n", "could not determine a constructor"),
    ],
)
def test_what_is_no_recipe(text: bytes, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_bytes(text)
    assert said in refused(capsys, "run", "r.yaml")
    assert files(Path()) == ["r.yaml"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=null", "model: None given; it should be a mapping"),
        ("model.block_out_channels=[8, -8]", "model.block_out_channels[1]: -8 given"),
        ("model.block_out_channels=[]", "model.block_out_channels: [] given; it should have at least 1 item"),
        ("model.time_embedding_type=xx", "model: diffusers refuses this network"),
        ("model.downsample_padding=7", "model: diffusers refuses this network (Sizes of tensors must match"),
        ("model.down_block_types=[SkipDownBlock2D, DownBlock2D]", "SkipDownBlock2D"),
        ("prune.proposer.alignment=0", "prune.proposer.alignment: 0 given; it should be greater than or equal to 1\n"),
        ("plan.clip_db=x", "plan.clip_db: 'x' given"),
        ("base.learning_rate=.inf", "base.learning_rate: inf given; it should be a finite number"),
        ("plan.average_cost=0.001", "the nearest costs that can be reached"),
        ("sample.num_images=33", "sample.num_images: 33 given; at most 32 are possible"),
        ("name=größe", "name: 'größe' given; Name of the run"),
    ],
)
def test_settings_that_cannot_work(override: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "run", "r.yaml", "--set", override)
    assert said in refused(capsys, "run", "r.yaml", "--set", override, "--dry-run")
    assert files(Path()) == ["r.yaml"]


def test_a_plan_of_another_t(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "r.yaml", "--save", "p.json"]) == 0
    words = ["run", "r.yaml", "--set", "plan={method: given, path: p.json}"]
    assert "made for 1000, given 500" in refused(capsys, *words, "--set", "schedule={num_train_timesteps: 500}")
    assert files(Path()) == ["p.json", "r.yaml"]


MULTI_STAGE = {
    "method": "multi-decoder",
    "finetune": "null",
    "compare": "[base]",
    "multi_decoder": "{decoders: [1.5, 1, 0.5]}",
    "plan": "{method: optimal-denoiser, num_draws: 32, num_levels: 12}",
}


def multi_stage(*words: str, **changes: str) -> list[str]:
    """A command on the multi-stage framework's recipe."""
    return [
        *words,
        *(part for name, value in {**MULTI_STAGE, **changes}.items() for part in ("--set", f"{name}={value}")),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plan.alpha": "0.2"}, "plan.alpha: 0.2 leaves a group empty"),
        ({"plan.num_groups": "4"}, "multi_decoder.decoders: 3 given, the plan has 4 groups"),
        ({"multi_decoder": "{decoders: [1.5, 1, 0.3]}"}, "multi_decoder.decoders.2: 4.8 channels are not a multiple"),
        ({"compare": "[tdc]"}, "finetune: missing; tdc needs a stage 2"),
        ({"plan": "{method: given, bounds: [0, 500]}"}, "plan.bounds: [0.0, 500.0] do not rise"),
    ],
)
def test_a_multi_stage_recipe_that_cannot_work(
    changes: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["run", "r.yaml"], ["run", "r.yaml", "--dry-run"], ["plan", "r.yaml"]):
        assert said in refused(capsys, *multi_stage(*words, **changes))
        assert files(Path()) == ["r.yaml"]


def test_a_plan_of_other_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(multi_stage("plan", "r.yaml", "--save", "p.json")) == 0
    given = {"plan": "{method: given, path: p.json}", "data.image_size": "4"}
    assert "images of 1x8x8 (channels, height, width); these are 1x4x4" in refused(
        capsys, *multi_stage("run", "r.yaml", **given)
    )


def test_images_that_are_there_twice_are_counted_and_noted(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = shutil.copytree(images, images.with_name("held-out"))
    for i in range(5):
        shutil.copy(images / f"{i:02d}.png", images / f"copy-{i}.png")
    data = f"{{kind: folder, folder: {images}, test_folder: {held_out}, channels: 1}}"
    assert main(multi_stage("plan", "r.yaml", data=data)) == 0
    assert "5 images equal an earlier one" in capsys.readouterr().out


def test_images_that_cannot_be_read_are_named_and_counted(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(images / "03.png")
    (images / "04.png").unlink()
    (images / "04.png").symlink_to("nowhere.png")
    (images / "again").symlink_to(images)  # a loop: each image counts once
    data = f"data={{kind: folder, folder: {images}, channels: 1, test_fraction: 0.2}}"
    words = ["run", "r.yaml", "--set", data, "--set", "sample.num_images=4"]
    said = refused(capsys, *words)
    assert "2 of 24 train images cannot be read" in said
    assert "03.png" in said
    assert "04.png" in said
    assert files(Path()) == sorted(["r.yaml", "images", *(f"images/{name}" for name in files(images))])
    assert main([*words, "--set", "data.on_corrupt=skip", "--dry-run"]) == 0
    assert "2 of 24 train images cannot be read" in capsys.readouterr().out
    (images / "05.png").unlink()
    Image.new("L", (9, 9)).save(images / "05.png")
    assert "images differ in size" in refused(capsys, *words, "--set", "data.on_corrupt=skip")


def test_a_loss_that_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "run", "r.yaml", "--set", "base.learning_rate=1e6", "--progress", "json", code=1)
    assert "the loss is not a number" in said
    assert "Try a lower learning_rate" in said
    assert main(["status", "runs/tiny"]) == 0
    assert "base failed: TrainingError" in capsys.readouterr().out


def test_models_that_are_none(pipe: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad").mkdir()
    torch.save({}, here / "bad" / "model.pt")
    for model in ("bad", "bad/model.pt"):
        for words in (["sample", model, "--out", "o"], ["prune", model, "--budget", "0.7", "--out", "o"]):
            assert "pickle" in refused(capsys, *words)
        existing = ["--set", f"model={{from: {model}}}", "--set", "base.num_images=0"]
        assert "pickle" in refused(capsys, "run", "r.yaml", *existing)
    weights = pipe / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "conv_in.weight": tensors["conv_in.weight"] * torch.nan}, weights, {"format": "pt"})
    few = ["--num-images", "2", "--num-inference-steps", "2"]
    assert "not finite" in refused(capsys, "sample", pipe, "--out", "o", *few)
    config = pipe / "scheduler" / "scheduler_config.json"
    settings = json.loads(config.read_text())
    for name, value in (("num_train_timesteps", -5), ("beta_schedule", "bogus"), ("trained_betas", "x")):
        config.write_text(json.dumps({**settings, name: value}))
        assert "model.scheduler: " in refused(capsys, "plan", pipe)
    cut(weights)
    assert "a file is damaged" in refused(capsys, "prune", pipe, "--budget", "0.7", "--out", "o")
    assert not (here / "o").exists()


def test_a_model_that_predicts_otherwise(pipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "r.yaml", "--set", f"model={{from: {pipe}}}", "--set", "base.num_images=0"]
    said = refused(capsys, *words, "--set", "objective.prediction_type=v_prediction")
    assert "objective.prediction_type: v_prediction given, the pipeline in model.from has epsilon" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("plan r.yaml --save no/p.json", "--save no/p.json: the folder no does not exist"),
        ("plan r.yaml --save .", "--save .: is a folder"),
        ("plan r.yaml --plot picture", "ends in .svg, .png, .pdf"),
        ("plan r.yaml --sampler ddpm", "--set sample.scheduler=ddpm"),
        ("plan r.yaml/x", "cannot be read (Not a directory)"),
        ("run r.yaml --runs r.yaml", "--runs r.yaml: is a file"),
        ("report r.yaml", "cannot be read (Not a directory)"),
        ("evaluate pipe --recipe r.yaml --json-file no/x", "--json-file no/x: the folder no does not exist"),
        ("evaluate pipe --recipe r.yaml --reference r.yaml", "not a whole .npz"),
        ("prune pipe --budget 0.7 --out r.yaml/x", "--out r.yaml/x: no folder can be made"),
        ("prune pipe --budget 0.7 --out o --recipe r.yaml", "--recipe: magnitude importance would ignore it"),
        ("prune pipe --budget 0.001 --out o", "the nearest costs that can be reached"),
        ("sample pipe --out r.yaml", "is not an empty folder"),
        ("sample pipe --out o --seed -1", "--seed: -1 given; 0 or more"),
        ("sample pipe --out o --eta 3", "--eta: 3.0 given; 0 to 1"),
    ],
)
def test_options_that_cannot_work(words: str, said: str, pipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(Path())
    assert said in refused(capsys, *words.split())
    assert files(Path()) == before


def test_a_damaged_store_says_what_to_delete(finished: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = shutil.copytree(finished, here / "runs")
    again = ["run", "r.yaml", "--runs", str(runs)]
    step = next((runs / "store").glob("assemble-tdc-*"))
    shutil.rmtree(next((runs / "store").glob("sample-tdc-*")))
    cut(next(step.rglob("*.safetensors")))
    said = refused(capsys, *again, "--progress", "json")
    assert f"checksum); delete the folder {step} to redo" in said
    shutil.rmtree(step)
    assert main(again) == 0
    cut(step / "artefact.json")
    for words in (again, [*again, "--dry-run"], ["status", str(runs / "tiny")]):
        assert f"not a whole record; delete the folder {step} to redo" in refused(capsys, *words)
    shutil.rmtree(step)
    cut(runs / "tiny" / "results.json")
    assert "results.json is not JSON" in refused(capsys, "report", runs / "tiny")
    assert main(again) == 0
    with run_lock(runs / "tiny"):
        assert "another process" in refused(capsys, *again)


@pytest.fixture
def small_disk(here: Path) -> Iterator[Path]:
    """A disk of 100 KiB."""
    place = here / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", place]).returncode:
        pytest.skip("may not mount a small disk here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_up(small_disk: Path, pipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["prune", pipe, "--budget", "0.9"],
        ["sample", pipe, "--num-images", "99", "--num-inference-steps", "1"],
    ):
        assert "the disk is full" in refused(capsys, *words, "--out", small_disk / "o")
        assert files(small_disk) == []
    assert "No space left on device" in refused(capsys, "run", "r.yaml", "--runs", small_disk, "--progress", "json")
    subprocess.run(["mount", "-o", "remount,size=30m", small_disk], check=True)
    assert main(["run", "r.yaml", "--runs", str(small_disk)]) == 0
