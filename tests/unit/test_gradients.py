"""Per-level gradients of a network: against closed forms, and into a plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from noisewise.errors import SettingError
from noisewise.objectives import Objective
from noisewise.planning.gradients import level_gradients
from noisewise.planning.intervals import gradient_distances
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule

VP = NoiseSchedule.vp(num_train_timesteps=60)


class Scale(torch.nn.Module):
    """Predicts the noise as a x_t + b: the loss's gradient has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.zeros(()))
        self.b = torch.nn.Parameter(torch.full((), 0.3))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.a * sample + self.b


def network(seed: int = 0) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )  # fmt: skip


def images(num: int = 64) -> torch.Tensor:
    return torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_directions_have_their_closed_form() -> None:
    """E d/da (a x_t + b - eps)^2 = -2 noise(t) and d/db = 2 b at a = 0, where images have mean 0."""
    x_0 = torch.cat([images(), -images()])
    model = Scale().train()
    gradients = level_gradients(model, Objective(VP), x_0, num_levels=6, num_draws=4096, batch_size=512)
    levels = np.round(np.linspace(0, 59, 6))
    expected = np.stack([-2 * VP.noise(levels), np.full(6, 2 * 0.3)], axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert gradients == pytest.approx(expected, abs=0.03)
    assert model.training
    assert model.a.grad is None


def test_checkpoints_lie_side_by_side_and_a_sketch_keeps_cosines() -> None:
    models = [network(0), network(1).requires_grad_(False)]
    objective = Objective(VP)
    settings = {"num_levels": 5, "num_draws": 16, "batch_size": 8, "seed": 3}
    whole = level_gradients(models, objective, images(), **settings)
    parameters = sum(p.numel() for p in models[0].parameters())
    assert whole.shape == (5, 2 * parameters)
    first = level_gradients(models[0], objective, images(), **settings)
    assert np.array_equal(whole[:, :parameters], first)
    assert np.linalg.norm(first, axis=1) == pytest.approx(1, abs=1e-5)
    assert not any(p.requires_grad for p in models[1].parameters())

    sketch = level_gradients(models[0], objective, images(), num_kept=4096, **settings)
    assert parameters > 4096
    assert sketch.shape == (5, 4096)
    assert gradient_distances(sketch) == pytest.approx(gradient_distances(first), abs=0.08)


@pytest.mark.parametrize("schedule", [VP, NoiseSchedule.edm(num_train_timesteps=40), NoiseSchedule.flow(40)])
def test_a_plan_from_a_network_and_data(schedule: NoiseSchedule) -> None:
    gradients = level_gradients(network(), Objective(schedule), images(), num_levels=12, num_draws=8)
    plan = Plan.from_intervals(schedule, "gradient", 3, gradients=gradients)
    assert len(plan.groups) == 3
    assert not any(group.is_empty for group in plan.groups)
    assert plan.settings["num_levels"] == 12


def test_mistakes_get_one_line() -> None:
    with pytest.raises(SettingError, match=r"plan.gradients: 0 models"):
        level_gradients([], Objective(VP), images())
    with pytest.raises(SettingError, match=r"plan.gradients: 1 models, 0 images"):
        level_gradients(Scale(), Objective(VP), images(0))
    dead = Scale()
    dead.b.data.fill_(float("nan"))
    with pytest.raises(SettingError, match=r"plan.gradients: the gradient at t = 0"):
        level_gradients(dead, Objective(VP), images(), num_levels=3, num_draws=2)
