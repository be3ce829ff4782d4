"""What the numbers of a study can tell: spread over seeds, and intervals on differences of Fréchet distances.

Arms are compared in pairs: the same training seed, and image i of either arm grew from the same noise. The bootstrap is
hierarchical, over seeds and within a seed over images; sampled images are drawn with one set of indices for all arms,
real images with another. Few seeds resample badly (with 3 seeds and much luck in training, such 95 % intervals hold the
truth in about 80 % of cases), so from two seeds on an interval is also at least as wide as Student's t over the seeds'
differences asks: together they hold it in 95 to 98 %.

Shapes: A = arms, S = seeds, B = resamples, N = sampled images, M = real images, D = features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from noisewise.evaluation.metrics import Z_95, frechet_distance

Relation = Literal["better", "worse", "no difference shown"]
NUM_RESAMPLES = 500
NUM_RESAMPLES_LARGE = 60  # of features so many that a distance takes seconds
MANY_FEATURES = 512
TAIL = 0.025


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1; None for a single value) over seeds."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), deviation, tuple(float(value) for value in values))


@dataclass(frozen=True)
class Difference:
    """An arm's Fréchet distance less the reference arm's: below zero the arm is better."""

    value: float
    low: float
    high: float
    num_seeds: int

    @property
    def relation(self) -> Relation:
        if self.low <= 0 <= self.high:
            return "no difference shown"
        return "better" if self.high < 0 else "worse"


def num_resamples_for(num_features: int) -> int:
    return NUM_RESAMPLES if num_features <= MANY_FEATURES else NUM_RESAMPLES_LARGE


def resampled_distances(
    real: np.ndarray,
    samples: Sequence[np.ndarray],
    num_resamples: int,
    rng: np.random.Generator,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Fréchet distances of arms from the real images on resampled images, the same draw for every arm.

    Args:
        real: [M, D].
        samples: A arrays [N, D], image i of each from the same noise.

    Returns:
        [A, B]. Resampled images repeat, which raises every distance; only differences from a row's mean have a meaning.
    """
    num_images = len(samples[0])
    distances = np.empty((len(samples), num_resamples))
    for b in range(num_resamples):
        real_again = _gaussian(real[rng.integers(len(real), size=len(real))])
        chosen = rng.integers(num_images, size=num_images)  # [N], for all arms
        distances[:, b] = [frechet_distance(*real_again, *_gaussian(values[chosen])) for values in samples]
        if progress is not None:
            progress(b + 1)
    return distances


def _gaussian(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D]."""
    values = values.astype(np.float64)
    return values.mean(0), np.atleast_2d(np.cov(values, rowvar=False))


def difference(observed: Sequence[float], resampled: np.ndarray, rng: np.random.Generator) -> Difference:
    """Mean difference of two arms over seeds with its 95 % interval.

    Args:
        observed: [S] each seed's difference.
        resampled: [S, B] the same on resampled images (`resampled_distances` of one arm less the other).
    """
    values = np.asarray(observed, dtype=np.float64)  # [S]
    num_seeds, num_resamples = resampled.shape
    mean = float(values.mean())
    around = resampled - resampled.mean(1, keepdims=True)  # [S, B]; the bias of repeated images goes with the mean
    seeds = rng.integers(num_seeds, size=(num_resamples, num_seeds))  # [B, S]
    images = rng.integers(num_resamples, size=(num_resamples, num_seeds))  # [B, S]
    again = (values[seeds] + around[seeds, images]).mean(1)  # [B]
    low, high = np.quantile(again, [TAIL, 1 - TAIL])
    if num_seeds > 1:
        half = student_half_width(values)
        low, high = min(low, mean - half), max(high, mean + half)
    return Difference(mean, float(low), float(high), num_seeds)


def student_half_width(values: np.ndarray) -> float:
    """Half of Student's 95 % interval on the mean of at least two values [S]."""
    from scipy.stats import t

    return float(t.ppf(1 - TAIL, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def resolution(floor_deviation: float, num_seeds: int) -> float:
    """How much two arms as good as real images differ by chance, at most in 95 % of cases.

    Unpaired arms, sqrt(2) times the floor's deviation. Pairing lowers it, worse images and training luck raise it: the
    scale of what a study can tell, known before anything is trained.
    """
    return Z_95 * math.sqrt(2 / num_seeds) * floor_deviation


def random_halves(num_images: int, half: int, num_splits: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Splits of ``num_images`` into two disjoint sets of ``half``: each [2, half]."""
    return [rng.permutation(num_images)[: 2 * half].reshape(2, half) for _ in range(num_splits)]


def paired_difference(differences: Sequence[float]) -> Difference:
    """Mean of the seeds' own differences, at least two, with Student's 95 % interval."""
    values = np.asarray(differences, dtype=np.float64)
    mean, half = float(values.mean()), student_half_width(values)
    return Difference(mean, mean - half, mean + half, len(values))
