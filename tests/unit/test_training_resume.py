"""An interrupted training ends with the bits of an uninterrupted one; a damaged checkpoint is never trusted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from noisewise.data.images import Images
from noisewise.errors import SettingError
from noisewise.files import load_tensors
from noisewise.objectives import Draw, Objective
from noisewise.schedule import NoiseSchedule
from noisewise.training.loop import TrainResult, train
from noisewise.training.settings import TrainSettings

SETTINGS = {"num_images": 200, "batch_size": 16, "learning_rate": 2e-3, "checkpoint_images": 48, "num_threads": 1}


def tiny_unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        dropout=0.2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def images() -> Images:
    return Images.from_pixels(np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8))


class Stops(Exception):  # noqa: N818 - it stands for any interruption
    pass


class StopsAt(Objective):
    """Interrupts the training at its n-th loss."""

    def __init__(self, calls: int) -> None:
        super().__init__(NoiseSchedule.named("linear", 100))
        object.__setattr__(self, "left", [calls])

    def loss(self, model: object, draw: Draw, **more: object) -> torch.Tensor:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise Stops
        return super().loss(model, draw, **more)


def go(workspace: Path | None, objective: Objective | None = None, **settings: object) -> TrainResult:
    return train(
        tiny_unet(),
        objective or Objective(NoiseSchedule.named("linear", 100)),
        images(),
        TrainSettings(**{**SETTINGS, **settings}),
        seed=5,
        names=("finetune", 2),
        workspace=workspace,
        timesteps=(10, 60),
        horizontal_flip=True,
        snapshots=() if workspace is None else (150,),
    )


def same_weights(a: TrainResult, b: TrainResult) -> bool:
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def curve(result: TrainResult) -> list[tuple[object, ...]]:
    return [(step.images_seen, step.loss, step.learning_rate, step.bins) for step in result.curve]


@pytest.mark.parametrize("stop_after", [2, 4, 12])
def test_interrupted_and_continued_equals_uninterrupted_to_the_bit(tmp_path: Path, stop_after: int) -> None:
    whole = go(tmp_path / "whole")
    with pytest.raises(Stops):
        go(tmp_path / "cut", StopsAt(stop_after))
    continued = go(tmp_path / "cut")

    assert continued.resumed_at == stop_after * 16 // 48 * 48
    assert same_weights(whole, continued)
    assert curve(whole) == curve(continued)
    for name in ("whole", "cut"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["images"] for line in lines] == [step.images_seen for step in whole.curve]
    kept = [load_tensors(tmp_path / name / "snapshots" / "150.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    first = go(tmp_path)
    again = go(tmp_path, StopsAt(0))
    assert again.resumed_at == 200
    assert same_weights(first, again)
    assert not (tmp_path / "checkpoint.previous").exists()
    assert not again.model.training


def test_dropout_leaves_the_global_random_state_alone() -> None:
    model = tiny_unet()
    before = torch.get_rng_state()
    objective = Objective(NoiseSchedule.named("linear", 100))
    train(model, objective, images(), TrainSettings(num_images=32, batch_size=16), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


LONG = {"num_images": 800, "checkpoint_images": 160}
KILLED = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
import test_training_resume as t
t.go(Path({workspace!r}), **t.LONG)
"""


def test_killed_at_any_moment_it_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    script = KILLED.format(folder=str(Path(__file__).parent), workspace=str(tmp_path / "cut"))
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 600
        while not (tmp_path / "cut" / "checkpoint.previous").exists():  # the second checkpoint is being or was written
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    continued = go(tmp_path / "cut", **LONG)
    assert continued.resumed_at >= 160
    assert same_weights(go(tmp_path / "whole", **LONG), continued)


def interrupted(workspace: Path) -> Path:
    with pytest.raises(Stops):
        go(workspace, StopsAt(8))  # checkpoints at 48 and 96 images
    return workspace


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("model.safetensors", "cut short"),
        ("ema.safetensors", "altered"),
        ("optimizer.safetensors", "missing"),
        ("state.json", "cut short"),
        ("state.json", "altered"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_or_refused(tmp_path: Path, file: str, how: str) -> None:
    workspace = interrupted(tmp_path)
    path = workspace / "checkpoint" / file
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "altered" and file == "state.json":
        path.write_bytes(content.replace(b'"images_seen": 96', b'"images_seen": 64'))
    else:
        path.write_bytes(content[:-10] + (b"0123456789" if how == "altered" else b""))

    with pytest.warns(UserWarning, match=file):
        continued = go(workspace, StopsAt(99))
    assert continued.resumed_at == 48

    shutil.rmtree(workspace)
    workspace = interrupted(workspace)
    shutil.rmtree(workspace / "checkpoint.previous")
    (workspace / "checkpoint" / file).write_bytes(b"{}")
    with pytest.raises(SettingError, match=file):
        go(workspace)


def test_a_kill_between_the_moves_loses_nothing(tmp_path: Path) -> None:
    workspace = interrupted(tmp_path / "a")
    (workspace / "checkpoint").rename(workspace / "checkpoint.new")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert go(workspace).resumed_at == 96

    workspace = interrupted(tmp_path / "b")
    (workspace / "checkpoint").rename(workspace / "checkpoint.new")
    (workspace / "checkpoint.new" / "state.json").unlink()  # half-written
    assert go(workspace).resumed_at == 48


def test_of_a_damaged_checkpoint_and_a_kill_together_the_whole_one_is_taken(tmp_path: Path) -> None:
    workspace = interrupted(tmp_path)
    shutil.rmtree(workspace / "checkpoint.previous")  # killed behind this, with the next one whole beside
    shutil.copytree(workspace / "checkpoint", workspace / "checkpoint.new")
    (workspace / "checkpoint" / "model.safetensors").write_bytes(b"{}")
    assert go(workspace).resumed_at == 96


def test_without_a_whole_checkpoint_it_says_what_to_delete(tmp_path: Path) -> None:
    workspace = interrupted(tmp_path)
    shutil.rmtree(workspace / "checkpoint")
    (workspace / "checkpoint.previous" / "model.safetensors").unlink()
    with pytest.raises(SettingError, match=r"model\.safetensors is missing; delete .*checkpoint\.previous to train"):
        go(workspace)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    workspace = interrupted(tmp_path)
    with pytest.raises(SettingError, match=r"settings\.learning_rate differ"):
        go(workspace, learning_rate=1e-4)
    assert go(workspace, checkpoint_images=100).resumed_at == 96  # how often to save is no part of the result
