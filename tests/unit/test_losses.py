from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from noisewise.data import Images
from noisewise.errors import SettingError
from noisewise.evaluation import loss_per_timestep
from noisewise.evaluation.losses import range_loss
from noisewise.objectives import Objective
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.from_scheduler(DDIMScheduler(num_train_timesteps=100))
OBJECTIVE = Objective(SCHEDULE)
IMAGES = Images.from_pixels(np.random.default_rng(0).integers(0, 256, (16, 1, 8, 8), dtype=np.uint8))


def zero(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x_t)


def t_over_100(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x_t) + t.reshape(-1, 1, 1, 1) / 100


def test_a_model_that_says_nothing_loses_the_noise_variance_everywhere() -> None:
    losses = loss_per_timestep(zero, OBJECTIVE, IMAGES, num_bins=5, num_images_per_bin=64)

    assert [(part.t_start, part.t_stop) for part in losses.bins] == [(0, 20), (20, 40), (40, 60), (60, 80), (80, 100)]
    assert [part.t_centre for part in losses.bins] == [9.5, 29.5, 49.5, 69.5, 89.5]
    for part in losses.bins:
        assert abs(part.mean - 1) < 5 * part.standard_error < 0.2
    assert losses.mean == pytest.approx(np.mean([part.mean for part in losses.bins]))
    assert losses.groups == ()


def test_each_bin_and_group_sees_its_own_timesteps() -> None:
    """|eps - t/100|^2 = 1 + (t/100)^2 on average, so a bin's excess over the zero model tells its t."""
    plan = Plan.from_snr(SCHEDULE, num_groups=4, min_cost=0.5)
    settings = {"plan": plan, "num_bins": 4, "num_images": 200, "num_images_per_bin": 200}
    nothing = loss_per_timestep(zero, OBJECTIVE, IMAGES, **settings)
    shifted = loss_per_timestep(t_over_100, OBJECTIVE, IMAGES, **settings)

    parts = [*zip(nothing.bins, shifted.bins, strict=True)]
    parts += [pair for pair in zip(nothing.groups, shifted.groups, strict=True) if pair[0] is not None]
    assert len(parts) > 6
    for before, after in parts:
        mean_square = np.mean((np.arange(before.t_start, before.t_stop) / 100) ** 2)
        assert after.mean - before.mean == pytest.approx(mean_square, abs=0.05)  # paired: the noise cancels
    assert [(part.t_start, part.t_stop) for part in nothing.groups if part] == [
        (group.t_start, group.t_stop) for group in plan.groups if not group.is_empty
    ]


def test_an_empty_group_has_no_loss() -> None:
    schedule = NoiseSchedule.named("cosine", 1000)
    plan = Plan.from_snr(schedule, num_groups=10, min_cost=0.5)
    empty = [group.is_empty for group in plan.groups]
    losses = loss_per_timestep(zero, Objective(schedule), IMAGES, plan=plan, num_images=4, num_bins=2)

    assert any(empty)
    assert [part is None for part in losses.groups] == empty
    assert losses.to_dict()["groups"][empty.index(True)] is None


def test_draws_are_paired_and_depend_on_the_seed() -> None:
    first, again, other = (range_loss(zero, OBJECTIVE, (10, 30), 20, IMAGES, seed) for seed in (0, 0, 1))
    assert first == again
    assert first.mean != other.mean
    by_seven = range_loss(zero, OBJECTIVE, (10, 30), 20, IMAGES, 0, batch_size=7)
    assert by_seven.num_draws == 20


