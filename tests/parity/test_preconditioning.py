"""EDM's preconditioning against the paper's Table 1 and diffusers' EDM scheduler; flow matching against diffusers'."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from noisewise.objectives import Draw, Objective
from noisewise.preconditioning import preconditioning
from noisewise.schedule import NoiseSchedule
from noisewise.streams import stream

SIGMAS = [0.0005, 0.002, 0.05, 0.5, 2.5103, 7.6577, 80.0, 300.0]


def edm_draw(objective: Objective, sigmas: list[float]) -> Draw:
    x_0 = torch.randn(len(sigmas), 3, 4, 4, generator=stream("x_0")) * 0.5
    noise = torch.randn(x_0.shape, generator=stream("noise"))
    return objective.noised(x_0, noise, torch.tensor(sigmas, dtype=torch.float64))


@pytest.mark.parametrize("sigma_data", [0.5, 0.66])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_coefficients_are_table_1(sigma: float, sigma_data: float) -> None:
    c_skip, c_out, c_in = preconditioning(torch.tensor([sigma], dtype=torch.float64), sigma_data)
    total = sigma**2 + sigma_data**2
    assert c_skip.item() == pytest.approx(sigma_data**2 / total, rel=1e-12)
    assert c_out.item() == pytest.approx(sigma * sigma_data / math.sqrt(total), rel=1e-12)
    assert c_in.item() == pytest.approx(1 / math.sqrt(total), rel=1e-12)
    weight = total / (sigma * sigma_data) ** 2  # lambda(sigma)
    assert weight * c_out.item() ** 2 == pytest.approx(1, rel=1e-12)
    objective = Objective(NoiseSchedule.edm(), sigma_data=sigma_data)
    assert objective.weight(torch.tensor([sigma])).tolist() == [1.0]


def test_inputs_and_outputs_are_those_of_diffusers() -> None:
    scheduler = EDMEulerScheduler(sigma_data=0.66)
    objective = Objective(NoiseSchedule.from_scheduler(scheduler), sigma_data=0.66)
    draw = edm_draw(objective, SIGMAS)
    x_in, c_noise = objective.model_inputs(draw)
    F = torch.randn(draw.x_t.shape, generator=stream("F"))
    D = objective.x_0(F, draw)
    for i, sigma in enumerate(SIGMAS):
        theirs = torch.tensor(sigma, dtype=torch.float32)
        torch.testing.assert_close(x_in[i], scheduler.precondition_inputs(draw.x_t[i], theirs))
        torch.testing.assert_close(D[i], scheduler.precondition_outputs(draw.x_t[i], F[i], theirs))
        torch.testing.assert_close(c_noise[i].float(), scheduler.precondition_noise(theirs))
        assert c_noise[i].item() == pytest.approx(math.log(sigma) / 4, rel=1e-12)


def test_inputs_and_targets_have_unit_variance_at_every_level() -> None:
    objective = Objective(NoiseSchedule.edm())
    x_0 = torch.randn(len(SIGMAS), 1, 100, 100, generator=stream("many")) * 0.5
    noise = torch.randn(x_0.shape, generator=stream("many noises"))
    draw = objective.noised(x_0, noise, torch.tensor(SIGMAS, dtype=torch.float64))
    for tensor in (objective.model_inputs(draw)[0], objective.target(draw)):
        torch.testing.assert_close(tensor.flatten(1).std(1), torch.ones(len(SIGMAS)), atol=0.03, rtol=0)


def test_the_target_is_exact_where_signal_and_noise_nearly_cancel() -> None:
    """(x_0 - c_skip x_t) / c_out, Eq. 8, in float64 and without float32's rounding of x_t."""
    objective = Objective(NoiseSchedule.edm())
    draw = edm_draw(objective, SIGMAS)
    sigma = draw.t.reshape(-1, 1, 1, 1)
    c_skip, c_out, _ = preconditioning(sigma)
    x_t = draw.x_0.double() + sigma * draw.noise.double()
    torch.testing.assert_close(
        objective.target(draw), ((draw.x_0.double() - c_skip * x_t) / c_out).float(), rtol=1e-5, atol=1e-6
    )


def test_edms_loss_is_the_weighted_error_of_the_denoised_image() -> None:
    """Eq. 2 with lambda of Table 1, on D, against the plain error of F."""
    objective = Objective(NoiseSchedule.edm())
    draw = edm_draw(objective, SIGMAS[2:])
    F = torch.randn(draw.x_t.shape, generator=stream("F"))
    D = objective.x_0(F, draw).double()
    sigma = draw.t
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    expected = weight * (D - draw.x_0).square().flatten(1).mean(1)
    torch.testing.assert_close(objective.loss(lambda x, t: F, draw).double(), expected, rtol=1e-3, atol=0)
    noise_error = ((D - draw.x_0) / sigma.reshape(-1, 1, 1, 1)).square().flatten(1).mean(1)
    torch.testing.assert_close(objective.error(lambda x, t: F, draw).double(), noise_error, rtol=1e-3, atol=0)


def test_flow_matching_is_that_of_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    objective = Objective(NoiseSchedule.from_scheduler(scheduler))
    timesteps = scheduler.timesteps[[0, 10, 500, 999]]
    t = objective.schedule.to_coordinate(timesteps.double())
    x_0, noise = (torch.randn(4, 3, 4, 4, generator=stream(name)) for name in ("x_0", "noise"))
    draw = objective.noised(x_0, noise, t)
    torch.testing.assert_close(draw.x_t, scheduler.scale_noise(x_0, timesteps, noise), atol=1e-5, rtol=1e-5)
    x_in, received = objective.model_inputs(draw)
    assert x_in is draw.x_t
    torch.testing.assert_close(received.float(), timesteps)
    # one Euler step from t to 0 along the true velocity ends at the image
    scheduler.set_timesteps(sigmas=[t[2].item() / (3 - 2 * t[2].item())])  # the scheduler shifts it again
    step = scheduler.step(objective.target(draw)[2], scheduler.timesteps[0], draw.x_t[2]).prev_sample
    torch.testing.assert_close(step, x_0[2], atol=1e-5, rtol=1e-5)
