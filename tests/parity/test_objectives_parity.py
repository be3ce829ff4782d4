"""Noising, targets and learned variance agree with diffusers' DDPMScheduler and with formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler

from noisewise.likelihood import posterior
from noisewise.objectives import Objective
from noisewise.schedule import NoiseSchedule
from noisewise.streams import stream

BETA_SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


def normal(*shape: int, name: str = "x") -> torch.Tensor:
    return torch.randn(shape, generator=stream(name))


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_noising_and_velocity(beta_schedule: str) -> None:
    scheduler = DDPMScheduler(beta_schedule=beta_schedule)
    objective = Objective(NoiseSchedule.from_scheduler(scheduler), "v_prediction")
    x_0, noise = normal(5, 3, 4, 4).clamp(-1, 1), normal(5, 3, 4, 4, name="noise")
    t = torch.tensor([0, 1, 333, 998, 999])
    draw = objective.noised(x_0, noise, t)
    torch.testing.assert_close(draw.x_t, scheduler.add_noise(x_0, noise, t), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(objective.target(draw), scheduler.get_velocity(x_0, noise, t), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_learned_variance_is_the_one_the_scheduler_samples_with(beta_schedule: str) -> None:
    scheduler = DDPMScheduler(beta_schedule=beta_schedule, variance_type="learned_range")
    schedule = NoiseSchedule.from_scheduler(scheduler)
    q = posterior(schedule.alphas_cumprod)
    for t in (1, 2, 100, 999):
        for variance in (-1.0, 0.2, 1.0):
            # what DDPMScheduler.step exponentiates
            theirs = scheduler._get_variance(t, predicted_variance=torch.tensor(variance))
            fraction = (variance + 1) / 2
            ours = fraction * q.log_beta[t] + (1 - fraction) * q.log_variance[t]
            torch.testing.assert_close(ours, theirs.float(), atol=2e-3, rtol=2e-3)


def test_hybrid_loss_by_hand() -> None:
    """L_simple + 0.001 T L_t, L_t the Gaussian KL in bits per dimension, written out in float64 for each image."""
    T = 1000
    schedule = NoiseSchedule.named("linear", T)
    objective = Objective(schedule, variance="learned_range")
    t = torch.tensor([1, 50, 999])
    x_0, noise = normal(3, 3, 4, 4).clamp(-1, 1), normal(3, 3, 4, 4, name="noise")
    draw = objective.noised(x_0, noise, t)
    output = torch.cat([noise + 0.1 * normal(3, 3, 4, 4, name="error"), 0.5 * normal(3, 3, 4, 4, name="variance")], 1)
    loss = objective.loss(lambda x_t, t: output, draw)

    alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod.copy())
    for i, step in enumerate(t.tolist()):
        now, before = alphas_cumprod[step], alphas_cumprod[step - 1]
        beta = 1 - now / before
        epsilon, v = output[i, :3].double(), output[i, 3:].double()
        x_t = now.sqrt() * x_0[i].double() + (1 - now).sqrt() * noise[i].double()

        def mean(x: torch.Tensor, x_t=x_t, now=now, before=before, beta=beta) -> torch.Tensor:  # DDPM Eq. 7
            return before.sqrt() * beta / (1 - now) * x + (now / before).sqrt() * (1 - before) / (1 - now) * x_t

        true = torch.distributions.Normal(mean(x_0[i].double()), (beta * (1 - before) / (1 - now)).sqrt())
        x_0_hat = (x_t - (1 - now).sqrt() * epsilon) / now.sqrt()
        fraction = (v + 1) / 2
        log_variance = fraction * beta.log() + (1 - fraction) * (beta * (1 - before) / (1 - now)).log()
        model = torch.distributions.Normal(mean(x_0_hat), (log_variance / 2).exp())
        bits = torch.distributions.kl_divergence(true, model).mean() / math.log(2)
        simple = (epsilon - noise[i]).square().mean()
        assert loss[i].item() == pytest.approx((simple + 0.001 * T * bits).item(), rel=1e-3)


def test_the_last_step_is_the_likelihood_of_eight_bit_pixels() -> None:
    schedule = NoiseSchedule.named("linear", 1000)
    objective = Objective(schedule, variance="learned_range")
    levels = torch.tensor([0, 1, 100, 254, 255])
    x_0 = (levels / 127.5 - 1).reshape(1, 5, 1, 1)
    draw = objective.noised(x_0, torch.zeros_like(x_0), torch.tensor([0]))
    output = torch.cat([torch.full_like(x_0, 0.3), torch.full_like(x_0, -0.4)], 1)
    loss = objective.loss(lambda x_t, t: output, draw)

    now = schedule.alphas_cumprod[0]
    x_0_hat = (draw.x_t.double() - math.sqrt(1 - now) * 0.3) / math.sqrt(now)
    q = posterior(schedule.alphas_cumprod)
    scale = torch.exp(0.5 * (0.3 * q.log_beta[0] + 0.7 * q.log_variance[0])).double()
    normal_01 = torch.distributions.Normal(0, 1)
    upper = normal_01.cdf((x_0 + 1 / 255 - x_0_hat) / scale)
    lower = normal_01.cdf((x_0 - 1 / 255 - x_0_hat) / scale)
    upper[0, 4], lower[0, 0] = 1, 0
    bits = -(upper - lower).log().mean() / math.log(2)
    assert loss.item() == pytest.approx(0.09 + bits.item(), rel=1e-3)
