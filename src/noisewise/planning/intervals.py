"""Contiguous intervals of noise levels of least cost, by exact dynamic programming (ANT, arXiv:2306.00354, Sec. 4).

Shapes: n = noise levels from data to noise, k = intervals. An interval is levels ``start <= i < stop``; what it costs
stands in a table [n, n + 1] at [start, stop], infinite where it may not be.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from noisewise.errors import SettingError

IntervalCost = Literal["timestep", "snr", "gradient"]


def value_distances(values: np.ndarray) -> np.ndarray:
    """|v_c - v_t| of every pair of levels, [n, n], from one number per level: ANT's timestep and SNR costs."""
    return np.abs(values[:, None] - values[None, :])


def gradient_distances(gradients: Any) -> np.ndarray:
    """-cos(g_c, g_t) of every pair of levels, [n, n]: ANT's gradient cost.

    Args:
        gradients: [n, ...], one per level, array or tensor; all beyond the first axis is flattened. Concatenated
            gradients of several checkpoints, each of unit length, give the mean of the checkpoints' cosines.
    """
    g = np.asarray(gradients)
    g = g.reshape(len(g), -1).astype(np.float64 if g.dtype == np.float64 else np.float32, copy=False)  # [n, P]
    length = np.linalg.norm(g, axis=1)  # [n]
    if len(g) < 2 or not np.isfinite(length).all() or not (length > 0).all():
        bad = np.flatnonzero(~(np.isfinite(length) & (length > 0))).tolist()
        raise SettingError(
            f"plan.gradients: {len(g)} gradients, of which {bad[:5]} are zero or not finite; two or more are needed, "
            "each with a length"
        )
    g = g / length[:, None]
    return -(g @ g.T).astype(np.float64)


def interval_costs(distances: np.ndarray) -> np.ndarray:
    """Sum of distances from an interval's middle level to its levels: [n, n + 1], infinite where empty.

    Args:
        distances: [n, n], entry [c, t]. The middle of ``start .. stop - 1`` is level (start + stop - 1) // 2.
    """
    n = len(distances)
    sums = np.concatenate([np.zeros((n, 1)), np.cumsum(distances, axis=1)], axis=1)  # [n, n + 1], before each t
    start, stop = np.arange(n)[:, None], np.arange(n + 1)[None, :]
    middle = np.clip((start + stop - 1) // 2, 0, n - 1)  # [n, n + 1]
    return np.where(stop > start, sums[middle, stop] - sums[middle, start], np.inf)


def size_range(n: int, k: int) -> tuple[int, int]:
    """Least and most levels of an interval: from half to one and a half times an equal share, n / k, as in ANT."""
    return max(n // (2 * k), 1), -(-3 * n // (2 * k))


def best_cuts(costs: np.ndarray, k: int, sizes: tuple[int, int] | None = None) -> list[int]:
    """The k - 1 inner cuts of the k contiguous intervals of least total cost; a cut is the next interval's first level.

    Args:
        costs: [n, n + 1].
        sizes: least and most levels of an interval; any by default. Among equals the earliest cuts are taken.
    """
    n = len(costs)
    if not 1 <= k <= n:
        raise SettingError(f"plan.num_groups: {k} intervals cannot be cut from {n} noise levels; 1 to {n} can")
    start, stop = np.arange(n)[:, None], np.arange(n + 1)[None, :]
    least, most = sizes or (1, n)
    costs = np.where((stop - start >= least) & (stop - start <= most), costs, np.inf)

    tie = 1e-10 * np.abs(costs[np.isfinite(costs)]).max()  # sums that differ by rounding are equal

    best = costs[0]  # [n + 1], cost of the levels before each stop in the intervals so far
    previous = np.zeros((k, n + 1), dtype=np.int64)  # where the last interval began
    for i in range(1, k):
        totals = best[:n, None] + costs  # [start, stop]
        previous[i] = (totals <= totals.min(axis=0) + tie).argmax(axis=0)  # the first of those that are least
        best = totals[previous[i], np.arange(n + 1)]
    assert np.isfinite(best[n]), "sizes that sum to n exist for every 1 <= k <= n"

    cuts, end = [], n
    for i in range(k - 1, 0, -1):
        end = int(previous[i, end])
        cuts.append(end)
    return cuts[::-1]
