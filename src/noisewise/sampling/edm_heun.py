"""EDM's deterministic sampler, Heun's method on sigmas spaced by rho (arXiv:2206.00364), as a diffusers scheduler.

diffusers has no such sampler: its `EDMEulerScheduler` is of first order, its `HeunDiscreteScheduler` is for discrete
models (it passes timesteps, not c_noise, and preconditions nothing), and its `KarrasVeScheduler` spaces sigmas
geometrically for networks that predict noise.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from noisewise.errors import SettingError
from noisewise.preconditioning import epsilon_of, preconditioning
from noisewise.sampling.stepping import CallScheduler


class EDMHeunScheduler(CallScheduler["_Call"]):
    """Algorithm 1 of EDM without churn; N steps are 2 N - 1 evaluations of the network, 18 steps 35.

    The network is F of D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), c_noise = log(sigma) / 4. The samples handed
    to ``step`` and back are the network's inputs c_in x, of unit size, until the last, which are images.

    Args:
        sigma_min, sigma_max: first and last sigma above 0.
        sigma_data: standard deviation of the images the network was trained with (its preconditioning).
        rho: how far sigmas crowd towards the data, Eq. 5.
        num_train_timesteps: points of the grid of sigmas that plans are made on; sampling has no use for it.
        prediction_type: "epsilon", as diffusers' EDM schedulers call F.
    """

    __module__ = "noisewise"  # what diffusers writes into model_index.json, and where it looks again

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        rho: float = 7.0,
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
    ) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise SettingError(f"scheduler.sigma_min: {sigma_min} is not between 0 and sigma_max, {sigma_max}")
        if not sigma_data > 0 or not rho > 0:
            raise SettingError(f"scheduler: sigma_data {sigma_data} and rho {rho}; allowed: above 0")
        if prediction_type != "epsilon":
            raise SettingError(f"scheduler.prediction_type: {prediction_type!r}; allowed: 'epsilon', EDM's network F")
        sigmas = torch.from_numpy(self._spaced(num_train_timesteps))  # [T], as diffusers' schedulers start
        self.timesteps = self.precondition_noise(sigmas).float()
        self.sigmas = torch.cat([sigmas, torch.zeros(1, dtype=sigmas.dtype)]).float()
        self._begin([])

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first sample, c_in sigma_max: 1 but for 2e-5, which DDPMPipeline leaves out."""
        return float(self.config.sigma_max * self._c_in(self.config.sigma_max))

    def precondition_noise(self, sigma: Any) -> torch.Tensor:
        """c_noise: what the network receives as ``timestep`` at ``sigma``, any shape."""
        return torch.as_tensor(sigma).log() / 4

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Prepare for sampling in this many steps; ``timesteps`` then has one entry for each call of the network."""
        if num_inference_steps < 1:
            raise SettingError(f"sample.num_inference_steps: {num_inference_steps} is below 1")
        sigmas = [*self._spaced(num_inference_steps).tolist(), 0.0]  # [steps + 1]
        calls = []
        for sigma, goal in itertools.pairwise(sigmas):
            calls.append(_Call(sigma, sigma, goal, corrects=False))
            if goal > 0:
                calls.append(_Call(goal, sigma, goal, corrects=True))
        at = torch.tensor([call.at for call in calls], dtype=torch.float64)  # [calls]
        self.timesteps = self.precondition_noise(at).to(device=device, dtype=torch.float32)
        self.sigmas = torch.tensor(sigmas, dtype=torch.float32)
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
            model_output: [B, C, H, W], F.
            timestep: the next entry of ``timesteps``; they have to be used in order.
            sample: [B, C, H, W], what ``step`` gave before.
            generator: unused, nothing here is random; stock pipelines pass it.
        """
        call, sigma_data = self._next_call(timestep), self.config.sigma_data
        dtype = torch.promote_types(sample.dtype, torch.float32)
        sigma = torch.tensor(call.at, dtype=dtype)
        c_in = preconditioning(sigma, sigma_data).c_in
        x = sample.to(dtype) / c_in  # [B, C, H, W]
        d = epsilon_of(
            model_output.to(dtype), x, sigma, c_in, sigma_data
        )  # [B, C, H, W], dx / dsigma = (x - D) / sigma
        if not call.corrects:
            self._start, self._slope = x, d
        else:
            d = (self._slope + d) / 2
        x = self._start + (call.goal - call.start) * d
        if call.goal > 0:
            x = x * self._c_in(call.goal)
        x = x.to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _c_in(self, sigma: float) -> float:
        return preconditioning(torch.tensor(sigma, dtype=torch.float64), self.config.sigma_data).c_in.item()

    def _spaced(self, num: int) -> np.ndarray:
        """[num] sigmas from noise to data, Eq. 5."""
        first, last = (sigma ** (1 / self.config.rho) for sigma in (self.config.sigma_max, self.config.sigma_min))
        return np.linspace(first, last, num) ** self.config.rho


@dataclass(frozen=True)
class _Call:
    """The network is called at sigma ``at``, in the step from sigma ``start`` to ``goal``."""

    at: float
    start: float
    goal: float
    corrects: bool  # the step's second call, Heun's correction