def test_v_and_sample_prediction_are_judged_by_their_noise() -> None:
    """An answer that stands for the same noise costs the same in each parametrisation."""
    expected = range_loss(zero, OBJECTIVE, (50, 60), 32, IMAGES).mean

    def sample(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # epsilon = 0 means x_0 = x_t / signal
        return x_t / torch.as_tensor(SCHEDULE.signal(t)).reshape(-1, 1, 1, 1).float()

    def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # epsilon = signal v + noise x_t = 0
        signal, noise = (torch.as_tensor(f(t)).reshape(-1, 1, 1, 1).float() for f in (SCHEDULE.signal, SCHEDULE.noise))
        return -noise / signal * x_t

    for prediction_type, model in (("sample", sample), ("v_prediction", velocity)):
        objective = replace(OBJECTIVE, prediction_type=prediction_type)
        assert range_loss(model, objective, (50, 60), 32, IMAGES).mean == pytest.approx(expected, rel=1e-4)


def test_a_network_comes_back_in_its_mode_and_without_gradients() -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        dropout=0.5,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    unet.train()
    unet.mid_block.eval()
    first, again = (loss_per_timestep(unet, OBJECTIVE, IMAGES, num_bins=2, num_images_per_bin=8) for _ in range(2))

    assert first == again  # no dropout
    assert unet.training
    assert not unet.mid_block.training
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SettingError, match=r"evaluate\.num_bins: 0"):
        loss_per_timestep(zero, OBJECTIVE, IMAGES, num_bins=0)
    plan = Plan.single(NoiseSchedule.named("linear", 50))
    with pytest.raises(SettingError, match="plan: it has 50 timesteps, the objective 100"):
        loss_per_timestep(zero, OBJECTIVE, IMAGES, plan=plan)


EDM = Objective(NoiseSchedule.edm(num_train_timesteps=100))
FLOW = Objective(NoiseSchedule.flow(100))


def silent(objective: Objective) -> Callable[..., torch.Tensor]:
    """A network that answers as if there were no noise."""

    def model(x_in: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        t = objective.schedule.to_coordinate(timestep).reshape(-1, 1, 1, 1)
        if objective.schedule.kind == "flow":  # epsilon = x_t + (1 - t) v
            return -x_in / (1 - t)
        return t / (0.5 * (t**2 + 0.25).sqrt()) * x_in * (t**2 + 0.25).sqrt()  # sigma / r^2 x_t = sd / r F

    return model


@pytest.mark.parametrize("objective", [EDM, FLOW], ids=["edm", "flow"])
def test_sigma_and_flow_time_have_bins_of_their_own(objective: Objective) -> None:
    plan = Plan.from_snr(objective.schedule, num_groups=3, min_cost=0.5)
    losses = loss_per_timestep(silent(objective), objective, IMAGES, plan=plan, num_bins=4, num_images_per_bin=64)
    start, stop = objective.schedule.span
    edges = np.geomspace(start, stop, 5) if objective.schedule.is_log else np.linspace(start, stop, 5)

    assert [part.t_start for part in losses.bins] == pytest.approx(edges[:-1])
    assert losses.bins[-1].t_stop == stop
    for part in [*losses.bins, *losses.groups]:
        assert part is not None
        assert part.t_start < part.t_centre < part.t_stop
        assert part.mean == pytest.approx(1, abs=0.15)  # nothing said: the noise's own variance
    assert losses.mean == pytest.approx(np.mean([part.mean for part in losses.bins]))
    assert [(part.t_start, part.t_stop) for part in losses.groups if part] == [
        (group.t_start, group.t_stop) for group in plan.groups if not group.is_empty
    ]
    if objective.schedule.is_log:
        assert losses.bins[1].t_centre == pytest.approx(np.sqrt(edges[1] * edges[2]))


def test_continuous_time_is_measured_between_timesteps() -> None:
    continuous = replace(OBJECTIVE, time="continuous")
    seen: list[float] = []

    def model(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.extend(t.tolist())
        return torch.zeros_like(x_t)

    loss = range_loss(model, continuous, (20, 30), 50, IMAGES)
    assert (loss.t_start, loss.t_stop, loss.t_centre) == (20, 30, 25)
    assert loss.mean == pytest.approx(1, abs=0.1)
    assert len({int(10 * t) for t in seen}) > 30  # stratified over all of the range
    assert all(20 <= t < 30 for t in seen)


def test_a_plan_of_another_kind_is_refused() -> None:
    with pytest.raises(SettingError, match="plan: it is made for flow, the objective for edm"):
        loss_per_timestep(zero, EDM, IMAGES, plan=Plan.single(FLOW.schedule))
