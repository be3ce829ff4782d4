"""DPM-Solver of third order in single steps (arXiv:2206.00927), as a diffusers scheduler.

diffusers' `DPMSolverSinglestepScheduler` is another sampler: its outer steps are uniform in whole timesteps, it takes
its inner points from the same grid instead of at a third and two thirds of a step's half log SNR, and neither of its
``solver_type`` settings has the paper's second and third stage both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput

from noisewise.errors import SettingError
from noisewise.sampling.stepping import CallScheduler
from noisewise.schedule import DECIBEL, NoiseSchedule
from noisewise.schedule_reader import schedule_of_betas

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
INNER_POINTS = {1: (0.0,), 2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}  # r of each evaluation of a step, by order
CONTINUOUS_END = 1e-4  # the paper's eps


class DPMSolver3Scheduler(CallScheduler["_Call"]):
    """DPM-Solver-3 for variance-preserving models, its outer steps uniform in half log SNR.

    ``set_timesteps(num_inference_steps)`` counts evaluations of the network: steps of order 3, then one or two of lower
    order that use up the rest, as the paper does it for a given number of them. Between the timesteps of training the
    network is called at fractional ones.

    The noise schedule is given in diffusers' words, so that ``from_config`` turns other schedulers into this one and
    back. Betas that come from the continuous formula (`NoiseSchedule.vp`) are recognised, and time is then continuous.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: as in diffusers.
        prediction_type: "epsilon", "v_prediction" or "sample"; what is not noise is turned into noise first.
        final_time: where sampling ends, in (0, 1); default 1e-4 in continuous time (1e-3 can be better at few
            evaluations), otherwise the first timestep, 1 / num_train_timesteps, the least there is.
        lambda_min_clipped: sampling starts at the last timestep, or where the half log SNR is this if the last timestep
            has less (cosine, zero terminal SNR: most of the range would be spent where nothing is to be seen).
    """

    __module__ = "noisewise"  # what diffusers writes into model_index.json, and where it looks again
    _compatibles: ClassVar[list[str]] = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        final_time: float | None = None,
        lambda_min_clipped: float = -5.1,
    ) -> None:
        schedule = schedule_of_betas(self.config)
        if schedule is None or schedule.num_train_timesteps != num_train_timesteps:
            raise SettingError(
                f"scheduler: beta_schedule {beta_schedule!r} and trained_betas do not give {num_train_timesteps} betas"
            )
        if prediction_type not in PREDICTION_TYPES:
            raise SettingError(
                f"scheduler.prediction_type: {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}"
            )
        self.noise_schedule = schedule
        self._span = _lambda_span(schedule, final_time, lambda_min_clipped)
        self.alphas_cumprod = torch.tensor(schedule.alphas_cumprod, dtype=torch.float32)  # [T]
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)  # [T], as diffusers' schedulers start
        self._begin([])

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Prepare for sampling with this many evaluations of the network; ``timesteps`` then has one entry for each."""
        if num_inference_steps < 1:
            raise SettingError(f"sample.num_inference_steps: {num_inference_steps} is below 1")
        calls = list(_calls(*self._span, num_inference_steps))
        levels = np.array([call.at for call in calls])  # [evaluations], half log SNR
        t = self.noise_schedule.coordinate_at_snr(2 * DECIBEL * levels)  # [evaluations]
        self.timesteps = torch.from_numpy(t).to(device=device, dtype=torch.float32)
        self._begin(calls, num_inference_steps)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """From one evaluation of the network to the point of the next.

        Args:
            model_output: [B, C, H, W], or [B, 2C, H, W] with a learned variance, which is left out.
            timestep: the next entry of ``timesteps``; they have to be used in order.
            sample: [B, C, H, W], what ``step`` gave before.
            generator: unused, nothing here is random; stock pipelines pass it.
        """
        call = self._next_call(timestep)
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))  # [B, C, H, W]
        epsilon = self._noise(model_output[:, : sample.shape[1]].to(x.dtype), x, call)  # [B, C, H, W]
        if call.starts_step:
            self._start, self._epsilon = x, epsilon
        x = call.of_x * self._start + call.of_epsilon * self._epsilon + call.of_change * (epsilon - self._epsilon)
        x = x.to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _noise(self, output: torch.Tensor, x: torch.Tensor, call: _Call) -> torch.Tensor:
        """The noise in x by the network's answer, [B, C, H, W]."""
        if self.config.prediction_type == "epsilon":
            return output
        signal, noise = _signal(call.at), _signal(-call.at)
        if self.config.prediction_type == "v_prediction":
            return signal * output + noise * x
        return (x - signal * output) / noise


