"""Noise schedules: how much signal and how much noise a training timestep has, x_t = signal(t) x_0 + noise(t) eps.

One class for the three families that diffusers trains and samples, told apart by the *coordinate* that orders them from
data to noise: the original timestep 0 .. T-1 (variance preserving), sigma (EDM, variance exploding), or the flow time
(flow matching). What a scheduler hands to the network is not always that coordinate: EDM schedulers pass
c_noise = log(sigma) / 4, flow matching 1000 x flow time. ``to_coordinate`` turns the one into the other.

Shapes: T = num_train_timesteps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.schedule_formulas import (
    FIRST_TIME,
    Level,
    between_timesteps,
    continuous_log_snr,
    continuous_time_at,
    in_float64,
    named_betas,
    table_log_snr,
    timestep_at,
)

Kind = Literal["vp", "edm", "flow"]
Coordinate = Literal["timestep", "sigma", "flow-time"]
ModelTimestep = Literal["timestep", "sigma", "c-noise", "flow-time"]
BetaName = Literal["linear", "scaled_linear", "cosine"]

COORDINATES: dict[str, Coordinate] = {"vp": "timestep", "edm": "sigma", "flow": "flow-time"}
BETA_RANGES = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "cosine": (0.0, 0.999)}
DECIBEL = 10 / math.log(10)  # of the natural logarithm of a power ratio


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Signal, noise and SNR of every noise level; made by one of the constructors below, not directly.

    Attributes:
        kind: "vp", "edm" (x_t = x_0 + sigma eps) or "flow" (x_t = (1 - t) x_0 + t eps).
        num_train_timesteps: T, the original timesteps; for "edm" and "flow" the points of ``grid``.
        alphas_cumprod: [T] float64, decreasing, "vp" only.
        sigma_min, sigma_max: the training range of sigma, "edm" only.
        shift: how far the points of the "flow" grid crowd towards noise, as in diffusers; 1 is uniform.
        model_timestep, model_scale: what the network receives as ``timestep``, and a factor on it.
        formula: the settings that give ``alphas_cumprod``, where it has a formula, so that JSON stays short.
    """

    kind: Kind
    num_train_timesteps: int
    alphas_cumprod: np.ndarray | None = None
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    shift: float = 1.0
    model_timestep: ModelTimestep = "timestep"
    model_scale: float = 1.0
    formula: dict[str, Any] | None = None
    _tables: dict[Any, torch.Tensor] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        if self.kind not in COORDINATES:
            raise SettingError(f"schedule.kind: {self.kind!r} is not one of {', '.join(COORDINATES)}")
        if self.num_train_timesteps < 2:
            raise SettingError(f"schedule.num_train_timesteps: {self.num_train_timesteps} is below 2")
        if self.kind == "edm" and not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise SettingError(f"schedule.sigma_min: {self.sigma_min} is not between 0 and sigma_max, {self.sigma_max}")
        if self.shift <= 0:
            raise SettingError(f"schedule.shift: {self.shift} is not above 0")
        if self.alphas_cumprod is not None:
            self.alphas_cumprod.setflags(write=False)

    # ---- constructors

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> NoiseSchedule:
        """The schedule that a diffusers scheduler was made for: discrete VP, EDM/VE sigmas or flow matching."""
        from noisewise.schedule_reader import read_scheduler

        return read_scheduler(scheduler)

    @classmethod
    def from_betas(cls, betas: Any) -> NoiseSchedule:
        """Discrete VP from the T noise variances of single steps, each in [0, 1]."""
        betas = np.asarray(betas, dtype=np.float64)  # [T]
        if betas.ndim != 1 or len(betas) < 2 or not ((betas >= 0) & (betas <= 1)).all() or betas[0] == 0:
            raise SettingError("schedule.betas: must be two or more numbers between 0 and 1, the first above 0")
        return cls.from_alphas_cumprod(np.cumprod(1 - betas))

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Any, formula: Mapping[str, Any] | None = None) -> NoiseSchedule:
        """Discrete VP from the share of signal power, [T], decreasing, in [0, 1)."""
        a = np.array(alphas_cumprod, dtype=np.float64)  # [T]
        if a.ndim != 1 or len(a) < 2 or not (a[-1] >= 0 and a[0] < 1 and (np.diff(a) <= 0).all()):
            raise SettingError("schedule.alphas_cumprod: must be two or more decreasing numbers, from below 1 to 0")
        return cls("vp", len(a), a, formula=None if formula is None else dict(formula))

    @classmethod
    def vp(cls, beta_min: float = 0.1, beta_max: float = 20.0, num_train_timesteps: int = 1000) -> NoiseSchedule:
        """Continuous VP at t = (i + 1) / T: alpha_bar = exp(-(beta_min t + (beta_max - beta_min) t^2 / 2))."""
        if not 0 <= beta_min < beta_max:
            raise SettingError(f"schedule.beta_min: {beta_min} is not between 0 and beta_max, {beta_max}")
        t = np.arange(1, num_train_timesteps + 1) / num_train_timesteps  # [T]
        formula = {"beta_min": beta_min, "beta_max": beta_max}
        return cls.from_alphas_cumprod(np.exp(-(beta_min * t + (beta_max - beta_min) * t**2 / 2)), formula)

    @classmethod
    def named(
        cls,
        name: BetaName,
        num_train_timesteps: int = 1000,
        *,
        beta_start: float | None = None,
        beta_end: float | None = None,
    ) -> NoiseSchedule:
        """diffusers' discrete schedules: linear (1e-4 .. 0.02), scaled_linear (0.00085 .. 0.012), cosine (to 0.999)."""
        if name not in BETA_RANGES:
            raise SettingError(f"schedule.kind: {name!r} is not one of {', '.join(BETA_RANGES)}")
        start, end = BETA_RANGES[name]
        start, end = start if beta_start is None else beta_start, end if beta_end is None else beta_end
        if not 0 <= start < end < 1:
            raise SettingError(f"schedule.beta_start: {start} is not between 0 and beta_end, {end} (below 1)")
        alphas_cumprod = np.cumprod(1 - named_betas(name, num_train_timesteps, start, end))  # [T]
        return cls.from_alphas_cumprod(alphas_cumprod, {"name": name, "beta_start": start, "beta_end": end})

    @classmethod
    def edm(cls, sigma_min: float = 0.002, sigma_max: float = 80.0, num_train_timesteps: int = 1000) -> NoiseSchedule:
        """EDM's x_t = x_0 + sigma eps; the network receives c_noise = log(sigma) / 4 (arXiv:2206.00364, Table 1)."""
        return cls("edm", num_train_timesteps, None, sigma_min, sigma_max, model_timestep="c-noise")

    @classmethod
    def flow(cls, num_train_timesteps: int = 1000, shift: float = 1.0) -> NoiseSchedule:
        """Flow matching's x_t = (1 - t) x_0 + t eps, t in [0, 1]; the network receives T t, as diffusers does it."""
        scale = float(num_train_timesteps)
        return cls("flow", num_train_timesteps, shift=shift, model_timestep="flow-time", model_scale=scale)

    # ---- signal and noise

    def signal(self, t: Level) -> Level:
        """What x_0 is multiplied by at coordinate ``t``; see ``snr_db`` for types."""
        if self.kind == "edm":
            return in_float64(t, torch.ones_like)
        if self.kind == "flow":
            return in_float64(t, lambda t: 1 - t)
        return in_float64(t, lambda t: torch.sigmoid(self._log_snr(t)).sqrt())

    def noise(self, t: Level) -> Level:
        """What the unit Gaussian noise is multiplied by at coordinate ``t``; see ``snr_db`` for types."""
        if self.kind == "vp":
            return in_float64(t, lambda t: torch.sigmoid(-self._log_snr(t)).sqrt())
        return in_float64(t, lambda t: t)

    def snr_db(self, t: Level) -> Level:
        """Signal-to-noise ratio in decibels, 20 log10(signal / noise), TDC Eq. 2; falls from data to noise.

        ``t`` is a number, an array or a tensor of coordinates, and comes back as the same (dtype, device, shape;
        integers as the default float). Between two timesteps the logarithm of the ratio is linear; the continuous VP
        formula holds exactly at t = T s - 1, for any time s in (0, 1].
        """
        return in_float64(t, lambda t: self._log_snr(t) * DECIBEL)

    def coordinate_at_snr(self, snr_db: Level) -> Level:
        """The coordinate of an SNR in decibels, the inverse of ``snr_db``; types as there.

        An SNR beyond the schedule's noise levels gives the nearest of them, one of ``limits``.
        """
        low, high = self.limits
        return in_float64(snr_db, lambda snr_db: self._coordinate_at(snr_db / DECIBEL).clamp(low, high))

    def _log_snr(self, t: torch.Tensor) -> torch.Tensor:
        """log(signal^2 / noise^2), any shape, float64 where the device has it."""
        if self.kind == "edm":
            return -2 * t.log()
        if self.kind == "flow":
            return 2 * (torch.log1p(-t) - t.log())
        last, table = self.num_train_timesteps - 1, self._table(t.device, t.dtype)  # [T]
        if t.device.type == "cpu" and t.numel():
            low, high = t.min().item(), t.max().item()
            if not (0 <= low <= high <= last or (self.is_formula and -1 < low <= high <= last)):
                allowed = f"above -1 and at most {last}" if self.is_formula else f"within 0 to {last}"
                raise SettingError(f"timestep: {low:g} to {high:g} is not {allowed}")
        if self.formula is None or not self.is_formula:
            return between_timesteps(t, table)
        exact = continuous_log_snr((t + 1) / self.num_train_timesteps, **self.formula)
        whole = t.floor().long().clamp(min=0)
        return torch.where(t == whole, table[whole], exact)  # at timesteps the same bits as alphas_cumprod

    def _coordinate_at(self, log_snr: torch.Tensor) -> torch.Tensor:
        """The inverse of ``_log_snr``."""
        if self.kind == "edm":
            return torch.exp(-log_snr / 2)
        if self.kind == "flow":
            return torch.sigmoid(-log_snr / 2)
        if self.formula is None or not self.is_formula:
            return timestep_at(log_snr, self._table(log_snr.device, log_snr.dtype))
        return self.num_train_timesteps * continuous_time_at(log_snr, **self.formula) - 1

    def _table(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """[T] log SNR of the timesteps, kept per device."""
        if (device, dtype) not in self._tables:
            assert self.alphas_cumprod is not None
            log_snr = torch.from_numpy(table_log_snr(self.alphas_cumprod))  # [T]
            self._tables[device, dtype] = log_snr.to(device=device, dtype=dtype)
        return self._tables[device, dtype]

    # ---- coordinates

    @property
    def coordinate(self) -> Coordinate:
        """What orders noise levels from data to noise: "timestep", "sigma" or "flow-time"."""
        return COORDINATES[self.kind]

    @property
    def is_discrete(self) -> bool:
        """Whether training draws whole timesteps, and ranges are thus bounded by whole numbers."""
        return self.kind == "vp"

    @property
    def is_formula(self) -> bool:
        """Whether this is VP by its continuous formula, which holds between timesteps, too."""
        return self.formula is not None and "beta_max" in self.formula

    @property
    def is_log(self) -> bool:
        """Whether noise levels are spaced evenly in the logarithm of the coordinate (sigma)."""
        return self.kind == "edm"

    @property
    def span(self) -> tuple[float, float]:
        """Coordinates from data to noise: (0, T), half-open; (sigma_min, sigma_max); (0.0, 1.0)."""
        if self.kind == "vp":
            return 0, self.num_train_timesteps
        return (self.sigma_min, self.sigma_max) if self.kind == "edm" else (0.0, 1.0)

    @property
    def limits(self) -> tuple[float, float]:
        """The coordinates nearest to data and to noise that have a noise level; VP's formula starts at time 1e-5."""
        if self.kind != "vp":
            return self.span
        return (self.num_train_timesteps * FIRST_TIME - 1 if self.is_formula else 0), self.num_train_timesteps - 1

    def grid(self) -> np.ndarray:
        """[T] coordinates from data to noise: timesteps, log-spaced sigmas, (shifted) uniform flow times in (0, 1]."""
        T = self.num_train_timesteps
        if self.kind == "vp":
            return np.arange(T)
        if self.kind == "edm":
            return np.geomspace(self.sigma_min, self.sigma_max, T)
        t = np.arange(1, T + 1) / T
        return self.shift * t / (1 + (self.shift - 1) * t)

    def to_coordinate(self, model_timestep: Level) -> Level:
        """The coordinate of what a scheduler hands to the network as ``timestep``; numbers, arrays and tensors."""
        if self.model_timestep in ("timestep", "sigma"):
            return model_timestep
        if self.model_timestep == "flow-time":
            return model_timestep / self.model_scale
        if isinstance(model_timestep, torch.Tensor):
            return torch.exp(model_timestep * (4 / self.model_scale))
        if isinstance(model_timestep, np.ndarray):
            return np.exp(model_timestep * (4 / self.model_scale))
        return math.exp(model_timestep * (4 / self.model_scale))

    def to_model_timestep(self, t: Level) -> Level:
        """What the network receives as ``timestep`` at coordinate ``t``, the inverse of ``to_coordinate``."""
        if self.model_timestep in ("timestep", "sigma"):
            return t
        if self.model_timestep == "flow-time":
            return t * self.model_scale
        if isinstance(t, torch.Tensor):
            return torch.log(t) * (self.model_scale / 4)
        if isinstance(t, np.ndarray):
            return np.log(t) * (self.model_scale / 4)
        return math.log(t) * (self.model_scale / 4)

    def visited(self, scheduler: Any, num_inference_steps: int, **options: Any) -> np.ndarray:
        """Coordinates at which ``scheduler`` calls the network, in order, once for each call (Heun's second ones, too).

        Args:
            scheduler: any diffusers scheduler of this schedule; left as it is.
            num_inference_steps: what ``set_timesteps`` is given; the number of calls may differ.
            options: further arguments of ``set_timesteps``, e.g. ``mu`` under dynamic shifting.

        Returns:
            [calls]; int64 where they are whole timesteps, else float64.
        """
        from noisewise.schedule_reader import visited_coordinates

        return visited_coordinates(self, scheduler, num_inference_steps, **options)

    def check_same(self, other: NoiseSchedule, setting: str = "schedule") -> None:
        """Raise where ``other`` counts noise levels differently; warn where a timestep has another noise level."""
        if other.kind != self.kind:
            raise SettingError(f"{setting}.kind: made for {self.kind} ({self.coordinate}), given {other.kind}")
        if other.num_train_timesteps != self.num_train_timesteps:
            counts = f"made for {self.num_train_timesteps}, given {other.num_train_timesteps}"
            raise SettingError(f"{setting}.num_train_timesteps: {counts}")
        if self.alphas_cumprod is not None and other.alphas_cumprod is not None:
            ours, theirs = self.snr_db(self.grid()), other.snr_db(self.grid())
            finite = np.isfinite(ours) & np.isfinite(theirs)
            apart = float(np.abs(ours - theirs)[finite].max(initial=0.0))
            if apart > 0.5:
                warnings.warn(f"{setting}: the two schedules' SNR differ by up to {apart:.1f} dB", stacklevel=2)

    # ---- comparison and JSON

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoiseSchedule) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # compared by value, and an array is part of it

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` gives an equal schedule."""
        values: dict[str, Any] = {"kind": self.kind, "num_train_timesteps": self.num_train_timesteps}
        if self.formula is not None:
            values["formula"] = dict(self.formula)
        elif self.alphas_cumprod is not None:
            values["alphas_cumprod"] = self.alphas_cumprod.tolist()
        if self.kind == "edm":
            values |= {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        if self.kind == "flow":
            values |= {"shift": self.shift}
        if self.kind != "vp":
            values |= {"model_timestep": self.model_timestep, "model_scale": self.model_scale}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NoiseSchedule:
        """The schedule that ``to_dict`` described."""
        try:
            settings = dict(values)
            formula = settings.pop("formula", None)
            if formula is not None:
                make = cls.named if "name" in formula else cls.vp
                return make(**formula, num_train_timesteps=settings["num_train_timesteps"])
            if settings["kind"] == "vp":
                return cls.from_alphas_cumprod(settings["alphas_cumprod"])
            return cls(**settings)
        except (KeyError, TypeError, AttributeError) as error:
            raise SettingError(f"schedule: not the description of a noise schedule ({error!r})") from error
