"""ANT's interval clustering (arXiv:2306.00354): recomputed cuts, and every small case against a search of all cuts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from noisewise.errors import SettingError
from noisewise.planning.intervals import (
    best_cuts,
    gradient_distances,
    interval_costs,
    size_range,
    value_distances,
)
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule

VP = NoiseSchedule.vp(0.1, 20.0, 1000)  # timestep i is t = (i + 1) / 1000


def cuts_of(plan: Plan) -> list[float]:
    """First t of every group but the first."""
    return [(group.t_start + 1) / 1000 for group in plan.groups[1:]]


def test_cuts_by_timestep() -> None:
    assert cuts_of(Plan.from_intervals(VP, "timestep", 3)) == pytest.approx([0.334, 0.667], abs=0.0011)


def test_cuts_by_snr() -> None:
    assert cuts_of(Plan.from_intervals(VP, "snr", 3)) == [0.348, 0.709]


def test_gradients_that_turn_twice_are_cut_where_they_turn() -> None:
    turns = np.repeat([0.0, 0.9, 2.0], [240, 400, 360]) + 1e-4 * np.arange(1000)
    gradients = np.stack([np.cos(turns), np.sin(turns)], axis=1)  # [1000, 2]
    plan = Plan.from_intervals(VP, "gradient", 3, gradients=gradients)
    assert [group.t_start for group in plan.groups] == [0, 240, 640]
    assert plan.settings["interval_cost"] == "gradient"
    # tensors of any shape, and fewer levels than timesteps: a cut lies halfway between two levels
    few = torch.from_numpy(gradients[::10]).reshape(100, 1, 2)
    plan = Plan.from_intervals(VP, "gradient", 3, gradients=few)
    assert plan.settings["num_levels"] == 100
    assert [group.t_start for group in plan.groups] == pytest.approx([0, 240, 640], abs=11)


def brute_force(distances: np.ndarray, k: int) -> float:
    """Least cost over every choice of cuts whose sizes are allowed, from the definition."""
    n = len(distances)
    least, most = max(n // (2 * k), 1), int(np.ceil(3 * n / (2 * k)))
    costs = []
    for cuts in itertools.combinations(range(1, n), k - 1):
        groups = list(itertools.pairwise([0, *cuts, n]))
        if all(least <= stop - start <= most for start, stop in groups):
            costs.append(sum(distances[(a + b - 1) // 2, a:b].sum() for a, b in groups))
    return float(min(costs))


@pytest.mark.parametrize(("n", "k"), [(7, 1), (8, 2), (11, 3), (13, 4), (9, 7), (10, 10)])
def test_no_choice_of_cuts_is_better(n: int, k: int) -> None:
    rng = np.random.default_rng(n * 100 + k)
    for distances in (value_distances(np.sort(rng.normal(size=n))), gradient_distances(rng.normal(size=(n, 3)))):
        cuts = best_cuts(interval_costs(distances), k, size_range(n, k))
        groups = list(itertools.pairwise([0, *cuts, n]))
        assert len(groups) == k
        assert all(size_range(n, k)[0] <= b - a <= size_range(n, k)[1] for a, b in groups)
        cost = sum(distances[(a + b - 1) // 2, a:b].sum() for a, b in groups)
        assert cost == pytest.approx(brute_force(distances, k))


def test_checkpoints_average_their_cosines() -> None:
    rng = np.random.default_rng(0)
    checkpoints = [rng.normal(size=(6, 5)) * scale for scale in (1.0, 100.0)]
    cosines = np.mean([-gradient_distances(g) for g in checkpoints], axis=0)
    unit = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in checkpoints]
    assert -gradient_distances(np.concatenate(unit, axis=1)) == pytest.approx(cosines)


def test_continuous_coordinates() -> None:
    edm = Plan.from_intervals(NoiseSchedule.edm(0.01, 100.0, 600), "timestep", 4)
    assert [g.t_start for g in edm.groups] == pytest.approx([0.01, 0.1, 1, 10], rel=0.04)
    snr = Plan.from_intervals(NoiseSchedule.edm(0.01, 100.0, 600), "snr", 4)
    assert [g.t_start for g in snr.groups] == pytest.approx([g.t_start for g in edm.groups], rel=1e-9)
    flow = Plan.from_intervals(NoiseSchedule.flow(400), "snr", 3)
    assert any("infinite SNR" in note for note in flow.notes)
    assert flow.groups[1].t_start == pytest.approx(1 - flow.groups[1].t_stop, abs=0.01)  # log SNR is odd around 1/2


def test_costs_are_a_separate_matter() -> None:
    free = Plan.from_intervals(VP, "snr", 3)
    assert [g.cost_limit for g in free.groups] == [1, 1, 1]
    paid = Plan.from_intervals(VP, "snr", 3, min_cost=0.4, big_model_at="data", average_cost=0.6)
    assert [g.t_start for g in paid.groups] == [g.t_start for g in free.groups]
    assert paid.groups[0].cost_limit > paid.groups[1].cost_limit > paid.groups[2].cost_limit
    assert paid.average_cost == pytest.approx(0.6)
    clipped = Plan.from_intervals(VP, "snr", 3, min_cost=0.4, clip_db=10)
    assert [g.t_start for g in clipped.groups] == [g.t_start for g in free.groups]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cost": "sigma"}, "plan.interval_cost: 'sigma' is not one of timestep, snr, gradient"),
        ({"num_groups": 0}, "plan.num_groups: 0"),
        ({"num_groups": 1001}, "plan.num_groups: 1001 intervals cannot be cut from 1000"),
        ({"cost": "gradient"}, "plan.gradients: missing"),
        ({"gradients": np.ones((5, 2))}, "plan.gradients: given, but plan.interval_cost is timestep"),
        ({"cost": "gradient", "gradients": np.eye(5, 4)}, r"plan.gradients: 5 gradients, of which \[4\] are zero"),
        ({"cost": "gradient", "gradients": np.ones((2, 4))}, "plan.gradients: 2 is not a number of noise levels"),
        ({"cost": "gradient", "gradients": np.ones((1001, 1))}, "plan.gradients: 1001 is not a number of noise levels"),
    ],
)
def test_mistakes_get_one_line(given: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        Plan.from_intervals(VP, **given)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
