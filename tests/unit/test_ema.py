"""The average's half-life is what it says, and its start is forgotten."""

from __future__ import annotations

import pytest
import torch

from noisewise.training.ema import Ema
from noisewise.training.optimizer import learning_rate
from noisewise.training.settings import TrainSettings


def test_half_life_in_images_whatever_the_batch() -> None:
    for batch in (10, 25, 100):
        parameter = torch.nn.Parameter(torch.zeros(3))
        ema = Ema({"p": parameter}, halflife_images=500, rampup=None)
        parameter.data.fill_(1.0)
        for step in range(500 // batch):
            ema.update((step + 1) * batch, batch)
        torch.testing.assert_close(ema.weights["p"], torch.full((3,), 0.5))


def test_ramp_up_bounds_the_half_life_by_a_fraction_of_the_images_seen() -> None:
    ema = Ema({"p": torch.zeros(1)}, halflife_images=10_000, rampup=0.05)
    assert ema.decay(1000, 50) == pytest.approx(0.5 ** (50 / 50))
    assert ema.decay(10**6, 50) == pytest.approx(0.5 ** (50 / 10_000))

    parameter = torch.nn.Parameter(torch.zeros(1))
    ema = Ema({"p": parameter}, halflife_images=10_000, rampup=0.05)
    parameter.data.fill_(1.0)
    for step in range(20):  # 2,000 images: a fifth of the half-life, yet the start is gone
        ema.update((step + 1) * 100, 100)
    assert ema.weights["p"].item() > 0.999


def test_no_half_life_keeps_the_weights_themselves() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    ema = Ema({"p": parameter}, halflife_images=0)
    parameter.data.fill_(3.0)
    ema.update(100, 100)
    assert torch.equal(ema.weights["p"], parameter)


def test_copy_and_load() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    ema = Ema({"p": parameter}, halflife_images=100, rampup=None)
    ema.load({"p": torch.tensor([1.0, 2.0])})
    ema.copy_to_parameters()
    assert parameter.tolist() == [1.0, 2.0]
    assert parameter.requires_grad


def test_learning_rate_warms_up_then_falls() -> None:
    settings = TrainSettings(num_images=1000, batch_size=10, learning_rate=1.0, warmup_images=100)
    assert learning_rate(settings, 10) == pytest.approx(0.1)
    assert learning_rate(settings, 100) == pytest.approx(1.0)
    assert learning_rate(settings, 555) == pytest.approx(0.5)
    assert 0 < learning_rate(settings, 1000) < 1e-3
    constant = settings.model_copy(update={"rate": "constant"})
    assert learning_rate(constant, 1000) == 1.0
    assert TrainSettings(num_images=1000).effective_warmup_images == 50
