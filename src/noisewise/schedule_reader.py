"""Which noise schedule a diffusers scheduler was made for, told by what it computes rather than by its class.

Schedulers differ in what they hand to the network. Discrete ones pass the original timestep, possibly fractional;
EDM ones c_noise = log(sigma) / 4; consistency models 250 log(sigma); the score-SDE pipeline sigma itself; flow
matching T x flow time.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.schedule import NoiseSchedule

NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


def read_scheduler(scheduler: Any) -> NoiseSchedule:
    """The schedule of a diffusers scheduler, or an error that says which families can be read."""
    config = getattr(scheduler, "config", None)
    if config is None or not hasattr(scheduler, "set_timesteps"):
        raise SettingError(f"scheduler: {type(scheduler).__name__} is not a diffusers scheduler")
    for read in (_flow_sigmas, _edm, _continuous_euler, _discrete, _consistency, _exploding, _flow):
        schedule = read(scheduler, config)
        if schedule is not None:
            return schedule
    raise SettingError(
        f"scheduler: {type(scheduler).__name__} is not of a known family (discrete VP with alphas_cumprod, EDM or VE "
        "sigmas, flow matching)"
    )


def schedule_of_betas(config: Any) -> NoiseSchedule | None:
    """Discrete VP in float64 from a scheduler's settings: by name, or betas, those of the continuous formula too.

    None for what they do not say whole: other names, and numbers that are no betas.
    """
    betas, name = config.get("trained_betas"), NAMES.get(config.get("beta_schedule", ""))
    if betas is None:
        if name is None:
            return None
        range_ = {} if name == "cosine" else {"beta_start": config["beta_start"], "beta_end": config["beta_end"]}
        return NoiseSchedule.named(name, config["num_train_timesteps"], **range_)  # type: ignore[arg-type]
    try:
        schedule = NoiseSchedule.from_betas(betas)
    except (SettingError, TypeError, ValueError):
        return None
    return _by_formula(schedule) or schedule


def _by_formula(schedule: NoiseSchedule) -> NoiseSchedule | None:
    """The continuous VP schedule that these timesteps are of: -log(alpha_bar) / t is then a straight line in t."""
    assert schedule.alphas_cumprod is not None
    T = schedule.num_train_timesteps
    if schedule.alphas_cumprod[-1] == 0:
        return None
    rates = -np.log(schedule.alphas_cumprod) * T / np.arange(1, T + 1)  # [T]
    slope = (rates[-1] - rates[0]) / (1 - 1 / T)
    beta_min = rates[0] - slope / T
    beta_min, beta_max = (float(f"{beta:.8g}") for beta in (beta_min, beta_min + 2 * slope))  # as they were typed
    if not 0 <= beta_min < beta_max < np.inf:
        return None
    exact = NoiseSchedule.vp(beta_min, beta_max, T)
    return exact if np.allclose(exact.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-7, atol=0) else None  # type: ignore[arg-type]


def _discrete(scheduler: Any, config: Any) -> NoiseSchedule | None:
    """Discrete VP; in float64 by its settings where the scheduler's float32 agrees with them."""
    if getattr(scheduler, "alphas_cumprod", None) is None:
        return None
    alphas_cumprod = np.asarray(scheduler.alphas_cumprod.cpu(), dtype=np.float64)  # [T]
    exact = schedule_of_betas(config)
    # zero-SNR rescaling and shifted variants of a schedule differ by far more than float32's rounding
    if exact is not None and exact.num_train_timesteps == len(alphas_cumprod):
        assert exact.alphas_cumprod is not None
        if np.allclose(alphas_cumprod, exact.alphas_cumprod, rtol=1e-3, atol=0):
            return exact
    return NoiseSchedule.from_alphas_cumprod(alphas_cumprod)


def _edm(scheduler: Any, config: Any) -> NoiseSchedule | None:
    """EDM preconditioning; refused where the network is told another function of sigma than c_noise."""
    if not hasattr(scheduler, "precondition_noise"):
        return None
    if not math.isclose(float(scheduler.precondition_noise(torch.tensor(2.0))), math.log(2) / 4, rel_tol=1e-5):
        return None
    return NoiseSchedule.edm(config.sigma_min, config.sigma_max, config.num_train_timesteps)


