"""From a schedule and settings to groups with cost limits: the steps between the formulas and a ``Plan``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from noisewise.errors import SettingError
from noisewise.planning import groups as g
from noisewise.planning.groups import BigModelAt, CostSchedule, Group, SnrRange
from noisewise.schedule import NoiseSchedule

Made = tuple[tuple[Group, ...], dict[str, Any], list[str]]  # groups, settings, notes


@dataclass(frozen=True)
class PlanSettings:
    """What ``Plan.from_snr`` and ``Plan.equal_width`` are asked for; the meanings stand there."""

    method: Literal["snr", "equal-width"]
    num_groups: int
    min_cost: float
    big_model_at: BigModelAt
    cost_schedule: CostSchedule
    average_cost: float | None
    snr_range: SnrRange
    clip_db: float | Sequence[float] | None

    def __post_init__(self) -> None:
        if isinstance(self.num_groups, bool) or not isinstance(self.num_groups, int) or self.num_groups < 1:
            raise SettingError(f"plan.num_groups: {self.num_groups!r} is not a whole number of 1 or more")
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


def make_groups(schedule: NoiseSchedule, settings: PlanSettings, visited: Sequence[float] | np.ndarray | None) -> Made:
    """Groups, resolved settings and notes for the two ways to cut the range."""
    snr_db, snr_db_range, notes = g.bounded_snr_db(
        schedule.snr_db(schedule.grid()), settings.clip_range_db, _visited_snr_db(schedule, settings, visited)
    )
    difficulty = g.difficulty(snr_db, snr_db_range, settings.big_model_at)  # [T]
    N = settings.num_groups
    if settings.method == "snr":
        sizes, bounds = _snr_bounds(schedule, difficulty, N)
        shapes = g.snr_group_shapes(N, settings.big_model_at)  # [N]
    else:
        sizes, bounds = _equal_bounds(schedule, N)
        shapes = g.largest_in_group(difficulty, sizes)  # [N]

    k = settings.min_cost
    limits = k + (1 - k) * shapes  # [N]
    if settings.cost_schedule == "constant":
        limits = np.full(N, g.weighted_mean(limits, sizes))
    elif settings.cost_schedule != "snr":
        limits = k + (1 - k) * g.largest_in_group(_linear_in_t(schedule, settings.cost_schedule), sizes)
    constant = float(limits[0])

    shift, scale = 0.0, 1.0
    if settings.average_cost is not None:
        shift, scale, how = g.matching(g.weighted_mean(limits, sizes), settings.average_cost)
        limits = np.minimum(shift + scale * limits, 1.0)  # rounding could pass 1
        notes.append(how)
    made = tuple(Group(i, bounds[i], bounds[i + 1], float(limits[i]), int(sizes[i])) for i in range(N))
    notes += _empty_notes(made)
    resolved = asdict(settings) | {"clip_db": None if settings.clip_db is None else list(settings.clip_range_db or ())}
    resolved |= {"snr_db_range": list(snr_db_range), "limit_shift": shift, "limit_scale": scale}
    if settings.cost_schedule == "constant":
        resolved["constant_cost"] = constant
    return made, resolved, notes


def cost_of_levels(schedule: NoiseSchedule, settings: Mapping[str, Any]) -> np.ndarray | None:
    """[T] fraction of the base's cost that each noise level deserves, for plans that ``make_groups`` made."""
    if settings.get("method") not in ("snr", "equal-width"):
        return None
    kind, k = settings["cost_schedule"], settings["min_cost"]
    if kind == "constant":
        cost = np.full(schedule.num_train_timesteps, settings["constant_cost"])
    elif kind == "snr":
        snr_db = schedule.snr_db(schedule.grid())
        cost = k + (1 - k) * g.difficulty(snr_db, tuple(settings["snr_db_range"]), settings["big_model_at"])
    else:
        cost = k + (1 - k) * _linear_in_t(schedule, kind)
    return np.asarray(settings["limit_shift"] + settings["limit_scale"] * cost)


