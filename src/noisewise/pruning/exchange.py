"""The solver's lattice of legal widths: cost and value of a choice of levels, enumeration, and local search.

Shapes: A = axes, L = the most levels of any axis, M = moves of one axis, [...] = any number of choices at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Array = np.ndarray
Maximise = Literal["value", "cost", "-cost"]

MOST_MOVES = 1200  # pairs of these are tried at once: about 10 MB per array
MOST_MOVES_IN_THREES = 120


@dataclass(frozen=True)
class Problem:
    """Levels to choose per axis, what each is worth, the cost form, and the band that the cost must lie in."""

    widths: Array  # [A, L], rows padded with their last width
    values: Array  # [A, L], -inf where padded
    num_levels: Array  # [A]
    constant: float
    linear: Array  # [A]
    bilinear: Array  # [A, A], symmetric
    lowest: float
    highest: float

    def within(self, lowest: float, highest: float) -> Problem:
        return replace(self, lowest=lowest, highest=highest)

    def take(self, states: Array) -> Array:
        """Widths [..., A] of levels [..., A]."""
        return self.widths[np.arange(len(self.widths)), states]

    def value(self, states: Array) -> Array:
        """[...]"""
        return self.values[np.arange(len(self.widths)), states].sum(axis=-1)

    def cost(self, states: Array) -> Array:
        """c + l.w + 1/2 w.B.w: [...]"""
        w = self.take(states)
        return self.constant + w @ self.linear + 0.5 * ((w @ self.bilinear) * w).sum(axis=-1)

    def violation(self, costs: Array | float) -> Array:
        """How far costs lie outside the band: [...]"""
        return np.maximum(np.maximum(self.lowest - costs, costs - self.highest), 0.0)


def enumerate_all(problem: Problem) -> tuple[Array, Array]:
    """Every choice of levels [S, A] and its cost [S]."""
    grids = np.meshgrid(*[np.arange(n) for n in problem.num_levels], indexing="ij")
    states = np.stack([grid.ravel() for grid in grids], axis=1)
    return states, problem.cost(states)


def polish(problem: Problem, state: Array, maximise: Maximise = "value", most_rounds: int = 400) -> Array:
    """Change one or two axes at a time, always by the best such move, until none helps.

    Outside the band, "best" is the least violation; inside, the most value (or cost, or minus cost). Once stuck, small
    problems try three axes at a time.
    """
    for _ in range(most_rounds):
        after = _best_pair(problem, state, maximise)
        if after is None:
            after = _best_triple(problem, state, maximise)
        if after is None:
            return state
        state = after
    return state


@dataclass(frozen=True)
class _Moves:
    """Changes of one axis by itself; the first is no change."""

    axes: Array  # [M]
    levels: Array  # [M]
    steps: Array  # [M], channels gained
    costs: Array  # [M], cost gained
    values: Array  # [M], value gained


def _moves(problem: Problem, state: Array, most: int) -> _Moves:
    """All moves from ``state``, or those to the nearest levels where there are too many."""
    reach = max((most // len(state)) // 2, 1)
    level = np.arange(problem.widths.shape[1])  # [L]
    near = (np.abs(level - state[:, None]) <= reach) | (problem.num_levels.sum() <= most)
    axes, levels = np.nonzero(near & (level < problem.num_levels[:, None]) & (level != state[:, None]))
    axes, levels = np.append(0, axes), np.append(state[0], levels)
    w = problem.take(state)
    slopes = problem.linear + problem.bilinear @ w  # [A]
    steps = problem.widths[axes, levels] - w[axes]
    costs = steps * slopes[axes] + 0.5 * problem.bilinear[axes, axes] * steps**2
    values = problem.values[axes, levels] - problem.values[axes, state[axes]]
    return _Moves(axes, levels, steps, costs, values)


def _best_pair(problem: Problem, state: Array, maximise: Maximise, most: int = MOST_MOVES) -> Array | None:
    """``state`` after its best move of at most two axes; None where no move improves it."""
    m = _moves(problem, state, most)
    cost = float(problem.cost(state))
    coupling = m.steps[:, None] * m.steps * problem.bilinear[np.ix_(m.axes, m.axes)]  # [M, M]
    gained = m.costs[:, None] + m.costs + coupling
    violations = problem.violation(cost + gained)
    same = m.axes[:, None] == m.axes
    same[0] = same[:, 0] = False  # the move that changes nothing combines with all
    feasible = (violations == 0) & ~same
    if feasible.any():
        gains = {"value": m.values[:, None] + m.values, "cost": gained, "-cost": -gained}[maximise]
        gains = np.where(feasible, gains, -np.inf)
        best = int(gains.argmax())
        if problem.violation(cost) == 0 and not gains.flat[best] > 1e-9 * _scale(problem, maximise):
            return None
    else:
        best = int(np.where(same, np.inf, violations).argmin())
        if not violations.flat[best] < problem.violation(cost):
            return None
    after = state.copy()
    for move in np.unravel_index(best, feasible.shape):
        if move:
            after[m.axes[move]] = m.levels[move]
    return after


def _best_triple(problem: Problem, state: Array, maximise: Maximise) -> Array | None:
    """As `_best_pair` after each possible first move; None where there are too many or none helps."""
    if problem.num_levels.sum() > MOST_MOVES_IN_THREES:
        return None
    m = _moves(problem, state, MOST_MOVES_IN_THREES)
    now = _rank(problem, state, maximise)
    for axis, level in zip(m.axes[1:], m.levels[1:], strict=True):
        first = state.copy()
        first[axis] = level
        after = _best_pair(problem, first, maximise)
        if after is not None and _rank(problem, after, maximise) > now:
            return after
    return None


def _rank(problem: Problem, state: Array, maximise: Maximise) -> tuple[float, float]:
    """Less violation first, then more of what is maximised, beyond rounding."""
    cost = float(problem.cost(state))
    worth = {"value": float(problem.value(state)), "cost": cost, "-cost": -cost}[maximise]
    return -float(problem.violation(cost)), round(worth / _scale(problem, maximise), 9)


def _scale(problem: Problem, maximise: Maximise) -> float:
    if maximise != "value":
        return max(float(problem.cost(problem.num_levels - 1)), 1.0)
    finite = np.where(np.isfinite(problem.values), problem.values, 0.0)
    return max(float(np.abs(finite).max(axis=1).sum()), 1e-300)