@dataclass(frozen=True)
class _Call:
    """One evaluation, and where it leads: of_x x_s + of_epsilon eps_s + of_change (eps - eps_s), s the step's start."""

    at: float  # half log SNR
    starts_step: bool
    of_x: float
    of_epsilon: float
    of_change: float


def orders(num_evaluations: int) -> list[int]:
    """Orders of the steps that use up the evaluations: as many of order 3 as leave one or two of lower order."""
    steps = num_evaluations // 3 + 1  # K
    if num_evaluations % 3 == 0:
        return [3] * (steps - 2) + [2, 1]
    return [3] * (steps - 1) + [num_evaluations % 3]


def _calls(start: float, stop: float, num_evaluations: int) -> Iterator[_Call]:
    """DPM-Solver-1, -2 (r1 = 1/2) and -3 (r1 = 1/3, r2 = 2/3) in half log SNR from ``start`` up to ``stop``."""
    step_orders = orders(num_evaluations)
    edges = np.linspace(start, stop, len(step_orders) + 1).tolist()  # [K + 1]
    for order, begin, end in zip(step_orders, edges[:-1], edges[1:], strict=True):
        h, points = end - begin, INNER_POINTS[order]
        for i, r in enumerate(points):
            reached = points[i + 1] if i + 1 < order else 1.0
            goal = begin + reached * h if reached < 1 else end
            noise = _signal(-goal)
            yield _Call(
                at=begin + r * h,
                starts_step=i == 0,
                of_x=_signal(goal) / _signal(begin),
                of_epsilon=-noise * math.expm1(reached * h),
                of_change=-noise * _change(order, r, reached, h),
            )


def _change(order: int, r: float, reached: float, h: float) -> float:
    """What (eps at r) - (eps at the step's start) is multiplied by, without -noise."""
    if r == 0:
        return 0.0
    if order == 2:
        return math.expm1(h) / (2 * r)
    return reached / r * (math.expm1(reached * h) / (reached * h) - 1)


def _signal(half_log_snr: float) -> float:
    """alpha at a half log SNR of a variance-preserving schedule; sigma at its negative."""
    return 1 / math.sqrt(1 + math.exp(-2 * half_log_snr))


def _lambda_span(schedule: NoiseSchedule, final_time: float | None, lowest: float) -> tuple[float, float]:
    """Half log SNR at which sampling starts and ends."""
    T, (first, last) = schedule.num_train_timesteps, schedule.limits
    if final_time is None:
        final_time = CONTINUOUS_END if schedule.is_formula else 1 / T
    end = T * final_time - 1  # a coordinate; the time is (coordinate + 1) / T
    if not first - 1e-9 <= end < last:
        raise SettingError(f"scheduler.final_time: {final_time} is not from {(first + 1) / T:g} to below 1")
    start, stop = (schedule.snr_db(t) / (2 * DECIBEL) for t in (float(last), max(end, float(first))))
    start = max(start, lowest)
    if not start < stop:
        raise SettingError(
            f"scheduler.lambda_min_clipped: {lowest} leaves nothing to sample (the half log SNR ends at {stop:.3g})"
        )
    return start, stop
