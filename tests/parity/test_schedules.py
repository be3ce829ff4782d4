"""Noise schedules against the diffusers schedulers they are read from, and what those hand to the network."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from noisewise.errors import SettingError
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule

DISCRETE = ["DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"]
FRACTIONAL = ["EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete"]
FLOW = ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"]
BETAS = ["linear", "scaled_linear", "squaredcos_cap_v2"]


def make(name: str, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, f"{name}Scheduler")(**settings)


def noised(scheduler: Any, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the scheduler's own forward process multiplies an image and the noise by."""
    one, zero = torch.ones(len(t), 1, 1, 1), torch.zeros(len(t), 1, 1, 1)
    add = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else scheduler.add_noise
    if hasattr(scheduler, "scale_noise"):
        return add(one, t, zero).flatten(), add(zero, t, one).flatten()
    return add(one, zero, t).flatten(), add(zero, one, t).flatten()


@pytest.mark.parametrize("beta_schedule", BETAS)
@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_schedulers_add_the_same_noise(name: str, beta_schedule: str) -> None:
    scheduler = make(name, beta_schedule=beta_schedule)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    t = torch.tensor([1, 17, 499, 998, 999])
    if hasattr(scheduler, "lambda_t"):  # solvers look sigmas up by the timesteps of sampling, 999 .. 1 at 999 steps
        scheduler.set_timesteps(999)
    signal, noise = noised(scheduler, t)

    assert (schedule.kind, schedule.coordinate, schedule.num_train_timesteps) == ("vp", "timestep", 1000)
    torch.testing.assert_close(schedule.signal(t), signal, atol=1e-5, rtol=0)
    torch.testing.assert_close(schedule.noise(t), noise, atol=1e-5, rtol=0)
    assert schedule.formula is not None  # recognised, so that a plan's JSON stays short


@pytest.mark.parametrize(
    "settings",
    [
        {"trained_betas": np.linspace(1e-3, 0.03, 60).tolist(), "num_train_timesteps": 60},
        {"beta_schedule": "sigmoid"},
        {"rescale_betas_zero_snr": True},
        {"num_train_timesteps": 100, "beta_start": 0.001, "beta_end": 0.2},
    ],
)
def test_unusual_betas(settings: dict[str, Any]) -> None:
    scheduler = make("DDPM", **settings)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    T = schedule.num_train_timesteps
    t = torch.arange(T)

    torch.testing.assert_close(schedule.signal(t), scheduler.alphas_cumprod**0.5, atol=1e-5, rtol=0)
    assert NoiseSchedule.from_dict(schedule.to_dict()) == schedule


def test_zero_terminal_snr_is_clipped_and_said() -> None:
    schedule = NoiseSchedule.from_scheduler(make("DDIM", rescale_betas_zero_snr=True))
    assert schedule.snr_db(999) == -np.inf
    assert np.isfinite(schedule.snr_db(998.0))
    plan = Plan.from_snr(schedule, 5)
    assert any("infinite SNR at 1 timestep is clipped" in note for note in plan.notes)
    assert np.isfinite(plan.difficulty()["snr_db"]).all()


def calls_of(scheduler: Any, num_inference_steps: int, **options: Any) -> list[float]:
    """Timesteps that a pipeline's loop passes to the network, with the scheduler's own ``step`` run in between."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_inference_steps, **options)
    sample, seen = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)), []
    for t in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, t)
        seen.append(float(t))
        sample = scheduler.step(sample * 0.1, t, sample).prev_sample
    return seen


@pytest.mark.parametrize("name", DISCRETE + FRACTIONAL)
def test_visited_timesteps_are_those_the_network_is_called_at(name: str) -> None:
    scheduler = make(name)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    before = copy.deepcopy(scheduler.__dict__)
    visited = schedule.visited(scheduler, 7)

    assert visited.tolist() == calls_of(scheduler, 7)
    assert schedule.to_coordinate(500) == 500
    assert str(before) == str(scheduler.__dict__)  # the user's scheduler is left alone
    if name == "HeunDiscrete":
        assert len(visited) == 13  # second-order: two calls a step but for the last
    if name in ("DDPM", "DDIM", "UniPCMultistep"):
        assert visited.dtype == np.int64


@pytest.mark.parametrize("name", ["EDMEuler", "EDMDPMSolverMultistep"])
def test_edm_schedulers_pass_c_noise(name: str) -> None:
    scheduler = make(name)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    assert schedule == NoiseSchedule.edm(0.002, 80.0, 1000)

    received = calls_of(scheduler, 8)
    scheduler.set_timesteps(8)
    sigmas = scheduler.sigmas[:-1].double().numpy()
    np.testing.assert_allclose(schedule.to_coordinate(np.array(received)), sigmas, rtol=1e-5)
    np.testing.assert_allclose(schedule.visited(scheduler, 8), sigmas, rtol=1e-5)
    np.testing.assert_allclose(schedule.to_model_timestep(sigmas), received, atol=1e-6)

    plan = Plan.from_snr(schedule, 4)
    groups = [plan.group_of(float(sigma)) for sigma in sigmas]
    assert [plan.group_of_model_timestep(t) for t in received] == groups
    assert plan.group_of_model_timestep(torch.tensor(received)).tolist() == groups
    assert [route.group for route in plan.routes(scheduler, 8).steps] == groups
    assert groups[0] == 3
    assert groups[-1] == 0


def test_euler_in_the_manner_of_edm_passes_c_noise() -> None:
    """Stable Video Diffusion's scheduler is a discrete one by class, but not by what it passes."""
    scheduler = make(
        "EulerDiscrete",
        timestep_type="continuous",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        use_karras_sigmas=True,
    )
    schedule = NoiseSchedule.from_scheduler(scheduler)
    assert (schedule.coordinate, schedule.sigma_max) == ("sigma", 700.0)
    visited = schedule.visited(scheduler, 5)
    assert (visited[0], visited[-1]) == (pytest.approx(700, rel=1e-4), pytest.approx(0.002, rel=1e-4))


