"""Widths that keep the most importance within a MACs budget, and the legal widths nearest to a proposal.

    maximise   sum_a value_a(w_a)     subject to   lowest <= c + l.w + 1/2 w.B.w <= highest,   w_a legal

A layer costs (inputs x outputs), so the cost is bilinear in the widths and this is no knapsack. The search: Lagrangian
coordinate ascent over a grid of multipliers from several starts (`_lagrangian`), then exchanges of one or two axes'
widths at a time until none helps (`exchange.polish`). Small problems are enumerated instead. No random numbers.

Shapes: A = axes, L = the most widths of any axis (shorter rows are padded), S = candidate solutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from noisewise.errors import SettingError
from noisewise.pruning.exchange import MOST_MOVES_IN_THREES, Problem, enumerate_all, polish

Array = np.ndarray

EXHAUSTIVE = 200_000  # up to this many combinations, all are tried
NUM_STARTS = 3  # best solutions of the Lagrangian search that are polished
NUM_STARTS_SMALL = 24  # the same where few axes leave few ways around a local optimum, and each costs little


class SolverError(SettingError):
    """No legal widths cost what was asked; ``reachable`` holds the nearest costs there are, below and above.

    ``proof`` says how thoroughly others were looked for.
    """

    def __init__(self, message: str, reachable: tuple[int | None, int | None], proof: str) -> None:
        super().__init__(message)
        self.reachable = reachable
        self.proof = proof


class CostForm(Protocol):
    """MACs as a form in the widths, as ``noisewise.models.cost.CostModel`` gives them; B is symmetric.

    A proposer that reads is told of parameters too.
    """

    @property
    def constant(self) -> float: ...

    @property
    def linear(self) -> Array: ...  # [A]

    @property
    def bilinear(self) -> Array: ...  # [A, A]

    def parameters(self, widths: Mapping[str, int]) -> int: ...


@dataclass(frozen=True)
class Solution:
    """Legal widths, what they cost, and what they are worth: the importance kept, or minus the squared distance."""

    widths: dict[str, int]
    macs: int
    value: float


def solve(
    cost: CostForm,
    widths: Mapping[str, tuple[int, ...]],
    values: Mapping[str, list[float]],
    budget: float,
    tolerance: float = 0.02,
    known: Mapping[str, int] | None = None,
) -> Solution:
    """The widths of most value whose cost lies within [(1 - tolerance) budget, budget] of the full network's.

    Args:
        cost: its axes in the order of ``widths``.
        widths: legal widths of every axis, ascending; the last one is the full width.
        values: what each of them is worth, not decreasing.
        budget: fraction of the full network's MACs.
        known: legal widths within the budget, to improve on should the search find none by itself.

    Raises:
        SolverError: with the nearest costs, where no legal widths cost that.
    """
    check_budget(budget, tolerance)
    problem = _problem(cost, widths, values, budget, tolerance)
    return _solution(problem, _best(problem, budget, fallback=_levels(widths, known)), widths)


def project(
    cost: CostForm,
    widths: Mapping[str, tuple[int, ...]],
    proposal: Mapping[str, float],
    budget: float,
    tolerance: float = 0.02,
    known: Mapping[str, int] | None = None,
) -> tuple[Solution, float]:
    """The legal widths within the budget that are nearest to ``proposal`` (an axis it leaves out: its full width).

    Distance is counted in levels: the root mean square over axes of the levels moved, as fractions of the axis's range.
    Width 0 lies as many levels below the least other width as fit into that.

    Returns:
        The solution and its distance in [0, 1]; 0 means that the proposal was legal as it stood.
    """
    check_budget(budget, tolerance)
    values, start = {}, []
    for name, legal in widths.items():
        places = _places(legal)
        place = float(np.interp(proposal.get(name, legal[-1]), legal, places))
        values[name] = list(-np.square((places - place) / max(places[-1], 1)) / len(widths))
        start.append(round(float(np.interp(place, places, np.arange(len(legal))))))
    problem = _problem(cost, widths, values, budget, tolerance)
    best = _best(problem, budget, np.array(start), _levels(widths, known))
    solution = _solution(problem, best, widths)
    return solution, float(np.sqrt(max(-solution.value, 0.0)))


def _places(legal: tuple[int, ...]) -> Array:
    """Legal widths on a scale of levels: [L], from 0."""
    places = np.arange(len(legal), dtype=np.float64)
    if legal[0] == 0 and len(legal) > 2:
        places[1:] += legal[1] / (legal[2] - legal[1]) - 1
    return places


def check_budget(budget: float, tolerance: float) -> None:
    """Refuse a budget that is no fraction of the network, or leaves it as it is."""
    if not 0 < budget <= 1:
        raise SettingError(f"prune.budget: {budget} is not in (0, 1) (a fraction of the model's MACs)")
    if budget == 1:
        raise SettingError("prune.budget: 1.0 would change nothing; give less than 1, or keep the model as it is")
    if not 0 < tolerance < 1:
        raise SettingError(f"prune.tolerance: {tolerance} is not between 0 and 1 (a fraction of the budget)")


def _problem(
    cost: CostForm,
    widths: Mapping[str, tuple[int, ...]],
    values: Mapping[str, list[float]],
    budget: float,
    tolerance: float,
) -> Problem:
    if not widths:
        raise SettingError("prune.budget: this network has no channels that may be cut")
    most = max(len(legal) for legal in widths.values())
    padded = [[*legal, *[legal[-1]] * (most - len(legal))] for legal in widths.values()]
    worth = [[*values[name], *[-np.inf] * (most - len(legal))] for name, legal in widths.items()]
    form = Problem(
        widths=np.array(padded, dtype=np.float64),
        values=np.array(worth, dtype=np.float64),
        num_levels=np.array([len(legal) for legal in widths.values()]),
        constant=float(cost.constant),
        linear=np.asarray(cost.linear, dtype=np.float64),
        bilinear=np.asarray(cost.bilinear, dtype=np.float64),
        lowest=0.0,
        highest=0.0,
    )
    base = float(form.cost(form.num_levels - 1))
    lowest, highest = np.ceil((1 - tolerance) * budget * base), np.floor(budget * base * (1 + 1e-12))
    return form.within(lowest - 0.25, highest + 0.25)  # costs are whole numbers: none lies on the edge, whatever rounds


def _solution(problem: Problem, state: Array, widths: Mapping[str, tuple[int, ...]]) -> Solution:
    kept = {name: int(legal[level]) for (name, legal), level in zip(widths.items(), state, strict=True)}
    return Solution(kept, round(float(problem.cost(state))), float(problem.value(state)))


def _levels(widths: Mapping[str, tuple[int, ...]], known: Mapping[str, int] | None) -> Array | None:
    """Levels [A] of legal widths."""
    return None if known is None else np.array([legal.index(known[name]) for name, legal in widths.items()])


def _best(problem: Problem, budget: float, start: Array | None = None, fallback: Array | None = None) -> Array:
    """The best feasible levels [A]; the search begins at ``start`` too, at ``fallback`` if it must."""
    if np.prod(problem.num_levels.astype(np.float64)) <= EXHAUSTIVE:
        states, costs = enumerate_all(problem)
        feasible = (costs >= problem.lowest) & (costs <= problem.highest)
        if feasible.any():
            return states[feasible][problem.value(states[feasible]).argmax()]
        raise _refusal(problem, budget, costs, "all combinations of legal widths were tried")

    states = _lagrangian(problem)
    states = states if start is None else np.concatenate([start[None], states])
    costs = problem.cost(states)
    violations = problem.violation(costs)
    order = np.lexsort((-problem.value(states), violations))
    num_starts = NUM_STARTS_SMALL if problem.num_levels.sum() <= MOST_MOVES_IN_THREES else NUM_STARTS
    # the nearest solutions below and above the budget lead to different corners
    chosen = list(dict.fromkeys([*([] if start is None else [0]), *order[:num_starts], *_nearest(problem, costs)]))
    polished = [polish(problem, states[i]) for i in chosen]
    feasible_ones = [state for state in polished if problem.violation(problem.cost(state)) == 0]
    if feasible_ones:
        return max(feasible_ones, key=lambda state: float(problem.value(state)))
    if fallback is not None:
        return polish(problem, fallback)

    below = polish(problem.within(0.0, problem.lowest), states[chosen[0]], maximise="cost")
    above = polish(problem.within(problem.highest, np.inf), states[chosen[0]], maximise="-cost")
    costs = np.concatenate([costs, problem.cost(np.stack([below, above, *polished]))])
    smallest = float(problem.cost(np.zeros_like(problem.num_levels)))
    proof = "every axis at its smallest" if smallest > problem.highest else "the nearest that the search found"
    raise _refusal(problem, budget, np.append(costs, smallest), proof)


def _nearest(problem: Problem, costs: Array) -> list[int]:
    """Indices of the costs nearest to the budget from below and from above."""
    below, above = np.flatnonzero(costs <= problem.highest), np.flatnonzero(costs > problem.highest)
    return [*below[costs[below].argsort()[-1:]], *above[costs[above].argsort()[:1]]]


def _refusal(problem: Problem, budget: float, costs: Array, proof: str) -> SolverError:
    base = float(problem.cost(problem.num_levels - 1))
    below, above = costs[costs < problem.lowest], costs[costs > problem.highest]
    nearest = (round(below.max()) if len(below) else None, round(above.min()) if len(above) else None)
    said = " and ".join(f"{macs / base:.4f}" for macs in nearest if macs is not None)
    message = (
        f"prune.budget: no legal widths cost between {problem.lowest / base:.4f} and {budget:.4f} of the model's MACs; "
        f"the nearest costs that can be reached are {said} ({proof})"
    )
    return SolverError(message, nearest, proof)


def _lagrangian(problem: Problem) -> Array:
    """Levels [S, A] that maximise value - multiplier * cost one axis at a time, for many multipliers and starts.

    Negative multipliers serve projections of proposals that are too small. Around the multiplier where the cost
    crosses the budget the grid is refined, from each start by itself.
    """
    span = problem.values[:, 0] - problem.values.max(axis=1)
    scale = max(float(np.abs(span).sum()), 1e-300) / float(problem.cost(problem.num_levels - 1))
    grid = scale * np.geomspace(1e-3, 1e3, 33)
    grid = np.concatenate([-grid[::-1], [0.0], grid])  # [S], ascending: costs fall along it
    found = []
    for share in (0.0, 0.5, 1.0):
        start = np.round(share * (problem.num_levels - 1)).astype(np.int64)
        multipliers = grid
        for _ in range(4):
            states = _ascend(problem, np.tile(start, (len(multipliers), 1)), multipliers)
            found.append(states)
            crossing = int(np.count_nonzero(problem.cost(states) > problem.highest))
            lower, upper = max(crossing - 1, 0), min(crossing, len(multipliers) - 1)
            multipliers = np.linspace(multipliers[lower], multipliers[upper], 17)
        found.append(start[None])
    return np.unique(np.concatenate(found), axis=0)


def _ascend(problem: Problem, states: Array, multipliers: Array, sweeps: int = 12) -> Array:
    """Coordinate ascent of all states [S, A] at once, each with its own multiplier [S]."""
    states = states.copy()
    widths = problem.take(states)  # [S, A]
    slopes = problem.linear + widths @ problem.bilinear  # [S, A], d cost / d width
    for _ in range(sweeps):
        before = states.copy()
        for a, row in enumerate(problem.widths):
            own = problem.bilinear[a, a]
            slope = slopes[:, a] - own * widths[:, a]  # [S], without the axis's own quadratic part
            costs = slope[:, None] * row + 0.5 * own * row**2  # [S, L]
            levels = (problem.values[a] - multipliers[:, None] * costs).argmax(axis=1)  # [S]
            moved = row[levels] - widths[:, a]  # [S]
            states[:, a], widths[:, a] = levels, row[levels]
            slopes += moved[:, None] * problem.bilinear[a]
        if (states == before).all():
            break
    return states
