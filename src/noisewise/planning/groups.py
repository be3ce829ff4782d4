"""Groups of noise levels and what each may cost (TDC Training, arXiv:2312.13307, Eq. 2 to 5): arithmetic on arrays.

Shapes: T = points of the schedule's grid (training timesteps), N = groups.

A *shape* is a cost before its scale, in [0, 1]: cost = min_cost + (1 - min_cost) shape. Groups depend on the shape
alone, so that neither ``min_cost`` nor a matched average moves a boundary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from noisewise.errors import SettingError

BigModelAt = Literal["noise", "data"]
CostSchedule = Literal["snr", "constant", "increasing", "decreasing"]
SnrRange = Literal["all", "visited"]
ROUNDING = 1e-12  # a cost that equals a limit but for rounding is within it


@dataclass(frozen=True)
class Group:
    """Noise levels ``t_start <= t < t_stop`` and the most their denoiser may cost, as a fraction of the base's MACs.

    Bounds are original training timesteps (whole numbers), sigmas or flow times. ``num_timesteps`` counts the points
    of the schedule's grid within: for timesteps ``t_stop - t_start``.
    """

    index: int
    t_start: float
    t_stop: float
    cost_limit: float
    num_timesteps: int

    @property
    def is_empty(self) -> bool:
        """Whether no noise level belongs to the group; it is never trained nor routed to."""
        return self.t_start == self.t_stop


def bounded_snr_db(
    snr_db: np.ndarray, clip_db: tuple[float, float] | None, visited_snr_db: np.ndarray | None
) -> tuple[np.ndarray, tuple[float, float], list[str]]:
    """SNR within the range that difficulty is measured over, that range, and what was cut, in words.

    Args:
        snr_db: [T], falling; may be infinite at either end (zero-SNR schedules, flow matching).
        clip_db: lowest and highest SNR told apart, or None for all of them.
        visited_snr_db: [calls], SNR of the levels that sampling visits: their range is then the range.
    """
    pool = snr_db if visited_snr_db is None else visited_snr_db
    pool = pool[np.isfinite(pool)]
    if len(pool) == 0:
        raise SettingError("plan.visited: no visited noise level has a finite SNR")
    low, high = float(pool.min()), float(pool.max())
    if clip_db is not None:
        low, high = max(low, clip_db[0]), min(high, clip_db[1])
    if not low < high:
        raise SettingError(f"plan: all noise levels have the same SNR in the range {low:.1f} to {high:.1f} dB")

    notes = []
    infinite = int(np.isinf(snr_db).sum())
    if infinite:
        ends = " and ".join(f"{end:.1f} dB" for end, there in ((low, -np.inf), (high, np.inf)) if there in snr_db)
        notes.append(f"infinite SNR at {infinite} timestep{'s' * (infinite > 1)} is clipped to {ends}")
    outside = int(((snr_db < low) | (snr_db > high)).sum()) - infinite
    if outside > 0:
        why = "the range that sampling visits" if clip_db is None else "plan.clip_db"
        notes.append(f"SNR at {outside} timesteps is clipped to {low:.1f} to {high:.1f} dB ({why})")
    return np.clip(snr_db, low, high), (low, high), notes


def difficulty(snr_db: np.ndarray, snr_db_range: tuple[float, float], big_model_at: BigModelAt) -> np.ndarray:
    """How hard each noise level counts, Eq. 3 without its standardisation, which min-max scaling undoes.

    Returns:
        [T], in [0, 1]; rising towards noise (the paper's direction) or towards the data.
    """
    low, high = snr_db_range
    fraction = (np.clip(snr_db, low, high) - low) / (high - low)  # [T], 1 nearest the data
    return 1 - fraction if big_model_at == "noise" else fraction


def snr_group_sizes(difficulty: np.ndarray, num_groups: int) -> np.ndarray:
    """Noise levels in each of N equal bins of cost, Eq. 4 (repaired) and 5: [N], the first group nearest the data."""
    edges = np.arange(1, num_groups + 1) / num_groups  # [N] upper edges
    bins = np.searchsorted(edges, difficulty - ROUNDING)  # [T]
    sizes = np.bincount(bins, minlength=num_groups)  # [N], easiest first
    return sizes if difficulty[0] < difficulty[-1] else sizes[::-1]


def snr_group_edges(difficulty: np.ndarray, coordinates: np.ndarray, num_groups: int, *, is_log: bool) -> np.ndarray:
    """Inner boundaries [N - 1] on a continuous coordinate: where the difficulty reaches a bin's edge.

    Between points of the grid the difficulty is taken as linear in the coordinate, in its logarithm for sigma (exact).
    """
    levels = np.arange(1, num_groups) / num_groups  # [N - 1], rising with the coordinate
    axis = np.log(coordinates) if is_log else coordinates  # [T]
    if difficulty[0] < difficulty[-1]:
        edges = np.interp(levels, difficulty, axis)
    else:
        edges = np.interp(levels, 1 - difficulty, axis)
    return np.exp(edges) if is_log else edges


def snr_group_shapes(num_groups: int, big_model_at: BigModelAt) -> np.ndarray:
    """Upper edge of each group's bin, [N], from data to noise: its limit before scaling, Eq. 4 (repaired)."""
    edges = np.arange(1, num_groups + 1) / num_groups
    return edges if big_model_at == "noise" else edges[::-1]


def largest_in_group(shape: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The least limit [N] that every noise level of a group keeps to; for an empty group, the next level's."""
    stops = np.cumsum(sizes)  # [N]
    starts = np.minimum(stops - sizes, len(shape) - 1)  # [N]
    return np.array([shape[a : max(b, a + 1)].max() for a, b in zip(starts, stops, strict=True)])


def weighted_mean(limits: np.ndarray, sizes: np.ndarray) -> float:
    """Mean limit over timesteps."""
    return float((limits * sizes).sum() / sizes.sum())


def matching(mean: float, average_cost: float) -> tuple[float, float, str]:
    """``shift`` and ``scale`` that give limits shift + scale limit the wanted mean, and how, in words.

    Raising moves every limit the same part of its way to 1, which is the same as a larger ``min_cost``; lowering
    multiplies every limit by the same factor. Both keep limits in (0, 1] and in their order.
    """
    if average_cost <= mean:
        scale = average_cost / mean
        return (
            0.0,
            scale,
            f"cost limits are multiplied by {scale:.4f} for an average of {average_cost:g} (was {mean:.4f})",
        )
    scale = (1 - average_cost) / (1 - mean)
    how = f"cost limits are moved {1 - scale:.1%} of their way to 1 for an average of {average_cost:g} (was {mean:.4f})"
    return 1 - scale, scale, how