def _continuous_euler(scheduler: Any, config: Any) -> NoiseSchedule | None:
    """Euler in EDM's manner (Stable Video Diffusion): a discrete scheduler that passes c_noise."""
    if config.get("timestep_type") != "continuous" or config.get("prediction_type") != "v_prediction":
        return None
    sigmas = scheduler.sigmas[:-1]  # [T], without the final zero
    sigma_min = config.get("sigma_min") or float(sigmas.min())
    sigma_max = config.get("sigma_max") or float(sigmas.max())
    return NoiseSchedule.edm(sigma_min, sigma_max, config.num_train_timesteps)


def _consistency(scheduler: Any, config: Any) -> NoiseSchedule | None:
    """Consistency models: 1000 log(sigma) / 4."""
    if not hasattr(scheduler, "sigma_to_t") or "sigma_max" not in config:
        return None
    if not math.isclose(float(scheduler.sigma_to_t(np.array(2.0))), 250 * math.log(2), rel_tol=1e-5):
        return None
    schedule = NoiseSchedule.edm(config.sigma_min, config.sigma_max, config.num_train_timesteps)
    return dataclasses.replace(schedule, model_scale=1000.0)


def _exploding(scheduler: Any, config: Any) -> NoiseSchedule | None:
    """Variance exploding score SDE: the network receives sigma."""
    if not hasattr(scheduler, "discrete_sigmas"):
        return None
    schedule = NoiseSchedule.edm(config.sigma_min, config.sigma_max, config.num_train_timesteps)
    return dataclasses.replace(schedule, model_timestep="sigma")


def _flow_sigmas(scheduler: Any, config: Any) -> NoiseSchedule | None:
    """A discrete solver (DPM-Solver, UniPC, DEIS ...) switched to flow matching."""
    if not config.get("use_flow_sigmas"):
        return None
    return NoiseSchedule.flow(config.num_train_timesteps, config.get("flow_shift") or config.get("shift") or 1.0)


def _flow(scheduler: Any, config: Any) -> NoiseSchedule | None:
    """Flow matching: sigmas up to 1 and timesteps T times as large."""
    T = config.get("num_train_timesteps")
    if not hasattr(scheduler, "sigmas") or T is None or config.get("invert_sigmas"):
        return None
    if scheduler.timesteps is None or len(scheduler.timesteps) == 0:  # some have none before they are asked to sample
        scheduler = copy.deepcopy(scheduler)
        scheduler.set_timesteps(8)
    sigmas, timesteps = scheduler.sigmas, scheduler.timesteps
    timesteps = torch.as_tensor(timesteps).double()  # [steps]
    sigmas = torch.as_tensor(sigmas).double()[: len(timesteps)]  # [steps], without a final zero
    if len(sigmas) < len(timesteps) or sigmas.max() > 1 or (sigmas * T - timesteps).abs().max() > 1e-2:
        return None
    return NoiseSchedule.flow(T, 1.0 if config.get("use_dynamic_shifting") else config.get("shift") or 1.0)


def visited_coordinates(
    schedule: NoiseSchedule, scheduler: Any, num_inference_steps: int, **options: Any
) -> np.ndarray:
    """What ``NoiseSchedule.visited`` says: [calls] coordinates, in order."""
    if num_inference_steps < 1:
        raise SettingError(f"sample.num_inference_steps: {num_inference_steps} is below 1")
    schedule.check_same(NoiseSchedule.from_scheduler(scheduler))
    scheduler = copy.deepcopy(scheduler)
    try:
        scheduler.set_timesteps(num_inference_steps, **options)
    except (ValueError, TypeError, LookupError, ArithmeticError, AssertionError) as error:
        raise SettingError(f"sample.num_inference_steps: {num_inference_steps} is refused ({error})") from error
    times = scheduler.timesteps
    if hasattr(scheduler, "set_sigmas"):  # variance exploding: sigma itself, with corrector calls before each step
        scheduler.set_sigmas(num_inference_steps)
        times = scheduler.sigmas.repeat_interleave(scheduler.config.correct_steps + 1)
    coordinates = schedule.to_coordinate(np.asarray(times.cpu(), dtype=np.float64))  # [calls]
    if schedule.is_discrete and (coordinates == coordinates.round()).all():
        return coordinates.astype(np.int64)
    return coordinates