def test_consistency_models_pass_scaled_c_noise() -> None:
    scheduler = make("CMStochasticIterative")
    visited = NoiseSchedule.from_scheduler(scheduler).visited(scheduler, 4)
    scheduler.set_timesteps(4)
    np.testing.assert_allclose(visited, scheduler.sigmas[:-1], rtol=1e-5)


def test_score_sde_passes_sigma_and_corrects_before_each_step() -> None:
    scheduler = make("ScoreSdeVe", num_train_timesteps=1000)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    visited = schedule.visited(scheduler, 3)

    assert (schedule.kind, schedule.sigma_min, schedule.sigma_max) == ("edm", 0.01, 1348.0)
    assert schedule.to_coordinate(3.5) == 3.5
    assert len(visited) == 6
    assert visited[0] == visited[1] == pytest.approx(1348, rel=1e-4)
    assert Plan.from_snr(schedule, 5).routes(scheduler, 3).steps[-1].group == 0


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", FLOW)
def test_flow_matching_passes_a_thousand_times_the_flow_time(name: str, shift: float) -> None:
    scheduler = make(name, shift=shift)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    assert schedule == NoiseSchedule.flow(1000, shift)
    np.testing.assert_allclose(schedule.grid()[::-1], scheduler.sigmas[:1000], rtol=1e-5)

    received = calls_of(scheduler, 6)
    np.testing.assert_allclose(schedule.visited(scheduler, 6) * 1000, received, rtol=1e-6)
    plan = Plan.from_snr(schedule, 4)
    assert plan.group_of_model_timestep(1000.0) == plan.group_of(1.0) == 3
    assert plan.group_of_model_timestep(torch.tensor([1.0, 999.0])).tolist() == [0, 3]


def test_flow_matching_adds_the_same_noise() -> None:
    scheduler = make("FlowMatchEulerDiscrete", shift=3.0)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    t = scheduler.timesteps[[0, 10, 500, 999]]
    signal, noise = noised(scheduler, t)
    torch.testing.assert_close(schedule.signal(schedule.to_coordinate(t)), signal, atol=1e-5, rtol=0)
    torch.testing.assert_close(schedule.noise(schedule.to_coordinate(t)), noise, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep"])
def test_solvers_switched_to_flow_matching(name: str) -> None:
    scheduler = make(name, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    visited = schedule.visited(scheduler, 5)
    scheduler.set_timesteps(5)
    assert (schedule.kind, schedule.shift) == ("flow", 2.0)
    np.testing.assert_allclose(visited, scheduler.sigmas[:-1], atol=1e-3)  # the solver cuts timesteps to whole numbers


def test_dynamic_shifting_needs_its_option() -> None:
    scheduler = make("FlowMatchEulerDiscrete", use_dynamic_shifting=True)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    with pytest.raises(SettingError, match="mu"):
        schedule.visited(scheduler, 4)
    assert len(schedule.visited(scheduler, 4, mu=0.8)) == 4


@pytest.mark.parametrize("name", ["IPNDM", "DDPMWuerstchen", "KarrasVe"])
def test_other_families_are_refused_by_name(name: str) -> None:
    with pytest.raises(SettingError, match=f"scheduler: {name}"):
        NoiseSchedule.from_scheduler(make(name))


def test_named_schedules_are_diffusers_own() -> None:
    for ours, theirs in zip(("linear", "scaled_linear", "cosine"), BETAS, strict=True):
        defaults = {"beta_start": 0.00085, "beta_end": 0.012} if ours == "scaled_linear" else {}
        scheduler = make("DDPM", beta_schedule=theirs, num_train_timesteps=250, **defaults)
        schedule = NoiseSchedule.named(ours, 250)  # type: ignore[arg-type]
        np.testing.assert_allclose(schedule.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-4)
        assert NoiseSchedule.from_scheduler(scheduler) == schedule


def test_a_step_beyond_the_last_timestep_still_has_a_group() -> None:
    scheduler = make("DDIM", timestep_spacing="leading", steps_offset=1)
    plan = Plan.from_snr(NoiseSchedule.from_scheduler(scheduler), 4)
    routes = plan.routes(scheduler, 1000)
    assert max(route.t for route in routes.steps) == 1000
    assert routes.steps[0].group == 3
