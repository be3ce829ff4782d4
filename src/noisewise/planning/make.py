"""From a schedule and settings to groups with cost limits: where the range is cut, and then what a group may cost.

The two are separate matters. A *cut* comes from the SNR, equal widths, intervals or the data's clusters; cost settings
mean the same for all of them, and no cut but that of ``Plan.from_snr`` depends on them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from noisewise.errors import SettingError
from noisewise.planning import groups as g
from noisewise.planning import intervals as iv
from noisewise.planning.costs import CostSettings, cost_of_levels, linear_in_t, visited_snr_db
from noisewise.planning.groups import BigModelAt, Group
from noisewise.planning.intervals import IntervalCost
from noisewise.planning.levels import bounds_between, even_levels, from_axis, to_axis
from noisewise.schedule import NoiseSchedule

Made = tuple[tuple[Group, ...], dict[str, Any], list[str]]  # groups, settings, notes


@dataclass(frozen=True)
class Cut:
    """Where N groups begin and end.

    Attributes:
        bounds: [N + 1] coordinates, rising.
        sizes: [N] points of the schedule's grid in each group.
        shapes: [N] each group's limit before scaling, or None: the most that one of its levels deserves.
    """

    bounds: list[float]
    sizes: np.ndarray
    shapes: np.ndarray | None = None


def check_num_groups(num_groups: int) -> None:
    """Refuse what is not a whole number of groups."""
    if isinstance(num_groups, bool) or not isinstance(num_groups, int) or num_groups < 1:
        raise SettingError(f"plan.num_groups: {num_groups!r} is not a whole number of 1 or more")


def snr_cut(num_groups: int, big_model_at: BigModelAt) -> Callable[[NoiseSchedule, np.ndarray], Cut]:
    """N equal bins of difficulty (TDC, Eq. 4 and 5)."""
    check_num_groups(num_groups)

    def cut(schedule: NoiseSchedule, difficulty: np.ndarray) -> Cut:
        shapes = g.snr_group_shapes(num_groups, big_model_at)  # [N]
        if schedule.is_discrete:
            sizes = g.snr_group_sizes(difficulty, num_groups)
            return Cut([0, *np.cumsum(sizes).tolist()], sizes, shapes)
        inner = g.snr_group_edges(difficulty, schedule.grid(), num_groups, is_log=schedule.is_log)
        between = cut_at(schedule, inner.tolist())
        return Cut(between.bounds, between.sizes, shapes)

    return cut


def equal_cut(schedule: NoiseSchedule, num_groups: int) -> Cut:
    """Groups of equal width in t, log sigma or flow time."""
    check_num_groups(num_groups)
    start, stop = schedule.span
    if schedule.is_discrete:
        return cut_at(schedule, [i * schedule.num_train_timesteps // num_groups for i in range(1, num_groups)])
    first, last = to_axis(schedule, [start, stop])
    edges = np.linspace(first, last, num_groups + 1)  # [N + 1]
    return cut_at(schedule, from_axis(schedule, edges[1:-1]).tolist())


def cut_at(schedule: NoiseSchedule, inner: Sequence[float]) -> Cut:
    """Groups between the N - 1 given coordinates, which are brought within the schedule's span.

    Where timesteps are whole a group begins at the first one at or past the coordinate. The last group holds the upper
    end of a continuous coordinate, too.
    """
    start, stop = schedule.span
    if schedule.is_discrete:
        within = [min(max(math.ceil(c - 1e-6), start), stop) for c in inner]  # a coordinate is exact but for rounding
        return Cut([start, *within, stop], np.diff([start, *within, stop]))
    within = [min(max(float(c), start), stop) for c in inner]
    below = np.searchsorted(schedule.grid(), within)  # [N - 1]
    below = np.where(np.asarray(within) < stop, below, schedule.num_train_timesteps)  # nothing begins at the end
    return Cut([start, *within, stop], np.diff([0, *below, schedule.num_train_timesteps]))


def given_cut(schedule: NoiseSchedule, bounds: Sequence[float]) -> Cut:
    """Groups between bounds that a user gave; refused where they do not rise within the schedule's span."""
    start, stop = schedule.span
    inner = [float(bound) for bound in bounds]
    if any(not after > before for before, after in itertools.pairwise([start, *inner, stop])):
        raise SettingError(
            f"plan.bounds: {inner} do not rise from above {start:g} to below {stop:g} ({schedule.coordinate})"
        )
    cut = cut_at(schedule, inner)
    if len(set(cut.bounds)) < len(cut.bounds):
        raise SettingError(f"plan.bounds: {inner} leave a group without a whole timestep")
    return cut


