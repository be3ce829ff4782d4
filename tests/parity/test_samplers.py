"""Samplers against diffusers' pipelines and schedulers, and against plain loops written from the papers' algorithms.

The denoisers are exact ones of simple data: a normal distribution, whose probability flow has a closed solution, and
two points at -1 and +1 with equal weight, where the denoiser is far from linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDPMPipeline,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
)
from scipy.optimize import brentq

from noisewise import DPMSolver3Scheduler, EDMHeunScheduler
from noisewise.sampling.dpm_solver import orders
from noisewise.sampling.sampler import sample_images
from noisewise.sampling.schedulers import build_scheduler
from noisewise.schedule import NoiseSchedule
from noisewise.streams import stream

SCHEDULE = NoiseSchedule.named("linear", 1000)
MEAN, STD, SIGMA_DATA = 0.3, 0.4, 0.5
Denoiser = Callable[[torch.Tensor, float, float], torch.Tensor]  # (x_t, signal, noise) -> x_0


@pytest.fixture(scope="module")
def model() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(("kind", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0)])
def test_equal_to_the_stock_pipeline(model: UNet2DModel, kind: str, eta: float) -> None:
    scheduler = build_scheduler(kind, SCHEDULE)
    ours = sample_images(model, scheduler, 3, num_inference_steps=10, seed=7, eta=eta)

    pipeline = (DDIMPipeline if kind == "ddim" else DDPMPipeline)(model, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    options = {"eta": eta} if kind == "ddim" else {}
    generators = [stream(7, "sample", i) for i in range(3)]
    theirs = pipeline(
        batch_size=3, generator=generators, num_inference_steps=10, output_type="np", **options
    ).images  # [3, H, W, C] in [0, 1]
    theirs = torch.from_numpy(theirs).permute(0, 3, 1, 2).mul(255).round().to(torch.uint8)
    assert torch.equal(ours, theirs)


# ---- exact denoisers


def normal(x: torch.Tensor, signal: float, noise: float) -> torch.Tensor:
    return MEAN + signal * STD**2 / (signal**2 * STD**2 + noise**2) * (x - signal * MEAN)


def two_points(x: torch.Tensor, signal: float, noise: float) -> torch.Tensor:
    return torch.tanh(signal * x / noise**2)


def flow_of_normal(x: torch.Tensor, start: tuple[float, float], stop: tuple[float, float]) -> torch.Tensor:
    """Where the probability flow takes x from (signal, noise) ``start`` to ``stop``."""
    stds = [math.hypot(signal * STD, noise) for signal, noise in (start, stop)]
    return stop[0] * MEAN + stds[1] / stds[0] * (x - start[0] * MEAN)


NOISE = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# ---- DPM-Solver-3 in continuous time, alpha_bar = exp(-(0.1 s + 19.9 s^2 / 2))


def alpha_sigma(s: float) -> tuple[float, float]:
    log_alpha = -(0.1 * s + 9.95 * s**2) / 2
    return math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))


def half_log_snr(s: float) -> float:
    return math.log(alpha_sigma(s)[0] / alpha_sigma(s)[1])


def time_at(level: float) -> float:
    return brentq(lambda s: half_log_snr(s) - level, 1e-6, 1.001, xtol=1e-14)


def plain_dpm_solver(denoise: Denoiser, x: torch.Tensor, evaluations: int, end: float) -> tuple[torch.Tensor, list]:
    """Algorithms of DPM-Solver for 3, 2 and 1 evaluations a step, and the times at which the network is called."""
    times: list[float] = []

    def eps(x: torch.Tensor, s: float) -> torch.Tensor:
        times.append(s)
        alpha, sigma = alpha_sigma(s)
        return (x - alpha * denoise(x, alpha, sigma)) / sigma

    left, plan = evaluations, []
    while left > 0:  # thirds while they fit, the rest of a multiple of three as two and one
        plan.append(2 if left == 3 else min(left, 3))
        left -= plan[-1]
    levels = np.linspace(half_log_snr(1.0), half_log_snr(end), len(plan) + 1)
    for order, (level_s, level_t) in zip(plan, pairwise(levels), strict=True):
        h = level_t - level_s
        s, t = time_at(level_s), time_at(level_t)
        (a_s, _), (a_t, v_t) = alpha_sigma(s), alpha_sigma(t)
        e0 = eps(x, s)
        if order == 1:
            x = a_t / a_s * x - v_t * math.expm1(h) * e0
        elif order == 2:
            s1 = time_at(level_s + h / 2)
            a_1, v_1 = alpha_sigma(s1)
            u = a_1 / a_s * x - v_1 * math.expm1(h / 2) * e0
            x = a_t / a_s * x - v_t * math.expm1(h) * eps(u, s1)
        else:
            s1, s2 = time_at(level_s + h / 3), time_at(level_s + 2 * h / 3)
            (a_1, v_1), (a_2, v_2) = alpha_sigma(s1), alpha_sigma(s2)
            u1 = a_1 / a_s * x - v_1 * math.expm1(h / 3) * e0
            d1 = eps(u1, s1) - e0
            u2 = a_2 / a_s * x - v_2 * math.expm1(2 * h / 3) * e0
            u2 = u2 - 2 * v_2 * (math.expm1(2 * h / 3) / (2 * h / 3) - 1) * d1
            d2 = eps(u2, s2) - e0
            x = a_t / a_s * x - v_t * math.expm1(h) * e0 - 1.5 * v_t * (math.expm1(h) / h - 1) * d2
    return x, times


def run_dpm_solver(
    denoise: Denoiser, scheduler: DPMSolver3Scheduler, x: torch.Tensor, evaluations: int
) -> torch.Tensor:
    """The scheduler in a pipeline's loop; the network is told coordinates, s = (c + 1) / T."""
    scheduler.set_timesteps(evaluations)
    for c in scheduler.timesteps:
        alpha, sigma = alpha_sigma((float(c) + 1) / len(scheduler))
        x_0 = denoise(x, alpha, sigma)
        epsilon = (x - alpha * x_0) / sigma
        output = {"epsilon": epsilon, "sample": x_0, "v_prediction": alpha * epsilon - sigma * x_0}
        x = scheduler.step(output[scheduler.config.prediction_type], c, x).prev_sample
    return x


