"""Plans from one noise schedule to another by noise level, and plans of given bounds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from diffusers import DDIMScheduler
from hypothesis import given
from plan_strategies import LINEAR, plans, quick, schedules

from noisewise.errors import SettingError
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule


def test_a_plan_moves_by_noise_level() -> None:
    vp = NoiseSchedule.vp(0.1, 20.0, 1000)
    plan = Plan.from_bounds(vp, [441, 630], 0.3, "data")  # t = 0.442 and 0.631
    edm = plan.to(NoiseSchedule.edm())
    assert [g.t_start for g in edm.groups[1:]] == pytest.approx([2.5103, 7.4141], abs=5e-4)
    assert [g.cost_limit for g in edm.groups] == [g.cost_limit for g in plan.groups]
    flow = edm.to(NoiseSchedule.flow())
    assert [g.t_start / (1 - g.t_start) for g in flow.groups[1:]] == pytest.approx([2.5103, 7.4141], abs=5e-4)
    assert [g.t_start for g in flow.to(vp).groups] == [0, 441, 630]
    assert flow.to(vp).settings["moved_from"] == vp.to_dict()

    linear = plan.to(DDIMScheduler())
    for before, after in zip(plan.groups[1:], linear.groups[1:], strict=True):
        snr_db = vp.snr_db(before.t_start)
        assert LINEAR.snr_db(after.t_start) <= snr_db < LINEAR.snr_db(after.t_start - 1)
    assert any("moved from vp (timestep) to vp by noise level" in note for note in linear.notes)
    assert Plan.from_dict(json.loads(json.dumps(edm.to_dict()))) == edm
    assert np.array(edm.difficulty()["cost"]) == pytest.approx(edm.difficulty()["cost_limit"])


@given(plan=plans, schedule=schedules)
@quick
def test_moving_keeps_every_noise_level_in_its_group(plan: Plan, schedule: NoiseSchedule) -> None:
    moved = plan.to(schedule)
    levels = schedule.grid().astype(np.float64)
    snr_db = schedule.snr_db(levels)
    inside = (snr_db < plan.schedule.snr_db(float(plan.schedule.grid()[0])) - 1e-6) & (
        snr_db > plan.schedule.snr_db(float(plan.schedule.grid()[-1])) + 1e-6
    )
    there = plan.schedule.coordinate_at_snr(snr_db)
    bounds = np.array([g.t_start for g in plan.groups[1:]] or [-1.0])
    clear = inside & (np.abs(there[:, None] - bounds).min(axis=1) > 1e-5 * np.maximum(there, 1))
    assert moved.group_of(levels[clear]).tolist() == plan.group_of(there[clear]).tolist()
    assert [g.cost_limit for g in moved.groups] == [g.cost_limit for g in plan.groups]


def test_groups_beyond_the_new_schedules_levels_become_empty() -> None:
    plan = Plan.from_bounds(NoiseSchedule.edm(0.002, 80), [0.01, 1.0, 50.0])
    narrow = plan.to(NoiseSchedule.edm(0.1, 10.0))
    assert [g.is_empty for g in narrow.groups] == [True, False, False, True]
    assert sum(g.num_timesteps for g in narrow.groups) == 1000
    assert any("groups 0, 3 are empty" in note for note in narrow.notes)
    timesteps = plan.to(NoiseSchedule.from_alphas_cumprod(np.linspace(0.99, 0.01, 50)))
    assert [g.is_empty for g in timesteps.groups] == [True, False, False, True]


def test_given_bounds() -> None:
    plan = Plan.from_bounds(LINEAR, [442, 631])
    assert [(g.t_start, g.t_stop, g.cost_limit) for g in plan.groups] == [(0, 442, 1), (442, 631, 1), (631, 1000, 1)]
    assert Plan.from_bounds(LINEAR, [442, 631], 0.4, "data").groups[0].cost_limit == pytest.approx(1)
    for bounds in ([631, 442], [0, 500], [500, 1000], [5.1, 5.9]):
        with pytest.raises(SettingError, match=r"plan.bounds: \["):
            Plan.from_bounds(LINEAR, bounds)
