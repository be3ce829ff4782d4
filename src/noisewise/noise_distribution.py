"""Which noise levels a training draws, and how the range of noise levels is cut evenly.

The *host's distribution* is that of the training method: uniform over the timesteps (variance preserving), log-normal
sigma (EDM, arXiv:2206.00364, Table 1), uniform or logit-normal flow time (arXiv:2403.03206, Eq. 19). Groups of a plan
are trained on it as it is, or restricted to ranges by inverting its cumulative distribution.

Shapes: B = batch, K = ranges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.schedule import NoiseSchedule

DistributionName = Literal["uniform", "lognormal", "logit-normal"]
Timesteps = tuple[float, float]  # a half-open range of coordinates; whole numbers where timesteps are discrete

DISTRIBUTIONS: dict[str, tuple[DistributionName, ...]] = {  # the first is the default
    "vp": ("uniform",),
    "edm": ("lognormal", "uniform"),
    "flow": ("uniform", "logit-normal"),
}
MEAN_AND_STD = {"lognormal": (-1.2, 1.2), "logit-normal": (0.0, 1.0)}


@dataclass(frozen=True)
class NoiseDistribution:
    """The host's distribution over a schedule's coordinate.

    Attributes:
        name: "uniform" in t (log sigma for EDM, flow time before the schedule's shift), "lognormal": log sigma is
            normal, "logit-normal": the logit of the flow time before the schedule's shift is normal.
        mean, std: of that normal distribution.
        discrete: whole timesteps instead of all in between.
    """

    schedule: NoiseSchedule
    name: DistributionName
    mean: float = 0.0
    std: float = 1.0
    discrete: bool = False

    # ---- ranges

    def check(self, timesteps: Timesteps | None) -> Timesteps:
        """The half-open range itself, the schedule's span for None; an empty one or one beyond it is refused."""
        low, high = self.schedule.span
        start, stop = (low, high) if timesteps is None else timesteps
        if not low <= start < stop <= high:
            what = "timesteps" if self.schedule.kind == "vp" else self.schedule.coordinate
            raise SettingError(f"timesteps: [{start}, {stop}) is not a range of {what} within [{low}, {high})")
        if not self.discrete:
            return float(start), float(stop)
        if start != int(start) or stop != int(stop):
            raise SettingError(f"timesteps: [{start}, {stop}) is not bounded by whole numbers, as discrete time needs")
        return int(start), int(stop)

    def share(self, timesteps: Timesteps | None) -> float:
        """Probability of a range; the outermost ranges reach as far as the distribution does."""
        start, stop = self.check(timesteps)
        if self.discrete:
            return (stop - start) / self.schedule.num_train_timesteps
        low, high = self._bounds(start, stop)
        if self.name != "uniform":
            return _normal_cdf(-low) - _normal_cdf(-high) if low > 0 else _normal_cdf(high) - _normal_cdf(low)
        first, last = self._bounds(*self.schedule.span)
        return (high - low) / (last - first)

    def edges(self, timesteps: Timesteps | None, num_bins: int) -> list[float]:
        """At most ``num_bins`` bins of a range, equal in t, flow time or log sigma: [bins + 1], rounded if discrete."""
        start, stop = self.check(timesteps)
        if self.discrete:
            num_bins = min(num_bins, int(stop - start))
            return [round(start + i * (stop - start) / num_bins) for i in range(num_bins + 1)]
        inner = self.within(np.arange(1, num_bins) / num_bins, (start, stop))
        return [start, *inner.tolist(), stop]

    def within(self, shares: np.ndarray, timesteps: Timesteps) -> np.ndarray:
        """Coordinates at ``shares`` (0 to 1) of the way through a range, in t, flow time or log sigma."""
        start, stop = timesteps
        if self.schedule.is_log:
            return np.exp(math.log(start) + shares * (math.log(stop) - math.log(start))).clip(start, stop)
        return start + shares * (stop - start)

    def levels(self, timesteps: Timesteps | None, stride: int) -> list[float]:
        """Every ``stride``-th point of the schedule's grid within a range; its middle if it has none."""
        start, stop = self.check(timesteps)
        if self.discrete:
            return list(range(int(start), int(stop), stride))
        grid = self.schedule.grid()
        is_last = stop == self.schedule.span[1]
        points = grid[(grid >= start) & ((grid < stop) | is_last)][::stride].astype(np.float64)
        return points.tolist() or [self.centre((start, stop))]

    def centre(self, timesteps: Timesteps) -> float:
        """The middle of a range in t, flow time or log sigma; in discrete time of its first and its last timestep."""
        start, stop = self.check(timesteps)
        if self.discrete:
            return (start + stop - 1) / 2
        return float(self.within(np.array(0.5), (start, stop)))

    # ---- draws

    def draw(self, num: int, generator: torch.Generator, timesteps: Timesteps | None = None) -> torch.Tensor:
        """[num] coordinates from the distribution restricted to a range: int64 if discrete, else float64."""
        start, stop = self.check(timesteps)
        if self.discrete:
            size = (num,)
            return torch.randint(int(start), int(stop), size, generator=generator, device=generator.device)
        index = torch.zeros(num, dtype=torch.int64, device=generator.device)  # [num]
        return self._quantiles(_uniform(num, generator), index, [(start, stop)])

    def draw_among(
        self, num: int, generator: torch.Generator, ranges: Sequence[Timesteps]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A range, all alike, then a coordinate from the distribution restricted to it.

        Ranges take turns from a random one on, so that each has its part of every batch, and always as many images:
        less luck than drawing them, and kernels that are set up for a batch size are used again.

        Returns:
            [num] coordinates and [num] importance weights share x K, with which an expected loss over the ranges is
            that of the host's distribution.
        """
        if not ranges:
            raise SettingError("ranges: there are none to draw from")
        ranges = [self.check(timesteps) for timesteps in ranges]
        first = torch.randint(len(ranges), (1,), generator=generator, device=generator.device)
        index = (first + torch.arange(num, device=generator.device)) % len(ranges)  # [num]
        u = _uniform(num, generator)  # [num]
        weights = torch.tensor([self.share(timesteps) * len(ranges) for timesteps in ranges], device=index.device)
        if not self.discrete:
            return self._quantiles(u, index, ranges), weights[index]
        starts, stops = torch.tensor(ranges, device=index.device).T  # [K] each
        start, stop = starts[index], stops[index]
        return torch.minimum(start + (u * (stop - start)).long(), stop - 1), weights[index]

    def stratified(self, strata: torch.Tensor, timesteps: Timesteps | None) -> torch.Tensor:
        """Coordinates for numbers in [0, 1), evenly over a range in t, flow time or log sigma."""
        start, stop = self.check(timesteps)
        if self.discrete:
            return (start + (strata * (stop - start)).long()).clamp(max=stop - 1)
        if self.schedule.kind == "vp":
            start, stop = self._bounds(start, stop)
        return torch.from_numpy(self.within(strata.double().numpy(), (start, stop)))

    def _quantiles(self, u: torch.Tensor, index: torch.Tensor, ranges: Sequence[Timesteps]) -> torch.Tensor:
        """Inverse cumulative distribution at ``u`` [B] in [0, 1) within ranges [K] by ``index`` [B]."""
        for start, stop in ranges:
            if self.share((start, stop)) <= 0:
                raise SettingError(f"timesteps: [{start:g}, {stop:g}) has no share of the {self.name} distribution")

        def chosen(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=u.dtype, device=u.device)[index]

        bounds = [self._bounds(*timesteps) for timesteps in ranges]
        if self.name == "uniform":
            low, high = (chosen(ends) for ends in zip(*bounds, strict=True))
            z = low + u * (high - low)
        else:  # in the upper tail a probability is told by what is left of it
            signs = [-1.0 if low > 0 else 1.0 for low, _ in bounds]
            ends = [(-high, -low) if low > 0 else (low, high) for low, high in bounds]
            from_, to = (chosen([_normal_cdf(z) for z in side]) for side in zip(*ends, strict=True))
            probability = (from_ + u * (to - from_)).clamp(min=torch.finfo(u.dtype).tiny)
            z = chosen(signs) * torch.special.ndtri(probability)
        t = self._from_z(z)
        first, last = self.schedule.span
        starts = [start if start > first else -math.inf for start, _ in ranges]
        stops = [math.nextafter(stop, -math.inf) if stop < last else math.inf for _, stop in ranges]
        return torch.minimum(torch.maximum(t, chosen(starts)), chosen(stops))  # rounding stays within the range

    def _bounds(self, start: float, stop: float) -> tuple[float, float]:
        """A range in z, which is uniform or standard normal; the outermost ones reach to where the distribution ends.

        z is t itself, (log sigma - mean) / std, the unshifted flow time, or the same of its logit.
        """
        first, last = self.schedule.span
        if self.schedule.kind == "vp":
            low, high = self.schedule.limits
            return (low if start == first else start), (high if stop == last else stop)
        low = -math.inf if start == first and self.name != "uniform" else self._to_z(start)
        high = math.inf if stop == last and self.name != "uniform" else self._to_z(stop)
        return low, high

    def _to_z(self, t: float) -> float:
        if self.schedule.kind == "edm":
            z = math.log(t)
        else:
            shift = self.schedule.shift
            z = t / (shift - (shift - 1) * t)
            z = z if self.name == "uniform" else math.log(z / (1 - z))
        return z if self.name == "uniform" else (z - self.mean) / self.std

    def _from_z(self, z: torch.Tensor) -> torch.Tensor:
        """The inverse of ``_to_z``, any shape."""
        z = z if self.name == "uniform" else self.mean + self.std * z
        if self.schedule.kind == "vp":
            return z
        if self.schedule.kind == "edm":
            return z.exp()
        z, shift = z if self.name == "uniform" else z.sigmoid(), self.schedule.shift
        return shift * z / (1 + (shift - 1) * z)


def _uniform(num: int, generator: torch.Generator) -> torch.Tensor:
    """[num] in [0, 1), float64 where the generator's device has it."""
    dtype = torch.float32 if generator.device.type == "mps" else torch.float64
    return torch.rand(num, generator=generator, device=generator.device, dtype=dtype)


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