@pytest.mark.parametrize("denoise", [normal, two_points])
@pytest.mark.parametrize("evaluations", [1, 2, 3, 4, 5, 6, 9, 10, 20, 30])
def test_dpm_solver_is_the_papers_algorithm(denoise: Denoiser, evaluations: int) -> None:
    scheduler = build_scheduler("dpm-solver-3", NoiseSchedule.vp())
    expected, times = plain_dpm_solver(denoise, NOISE, evaluations, end=1e-4)
    actual = run_dpm_solver(denoise, scheduler, NOISE, evaluations)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)

    assert len(times) == evaluations
    np.testing.assert_allclose((scheduler.timesteps.double() + 1) / 1000, times, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(NoiseSchedule.vp().visited(scheduler, evaluations), scheduler.timesteps)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("final_time", [1e-4, 1e-3, 0.02])
def test_dpm_solver_turns_other_predictions_into_noise(prediction_type: str, final_time: float) -> None:
    scheduler = build_scheduler("dpm-solver-3", NoiseSchedule.vp(), prediction_type, final_time=final_time)
    expected, _ = plain_dpm_solver(two_points, NOISE, 20, end=final_time)
    torch.testing.assert_close(run_dpm_solver(two_points, scheduler, NOISE, 20), expected, atol=1e-5, rtol=0)


def test_orders_use_up_the_evaluations() -> None:
    assert [orders(n) for n in (1, 2, 3, 6, 7)] == [[1], [2], [2, 1], [3, 2, 1], [3, 3, 1]]
    assert orders(20) == [3, 3, 3, 3, 3, 3, 2]
    for n in range(1, 60):
        assert sum(orders(n)) == n
        assert len(orders(n)) == n // 3 + 1


def halving(errors: list[float]) -> list[float]:
    """Orders of convergence seen where the step is halved each time."""
    return [math.log2(before / after) for before, after in pairwise(errors)]


def test_dpm_solver_converges_with_order_three() -> None:
    """Steps of order 3 and a last one of order 2, whose error in one step is of order 3 as well."""
    exact = flow_of_normal(NOISE, alpha_sigma(1.0), alpha_sigma(0.05))
    scheduler = build_scheduler("dpm-solver-3", NoiseSchedule.vp(), final_time=0.05)
    errors = [float((run_dpm_solver(normal, scheduler, NOISE, 3 * k - 1) - exact).abs().max()) for k in (4, 8, 16, 32)]
    assert errors[-1] < 3e-4
    assert 2.7 < halving(errors)[-1] < 3.6


def test_dpm_solver_on_a_table_starts_and_ends_at_its_timesteps() -> None:
    for schedule, first in ((SCHEDULE, 999), (NoiseSchedule.named("cosine"), 995)):
        visited = schedule.visited(build_scheduler("dpm-solver-3", schedule), 20)
        assert visited[0] == pytest.approx(first, abs=1)  # the cosine schedule's last timesteps see nothing
        assert 0 < visited[-1] < 10
        steps = -np.diff(schedule.snr_db(visited[[0, 3, 6, 9, 12, 15, 18]]))  # starts of the steps
        np.testing.assert_allclose(steps, steps[0], rtol=1e-4)


def test_stages_of_dpm_solver_are_those_of_diffusers() -> None:
    """diffusers' second stage with "heun" and its third with "midpoint" are the paper's, on points that we set."""
    ours = build_scheduler("dpm-solver-3", NoiseSchedule.vp())
    ours.set_timesteps(5)
    sigmas = [10 ** (-float(db) / 20) for db in NoiseSchedule.vp().snr_db(ours.timesteps.double())]
    end = alpha_sigma(1e-4)
    sigmas.append(end[1] / end[0])  # noise over signal, diffusers' sigma
    theirs = {kind: _diffusers_solver(kind, sigmas) for kind in ("heun", "midpoint")}

    g = torch.Generator().manual_seed(1)
    outputs = [torch.randn(NOISE.shape, generator=g, dtype=torch.float64) for _ in range(5)]
    x, reached = NOISE, []
    for c, output in zip(ours.timesteps, outputs, strict=True):
        x = ours.step(output, c, x).prev_sample
        reached.append(x)
    for call, (order, kind) in enumerate([(1, "heun"), (2, "heun"), (3, "midpoint"), (1, "heun"), (2, "midpoint")]):
        solver = theirs[kind]
        solver._step_index = call
        start = NOISE if call < 3 else reached[2]
        expected = solver.singlestep_dpm_solver_update(outputs[call - order + 1 : call + 1], sample=start, order=order)
        torch.testing.assert_close(reached[call], expected, atol=1e-5, rtol=1e-5)


def _diffusers_solver(solver_type: Any, sigmas: list[float]) -> DPMSolverSinglestepScheduler:
    with pytest.warns(FutureWarning, match="dpmsolver"):
        solver = DPMSolverSinglestepScheduler(
            solver_order=3, algorithm_type="dpmsolver", solver_type=solver_type, final_sigmas_type="sigma_min"
        )
    solver.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    return solver


# ---- EDM's Heun


def plain_edm_heun(denoise: Denoiser, x: torch.Tensor, steps: int, heun: bool = True) -> tuple[torch.Tensor, list]:
    """Algorithm 1 of EDM on x itself, and the sigmas at which the network is called."""
    i = np.arange(steps)
    sigmas = (80 ** (1 / 7) + i / max(steps - 1, 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    calls = []
    for sigma, goal in pairwise([*sigmas.tolist(), 0.0]):
        d = (x - denoise(x, 1.0, sigma)) / sigma
        calls.append(sigma)
        after = x + (goal - sigma) * d
        if goal > 0 and heun:
            d_after = (after - denoise(after, 1.0, goal)) / goal
            calls.append(goal)
            after = x + (goal - sigma) * (d / 2 + d_after / 2)
        x = after
    return x, calls


def run_edm(denoise: Denoiser, scheduler: Any, x: torch.Tensor, steps: int) -> torch.Tensor:
    """An EDM scheduler in a pipeline's loop, ``x`` at sigma_max; the network is F and is told c_noise."""
    scheduler.set_timesteps(steps)
    x = x / 80 * scheduler.init_noise_sigma if isinstance(scheduler, EDMHeunScheduler) else x
    for c_noise in scheduler.timesteps:
        sigma = math.exp(4 * float(c_noise))
        size = math.hypot(sigma, SIGMA_DATA)
        x_in = scheduler.scale_model_input(x, c_noise)  # c_in x
        noisy = x_in * size
        output = (denoise(noisy, 1.0, sigma) - (SIGMA_DATA / size) ** 2 * noisy) * size / (sigma * SIGMA_DATA)
        x = scheduler.step(output, c_noise, x).prev_sample
    return x


@pytest.mark.parametrize("denoise", [normal, two_points])
@pytest.mark.parametrize("steps", [1, 5, 18, 40])
def test_edm_heun_is_the_papers_algorithm(denoise: Denoiser, steps: int) -> None:
    expected, calls = plain_edm_heun(denoise, 80 * NOISE, steps)
    scheduler = build_scheduler("edm-heun", NoiseSchedule.edm())
    torch.testing.assert_close(run_edm(denoise, scheduler, 80 * NOISE, steps), expected, atol=1e-5, rtol=0)

    visited = NoiseSchedule.edm().visited(scheduler, steps)
    assert len(visited) == 2 * steps - 1
    np.testing.assert_allclose(visited, calls, rtol=1e-5)
    np.testing.assert_allclose(scheduler.timesteps, np.log(calls) / 4, atol=1e-6)


def test_edm_heun_converges_with_order_two() -> None:
    exact = flow_of_normal(80 * NOISE, (1.0, 80.0), (1.0, 0.0))
    scheduler = build_scheduler("edm-heun", NoiseSchedule.edm())
    errors = [float((run_edm(normal, scheduler, 80 * NOISE, n) - exact).abs().max()) for n in (16, 32, 64, 128)]
    assert errors[-1] < 2e-3
    assert 1.8 < halving(errors)[-1] < 2.3


def test_edm_heun_steps_as_diffusers_heun_on_the_same_sigmas() -> None:
    """HeunDiscreteScheduler, its sigmas overwritten and fed the noise: the same steps on x in float32."""
    scheduler = build_scheduler("edm-heun", NoiseSchedule.edm())
    ours = run_edm(two_points, scheduler, 80 * NOISE, 18)
    heun = HeunDiscreteScheduler()
    heun.set_timesteps(18)
    inner = scheduler.sigmas[1:-1].repeat_interleave(2)
    heun.sigmas = torch.cat([scheduler.sigmas[:1], inner, scheduler.sigmas[-1:]]).double()
    x, visited = 80 * NOISE, NoiseSchedule.edm().visited(scheduler, 18)
    for t, sigma in zip(heun.timesteps, visited.tolist(), strict=True):
        x = heun.step((x - two_points(x, 1.0, sigma)) / sigma, t, x).prev_sample
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=0)


def test_edm_euler_is_diffusers_own_and_the_papers_first_order() -> None:
    scheduler = build_scheduler("edm-euler", NoiseSchedule.edm())
    assert type(scheduler) is EDMEulerScheduler
    expected, _ = plain_edm_heun(two_points, 80 * NOISE, 18, heun=False)
    actual = run_edm(two_points, scheduler, 80 * NOISE, 18)
    torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=0)
    heun = build_scheduler("edm-heun", NoiseSchedule.edm())
    heun.set_timesteps(18)
    torch.testing.assert_close(heun.sigmas, scheduler.sigmas, rtol=1e-6, atol=0)


# ---- flow matching


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["flow-euler", "flow-heun"])
def test_flow_samplers_are_euler_and_heun(kind: str, shift: float) -> None:
    schedule = NoiseSchedule.flow(1000, shift)
    scheduler = build_scheduler(kind, schedule)
    scheduler.set_timesteps(9)
    calls = iter(schedule.visited(scheduler, 9).tolist())

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        assert t == pytest.approx(next(calls), rel=1e-5)
        x_0 = two_points(x, 1 - t, t)
        return (x - (1 - t) * x_0) / t - x_0  # eps - x_0

    times = np.linspace(1, shift / 1000 / (1 + (shift - 1) / 1000), 9)  # diffusers shifts its last time twice
    times = shift * times / (1 + (shift - 1) * times)
    expected = NOISE
    for t, goal in pairwise([*times.tolist(), 0.0]):
        v = velocity(expected, t)
        after = expected + (goal - t) * v
        if kind == "flow-heun" and goal > 0:
            after = expected + (goal - t) * (v + velocity(after, goal)) / 2
        expected = after

    actual, calls = NOISE.float(), iter(schedule.visited(scheduler, 9).tolist())
    for t in scheduler.timesteps:
        actual = scheduler.step(velocity(actual, float(t) / 1000), t, actual).prev_sample
    torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=0)
