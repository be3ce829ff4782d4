"""Plans: properties of the groups, routing, settings, JSON and what is printed."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler
from hypothesis import given
from plan_strategies import COSINE, COST_SCHEDULES, LINEAR, plans, quick

from noisewise.errors import SettingError
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule


@given(plan=plans)
@quick
def test_groups_cover_the_range_once_in_order(plan: Plan) -> None:
    start, stop = plan.schedule.span
    assert [g.index for g in plan.groups] == list(range(len(plan.groups)))
    assert plan.groups[0].t_start == start
    assert plan.groups[-1].t_stop == stop
    assert [g.t_start for g in plan.groups[1:]] == [g.t_stop for g in plan.groups[:-1]]
    assert all(g.t_start <= g.t_stop and g.is_empty == (g.t_start == g.t_stop) for g in plan.groups)
    assert sum(g.num_timesteps for g in plan.groups) == plan.num_train_timesteps
    if plan.coordinate == "timestep":
        assert all(type(g.t_start) is int and g.num_timesteps == g.t_stop - g.t_start for g in plan.groups)
        empty = [g.index for g in plan.groups if g.is_empty]
        assert bool(empty) == any("empty" in note for note in plan.notes)


@given(plan=plans)
@quick
def test_limits_hold_at_every_noise_level(plan: Plan) -> None:
    curves = plan.difficulty()
    assert {len(values) for values in curves.values()} == {plan.num_train_timesteps}
    assert (np.array(curves["cost"]) <= np.array(curves["cost_limit"]) + 1e-9).all()
    assert all(0 < g.cost_limit <= 1 for g in plan.groups)
    assert np.isfinite(list(curves.values())).all()
    if plan.settings["average_cost"] is not None:
        assert plan.average_cost == pytest.approx(plan.settings["average_cost"])


@given(plan=plans)
@quick
def test_group_of_agrees_with_the_ranges(plan: Plan) -> None:
    grid = plan.schedule.grid()
    expected = np.repeat(range(len(plan.groups)), [g.num_timesteps for g in plan.groups])
    assert [plan.group_of(t) for t in grid.tolist()] == expected.tolist()
    assert np.array_equal(plan.group_of(grid), expected)
    assert torch.equal(plan.group_of(torch.from_numpy(grid)), torch.from_numpy(expected))
    assert [plan.group_of(torch.tensor(t, dtype=torch.float64)).item() for t in grid[:5].tolist()] == list(expected[:5])

    filled = [g for g in plan.groups if not g.is_empty]
    for before, group in itertools.pairwise(filled):
        assert plan.group_of(group.t_start) == group.index  # half-open
        assert plan.group_of(math.nextafter(group.t_start, -math.inf)) == before.index
    assert plan.group_of(-math.inf) == filled[0].index
    assert plan.group_of(math.inf) == filled[-1].index
    middles = np.array([(g.t_start + g.t_stop) / 2 for g in filled])
    assert plan.group_of_model_timestep(plan.schedule.to_model_timestep(middles)).tolist() == [g.index for g in filled]


@given(plan=plans)
@quick
def test_json_round_trip(plan: Plan) -> None:
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False)))
    assert again == plan
    assert again.difficulty() == plan.difficulty()


def test_fractional_times_belong_to_the_group_they_lie_in() -> None:
    plan = Plan.from_snr(LINEAR, 4)
    edge = plan.groups[1].t_start
    assert plan.group_of(edge - 0.001) == 0
    assert plan.group_of(float(edge)) == 1
    assert plan.group_of(1000) == plan.group_of(10**9) == 3
    assert plan.group_of(-1) == 0
    assert plan.group_of(np.int64(edge)) == plan.group_of(np.float32(edge)) == 1


def test_tensors_keep_shape_and_become_int64() -> None:
    plan = Plan.from_snr(COSINE, 10)
    for t in (torch.tensor([[0], [999]]), torch.tensor(998.5), torch.tensor([500], dtype=torch.float16)):
        groups = plan.group_of(t)
        assert groups.shape == t.shape
        assert groups.dtype == torch.int64
    group = plan.group_of(torch.tensor(0))
    group += 5  # what comes back is the caller's
    assert plan.group_of(torch.tensor(0)).item() == 0
    with pytest.raises(SettingError, match="timestep: str is not a number"):
        plan.group_of("5")  # type: ignore[call-overload]


def test_empty_groups_are_never_returned() -> None:
    plan = Plan.from_snr(COSINE, 10)
    assert plan.groups[8].is_empty
    assert set(plan.group_of(np.arange(-5, 1005)).tolist()) == {0, 1, 2, 3, 4, 5, 6, 7, 9}


def test_direction_turns_the_limits_around_and_not_only_them() -> None:
    noise, data = Plan.from_snr(LINEAR, 5, 0.4), Plan.from_snr(LINEAR, 5, 0.4, "data")
    assert [g.cost_limit for g in noise.groups] == [g.cost_limit for g in data.groups][::-1]
    assert noise.groups[-1].cost_limit == data.groups[0].cost_limit == 1
    assert np.array(noise.difficulty()["cost"]) + data.difficulty()["cost"] == pytest.approx(1.4)


@pytest.mark.parametrize("make", [Plan.from_snr, Plan.equal_width])
def test_cost_schedules_differ_in_limits_alone(make: Any) -> None:
    plans = {name: make(LINEAR, 6, 0.5, cost_schedule=name) for name in COST_SCHEDULES}
    bounds = {name: [g.t_start for g in plan.groups] for name, plan in plans.items()}
    limits = {name: [g.cost_limit for g in plan.groups] for name, plan in plans.items()}

    assert len({tuple(b) for b in bounds.values()}) == 1
    assert len(set(limits["constant"])) == 1
    assert plans["constant"].average_cost == pytest.approx(plans["snr"].average_cost)
    assert limits["increasing"] == sorted(limits["increasing"])
    assert limits["increasing"][-1] == 1
    assert limits["decreasing"] == sorted(limits["decreasing"], reverse=True)
    assert limits["decreasing"][0] == 1
    # linear in t: the limit is the cost at the group's last (first) timestep
    last, first = plans["increasing"].groups[2].t_stop - 1, plans["decreasing"].groups[2].t_start
    assert limits["increasing"][2] == pytest.approx(0.5 + 0.5 * last / 999)
    assert limits["decreasing"][2] == pytest.approx(1 - 0.5 * first / 999)


@pytest.mark.parametrize("average_cost", [0.5, 0.8, 0.9, 1.0])
def test_matched_average_keeps_groups_and_order_and_says_how(average_cost: float) -> None:
    for name in COST_SCHEDULES:
        free = Plan.from_snr(LINEAR, 8, 0.5, cost_schedule=name)  # type: ignore[arg-type]
        plan = Plan.from_snr(LINEAR, 8, 0.5, cost_schedule=name, average_cost=average_cost)  # type: ignore[arg-type]
        assert plan.average_cost == pytest.approx(average_cost)
        assert [g.t_start for g in plan.groups] == [g.t_start for g in free.groups]
        if average_cost < 1:
            order = np.argsort([g.cost_limit for g in free.groups], kind="stable")
            assert (np.diff(np.array([g.cost_limit for g in plan.groups])[order]) >= -1e-12).all()
        assert any("for an average of" in note for note in plan.notes)


def test_equal_width() -> None:
    assert [g.t_start for g in Plan.equal_width(LINEAR, 4).groups] == [0, 250, 500, 750]
    assert [g.num_timesteps for g in Plan.equal_width(LINEAR, 3).groups] == [333, 333, 334]
    edm = Plan.equal_width(NoiseSchedule.edm(0.01, 100.0), 4)
    assert [g.t_start for g in edm.groups] == pytest.approx([0.01, 0.1, 1, 10])
    flow = Plan.equal_width(NoiseSchedule.flow(shift=3.0), 4)
    assert [g.t_start for g in flow.groups] == [0, 0.25, 0.5, 0.75]
    # the limit is the largest cost in the group
    plan = Plan.equal_width(LINEAR, 4)
    assert plan.groups[1].cost_limit == pytest.approx(plan.difficulty()["cost"][499])


def test_snr_groups_of_sigma_are_equal_in_its_logarithm() -> None:
    plan = Plan.from_snr(NoiseSchedule.edm(0.01, 100.0, num_train_timesteps=37), 4)
    assert [g.t_start for g in plan.groups] == pytest.approx([0.01, 0.1, 1, 10])
    assert plan.coordinate == "sigma"


def test_single() -> None:
    plan = Plan.single(NoiseSchedule.flow())
    assert [(g.t_start, g.t_stop, g.cost_limit) for g in plan.groups] == [(0, 1, 1)]
    assert plan.average_cost == 1
    assert plan.group_of(0.3) == 0
    assert set(plan.difficulty()["cost"]) == {1.0}
    assert Plan.from_dict(plan.to_dict()) == plan


def test_range_over_visited_timesteps() -> None:
    visited = COSINE.visited(DDIMScheduler(beta_schedule="squaredcos_cap_v2"), 20)  # 950 .. 0
    plan = Plan.from_snr(COSINE, 5, snr_range="visited", visited=visited)
    low, high = plan.settings["snr_db_range"]

    assert (low, high) == (pytest.approx(COSINE.snr_db(950)), pytest.approx(COSINE.snr_db(0)))
    assert plan.difficulty()["cost"][950] == plan.difficulty()["cost"][999] == pytest.approx(1)
    assert "SNR at 49 timesteps is clipped" in plan.notes[0]
    assert "sampling visits" in plan.notes[0]
    assert not any(g.is_empty for g in plan.groups)
    assert plan.average_cost > Plan.from_snr(COSINE, 5).average_cost


def test_clipping_is_said() -> None:
    plan = Plan.from_snr(COSINE, 4, clip_db=26.06)  # +-6 in the logarithm
    assert [g.num_timesteps for g in plan.groups] == [133, 363, 363, 141]
    assert any("plan.clip_db" in note for note in plan.notes)
    assert plan.settings["clip_db"] == [-26.06, 26.06]
    assert Plan.from_snr(COSINE, 4, clip_db=(-26.06, 26.06)) == plan


def test_infinite_snr_is_clipped_and_said() -> None:
    plan = Plan.from_snr(NoiseSchedule.flow(100), 4)
    assert plan.notes == ["infinite SNR at 1 timestep is clipped to -39.9 dB"]
    assert plan.settings["snr_db_range"][0] == pytest.approx(20 * math.log10(0.01 / 0.99))


def test_more_groups_than_timesteps() -> None:
    plan = Plan.from_snr(NoiseSchedule.from_betas([0.1, 0.2, 0.3]), 7)
    assert [g.index for g in plan.groups if not g.is_empty] == sorted(set(plan.group_of(np.arange(3)).tolist()))
    assert "are empty" in plan.notes[-1]


def test_routes() -> None:
    plan = Plan.from_snr(LINEAR, 4, 0.5)
    table = plan.routes(DDIMScheduler(), 10, costs=[1, 2, 4, 8])
    assert [route.t for route in table.steps] == list(range(900, -1, -100))
    assert [route.group for route in table.steps] == [plan.group_of(t) for t in range(900, -1, -100)]
    assert table.total == sum([1, 2, 4, 8][route.group] for route in table.steps) == table.mean * 10
    assert sum(table.calls.values()) == 10
    assert json.loads(json.dumps(table.to_list()))[0] == {"step": 0, "t": 900, "group": 3, "cost": 8.0}
    assert "10 calls" in table.table()
    assert len(table.table().splitlines()) == 2 + len(table.calls)

    heun = HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02)
    assert len(plan.routes(heun, 10).steps) == 19
    assert plan.routes(heun, 10).steps[0].cost == plan.groups[3].cost_limit


def test_routes_want_a_cost_for_each_visited_group() -> None:
    plan = Plan.from_snr(COSINE, 10)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    costs: list[float | None] = [1.0] * 10
    costs[8] = None  # empty
    assert plan.routes(scheduler, 10, costs).total == 10
    costs[2] = None
    with pytest.raises(SettingError, match="group 2 serves t = "):
        plan.routes(scheduler, 10, costs)
    with pytest.raises(SettingError, match="3 costs for 10 groups"):
        plan.routes(scheduler, 10, [1, 2, 3])


def test_check_schedule() -> None:
    plan = Plan.from_snr(LINEAR, 3)
    plan.check_schedule(LINEAR)
    plan.check_schedule(DDIMScheduler())
    for other in (NoiseSchedule.named("linear", 500), DDIMScheduler(num_train_timesteps=500)):
        with pytest.raises(SettingError, match=r"plan.schedule.num_train_timesteps: made for 1000, given 500"):
            plan.check_schedule(other)
    with pytest.raises(SettingError, match=r"plan.schedule.kind"):
        plan.check_schedule(NoiseSchedule.edm())


def test_data_of_another_size_is_refused() -> None:
    plan = Plan.from_bounds(LINEAR, [442, 631])
    plan.check_data((3, 32, 32))  # this plan knows no data
    of_data = Plan(plan.schedule, plan.groups, {"data": {"name": "digits", "shape": [1, 8, 8]}})
    of_data.check_data((1, 8, 8))
    with pytest.raises(SettingError, match=r"made from digits, images of 1x8x8 .*; these are 1x16x16"):
        of_data.check_data((1, 16, 16))


def test_table() -> None:
    text = Plan.from_snr(COSINE, 10).table()
    lines = text.splitlines()
    assert len(lines) == 1 + 10 + 1 + 1
    assert "timestep" in lines[0]
    assert "12 .. 74" in lines[2]
    assert "empty" in lines[9]
    assert "average cost limit 0.6952" in text
    assert lines[-1].startswith("note: group 8 is empty")


def test_save_and_load(tmp_path: Path) -> None:
    plan = Plan.from_snr(LINEAR, 4, average_cost=0.7)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert (tmp_path / "plan.json").stat().st_size < 4000

    values = plan.to_dict()
    values["groups"][1]["t_start"] += 1
    with pytest.raises(SettingError, match=r"plan.groups.1"):
        Plan.from_dict(values)
    for broken in ({}, {**plan.to_dict(), "format": 9}, {**plan.to_dict(), "num_train_timesteps": 5}, []):
        with pytest.raises(SettingError, match="plan"):
            Plan.from_dict(broken)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="does not exist"):
        Plan.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"num_groups": 0}, "plan.num_groups: 0"),
        ({"num_groups": 2.5}, "plan.num_groups: 2.5"),
        ({"min_cost": 0.0}, "plan.min_cost: 0.0"),
        ({"min_cost": 1.2}, "plan.min_cost: 1.2"),
        ({"big_model_at": "middle"}, "plan.big_model_at: 'middle' is not one of noise, data"),
        ({"cost_schedule": "flat"}, "plan.cost_schedule: 'flat' is not one of snr, constant, increasing, decreasing"),
        ({"average_cost": 1.1}, "plan.average_cost: 1.1"),
        ({"snr_range": "some"}, "plan.snr_range: 'some'"),
        ({"snr_range": "visited"}, "plan.visited: missing"),
        ({"visited": [1, 2]}, "plan.visited: given, but plan.snr_range is all"),
        ({"snr_range": "visited", "visited": [5]}, "all noise levels have the same SNR"),
        ({"clip_db": -3.0}, "plan.clip_db: -3.0"),
        ({"clip_db": (1.0, 2.0, 3.0)}, "plan.clip_db"),
        ({"clip_db": (60.0, 70.0)}, "plan"),
    ],
)
def test_mistakes_get_one_line(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        Plan.from_snr(LINEAR, **given_)
    assert "\n" not in str(error.value)
