"""Objectives in continuous time: EDM, flow matching and VP between its timesteps, against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from scipy.integrate import quad
from scipy.stats import norm

from noisewise.objectives import Draw, Objective
from noisewise.planning.groups import Group
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule
from noisewise.streams import stream

VP = NoiseSchedule.vp()
OBJECTIVES = {
    "edm": Objective(NoiseSchedule.edm(), sigma_data=0.4),
    "flow": Objective(NoiseSchedule.flow()),
    "epsilon": Objective(VP, time="continuous"),
    "v": Objective(VP, "v_prediction", time="continuous"),
    "sample": Objective(VP, "sample", time="continuous"),
    "interpolated": Objective(NoiseSchedule.named("linear"), time="continuous"),
}


@pytest.fixture(params=OBJECTIVES, ids=str)
def objective(request: pytest.FixtureRequest) -> Objective:
    return OBJECTIVES[request.param]


def levels(objective: Objective) -> torch.Tensor:
    """Coordinates from data to noise, none of them whole or on a grid."""
    start, stop = objective.schedule.limits
    start = max(start, 1e-3) if objective.schedule.kind == "flow" else start
    return torch.from_numpy(objective.distribution.within(np.array([1e-5, 0.2, 0.513, 0.81, 0.996]), (start, stop)))


def some_draw(objective: Objective) -> Draw:
    t = levels(objective)
    x_0, noise = (torch.randn(len(t), 3, 4, 4, generator=stream(name)) for name in ("x_0", "noise"))
    return objective.noised(x_0.clamp(-1, 1), noise, t)


def column(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, 1, 1, 1)


def float64(objective: Objective, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Signal and noise by the papers' formulas."""
    if objective.schedule.kind == "edm":
        return column(torch.ones_like(t)), column(t)
    if objective.schedule.kind == "flow":
        return column(1 - t), column(t)
    if not objective.schedule.is_formula:
        return column(objective.schedule.signal(t)), column(objective.schedule.noise(t))
    time = (t + 1) / 1000
    B = 0.1 * time + 9.95 * time**2
    return column(torch.exp(-B / 2)), column(torch.sqrt(-torch.expm1(-B)))


def test_noise_is_added_to_float32_precision(objective: Objective) -> None:
    draw = some_draw(objective)
    signal, noise = float64(objective, draw.t)
    expected = signal * draw.x_0.double() + noise * draw.noise.double()
    assert draw.x_t.dtype == torch.float32
    torch.testing.assert_close(draw.x_t, expected.float(), rtol=1e-6, atol=1e-6 * float(noise.max()))
    only_noise = objective.noised(torch.zeros_like(draw.x_0), draw.noise, draw.t)
    torch.testing.assert_close(only_noise.x_t, (noise * draw.noise.double()).float(), rtol=2e-7, atol=0)


def test_the_right_answer_costs_nothing(objective: Objective) -> None:
    draw = some_draw(objective)
    target = objective.target(draw)
    assert objective.loss(lambda x, t: target, draw).tolist() == [0] * 5
    torch.testing.assert_close(objective.epsilon(target, draw), draw.noise, atol=2e-3, rtol=1e-3)
    x_0 = objective.x_0(target, draw)
    if objective.prediction_type == "epsilon":  # at pure noise the image is what float32 leaves of it
        x_0, draw = x_0[:4], replace(draw, x_0=draw.x_0[:4])
    torch.testing.assert_close(x_0, draw.x_0, atol=1e-3, rtol=1e-3)
    assert (objective.error(lambda x, t: target, some_draw(objective)) < 1e-5).all()


