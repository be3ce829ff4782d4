"""From a data set's similarities to a cut, with everything that its figures need and what a user should know.

Shapes: n = levels, m = draws, A = alphas of the curves of t1 and t2, B = bootstrap samples.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch

from noisewise.data.images import Dataset, Images
from noisewise.data.latents import LatentDataset, Latents
from noisewise.errors import SettingError
from noisewise.optimal.denoiser import OptimalDenoiser
from noisewise.optimal.similarity import Similarity, similarities
from noisewise.planning import clusters as c
from noisewise.planning.clusters import ALPHA, NUM_LEVELS, Band, ClusterCut, Reference
from noisewise.planning.levels import bounds_between, even_levels, from_axis, to_axis
from noisewise.planning.make import Cut, check_num_groups, cut_at
from noisewise.schedule import NoiseSchedule

CURVE_ALPHAS = np.append(np.arange(0.30, 0.995, 0.01), [0.995, 0.999])  # where the curves of t1 and t2 are drawn
ALL_ALPHAS = np.arange(0.001, 1.0005, 0.001)  # among which a refusal looks for others that would do
SETTLED = 0.01  # half-width of t1 and t2, as a share of the range, that counts as known


@dataclass(frozen=True)
class ClusterSettings:
    """How groups are made from similarities; the meanings stand at ``Plan.from_optimal_denoiser``."""

    num_groups: int
    cut: ClusterCut | None
    alpha: float
    reference: Reference
    seed: int

    def __post_init__(self) -> None:
        check_num_groups(self.num_groups)
        for name, allowed in (("cut", get_args(ClusterCut)), ("reference", get_args(Reference))):
            if getattr(self, name) not in (*allowed, None):
                raise SettingError(f"plan.{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if not 0 < self.alpha <= 1:
            raise SettingError(f"plan.alpha: {self.alpha} is not above 0 and at most 1")
        if self.cut == "threshold" and self.num_groups != 3:
            raise SettingError(f"plan.cut: threshold makes 3 groups, plan.num_groups is {self.num_groups}")
        if not self.by_threshold and self.alpha != ALPHA:
            warnings.warn(f"plan.alpha: {self.alpha} is ignored by dynamic programming", stacklevel=4)

    @property
    def by_threshold(self) -> bool:
        return self.cut == "threshold" or (self.cut is None and self.num_groups == 3)


def describe_data(images: Images | Latents | Dataset | LatentDataset | torch.Tensor) -> dict[str, Any]:
    """Name, fingerprint, shape and number of the images that a plan was made from, plain values."""
    if isinstance(images, torch.Tensor):
        digest = hashlib.sha256(images.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        name, shape = "tensor", list(images.shape[1:])
    else:
        images = images.train if isinstance(images, Dataset | LatentDataset) else images
        name, digest, shape = images.name, images.fingerprint, list(images.shape)
    return {"name": name, "fingerprint": digest, "shape": shape, "num_images": len(images)}


def measure(
    schedule: NoiseSchedule,
    images: Images | Latents | Dataset | LatentDataset | torch.Tensor,
    num_draws: int,
    num_levels: int | None,
    eta: float,
    seed: int,
    device: torch.device | str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Similarity:
    """Similarities of the optimal denoiser of ``images`` at noise levels spread evenly over ``schedule``."""
    if isinstance(num_draws, bool) or not isinstance(num_draws, int) or num_draws < 2:
        raise SettingError(f"plan.num_draws: {num_draws!r} is not a whole number of 2 or more")
    levels = even_levels(schedule, min(NUM_LEVELS, schedule.num_train_timesteps) if num_levels is None else num_levels)
    denoiser = OptimalDenoiser(
        images.train if isinstance(images, Dataset | LatentDataset) else images, schedule, device=device
    )
    return similarities(denoiser, levels, num_draws, eta=eta, seed=seed, progress=progress)


def cluster_cut(
    schedule: NoiseSchedule, similarity: Similarity, choice: ClusterSettings
) -> tuple[Cut, dict[str, Any], list[str]]:
    """Where the groups lie, the settings that say how, with the curves of the figures, and notes."""
    _check_levels(schedule, similarity)
    axis = to_axis(schedule, similarity.levels)  # [n]
    curves = _Curves.of(schedule, axis, similarity, choice.seed)
    settings: dict[str, Any] = {
        "method": "optimal-denoiser",
        "num_groups": choice.num_groups,
        "cut": "threshold" if choice.by_threshold else "dynamic-programming",
        "eta": similarity.eta,
        "num_draws": similarity.num_draws,
        "num_levels": len(axis),
        "seed": choice.seed,
        "num_duplicates": similarity.num_duplicates,
        "curves": curves.to_dict(similarity),
    }
    notes = []
    if similarity.num_duplicates:
        notes.append(f"{similarity.num_duplicates} images equal an earlier one; copies bend the optimal denoiser")
    if choice.by_threshold:
        cut, about, said = _by_threshold(schedule, curves, choice)
    else:
        cut, about, said = _by_pairs(schedule, similarity, choice)
        settings["curves"]["pairs"] = np.round(similarity.pairs, 4).tolist()
    settings["curves"]["bounds"] = [float(f"{bound:.6g}") for bound in cut.bounds[1:-1]]
    return cut, settings | about, notes + said


def _by_threshold(
    schedule: NoiseSchedule, curves: _Curves, choice: ClusterSettings
) -> tuple[Cut, dict[str, Any], list[str]]:
    """Three groups by t1 and t2."""
    t1, t2 = curves.bounds(choice.alpha, choice.reference)
    cut = _parted(schedule, curves, choice, float(t1.estimate), float(t2.estimate))
    about: dict[str, Any] = {"alpha": choice.alpha, "reference": choice.reference}
    notes = []
    for name, band in (("t1", t1), ("t2", t2)):
        share = float(band.half_width) / curves.length
        about |= {name: float(from_axis(schedule, band.estimate)), f"{name}_half_width": share}
        if share > SETTLED:
            notes.append(
                f"{name} is known to {share:.1%} of the range (95 % bootstrap half-width); more plan.num_draws help"
            )
    return cut, about, notes


def _by_pairs(
    schedule: NoiseSchedule, similarity: Similarity, choice: ClusterSettings
) -> tuple[Cut, dict[str, Any], list[str]]:
    """The most similar groups."""
    cuts, means = c.most_similar_cuts(similarity.pairs, choice.num_groups)
    note = f"mean similarity inside the groups: {', '.join(f'{mean:.3f}' for mean in means)}"
    bounds = bounds_between(schedule, similarity.levels, cuts)
    return cut_at(schedule, bounds), {"similarity_within": means}, [note]


@dataclass(frozen=True)
class _Curves:
    """Mean similarities per level, with their bootstrap samples."""

    schedule: NoiseSchedule
    axis: np.ndarray  # [n]
    means: dict[str, np.ndarray]  # start, end, mean -> [n]
    samples: dict[str, np.ndarray]  # [B, n] each

    @classmethod
    def of(cls, schedule: NoiseSchedule, axis: np.ndarray, similarity: Similarity, seed: int) -> _Curves:
        draws = {"start": similarity.to_start, "end": similarity.to_end, "mean": similarity.to_mean}  # [n, m] each
        draws = {name: values.astype(np.float64) for name, values in draws.items()}
        weights = c.resampling_weights(similarity.num_draws, seed)  # [B, m]
        return cls(
            schedule,
            axis,
            {name: values.mean(1) for name, values in draws.items()},
            {name: weights @ values.T for name, values in draws.items()},
        )

    @property
    def length(self) -> float:
        """Of the range, on the axis."""
        return float(self.axis[-1] - self.axis[0])

    def estimates(self, alphas: float | np.ndarray, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
        """t1 and t2 on the axis, of the shape of ``alphas``."""
        return c.last_within(self.axis, self.means["start"], alphas), c.first_within(
            self.axis, self.means[reference], alphas
        )

    def bounds(self, alpha: float, reference: Reference) -> tuple[Band, Band]:
        """t1 and t2 on the axis, with their bands."""
        t1, t2 = self.estimates(alpha, reference)
        return (
            Band.of(t1, c.last_within(self.axis, self.samples["start"], alpha)),
            Band.of(t2, c.first_within(self.axis, self.samples[reference], alpha)),
        )

    def to_dict(self, similarity: Similarity) -> dict[str, Any]:
        """Plain values, rounded: similarity per level and reference, and t1 and t2 (coordinates) against alpha."""
        curves: dict[str, Any] = {"coordinate": self.schedule.coordinate, "t": similarity.levels.tolist()}
        for name, mean in self.means.items():
            curves[f"to_{name}"] = _plain(Band.of(mean, self.samples[name]), lambda x: np.round(x, 5))
        per_alpha: dict[str, list[Band]] = {"t1": [], "t2_end": [], "t2_mean": []}
        for alpha in CURVE_ALPHAS:
            t1, t2 = self.bounds(float(alpha), "end")
            per_alpha["t1"].append(t1)
            per_alpha["t2_end"].append(t2)
            per_alpha["t2_mean"].append(self.bounds(float(alpha), "mean")[1])
        curves["alphas"] = np.round(CURVE_ALPHAS, 4).tolist()
        for name, bands in per_alpha.items():
            band = Band(*(np.array([getattr(b, part) for b in bands]) for part in ("estimate", "low", "high")))
            curves[name] = _plain(band, lambda x: from_axis(self.schedule, x))
        return curves


def _plain(band: Band, convert: Callable[[np.ndarray], np.ndarray]) -> dict[str, list[float]]:
    """Lists of floats with six digits."""
    parts = {"estimate": band.estimate, "low": band.low, "high": band.high}
    return {name: [float(f"{x:.6g}") for x in convert(values).tolist()] for name, values in parts.items()}


def _check_levels(schedule: NoiseSchedule, similarity: Similarity) -> None:
    """Refuse similarities that were measured on a schedule with other noise levels."""
    start, stop = schedule.limits
    levels = similarity.levels
    same = start <= levels[0] and levels[-1] <= stop
    if same:
        with np.errstate(divide="ignore"):
            same = np.allclose(schedule.noise(levels) / schedule.signal(levels), similarity.sigma, rtol=1e-6)
    if not same:
        raise SettingError(
            f"plan.schedule: the similarities' noise levels are not those of this {schedule.kind} schedule; "
            "make the plan on their schedule and move it with plan.to(schedule)"
        )


def _parted(schedule: NoiseSchedule, curves: _Curves, choice: ClusterSettings, t1: float, t2: float) -> Cut:
    """Three groups between t1 and t2 (on the axis); refused where one of them is empty."""

    def all_filled(t1: float, t2: float) -> bool:
        cut = cut_at(schedule, from_axis(schedule, [t1, t2]).tolist())
        return t1 < t2 and bool((cut.sizes > 0).all())

    if all_filled(t1, t2):
        return cut_at(schedule, from_axis(schedule, [t1, t2]).tolist())
    estimates = zip(*curves.estimates(ALL_ALPHAS, choice.reference), strict=True)
    fine = ALL_ALPHAS[[all_filled(float(a), float(b)) for a, b in estimates]]
    others = (
        f"alpha from {fine.min():.3g} to {fine.max():.3g} does not" if len(fine) else "so does every other alpha here"
    )
    first, second = from_axis(schedule, [t1, t2])
    raise SettingError(
        f"plan.alpha: {choice.alpha:g} leaves a group empty (t1 = {first:.4g}, t2 = {second:.4g} in "
        f"{schedule.coordinate}s); {others}; plan.cut: dynamic-programming needs no alpha"
    )
