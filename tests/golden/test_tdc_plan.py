"""Groups and costs recomputed from the formulas of TDC training (arXiv:2312.13307), Eq. 2 to 5."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import DDPMScheduler

from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule

LINEAR_SIZES = [4, 13, 35, 87, 164, 190, 160, 132, 114, 101]
LINEAR_STARTS = [0, 4, 17, 52, 139, 303, 493, 653, 785, 899]
COSINE_SIZES = [12, 62, 251, 435, 183, 44, 10, 2, 0, 1]


@pytest.mark.parametrize("schedule", [NoiseSchedule.named("linear"), NoiseSchedule.from_scheduler(DDPMScheduler())])
def test_linear_schedule(schedule: NoiseSchedule) -> None:
    plan = Plan.from_snr(schedule, num_groups=10, min_cost=0.5, big_model_at="noise")

    assert [g.num_timesteps for g in plan.groups] == LINEAR_SIZES
    assert [g.t_start for g in plan.groups] == LINEAR_STARTS
    assert [g.t_stop for g in plan.groups] == [*LINEAR_STARTS[1:], 1000]
    assert [g.cost_limit for g in plan.groups] == pytest.approx(np.arange(0.55, 1.01, 0.05))
    assert plan.average_cost == pytest.approx(0.8327, abs=1e-4)
    assert np.mean(plan.difficulty()["cost"]) == pytest.approx(0.8081, abs=5e-5)
    assert plan.notes == []


def test_the_schedulers_own_float32_gives_the_same_groups() -> None:
    schedule = NoiseSchedule.from_alphas_cumprod(DDPMScheduler().alphas_cumprod.double().numpy())
    assert [g.num_timesteps for g in Plan.from_snr(schedule).groups] == LINEAR_SIZES


@pytest.mark.parametrize(
    "schedule",
    [NoiseSchedule.named("cosine"), NoiseSchedule.from_scheduler(DDPMScheduler(beta_schedule="squaredcos_cap_v2"))],
)
def test_cosine_schedule_has_an_empty_group(schedule: NoiseSchedule) -> None:
    plan = Plan.from_snr(schedule, num_groups=10, min_cost=0.5, big_model_at="noise")

    assert [g.num_timesteps for g in plan.groups] == COSINE_SIZES
    assert [g.index for g in plan.groups if g.is_empty] == [8]
    assert any("group 8 is empty" in note for note in plan.notes)
    assert schedule.snr_db(999) == pytest.approx(-86, abs=0.5)
    assert NoiseSchedule.named("cosine", 4000).snr_db(3999) == pytest.approx(-98, abs=0.5)


def test_mean_cost_of_both_directions() -> None:
    def mean_cost(name: str, big_model_at: str) -> float:
        plan = Plan.from_snr(NoiseSchedule.named(name), 10, 0.5, big_model_at)  # type: ignore[arg-type]
        return float(np.mean(plan.difficulty()["cost"]))

    assert mean_cost("cosine", "noise") == pytest.approx(0.670, abs=5e-4)
    assert mean_cost("cosine", "data") == pytest.approx(0.830, abs=5e-4)
    assert mean_cost("linear", "data") == pytest.approx(1.5 - 0.8081, abs=5e-5)


def test_constant_costs_what_the_snr_schedule_costs() -> None:
    schedule = NoiseSchedule.named("linear")
    plan = Plan.from_snr(schedule, cost_schedule="constant")
    assert [g.cost_limit for g in plan.groups] == pytest.approx([0.83275] * 10)
    assert [g.num_timesteps for g in plan.groups] == LINEAR_SIZES


def test_variance_preserving_process_of_the_sde_papers() -> None:
    schedule = NoiseSchedule.vp(0.1, 20.0, 1000)  # sigma_t = sqrt(exp(9.95 t^2 + 0.1 t) - 1), t = (i + 1) / 1000

    def sigma(i: float) -> float:
        return schedule.noise(i) / schedule.signal(i)

    assert sigma(441) == pytest.approx(2.5103, abs=5e-5)
    assert sigma(629.8) == pytest.approx(7.4046, rel=1e-5)