@pytest.mark.parametrize("weighting", ["uniform", "min-snr", "p2"])
def test_an_answer_costs_what_its_noise_costs(objective: Objective, weighting: str) -> None:
    """The error of the noise, and min-SNR and P2 of it, whatever the network answers."""
    objective = replace(objective, weighting=weighting)
    draw = some_draw(objective)
    answer = objective.target(draw) + 0.1 * torch.randn(draw.x_0.shape, generator=stream("wrong"))
    error = objective.error(lambda x, t: answer, draw)
    signal, noise = float64(objective, draw.t)
    x_0_error = (objective.x_0(answer, draw) - draw.x_0).double()
    keep = slice(1, 4)  # where float32 resolves the image
    expected = (signal / noise * x_0_error).square().flatten(1).mean(1)
    torch.testing.assert_close(error.double()[keep], expected[keep], rtol=5e-3, atol=0)
    snr = (signal / noise).square().flatten()
    if weighting == "uniform":
        assert objective.weight(draw.t).tolist() == [1] * 5
        return
    weight = (5 / snr).clamp(max=1) if weighting == "min-snr" else 1 / (1 + snr)
    loss = objective.loss(lambda x, t: answer, draw).double()
    torch.testing.assert_close(loss[keep], (weight * expected)[keep], rtol=5e-3, atol=0)


@pytest.mark.parametrize("weighting", ["uniform", "min-snr", "p2"])
def test_weights_are_finite_at_both_ends(objective: Objective, weighting: str) -> None:
    objective = replace(objective, weighting=weighting)
    ends = torch.tensor(objective.schedule.limits, dtype=torch.float64)
    assert objective.weight(ends).isfinite().all()
    assert (objective.weight(ends) >= 0).all()


# ---- an oracle: pixels that are independent and normal


