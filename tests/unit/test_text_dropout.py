"""Captions are dropped as often as asked, all that is told of one at once; nothing else of a training changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from text_zoo import POOLED, WIDTH, denoiser

from noisewise.data.images import Images
from noisewise.data.texts import Texts
from noisewise.errors import SettingError
from noisewise.objectives import Draw, Objective
from noisewise.schedule import NoiseSchedule
from noisewise.training.loop import train
from noisewise.training.settings import TrainSettings

NUM, LENGTH = 40, 5


@dataclass(frozen=True)
class Remembers(Objective):
    """An objective that keeps every draw it is asked about."""

    draws: list[Draw] = field(default_factory=list)

    def loss(self, model: Any, draw: Draw, **options: Any) -> torch.Tensor:
        self.draws.append(draw)
        return super().loss(model, draw, **options)


def images() -> Images:
    """Image i is told i + 1 everywhere, and -1 of no caption."""
    table = {
        "added_cond_kwargs.text_embeds": torch.arange(1.0, NUM + 1)[:, None].repeat(1, POOLED),
        "added_cond_kwargs.time_ids": torch.full((NUM, 6), 16.0),
        "encoder_hidden_states": torch.arange(1.0, NUM + 1)[:, None, None].repeat(1, LENGTH, 2 * WIDTH),
    }
    null = {name: torch.full_like(values[:1], -1) for name, values in table.items()}
    null["added_cond_kwargs.time_ids"] = table["added_cond_kwargs.time_ids"][:1]
    pixels = np.random.default_rng(0).integers(0, 256, (NUM, 4, 8, 8), dtype=np.uint8)
    return Images.from_pixels(pixels).with_texts(Texts(table, torch.arange(NUM), null, "texts"))


def draws(dropout: float) -> list[Draw]:
    settings = TrainSettings(num_images=320, batch_size=64, checkpoint_images=320, learning_rate=1e-8)
    objective = Remembers(NoiseSchedule.named("linear", 100))
    size = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    model = denoiser(cross_attention_dim=2 * WIDTH, projection_class_embeddings_input_dim=POOLED + 24, **size)
    train(model, objective, images(), settings, seed=0, label_dropout=dropout)
    return objective.draws


def test_captions_are_dropped_whole_and_nothing_else_changes() -> None:
    plain, dropping = draws(0.0), draws(0.25)

    share = []
    for a, b in zip(plain, dropping, strict=True):
        assert torch.equal(a.x_t, b.x_t)
        assert torch.equal(a.t, b.t)
        told, found = a.conditions or {}, b.conditions or {}
        hidden, pooled = found["encoder_hidden_states"], found["added_cond_kwargs"]["text_embeds"]
        dropped = hidden[:, 0, 0] == -1  # [B]
        share.append(dropped.double().mean())
        assert torch.equal(hidden[~dropped], told["encoder_hidden_states"][~dropped])
        assert (hidden[dropped] == -1).all()
        assert torch.equal(pooled[:, 0], hidden[:, 0, 0])  # of the same images
        assert (found["added_cond_kwargs"]["time_ids"] == 16).all()
    assert abs(float(torch.stack(share).mean()) - 0.25) < 0.08  # three standard deviations of 320 draws


def test_a_share_of_all_is_refused() -> None:
    with pytest.raises(SettingError, match=r"conditioning.dropout: 1.0 is not from 0 to below 1"):
        draws(1.0)
