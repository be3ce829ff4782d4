"""Labels are dropped as often as asked, nothing else of a training changes, and what cannot work is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel

from noisewise.data.images import Images
from noisewise.errors import SettingError
from noisewise.objectives import Draw, Objective
from noisewise.schedule import NoiseSchedule
from noisewise.training.labels import own_dropout_off
from noisewise.training.loop import TrainResult, train
from noisewise.training.settings import TrainSettings


class Remembers(Objective):
    """An objective that keeps every draw it is asked about."""

    def __init__(self) -> None:
        super().__init__(NoiseSchedule.named("linear", 100))
        object.__setattr__(self, "draws", [])

    def loss(self, model: Any, draw: Draw, **options: Any) -> torch.Tensor:
        self.draws.append(draw)  # type: ignore[attr-defined]
        return super().loss(model, draw, **options)


def conditional(**settings: Any) -> UNet2DModel:
    torch.manual_seed(0)
    settings = {"num_class_embeds": 4, "_null_class": 3, **settings}
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **settings,
    )


def images(num_classes: int = 3) -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    return Images.from_pixels(pixels, np.arange(60) % num_classes, tuple("abcdef"[:num_classes]))


def run(
    model: UNet2DModel, label_dropout: float, num_images: int = 640, **options: Any
) -> tuple[TrainResult, list[Draw]]:
    objective, settings = Remembers(), TrainSettings(num_images=num_images, batch_size=64, checkpoint_images=128)
    options = {"data": images(), **options}
    result = train(model, objective, options.pop("data"), settings, seed=0, label_dropout=label_dropout, **options)
    return result, objective.draws  # type: ignore[attr-defined]


def test_labels_are_dropped_and_nothing_else_changes() -> None:
    _, plain = run(conditional(), 0.0)
    _, dropping = run(conditional(), 0.25)
    labels, dropped = (torch.cat([draw.class_labels for draw in draws]) for draws in (plain, dropping))  # type: ignore[misc]
    assert set(labels.tolist()) == {0, 1, 2}
    share = (dropped == 3).double().mean()
    assert abs(share - 0.25) < 0.06  # three standard deviations of 640 draws
    assert torch.equal(dropped[dropped != 3], labels[dropped != 3])
    for a, b in zip(plain, dropping, strict=True):
        assert torch.equal(a.x_t, b.x_t)
        assert torch.equal(a.t, b.t)


def test_the_null_class_learns_only_when_labels_are_dropped() -> None:
    before = conditional().class_embedding.weight
    without, _ = run(conditional(), 0.0)
    dropping, _ = run(conditional(), 0.25)
    assert torch.equal(without.model.class_embedding.weight[3], before[3])  # type: ignore[index, union-attr]
    assert not torch.equal(dropping.model.class_embedding.weight[3], before[3])  # type: ignore[index, union-attr]


def test_a_resumed_training_drops_the_same_labels(tmp_path: Path) -> None:
    whole, _ = run(conditional(), 0.25)

    class Stops(Exception):  # noqa: N818 - it stands for any interruption
        pass

    def stop_late(step: Any) -> None:
        if step.images_seen > 300:
            raise Stops

    with pytest.raises(Stops):
        run(conditional(), 0.25, workspace=tmp_path, log=stop_late)
    with pytest.raises(SettingError, match="label_dropout differ"):
        run(conditional(), 0.1, workspace=tmp_path)
    resumed, _ = run(conditional(), 0.25, workspace=tmp_path)
    assert resumed.resumed_at > 0
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(SettingError, match=r"conditioning.dropout: 0.1 given; the network has no null class"):
        run(conditional(_null_class=None), 0.1)
    with pytest.raises(SettingError, match=r"conditioning.dropout: 0.1 given; the network takes no class labels"):
        run(conditional(num_class_embeds=None, _null_class=None), 0.1)
    with pytest.raises(SettingError, match=r"conditioning.dropout: 1.0 is not from 0 to below 1"):
        run(conditional(), 1.0)
    with pytest.raises(SettingError, match="the images have no labels"):
        run(conditional(), 0.1, data=Images.from_pixels(images().pixels))
    with pytest.raises(SettingError, match="data: label: 5 given; the network's num_class_embeds allow 0 to 2, and 3"):
        run(conditional(), 0.0, data=images(6))


def test_dit_s_own_dropout_waits_while_ours_is_at_work() -> None:
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, num_layers=2, sample_size=8, patch_size=4,
        num_embeds_ada_norm=3, norm_num_groups=1,
    )  # fmt: skip
    inputs = {"timestep": torch.full((64,), 5), "class_labels": torch.arange(64) % 3}
    x = torch.randn(64, 1, 8, 8)
    torch.nn.init.normal_(model.proj_out_2.weight)
    model.train()

    def answer() -> torch.Tensor:
        with torch.no_grad():
            return model(x, **inputs).sample

    assert not torch.equal(answer(), answer())
    with own_dropout_off(model):
        assert torch.equal(answer(), answer())
    assert not torch.equal(answer(), answer())
