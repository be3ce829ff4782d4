"""diffusers' schedulers by a short name, for a noise schedule of ours or for another scheduler's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from noisewise.errors import SettingError
from noisewise.schedule import NoiseSchedule

SchedulerKind = Literal["ddpm", "ddim", "pndm", "dpm++", "unipc", "heun", "euler"]

CLASSES: dict[str, str] = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
}
BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def build_scheduler(
    kind: SchedulerKind,
    schedule: NoiseSchedule | Mapping[str, Any] | Any,
    prediction_type: str = "epsilon",
    variance: str = "fixed",
    **options: Any,
) -> Any:
    """A diffusers scheduler that samples models trained under ``schedule``.

    Args:
        kind: see `CLASSES`.
        schedule: a variance-preserving noise schedule, a diffusers scheduler, or the configuration of one.
        prediction_type: what the model was trained to predict.
        variance: "learned_range" makes DDPM use the model's variance; the other samplers have no use for it.
        options: further settings of the scheduler's class, e.g. ``timestep_spacing="trailing"``.
    """
    import diffusers

    if kind not in CLASSES:
        raise SettingError(f"sample.scheduler: {kind!r} is not one of {', '.join(get_args(SchedulerKind))}")
    scheduler_class = getattr(diffusers, CLASSES[kind])
    if prediction_type == "sample" and kind in ("pndm", "heun"):
        raise SettingError(f"sample.scheduler: {kind} samples models that predict epsilon or v, not the image itself")
    options = {"prediction_type": prediction_type, **options}
    if kind == "ddpm" and variance == "learned_range":
        options["variance_type"] = "learned_range"
    if isinstance(schedule, NoiseSchedule):
        return scheduler_class(**_noise_settings(schedule), **options)
    config = schedule if isinstance(schedule, Mapping) else schedule.config
    ours = {name: value for name, value in config.items() if name != "variance_type"}  # means another thing in each
    return scheduler_class.from_config(ours, **options)


def _noise_settings(schedule: NoiseSchedule) -> dict[str, Any]:
    """num_train_timesteps and betas in diffusers' words; by name where diffusers has one for them."""
    if schedule.alphas_cumprod is None:
        raise SettingError(f"sample.scheduler: made for variance-preserving schedules, this one is {schedule.kind}")
    settings: dict[str, Any] = {"num_train_timesteps": schedule.num_train_timesteps}
    formula = schedule.formula or {}
    name, end = formula.get("name"), formula.get("beta_end")
    if name in BETA_SCHEDULES and (name != "cosine" or end == 0.999):  # diffusers cuts the cosine schedule there
        settings["beta_schedule"] = BETA_SCHEDULES[name]
        if name != "cosine":
            settings |= {"beta_start": formula["beta_start"], "beta_end": end}
        return settings
    before = np.concatenate([[1.0], schedule.alphas_cumprod[:-1]])  # [T]
    return settings | {"trained_betas": (1 - schedule.alphas_cumprod / before).tolist()}
