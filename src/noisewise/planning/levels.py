"""Noise levels spread evenly over a schedule, and what "evenly" means: in t, in flow time, or in log sigma.

The *axis* is that measure: the coordinate itself, or its logarithm for sigma.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noisewise.errors import SettingError
from noisewise.schedule import NoiseSchedule


def to_axis(schedule: NoiseSchedule, coordinates: Sequence[float] | np.ndarray) -> np.ndarray:
    """Coordinates as float64 on the axis, any shape."""
    values = np.asarray(coordinates, dtype=np.float64)
    return np.log(values) if schedule.is_log else values


def from_axis(schedule: NoiseSchedule, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The inverse of ``to_axis``."""
    values = np.asarray(values, dtype=np.float64)
    return np.exp(values) if schedule.is_log else values


def even_levels(schedule: NoiseSchedule, num_levels: int, setting: str = "plan.num_levels") -> np.ndarray:
    """Coordinates [n] of the grid's first point, its last, and points in between, as evenly as there are points."""
    most = schedule.num_train_timesteps
    if isinstance(num_levels, bool) or not isinstance(num_levels, int) or not min(3, most) <= num_levels <= most:
        raise SettingError(f"{setting}: {num_levels!r} is not a number of noise levels from 3 to the schedule's {most}")
    return schedule.grid()[np.round(np.linspace(0, most - 1, num_levels)).astype(np.int64)].astype(np.float64)


def bounds_between(schedule: NoiseSchedule, levels: np.ndarray, cuts: Sequence[int]) -> list[float]:
    """Inner bounds of groups of levels: halfway on the axis between a cut's level and the one before it."""
    axis = to_axis(schedule, levels)  # [n]
    indices = np.asarray(cuts, dtype=np.int64)
    return from_axis(schedule, (axis[indices - 1] + axis[indices]) / 2).tolist()