def oracle(objective: Objective, mean: float, std: float) -> Any:
    """The exact denoiser of x_0 ~ N(mean, std^2), as a network of this objective."""

    def model(x_in: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        t = objective.schedule.to_coordinate(timestep)
        signal, noise = float64(objective, t)
        sd = objective.sigma_data
        x_t = x_in * torch.sqrt(noise**2 + sd**2) if objective.schedule.kind == "edm" else x_in.double()
        x_0 = (mean * noise**2 + std**2 * signal * x_t) / (signal**2 * std**2 + noise**2)
        if objective.prediction_type == "sample":
            return x_0
        if objective.prediction_type == "edm":
            total = noise**2 + sd**2
            return (x_0 - sd**2 / total * x_t) / (noise * sd / total.sqrt())
        epsilon = (x_t - signal * x_0) / noise
        return {
            "epsilon": epsilon,
            "v_prediction": signal * epsilon - noise * x_0,
            "velocity": epsilon - x_0,
        }[objective.prediction_type]

    return model


def test_the_exact_denoiser_has_the_least_loss(objective: Objective) -> None:
    mean, std = 0.2, 0.3
    model = oracle(objective, mean, std)
    for t in levels(objective)[1:4]:
        x_0 = mean + std * torch.randn(4, 1, 80, 80, generator=stream("pixels"))
        draw = objective.noised(x_0, torch.randn(x_0.shape, generator=stream("noises")), t.expand(4))
        best = objective.loss(model, draw).mean()
        worse = [
            lambda x, s: model(x, s) + 0.1,
            lambda x, s: model(x, s) - 0.1,
            lambda x, s: model(x, s) * 0.8 - 0.05,
            oracle(objective, mean, 0.2),
            oracle(objective, 0.0, std),
        ]
        losses = [objective.loss(other, draw).mean() for other in worse]
        assert all(best < loss for loss in losses[:3])
        assert all(best <= loss + 1e-9 for loss in losses)

        signal, noise = (float(c) for c in float64(objective, t.reshape(1)))
        posterior_variance = (std * noise) ** 2 / (signal**2 * std**2 + noise**2)
        expected = posterior_variance * (signal / noise) ** 2
        assert objective.error(model, draw).mean().item() == pytest.approx(expected, rel=0.03)


def test_edms_network_answers_nothing_where_the_images_are_as_assumed() -> None:
    """Of N(0, sigma_data^2) pixels the best D is c_skip x_t, and the loss is 1 at every noise level."""
    objective = OBJECTIVES["edm"]
    t = levels(objective)
    x_0 = objective.sigma_data * torch.randn(5, 1, 80, 80, generator=stream("pixels"))
    draw = objective.noised(x_0, torch.randn(x_0.shape, generator=stream("noises")), t)
    loss = objective.loss(lambda x, t: torch.zeros_like(x), draw)
    torch.testing.assert_close(loss, torch.ones(5), atol=0.05, rtol=0)


# ---- draws


EDGES = {"edm": [0.002, 0.9, 4.0, 80.0], "flow": [0.0, 0.3, 0.7, 1.0]}
VP_EDGES = [0, 300, 650, 1000]


def ranges_of(objective: Objective) -> list[tuple[float, float]]:
    edges = EDGES.get(objective.schedule.kind, VP_EDGES)
    return [(edges[i], edges[i + 1]) for i in range(3)]


def curve(objective: Objective, t: Any) -> Any:
    """A known loss of a noise level, between 1 and 9, steep where the ranges differ in share."""
    if objective.schedule.kind == "edm":
        return 1 + 8 * t / (1 + t)
    share = t if objective.schedule.kind == "flow" else t / 1000
    return 1 + 8 * share**2


def knowing(objective: Objective) -> Any:
    """On images of zeros the noise can be read off x_t; answers it with an error whose square is ``curve``."""

    def model(x_in: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        t = objective.schedule.to_coordinate(timestep.double())
        signal, noise = float64(objective, t)
        sd = objective.sigma_data
        x_t = x_in * torch.sqrt(noise**2 + sd**2) if objective.schedule.kind == "edm" else x_in.double()
        epsilon = x_t / noise
        right = {
            "epsilon": epsilon,
            "v_prediction": signal * epsilon,
            "sample": torch.zeros_like(x_t),
            "velocity": epsilon,
            "edm": -sd * epsilon / torch.sqrt(noise**2 + sd**2),
        }[objective.prediction_type]
        return right + column(curve(objective, t)).sqrt()

    return model


def expected_loss(objective: Objective) -> float:
    """Of ``curve`` under the host's distribution, by its formula."""
    if objective.schedule.kind == "edm":
        return quad(lambda z: norm.pdf(z) * curve(objective, math.exp(-1.2 + 1.2 * z)), -8, 8)[0]
    if objective.is_discrete:
        return float(np.mean([curve(objective, t) for t in range(1000)]))
    low, high = objective.schedule.limits
    return quad(lambda t: curve(objective, t) / (high - low), low, high)[0]


@pytest.mark.parametrize("name", [*OBJECTIVES, "discrete"])
def test_balanced_draws_keep_the_hosts_expected_loss(name: str) -> None:
    objective = OBJECTIVES.get(name, Objective(VP))
    ranges, x_0 = ranges_of(objective), torch.zeros(30_000, 1, 1, 1)
    wanted = expected_loss(objective)

    def mean_and_error(**how: Any) -> tuple[float, float]:
        draw = objective.draw(x_0, stream("balanced"), **how)
        loss = objective.loss(knowing(objective), draw).double()
        return float(loss.mean()), float(loss.std() / math.sqrt(len(loss)))

    for how in ({}, {"ranges": ranges, "balanced": True}):
        mean, error = mean_and_error(**how)
        assert abs(mean - wanted) < 4 * error < 0.1
    shares = [objective.share(timesteps) for timesteps in ranges]
    per_range = [mean_and_error(timesteps=timesteps)[0] for timesteps in ranges]
    assert np.dot(shares, per_range) == pytest.approx(wanted, rel=0.02)
    alike, error = mean_and_error(ranges=ranges)
    assert abs(alike - np.mean(per_range)) < 4 * error + 0.05
    if objective.schedule.kind == "edm":
        assert abs(alike - wanted) > 20 * error  # all ranges alike is another objective


def test_weights_come_with_balanced_draws_only_and_move_with_them() -> None:
    objective, x_0 = OBJECTIVES["edm"], torch.zeros(6, 1, 2, 2)
    ranges = ranges_of(objective)
    assert objective.draw(x_0, stream("a")).weight is None
    assert objective.draw(x_0, stream("a"), ranges=ranges).weight is None
    draw = objective.draw(x_0, stream("a"), ranges=ranges, balanced=True).to("cpu")
    assert draw.weight is not None
    plain = objective.draw(x_0, stream("a"), ranges=ranges)
    assert torch.equal(plain.x_t, draw.x_t)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * 0.3

    torch.testing.assert_close(objective.loss(model, draw), objective.loss(model, plain) * draw.weight)

    def taught(draw: Draw) -> torch.Tensor:
        return objective.loss(model, draw, teacher=lambda x, t: x.sin(), distill_weight=0.3)

    torch.testing.assert_close(taught(draw), taught(plain) * draw.weight)
    x_in, _ = objective.model_inputs(plain)  # the teacher sees what the network sees
    apart = (0.3 * x_in - x_in.sin()).square().flatten(1).mean(1)
    torch.testing.assert_close(taught(plain), objective.loss(model, plain) + 0.3 * apart)
    assert torch.equal(objective.error(model, draw), objective.error(model, plain))


def test_draws_of_a_range_are_routed_to_its_group(objective: Objective) -> None:
    """What the network is told puts a draw into the group it was drawn for, to the last bit."""
    ranges = ranges_of(objective)
    grid, span = objective.schedule.grid(), objective.schedule.span
    groups = []
    for i, (start, stop) in enumerate(ranges):
        inside = (grid >= start) & ((grid < stop) | (stop == span[1]))
        groups.append(Group(i, start, stop, 1.0, int(inside.sum())))
    plan = Plan(objective.schedule, tuple(groups))
    x_0 = torch.zeros(3000, 1, 1, 1)
    for i, timesteps in enumerate(ranges):
        draw = objective.draw(x_0, stream("routed", i), timesteps)
        assert (plan.group_of_model_timestep(objective.model_inputs(draw)[1]) == i).all()
        assert (plan.group_of(draw.t) == i).all()


def test_a_share_of_all_levels_can_be_mixed_in() -> None:
    objective, timesteps = OBJECTIVES["edm"], (0.9, 4.0)
    t = objective.draw(torch.zeros(8000, 1, 1, 1), stream("mixed"), timesteps, all_timesteps_share=0.4).t
    outside = ((t < 0.9) | (t >= 4)).double().mean().item()
    assert outside == pytest.approx(0.4 * (1 - objective.share(timesteps)), abs=0.02)


def test_fixed_draws_are_even_in_log_sigma_and_depend_on_their_names_alone() -> None:
    objective = OBJECTIVES["edm"]
    images = torch.rand(10, 1, 4, 4, generator=stream("images")) * 2 - 1
    draws = objective.fixed_draws(images, 40, ("score", 1), (0.01, 10.0), batch_size=16)
    t = torch.cat([draw.t for draw in draws])
    assert t.dtype == torch.float64
    assert torch.histc(t.log10().float(), bins=4, min=-2, max=1).tolist() == [10] * 4
    again = objective.fixed_draws(images, 40, ("score", 1), (0.01, 10.0), batch_size=7)
    assert torch.equal(torch.cat([draw.x_t for draw in again]), torch.cat([draw.x_t for draw in draws]))


def test_one_level_for_all(objective: Objective) -> None:
    t = levels(objective)[2].item()
    x_0 = torch.rand(4, 1, 4, 4, generator=stream("images"))
    draw = objective.draw_at(x_0, stream("one level"), t)
    assert draw.t.tolist() == [t] * 4
    assert torch.equal(draw.x_t, objective.noised(x_0, draw.noise, draw.t).x_t)
    discrete = Objective(VP).draw_at(x_0, stream("one level"), 17)
    assert discrete.t.tolist() == [17] * 4


# ---- networks


def test_a_diffusers_network_learns(objective: Objective) -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    x_0 = torch.rand(8, 1, 8, 8, generator=stream("images")) * 2 - 1
    loss = objective.loss(unet, objective.draw(x_0, stream("unet"))).mean()
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())
    # timesteps are told in float64 and between whole numbers: a network hears the same in float32
    draw = objective.draw_at(x_0, stream("unet"), levels(objective)[2].item())
    with torch.no_grad():
        x_in, timestep = objective.model_inputs(draw)
        torch.testing.assert_close(unet(x_in, timestep).sample, unet(x_in, timestep[0].float()).sample)
        assert not torch.equal(unet(x_in, timestep).sample, unet(x_in, timestep + 0.3).sample)
