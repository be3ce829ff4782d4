"""The solver against brute force, on random problems small enough to enumerate."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisewise.errors import SettingError
from noisewise.pruning import solver
from noisewise.pruning.solver import SolverError, project, solve

Widths = dict[str, tuple[int, ...]]
BUDGETS = (0.95, 0.8, 0.65, 0.5, 0.3)


@dataclass(frozen=True)
class Form:
    constant: float
    linear: np.ndarray
    bilinear: np.ndarray

    def macs(self, widths: dict[str, int]) -> float:
        w = np.array(list(widths.values()), dtype=np.float64)
        return float(self.constant + self.linear @ w + 0.5 * w @ self.bilinear @ w)


def random_problem(seed: int, num_axes: int, most_levels: int) -> tuple[Form, Widths, dict[str, list[float]]]:
    """A third of the axes are streams that the others read and write, as in a U-Net; or any pair may be coupled."""
    rng = np.random.default_rng(seed)
    units, levels = rng.integers(1, 9, num_axes), rng.integers(2, most_levels + 1, num_axes)
    widths = {f"a{i}": tuple(int(units[i]) * (k + 1) for k in range(levels[i])) for i in range(num_axes)}
    bilinear, linear = np.zeros((num_axes, num_axes)), rng.integers(0, 500, num_axes).astype(np.float64)
    streams = max(num_axes // 3, 1)
    if seed % 2:
        for i in range(streams, num_axes):
            j, area = rng.integers(streams), 9 * int(rng.integers(1, 10)) * 4 ** int(rng.integers(0, 4))
            bilinear[i, j] += 2 * area
            bilinear[j, i] += 2 * area
        bilinear[np.arange(streams), np.arange(streams)] += 2 * rng.integers(1, 50, streams)
    else:
        upper = np.triu(rng.integers(0, 50, (num_axes, num_axes)) * (rng.random((num_axes, num_axes)) < 0.5))
        bilinear = (upper + upper.T).astype(np.float64)
    values = {}
    for i, (name, legal) in enumerate(widths.items()):
        scores = rng.random(len(legal)) ** (1 + seed % 4) * units[i] * 10 ** rng.uniform(-1, 1)
        values[name] = np.cumsum(np.sort(scores)[::-1]).tolist()
    return Form(float(rng.integers(0, 1000)), linear, bilinear), widths, values


def brute_force(form: Form, widths: Widths, values: dict[str, list[float]], budget: float) -> float | None:
    full = form.macs({name: legal[-1] for name, legal in widths.items()})
    best = None
    for levels in itertools.product(*[range(len(legal)) for legal in widths.values()]):
        chosen = {name: legal[k] for (name, legal), k in zip(widths.items(), levels, strict=True)}
        if 0.98 * budget * full <= form.macs(chosen) <= budget * full:
            value = sum(values[name][k] for name, k in zip(widths, levels, strict=True))
            best = value if best is None else max(best, value)
    return best


@pytest.mark.parametrize("exhaustive", [solver.EXHAUSTIVE, 0])
@pytest.mark.parametrize("seed", range(10))
def test_within_one_percent_of_the_optimum(seed: int, exhaustive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "EXHAUSTIVE", exhaustive)  # 0: the search that serves large networks
    form, widths, values = random_problem(seed, num_axes=4 + seed % 2, most_levels=5)
    full = form.macs({name: legal[-1] for name, legal in widths.items()})
    for budget in BUDGETS:
        optimum = brute_force(form, widths, values, budget)
        if optimum is None:
            with pytest.raises(SolverError):
                solve(form, widths, values, budget)
            continue
        solution = solve(form, widths, values, budget)
        assert solution.value >= 0.99 * optimum
        assert 0.98 * budget * full <= solution.macs <= budget * full
        assert solution.macs == form.macs(solution.widths)
        assert all(solution.widths[name] in legal for name, legal in widths.items())


def test_the_search_stays_near_the_enumerated_optimum_on_larger_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = []
    for seed in range(100, 116):
        problem = random_problem(seed, num_axes=7, most_levels=5)
        for budget in BUDGETS:
            monkeypatch.setattr(solver, "EXHAUSTIVE", 10**7)
            try:
                optimum = solve(*problem, budget).value
            except SolverError:
                continue
            monkeypatch.setattr(solver, "EXHAUSTIVE", 0)
            gaps.append(1 - solve(*problem, budget).value / optimum)
    assert len(gaps) > 50
    assert max(gaps) < 0.01


def test_same_question_same_answer() -> None:
    problem = random_problem(3, num_axes=12, most_levels=8)
    assert solve(*problem, 0.6) == solve(*problem, 0.6)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.3, 0.95))
def test_an_answer_is_legal_and_within_the_band(seed: int, budget: float) -> None:
    form, widths, values = random_problem(seed, num_axes=3 + seed % 9, most_levels=6)
    full = form.macs({name: legal[-1] for name, legal in widths.items()})
    try:
        solution = solve(form, widths, values, budget)
    except SolverError as error:
        below, above = error.reachable
        assert below is None or below < 0.98 * budget * full
        assert above is None or above > budget * full
        assert below is not None or above is not None
        return
    assert 0.98 * budget * full <= solution.macs <= budget * full
    assert all(solution.widths[name] in legal for name, legal in widths.items())


@pytest.mark.parametrize("exhaustive", [solver.EXHAUSTIVE, 0])
def test_a_refusal_names_the_nearest_costs(exhaustive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "EXHAUSTIVE", exhaustive)
    form = Form(0.0, np.array([10.0, 10.0]), np.zeros((2, 2)))
    widths, values = {"a": (5, 10), "b": (5, 10)}, {"a": [1.0, 2.0], "b": [1.0, 2.0]}
    with pytest.raises(SolverError, match=r"prune\.budget.*0\.5000 and 0\.7500") as refused:
        solve(form, widths, values, 0.6)
    assert refused.value.reachable == (100, 150)
    with pytest.raises(SolverError, match=r"0\.5000") as refused:
        solve(form, widths, values, 0.3)
    assert refused.value.reachable == (None, 100)


def test_projection_keeps_what_is_legal_and_moves_the_rest_least() -> None:
    form, widths, values = random_problem(5, num_axes=5, most_levels=5)
    inside = solve(form, widths, values, 0.7).widths
    solution, moved = project(form, widths, inside, 0.7)
    assert solution.widths == inside
    assert moved == 0

    proposal = {name: legal[0] for name, legal in widths.items()}  # far below the budget
    solution, moved = project(form, widths, proposal, 0.7)
    full = form.macs({name: legal[-1] for name, legal in widths.items()})

    def distance(levels: tuple[int, ...]) -> float:
        return sum((k / (len(legal) - 1)) ** 2 for k, legal in zip(levels, widths.values(), strict=True)) / len(widths)

    feasible = [
        distance(levels)
        for levels in itertools.product(*[range(len(legal)) for legal in widths.values()])
        if 0.98 * 0.7 * full
        <= form.macs({name: legal[k] for (name, legal), k in zip(widths.items(), levels, strict=True)})
        <= 0.7 * full
    ]
    assert moved == pytest.approx(min(feasible) ** 0.5)
    assert 0 < moved <= 1


def test_projection_of_a_large_problem_meets_the_budget_from_both_sides() -> None:
    form, widths, _ = random_problem(8, num_axes=20, most_levels=8)
    full = form.macs({name: legal[-1] for name, legal in widths.items()})
    for share in (0.05, 0.5, 1.0):
        proposal = {name: share * legal[-1] for name, legal in widths.items()}
        solution, _ = project(form, widths, proposal, 0.6)
        assert 0.98 * 0.6 * full <= solution.macs <= 0.6 * full


def test_known_widths_are_improved_on_where_the_search_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    form, widths, values = random_problem(5, num_axes=6, most_levels=5)
    known = solve(form, widths, {n: [0.0] * len(w) for n, w in widths.items()}, 0.7).widths
    monkeypatch.setattr(solver, "EXHAUSTIVE", 0)
    polish, calls = solver.polish, []

    def lost_at_first(problem, state, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(state)
        levels = [legal.index(known[name]) for name, legal in widths.items()]
        return polish(problem, state, **kwargs) if list(state) == levels else np.zeros_like(state)

    monkeypatch.setattr(solver, "polish", lost_at_first)
    solution = solve(form, widths, values, 0.7, known=known)
    worth = sum(values[name][legal.index(known[name])] for name, legal in widths.items())
    assert len(calls) > 1
    assert solution.value >= worth
    with pytest.raises(SolverError):
        solve(form, widths, values, 0.7)


@pytest.mark.parametrize("budget", [0.0, -0.2, 1.0, 1.3, float("nan")])
def test_budgets_that_are_none_are_refused(budget: float) -> None:
    with pytest.raises(SettingError, match=r"prune\.budget"):
        solve(*random_problem(1, 3, 3), budget)
