"""Where similar noise levels end (arXiv:2312.09181): t1 and t2 from two curves, or the most similar groups.

Arithmetic on arrays; the similarities come from ``optimal/similarity.py``. The *axis* is t, flow time or log sigma, the
measure in which levels lie evenly and means over ranges are taken.

Shapes: n = levels from data to noise, m = draws, B = bootstrap samples.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from noisewise.planning.intervals import best_cuts
from noisewise.streams import seed_of

Reference = Literal["end", "mean"]
ClusterCut = Literal["threshold", "dynamic-programming"]
ALPHA = 0.9
NUM_DRAWS = 192  # the fewest that settle t1 and t2 on CIFAR-10, see docs/clustering.md
NUM_LEVELS = 50
NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Band:
    """An estimate with the interval that 95 % of its bootstrap samples lie in; arrays of one shape."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def half_width(self) -> np.ndarray:
        """Half of the interval's length."""
        return (self.high - self.low) / 2

    @classmethod
    def of(cls, estimate: np.ndarray, samples: np.ndarray) -> Band:
        """Around ``estimate`` from ``samples`` [B, ...] of its shape."""
        low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
        return cls(np.asarray(estimate), low, high)


def running_means(axis: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Mean of a curve [..., n] from its first level up to each: [..., n], linear between levels."""
    pieces = np.diff(axis) * (similarity[..., 1:] + similarity[..., :-1]) / 2  # [..., n - 1]
    means = np.cumsum(pieces, axis=-1) / (axis[1:] - axis[0])
    return np.concatenate([similarity[..., :1], means], axis=-1)


def last_within(axis: np.ndarray, similarity: np.ndarray, alphas: float | np.ndarray) -> np.ndarray:
    """t1 = max{tau : mean over t in [0, tau) of the similarity >= alpha}, on the axis.

    Args:
        similarity: [..., n] to the denoiser at the first level.
        alphas: broadcast against [...].

    Returns:
        [...]; the first level where even its similarity is below alpha, the last where the whole mean is not.
    """
    means = running_means(axis, similarity)  # [..., n]
    alphas = np.asarray(alphas, dtype=np.float64)[..., None]
    ok = means >= alphas  # [..., n]
    n = len(axis)
    last = np.where(ok.any(-1), n - 1 - ok[..., ::-1].argmax(-1), 0)  # [...]
    after = np.minimum(last + 1, n - 1)
    means = np.broadcast_to(means, ok.shape)
    here, there = (np.take_along_axis(means, i[..., None], -1)[..., 0] for i in (last, after))
    falls = (here >= alphas[..., 0]) & (here > there)  # crosses alpha before the next level
    share = np.where(falls, (here - alphas[..., 0]) / np.where(falls, here - there, 1.0), 0.0)
    return axis[last] + share * (axis[after] - axis[last])


def first_within(axis: np.ndarray, similarity: np.ndarray, alphas: float | np.ndarray) -> np.ndarray:
    """t2 = min{tau : mean over t in [tau, 1] of the similarity >= alpha}: ``last_within`` from the other end."""
    return 0.0 - last_within(-axis[::-1], similarity[..., ::-1], alphas)


def resampling_weights(num_draws: int, seed: int) -> np.ndarray:
    """How often each draw counts in each bootstrap sample, as shares: [B, m]; the same for every curve of the draws."""
    rng = np.random.default_rng(seed_of(seed, "bootstrap"))
    counts = rng.multinomial(num_draws, np.full(num_draws, 1 / num_draws), size=NUM_RESAMPLES)
    return counts / num_draws


def most_similar_cuts(pairs: np.ndarray, k: int) -> tuple[list[int], list[float]]:
    """Cuts of k contiguous groups that maximise the mean, over levels, of a level's similarity to its own group.

    Args:
        pairs: [n, n], symmetric.

    Returns:
        The k - 1 first levels of all groups but the first, and each group's mean similarity [k].
    """
    n = len(pairs)
    sums = np.zeros((n + 1, n + 1))
    sums[1:, 1:] = pairs.cumsum(0).cumsum(1)
    start, stop = np.arange(n)[:, None], np.arange(n + 1)[None, :]
    inside = sums[stop, stop] - sums[start, stop] - sums[stop, start] + sums[start, start]  # [n, n + 1]
    costs = np.where(stop > start, -inside / np.maximum(stop - start, 1), np.inf)
    cuts = best_cuts(costs, k)
    bounds = [0, *cuts, n]
    means = [float(pairs[a:b, a:b].mean()) for a, b in itertools.pairwise(bounds)]
    return cuts, means
