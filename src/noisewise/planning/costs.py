"""What a noise level and a group may cost, apart from where the groups lie: settings, and what they mean on a grid.

Shapes: T = points of the schedule's grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, get_args

import numpy as np

from noisewise.errors import SettingError
from noisewise.planning import groups as g
from noisewise.planning.groups import BigModelAt, CostSchedule, SnrRange
from noisewise.planning.levels import to_axis
from noisewise.schedule import NoiseSchedule


class CostOptions(TypedDict, total=False):
    """Cost settings that every constructor of a plan takes by name; the meanings stand in ``CostSettings``."""

    cost_schedule: CostSchedule
    average_cost: float | None
    snr_range: SnrRange
    visited: Sequence[float] | np.ndarray | None
    clip_db: float | Sequence[float] | None


@dataclass(frozen=True)
class CostSettings:
    """What each group's denoiser may cost, as a fraction of the base's MACs.

    Attributes:
        min_cost: the smallest cost, in (0, 1]; k in the TDC paper, 0.5 there.
        big_model_at: "noise" (low SNR is hard, TDC's direction) or "data" (what most later work measures).
        cost_schedule: how the groups' limits are set (the groups stay the same). "snr": the largest cost that one of
            the group's noise levels deserves, or the upper edge of its bin of costs. "constant": for all the
            timestep-weighted mean of those. "increasing", "decreasing": the most of a cost that goes linearly in t (log
            sigma, flow time) between ``min_cost`` and 1.
        average_cost: the timestep-weighted mean limit wanted, in (0, 1]: limits are moved to match it (see notes), so
            that plans can be compared at the same cost.
        snr_range: difficulty is scaled over the SNR of "all" timesteps or of the "visited" ones; levels beyond count
            as the nearest one within.
        clip_db: lowest and highest SNR told apart, or c for -c .. c. By default nothing but infinite SNR is clipped, to
            the nearest finite one.
        visited: coordinates that sampling visits, e.g. ``schedule.visited(scheduler, num_inference_steps)``.
    """

    min_cost: float
    big_model_at: BigModelAt
    cost_schedule: CostSchedule = "snr"
    average_cost: float | None = None
    snr_range: SnrRange = "all"
    clip_db: float | Sequence[float] | None = None
    visited: Sequence[float] | np.ndarray | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_cost <= 1:
            raise SettingError(f"plan.min_cost: {self.min_cost} is not between 0 and 1 (a fraction of the base's MACs)")
        choices = {"big_model_at": BigModelAt, "cost_schedule": CostSchedule, "snr_range": SnrRange}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise SettingError(f"plan.{name}: {getattr(self, name)!r} is not one of {', '.join(get_args(allowed))}")
        if self.average_cost is not None and not 0 < self.average_cost <= 1:
            raise SettingError(f"plan.average_cost: {self.average_cost} is not above 0 and at most 1")

    @property
    def clip_range_db(self) -> tuple[float, float] | None:
        """``clip_db`` as lowest and highest."""
        if self.clip_db is None:
            return None
        pair = (-self.clip_db, self.clip_db) if isinstance(self.clip_db, int | float) else tuple(self.clip_db)
        if len(pair) != 2 or not -math.inf < pair[0] < pair[1] < math.inf:
            raise SettingError(f"plan.clip_db: {self.clip_db} is neither a number above 0 nor a lowest and a highest")
        return pair

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a plan's settings; ``visited`` shows in the SNR range that it sets."""
        values = {name: value for name, value in vars(self).items() if name != "visited"}
        return values | {"clip_db": None if self.clip_range_db is None else list(self.clip_range_db)}


def cost_of_levels(schedule: NoiseSchedule, settings: Mapping[str, Any]) -> np.ndarray | None:
    """[T] fraction of the base's cost that each noise level deserves, or None where the settings do not say it."""
    if "snr_db_range" not in settings or "moved_from" in settings:
        return None
    kind, k = settings["cost_schedule"], settings["min_cost"]
    if kind == "constant":
        cost = np.full(schedule.num_train_timesteps, settings["constant_cost"])
    elif kind == "snr":
        snr_db = schedule.snr_db(schedule.grid())
        cost = k + (1 - k) * g.difficulty(snr_db, tuple(settings["snr_db_range"]), settings["big_model_at"])
    else:
        cost = k + (1 - k) * linear_in_t(schedule, kind)
    return np.asarray(settings["limit_shift"] + settings["limit_scale"] * cost)


def visited_snr_db(schedule: NoiseSchedule, costs: CostSettings) -> np.ndarray | None:
    """SNR at the visited levels where they set the range; a scheduler's t = T counts as T - 1."""
    if costs.snr_range == "all":
        if costs.visited is not None:
            raise SettingError("plan.visited: given, but plan.snr_range is all; set it to visited")
        return None
    if costs.visited is None or len(costs.visited) == 0:
        raise SettingError("plan.visited: missing; plan.snr_range: visited needs the timesteps that sampling visits")
    levels = np.asarray(costs.visited, dtype=np.float64)  # [calls]
    if schedule.is_discrete:
        levels = np.clip(levels, 0, schedule.num_train_timesteps - 1)
    return schedule.snr_db(levels)


def linear_in_t(schedule: NoiseSchedule, cost_schedule: str) -> np.ndarray:
    """[T] cost shape that goes linearly from 0 to 1 in t (log sigma, flow time), or from 1 to 0."""
    t = to_axis(schedule, schedule.grid())
    rising = (t - t[0]) / (t[-1] - t[0])
    return rising if cost_schedule == "increasing" else 1 - rising
