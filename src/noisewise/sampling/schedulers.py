"""Schedulers by a short name, for a noise schedule of ours or for another scheduler's settings.

diffusers' own where they are what the name says; noisewise's `DPMSolver3Scheduler` and `EDMHeunScheduler` where
diffusers has no such sampler.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from noisewise.errors import SettingError
from noisewise.sampling.kinds import SchedulerKind, check_kind, family, kinds_of
from noisewise.schedule import NoiseSchedule

CLASSES: dict[str, str] = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm-solver-3": "DPMSolver3Scheduler",
    "edm-heun": "EDMHeunScheduler",
    "edm-euler": "EDMEulerScheduler",
    "edm-dpm++": "EDMDPMSolverMultistepScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
    "flow-heun": "FlowMatchHeunDiscreteScheduler",
}
CLIPPING = ("ddim", "ddpm")  # whose `clip_sample` is on by default
BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {  # what a network of each kind of schedule may predict, the default first
    "vp": ("epsilon", "v_prediction", "sample"),
    "edm": ("edm", "epsilon"),  # diffusers' EDM schedulers call the preconditioned network "epsilon"
    "flow": ("velocity",),
}


def build_scheduler(
    kind: SchedulerKind,
    schedule: NoiseSchedule | Mapping[str, Any] | Any,
    prediction_type: str | None = None,
    variance: str = "fixed",
    *,
    latent: bool = False,
    **options: Any,
) -> Any:
    """A diffusers scheduler that samples models trained under ``schedule``.

    Args:
        kind: see `CLASSES`; each is for one kind of schedule.
        schedule: a noise schedule, a scheduler, or the configuration of one.
        prediction_type: what the model was trained to predict; by default what the given scheduler says, otherwise
            the first of `PREDICTIONS` for the kind of schedule.
        latent: what is sampled is not in [-1, 1], so that no guess of it is clipped, unless a given scheduler says so.
        variance: "learned_range" makes DDPM use the model's variance; the other samplers have no use for it.
        options: further settings of the scheduler's class, e.g. ``timestep_spacing="trailing"``, ``sigma_data=0.5``
            (EDM's preconditioning) or ``final_time=1e-3`` (DPM-Solver-3).
    """
    check_kind(kind)
    scheduler_class = _class(CLASSES[kind])
    given = None if isinstance(schedule, NoiseSchedule) else _config(schedule)
    if isinstance(schedule, NoiseSchedule):
        _check_schedule(kind, schedule)
    if given is not None and prediction_type is None and family(kind) == "vp":
        prediction_type = given.get("prediction_type", "epsilon")
    prediction_type = _check_prediction(kind, prediction_type)
    if family(kind) == "vp":
        options = {"prediction_type": prediction_type, **options}
    if latent and kind in CLIPPING and "clip_sample" not in (given or {}):
        options = {"clip_sample": False, **options}
    if kind == "ddpm" and variance == "learned_range":
        options["variance_type"] = "learned_range"
    if given is not None and family(kind) == "vp" and kind != "dpm-solver-3":
        known = inspect.signature(scheduler_class.__init__).parameters
        ours = {  # variance_type means another thing in each
            name: value
            for name, value in given.items()
            if name != "variance_type" and (name in known or name == "_use_default_values")
        }
        return scheduler_class.from_config(ours, **options)
    levels = schedule
    if given is not None:
        if given.get("use_dynamic_shifting"):
            raise SettingError(f"sample.scheduler: {kind} cannot follow use_dynamic_shifting (a shift per image)")
        levels = NoiseSchedule.from_scheduler(_rebuilt(kind, given))
        if family(kind) == "edm":
            options = {name: given[name] for name in ("sigma_data", "rho") if name in given} | options
    assert isinstance(levels, NoiseSchedule)
    _check_schedule(kind, levels)
    return scheduler_class(**{**_noise_settings(levels), **options})


def _class(name: str) -> Any:
    import diffusers

    import noisewise

    return getattr(noisewise if name in noisewise.__all__ else diffusers, name)


def _config(schedule: Mapping[str, Any] | Any) -> dict[str, Any]:
    """The settings of a scheduler, class name included."""
    if isinstance(schedule, Mapping):
        return dict(schedule)
    return {**schedule.config, "_class_name": type(schedule).__name__}


def _rebuilt(kind: SchedulerKind, config: dict[str, Any]) -> Any:
    """The scheduler with these settings, of the class they name."""
    name = config.get("_class_name", CLASSES["ddpm" if family(kind) == "vp" else kind])
    try:
        return _class(name).from_config(config)
    except AttributeError:
        raise SettingError(f"sample.scheduler: {name} is no scheduler of noisewise or diffusers") from None


def _check_prediction(kind: SchedulerKind, prediction_type: str | None) -> str:
    allowed = PREDICTIONS[family(kind)]
    prediction_type = prediction_type or allowed[0]
    if prediction_type == "sample" and kind in ("pndm", "heun"):
        raise SettingError(f"sample.scheduler: {kind} samples models that predict epsilon or v, not the image itself")
    if prediction_type not in allowed:
        raise SettingError(
            f"sample.scheduler: {kind} samples models that predict {' or '.join(allowed)}, given {prediction_type}"
        )
    return prediction_type


def _check_schedule(kind: SchedulerKind, schedule: NoiseSchedule) -> None:
    if schedule.kind != family(kind):
        raise SettingError(
            f"sample.scheduler: {kind} is for {family(kind)} schedules, this one is {schedule.kind}; "
            f"allowed: {', '.join(kinds_of(schedule.kind))}"
        )
    if schedule.kind == "edm" and (schedule.model_timestep, schedule.model_scale) != ("c-noise", 1.0):
        raise SettingError(
            f"sample.scheduler: {kind} tells the network c_noise, and it expects "
            f"{schedule.model_timestep} times {schedule.model_scale:g}"
        )


def _noise_settings(schedule: NoiseSchedule) -> dict[str, Any]:
    """Noise levels in diffusers' words; betas by name where diffusers has one for them."""
    settings: dict[str, Any] = {"num_train_timesteps": schedule.num_train_timesteps}
    if schedule.kind == "edm":
        return settings | {"sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}
    if schedule.kind == "flow":
        return settings | {"shift": schedule.shift}
    assert schedule.alphas_cumprod is not None
    formula = schedule.formula or {}
    name, end = formula.get("name"), formula.get("beta_end")
    if name in BETA_SCHEDULES and (name != "cosine" or end == 0.999):  # diffusers cuts the cosine schedule there
        settings["beta_schedule"] = BETA_SCHEDULES[name]
        if name != "cosine":
            settings |= {"beta_start": formula["beta_start"], "beta_end": end}
        return settings
    before = np.concatenate([[1.0], schedule.alphas_cumprod[:-1]])  # [T]
    return settings | {"trained_betas": (1 - schedule.alphas_cumprod / before).tolist()}