def difficulty_curves(
    schedule: NoiseSchedule, groups: Sequence[Group], settings: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Data of the plot of SNR, cost and limits: lists [T]; infinite SNR is drawn at the nearest finite one."""
    grid = schedule.grid()
    snr_db = schedule.snr_db(np.asarray(grid, dtype=np.float64))
    finite = snr_db[np.isfinite(snr_db)]
    limits = np.repeat([group.cost_limit for group in groups], [group.num_timesteps for group in groups])  # [T]
    cost = cost_of_levels(schedule, settings)
    return {
        "t": grid.tolist(),
        "snr_db": np.clip(snr_db, finite.min(), finite.max()).tolist(),
        "cost": (limits if cost is None else cost).tolist(),
        "cost_limit": limits.tolist(),
    }


def _visited_snr_db(
    schedule: NoiseSchedule, settings: PlanSettings, visited: Sequence[float] | np.ndarray | None
) -> np.ndarray | None:
    """SNR at the visited levels where they set the range; a scheduler's t = T counts as T - 1."""
    if settings.snr_range == "all":
        if visited is not None:
            raise SettingError("plan.visited: given, but plan.snr_range is all; set it to visited")
        return None
    if visited is None or len(visited) == 0:
        raise SettingError("plan.visited: missing; plan.snr_range: visited needs the timesteps that sampling visits")
    levels = np.asarray(visited, dtype=np.float64)  # [calls]
    if schedule.is_discrete:
        levels = np.clip(levels, 0, schedule.num_train_timesteps - 1)
    return schedule.snr_db(levels)


def _snr_bounds(schedule: NoiseSchedule, difficulty: np.ndarray, N: int) -> tuple[np.ndarray, list[float]]:
    """Sizes [N] and bounds [N + 1] of equal bins of difficulty."""
    if schedule.is_discrete:
        sizes = g.snr_group_sizes(difficulty, N)
        return sizes, [0, *np.cumsum(sizes).tolist()]
    inner = g.snr_group_edges(difficulty, schedule.grid(), N, is_log=schedule.coordinate == "sigma")
    return _sizes_between(schedule, inner)


def _equal_bounds(schedule: NoiseSchedule, N: int) -> tuple[np.ndarray, list[float]]:
    """Sizes [N] and bounds [N + 1] of groups of equal width in t, log sigma or flow time."""
    start, stop = schedule.span
    if schedule.is_discrete:
        bounds = [i * schedule.num_train_timesteps // N for i in range(N + 1)]
        return np.diff(bounds), list(bounds)
    space = np.geomspace if schedule.coordinate == "sigma" else np.linspace
    return _sizes_between(schedule, space(start, stop, N + 1)[1:-1])


def _sizes_between(schedule: NoiseSchedule, inner: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Grid points between boundaries on a continuous coordinate; the last group holds its upper end, too."""
    below = np.searchsorted(schedule.grid(), inner)  # [N - 1]
    start, stop = schedule.span
    return np.diff([0, *below, schedule.num_train_timesteps]), [start, *inner.tolist(), stop]


def _linear_in_t(schedule: NoiseSchedule, cost_schedule: str) -> np.ndarray:
    """[T] cost shape that goes linearly from 0 to 1 in t (log sigma, flow time), or from 1 to 0."""
    grid = schedule.grid().astype(np.float64)
    t = np.log(grid) if schedule.coordinate == "sigma" else grid
    rising = (t - t[0]) / (t[-1] - t[0])
    return rising if cost_schedule == "increasing" else 1 - rising


def _empty_notes(groups: Sequence[Group]) -> list[str]:
    """Says which groups have no noise level, or none on the grid."""
    empty = [group.index for group in groups if group.is_empty]
    if not empty:
        return []
    which = f"group {empty[0]} is" if len(empty) == 1 else f"groups {', '.join(map(str, empty))} are"
    return [f"{which} empty: no timestep falls into that range of cost; nothing is trained for it"]
