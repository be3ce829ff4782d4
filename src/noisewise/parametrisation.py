"""What a network is given and what its answer stands for: noise, velocity, image, or EDM's F, at any noise level.

Coefficients are computed in float64 and cast to float32; discrete timesteps look them up.

Shapes: B = batch, C = image channels, H, W = height and width, T = training timesteps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from noisewise.likelihood import Posterior, posterior
from noisewise.preconditioning import epsilon_of, network_target, preconditioning
from noisewise.schedule import NoiseSchedule

PredictionType = Literal["epsilon", "v_prediction", "sample", "edm", "velocity"]
Time = Literal["discrete", "continuous"]
Labels = torch.Tensor | Mapping[str, Any] | None  # class labels [B], or what forward is told, by its arguments' names

PREDICTIONS: dict[str, tuple[PredictionType, ...]] = {  # by kind of schedule; the first is the default
    "vp": ("epsilon", "v_prediction", "sample"),
    "edm": ("edm",),
    "flow": ("velocity",),
}
SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Draw:
    """A batch of noised images: everything that is random about a loss."""

    x_0: torch.Tensor  # [B, C, H, W], in [-1, 1]
    noise: torch.Tensor  # [B, C, H, W], unit normal
    t: torch.Tensor  # [B] int64, original training timesteps; float64 coordinates in continuous time
    x_t: torch.Tensor  # [B, C, H, W]
    class_labels: torch.Tensor | None = None  # [B] int64
    weight: torch.Tensor | None = None  # [B] float32, of the loss, where noise levels were drawn out of proportion
    conditions: Mapping[str, Any] | None = None  # forward's further arguments, by name: tensors [B, ...], also nested

    def __len__(self) -> int:
        return len(self.t)

    def to(self, device: torch.device | str) -> Draw:
        return Draw(**tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), vars(self)))


class _Tables(NamedTuple):
    """float32 [T] each, on one device."""

    signal: torch.Tensor
    noise: torch.Tensor
    snr: torch.Tensor
    posterior: Posterior


@dataclass(frozen=True)
class Parametrisation:
    """How x_t, the network's input and its answer hang together. The part of an `Objective` that needs no choices.

    Attributes:
        schedule: variance preserving, EDM or flow matching.
        prediction_type: what the network answers; None takes the schedule's own. "epsilon", "v_prediction" or "sample"
            for variance-preserving ones, "edm" (the F of D = c_skip x + c_out F(c_in x), whose plain error is EDM's
            weighted one) for EDM, "velocity" (eps - x_0) for flow matching.
        time: whether VP is trained on whole timesteps or on all in between; EDM and flow matching are continuous.
        sigma_data: standard deviation of the images' values, for EDM.
    """

    schedule: NoiseSchedule
    prediction_type: PredictionType = None  # type: ignore[assignment]  # never None once made
    time: Time = "discrete"
    sigma_data: float = SIGMA_DATA

    @property
    def is_discrete(self) -> bool:
        """Whether whole timesteps are trained."""
        return self.time == "discrete"

    def noised(self, x_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, class_labels: Labels = None) -> Draw:
        """x_t = signal(t) x_0 + noise(t) eps for given numbers, on the device of ``x_0``.

        A mapping as ``class_labels`` holds all that forward is told, its own ``class_labels`` among the rest.
        """
        signal_t, noise_t = self._signal_and_noise(t)  # [B, 1, 1, 1] each
        x_t = signal_t * x_0 + noise_t * noise  # [B, C, H, W]
        draw = Draw(x_0, noise, t, x_t.to(x_0.dtype))
        if not isinstance(class_labels, Mapping):
            return replace(draw, class_labels=class_labels)
        conditions = {name: value for name, value in class_labels.items() if name != "class_labels"}
        return replace(draw, class_labels=class_labels.get("class_labels"), conditions=conditions)

    def model_inputs(self, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network is called with: c_in x_t (x_t but for EDM), [B, C, H, W], and its timestep [B]."""
        x_in = (self._c_in(draw.t) * draw.x_t).to(draw.x_t.dtype) if self.prediction_type == "edm" else draw.x_t
        return x_in, self.schedule.to_model_timestep(draw.t)

    def target(self, draw: Draw) -> torch.Tensor:
        """What the model should answer: [B, C, H, W] float32."""
        if self.prediction_type == "epsilon":
            return draw.noise.float()
        if self.prediction_type == "sample":
            return draw.x_0.float()
        if self.prediction_type == "velocity":
            return draw.noise.float() - draw.x_0.float()
        signal, noise = self._signal_and_noise(draw.t)
        if self.prediction_type == "edm":
            return network_target(draw.x_0.float(), draw.noise.float(), noise, self._c_in(draw.t), self.sigma_data)
        return signal * draw.noise - noise * draw.x_0

    def epsilon(self, prediction: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The noise a prediction [B, C, H, W] stands for."""
        if self.prediction_type == "epsilon":
            return prediction
        signal, noise = self._signal_and_noise(draw.t)
        if self.prediction_type == "sample":
            return (draw.x_t - signal * prediction) / noise
        if self.prediction_type == "edm":
            return epsilon_of(prediction, draw.x_t.float(), noise, self._c_in(draw.t), self.sigma_data)
        if self.prediction_type == "velocity":
            return draw.x_t + signal * prediction
        return signal * prediction + noise * draw.x_t

    def x_0(self, prediction: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The clean image a prediction [B, C, H, W] stands for, unclipped."""
        if self.prediction_type == "sample":
            return prediction
        signal, noise = self._signal_and_noise(draw.t)
        if self.prediction_type == "epsilon":
            return (draw.x_t - noise * prediction) / signal
        if self.prediction_type == "edm":
            c = preconditioning(draw.t.to(wide(draw.t.device)), self.sigma_data)
            return _column(c.c_skip) * draw.x_t + _column(c.c_out) * prediction
        if self.prediction_type == "velocity":
            return draw.x_t - noise * prediction
        return signal * draw.x_t - noise * prediction

    def in_prediction_space(self, weight: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The weight [B] of the prediction's error at ``t`` that weighs the noise's error by ``weight`` [B].

        |eps|^2 = SNR |x_0|^2 = SNR / (SNR + 1) |v|^2 = (sigma_data c_in)^2 |F|^2 = (1 - t)^2 |velocity|^2.
        """
        if self.prediction_type == "sample":
            return weight * self.snr(t)
        if self.prediction_type == "v_prediction":
            return weight * self.snr(t) / (self.snr(t) + 1)
        if self.prediction_type == "edm":
            return weight * (self.sigma_data * self._c_in(t).flatten()).square()
        if self.prediction_type == "velocity":
            return weight * self._signal_and_noise(t)[0].flatten().square()
        return weight

    # ---- coefficients

    def snr(self, t: torch.Tensor) -> torch.Tensor:
        """signal^2 / noise^2, [B] float32."""
        if self.is_discrete:
            return self._tables(t.device).snr[t]
        t = t.to(wide(t.device))
        return (self.schedule.signal(t) / self.schedule.noise(t)).square().float()

    def posterior(self, t: torch.Tensor) -> Posterior:
        """Of q(x_{t-1} | x_t, x_0) at whole timesteps, [B, 1, 1, 1] each."""
        return Posterior(*(_column(table[t]) for table in self._tables(t.device).posterior))

    def _signal_and_noise(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, 1, 1, 1] float32 each."""
        if self.is_discrete:
            tables = self._tables(t.device)
            return _column(tables.signal[t]), _column(tables.noise[t])
        t = t.to(wide(t.device))
        return _column(self.schedule.signal(t)), _column(self.schedule.noise(t))

    def _c_in(self, t: torch.Tensor) -> torch.Tensor:
        """EDM's factor on the network's input, [B, 1, 1, 1] float32."""
        return _column(preconditioning(t.to(wide(t.device)), self.sigma_data).c_in)

    @cached_property
    def _table_cache(self) -> dict[str, _Tables]:
        return {}

    def _tables(self, device: torch.device) -> _Tables:
        """Coefficients per timestep, computed in float64 once per device."""
        if str(device) not in self._table_cache:
            alphas_cumprod = np.asarray(self.schedule.alphas_cumprod, dtype=np.float64)  # [T]
            numbers = (np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod), alphas_cumprod / (1 - alphas_cumprod))
            signal, noise, snr = (torch.tensor(x, dtype=torch.float32).to(device) for x in numbers)
            q = Posterior(*(table.to(device) for table in posterior(alphas_cumprod)))
            self._table_cache[str(device)] = _Tables(signal, noise, snr, q)
        return self._table_cache[str(device)]


def labels_at(labels: Labels, indices: torch.Tensor, device: torch.device | str) -> Labels:
    """Those of some samples, on a device."""
    found: Labels = tree_map_only(torch.Tensor, lambda tensor: tensor[indices.to(tensor.device)].to(device), labels)
    return found


def wide(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _column(values: torch.Tensor) -> torch.Tensor:
    """[B] as [B, 1, 1, 1] float32."""
    return values.float().reshape(-1, 1, 1, 1)