def interval_cut(schedule: NoiseSchedule, cost: IntervalCost, num_groups: int, gradients: Any) -> tuple[Cut, int]:
    """ANT's intervals, and the number of levels they were cut from: the grid's, or as many as there are gradients."""
    check_num_groups(num_groups)
    if cost not in get_args(IntervalCost):
        raise SettingError(f"plan.interval_cost: {cost!r} is not one of {', '.join(get_args(IntervalCost))}")
    if (cost == "gradient") != (gradients is not None):
        what = "missing" if gradients is None else f"given, but plan.interval_cost is {cost}, which ignores them"
        raise SettingError(f"plan.gradients: {what}")
    levels = schedule.grid()  # [n]
    if cost == "timestep":
        distances = iv.value_distances(to_axis(schedule, levels))  # [n, n]
    elif cost == "snr":
        snr_db = schedule.snr_db(levels.astype(np.float64))
        finite = snr_db[np.isfinite(snr_db)]
        distances = iv.value_distances(np.clip(snr_db, finite.min(), finite.max()))
    else:
        distances = iv.gradient_distances(gradients)
        levels = even_levels(schedule, len(distances), "plan.gradients")
    n = len(levels)
    cuts = iv.best_cuts(iv.interval_costs(distances), num_groups, iv.size_range(n, num_groups))
    return cut_at(schedule, bounds_between(schedule, levels, cuts)), n


def moved_cut(groups: Sequence[Group], old: NoiseSchedule, new: NoiseSchedule) -> Cut:
    """The same groups by noise level on another schedule; those that lie beyond its levels become empty."""
    (start, stop), ends = new.span, old.span
    noisiest = new.snr_db(float(new.grid()[-1]))
    inner = []
    for group in groups[1:]:
        if group.t_start in ends:
            inner.append(start if group.t_start == ends[0] else stop)
        else:
            snr_db = old.snr_db(float(group.t_start))
            inner.append(stop if snr_db < noisiest else new.coordinate_at_snr(snr_db))
    return cut_at(new, inner)


def make_groups(
    schedule: NoiseSchedule,
    cut: Cut | Callable[[NoiseSchedule, np.ndarray], Cut],
    costs: CostSettings,
    settings: Mapping[str, Any],
) -> Made:
    """Groups, resolved settings and notes.

    Args:
        cut: where the groups lie, or a function that says it from the difficulty [T] of the grid's levels.
        settings: what made the cut, plain values, ``method`` among them; the costs' settings are added.
    """
    snr_db, snr_db_range, notes = g.bounded_snr_db(
        schedule.snr_db(schedule.grid()), costs.clip_range_db, visited_snr_db(schedule, costs)
    )
    difficulty = g.difficulty(snr_db, snr_db_range, costs.big_model_at)  # [T]
    where = cut(schedule, difficulty) if callable(cut) else cut
    bounds, sizes, N = where.bounds, where.sizes, len(where.sizes)
    shapes = g.largest_in_group(difficulty, sizes) if where.shapes is None else where.shapes  # [N]

    k = costs.min_cost
    limits = k + (1 - k) * shapes  # [N]
    if costs.cost_schedule == "constant":
        limits = np.full(N, g.weighted_mean(limits, sizes))
    elif costs.cost_schedule != "snr":
        limits = k + (1 - k) * g.largest_in_group(linear_in_t(schedule, costs.cost_schedule), sizes)
    constant = float(limits[0])

    shift, scale = 0.0, 1.0
    if costs.average_cost is not None:
        shift, scale, how = g.matching(g.weighted_mean(limits, sizes), costs.average_cost)
        limits = np.minimum(shift + scale * limits, 1.0)  # rounding could pass 1
        notes.append(how)
    made = tuple(Group(i, bounds[i], bounds[i + 1], float(limits[i]), int(sizes[i])) for i in range(N))
    notes += empty_notes(made)
    resolved = {**settings, **costs.to_dict()}
    resolved |= {"snr_db_range": list(snr_db_range), "limit_shift": shift, "limit_scale": scale}
    if costs.cost_schedule == "constant":
        resolved["constant_cost"] = constant
    return made, resolved, notes


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


def empty_notes(groups: Sequence[Group]) -> list[str]:
    """Says which groups have no noise level, or none on the grid."""
    empty = [group.index for group in groups if group.is_empty]
    if not empty:
        return []
    which = f"group {empty[0]} is" if len(empty) == 1 else f"groups {', '.join(map(str, empty))} are"
    return [f"{which} empty: no noise level falls into it; nothing is trained for it"]
