from __future__ import annotations

import time

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler

from noisewise.errors import SettingError
from noisewise.evaluation import image_cost, interleaved_latency, latency, steps_at_cost, training_macs
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule

SCHEDULER = DDIMScheduler(num_train_timesteps=1000)
SCHEDULE = NoiseSchedule.from_scheduler(SCHEDULER)
PLAN = Plan.equal_width(SCHEDULE, num_groups=4, min_cost=0.5)


def test_an_image_costs_the_sum_over_its_visited_steps() -> None:
    SCHEDULER.set_timesteps(10)  # 900, 800, ..., 0
    cost = image_cost([1, 10, 100, 1000], PLAN, SCHEDULER.timesteps.numpy())

    assert cost.visits == (3, 2, 3, 2)  # 0 100 200 | 300 400 | 500 600 700 | 800 900
    assert cost.macs == 3 * 1 + 2 * 10 + 3 * 100 + 2 * 1000
    assert cost.macs_per_group == (3, 20, 300, 2000)
    assert image_cost([1, 10, 100, 1000], PLAN, SCHEDULER.timesteps.numpy(), guidance=True).macs == 2 * cost.macs


def test_a_scheduler_that_calls_twice_a_step_costs_twice() -> None:
    heun = HeunDiscreteScheduler.from_config(SCHEDULER.config)
    heun.set_timesteps(10)
    assert sum(image_cost([1, 1, 1, 1], PLAN, heun.timesteps.numpy()).visits) == 19


def test_the_same_costs_add_up_as_in_the_route_table() -> None:
    costs = [0.6, 0.7, 0.8, 1.0]
    table = PLAN.routes(SCHEDULER, 20, costs)
    visited = SCHEDULE.visited(SCHEDULER, 20)
    assert image_cost([int(1000 * c) for c in costs], PLAN, visited).macs == pytest.approx(1000 * table.total)


def test_an_empty_group_needs_no_cost_and_a_visited_one_does() -> None:
    plan = Plan.from_snr(NoiseSchedule.named("cosine", 1000), num_groups=10, min_cost=0.5)
    macs = [None if group.is_empty else 5 for group in plan.groups]
    assert image_cost(macs, plan, list(range(1000))).macs == 5000
    with pytest.raises(SettingError, match="group 0 serves"):
        image_cost([None, *macs[1:]], plan, list(range(1000)))
    with pytest.raises(SettingError, match="3 costs for a plan of 10 groups"):
        image_cost([1, 2, 3], plan, [0])


def test_steps_at_a_budget_and_training_follow_their_conventions() -> None:
    assert [steps_at_cost(budget, 10) for budget in (5, 10, 39.9, 40)] == [1, 1, 3, 4]
    assert training_macs(7, 100) == 3 * 7 * 100
    assert training_macs(7, 100, teacher_macs=5) == (3 * 7 + 5) * 100


def test_latency_is_the_median_of_calls_without_gradients() -> None:
    network = torch.nn.Linear(4, 4)
    seen = []

    def call(x: torch.Tensor) -> None:
        seen.append(network(x).requires_grad)
        time.sleep(0.01)

    timed = latency(call, {"x": torch.zeros(1, 4)}, repeats=3, warm_up=2)
    assert seen == [False] * 5
    assert len(timed.seconds) == 3
    assert 0.01 <= timed.low <= timed.median <= timed.high
    with pytest.raises(SettingError, match="repeats: 0"):
        latency(call, repeats=0)


def test_calls_that_are_compared_take_turns() -> None:
    order: list[str] = []
    timed = interleaved_latency({name: lambda name=name: order.append(name) for name in "ab"}, repeats=2, warm_up=1)
    assert order == ["a", "b"] * 3
    assert set(timed) == {"a", "b"}
