"""Signal, noise and SNR of the three families of noise schedules."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisewise.errors import SettingError
from noisewise.schedule import NoiseSchedule

SCHEDULES = {
    "linear": NoiseSchedule.named("linear"),
    "cosine": NoiseSchedule.named("cosine", 400),
    "vp": NoiseSchedule.vp(),
    "betas": NoiseSchedule.from_betas(np.linspace(0.001, 0.3, 40)),
    "edm": NoiseSchedule.edm(),
    "flow": NoiseSchedule.flow(100, shift=3.0),
}


@pytest.fixture(params=SCHEDULES, ids=str)
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return SCHEDULES[request.param]


def test_snr_is_signal_over_noise_and_falls(schedule: NoiseSchedule) -> None:
    t = schedule.grid()[:-1].astype(np.float64)  # flow matching's last level has no signal
    snr_db = schedule.snr_db(t)
    np.testing.assert_allclose(snr_db, 20 * np.log10(schedule.signal(t) / schedule.noise(t)), rtol=1e-9, atol=1e-9)
    assert (np.diff(snr_db) < 0).all()
    if schedule.kind == "vp":
        np.testing.assert_allclose(schedule.signal(t) ** 2 + schedule.noise(t) ** 2, 1, rtol=1e-12)
        np.testing.assert_allclose(schedule.signal(t) ** 2, schedule.alphas_cumprod[:-1], rtol=1e-12)


def test_every_type_comes_back_as_it_was(schedule: NoiseSchedule) -> None:
    t = float(schedule.grid()[3])
    expected = schedule.noise(t)
    assert type(expected) is float

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        value = schedule.noise(torch.full((2, 1, 3), t, dtype=dtype))
        assert value.dtype == dtype
        assert value.shape == (2, 1, 3)
        torch.testing.assert_close(value.double(), torch.full((2, 1, 3), expected).double(), rtol=0.02, atol=0)
    assert schedule.noise(np.array([t], dtype=np.float32)).dtype == np.float32
    assert schedule.noise(np.array([[t]])).shape == (1, 1)


def test_whole_numbers_and_whole_floats_agree() -> None:
    schedule = SCHEDULES["linear"]
    t = torch.tensor([0, 17, 999])
    assert schedule.signal(t).dtype == torch.float32
    assert torch.equal(schedule.signal(t), schedule.signal(t.float()))
    assert [schedule.signal(i) for i in (0, 17, 999)] == pytest.approx(schedule.signal(t).tolist(), rel=1e-6)
    assert schedule.signal(np.arange(3)).dtype == np.float64


def test_between_timesteps_the_logarithm_is_linear() -> None:
    schedule = SCHEDULES["linear"]
    low, high = schedule.snr_db(41), schedule.snr_db(42)
    assert schedule.snr_db(41.25) == pytest.approx(0.75 * low + 0.25 * high, abs=1e-12)


def test_zero_terminal_snr() -> None:
    betas = np.append(np.linspace(0.001, 0.3, 40), 1.0)
    schedule = NoiseSchedule.from_betas(betas)
    assert schedule.signal(40) == 0
    assert schedule.noise(40) == 1
    assert schedule.snr_db(40) == -math.inf
    assert math.isfinite(schedule.snr_db(39))
    assert not math.isnan(schedule.snr_db(39.5))


@pytest.mark.parametrize("t", [-1, 1000, 999.5, np.array([0, 1000]), torch.tensor([-0.5])])
def test_timesteps_outside_are_refused(t: Any) -> None:
    with pytest.raises(SettingError, match=r"timestep: .* is not within 0 to 999"):
        SCHEDULES["linear"].signal(t)


def test_closed_forms() -> None:
    edm, flow = SCHEDULES["edm"], SCHEDULES["flow"]
    assert (edm.signal(7.5), edm.noise(7.5), edm.snr_db(10.0)) == (1, 7.5, pytest.approx(-20))
    assert (flow.signal(0.25), flow.noise(0.25), flow.snr_db(0.5)) == (0.75, 0.25, pytest.approx(0, abs=1e-12))
    assert flow.snr_db(1.0) == -math.inf
    assert flow.snr_db(0.0) == math.inf


def test_grid_spans_the_range(schedule: NoiseSchedule) -> None:
    grid, (start, stop) = schedule.grid(), schedule.span
    assert len(grid) == schedule.num_train_timesteps
    assert (np.diff(grid) > 0).all()
    assert start <= grid[0]
    assert grid[-1] == (stop - 1 if schedule.is_discrete else pytest.approx(stop))


@given(t=st.floats(1e-3, 0.999), name=st.sampled_from(sorted(SCHEDULES)))
@settings(max_examples=60)
def test_coordinates_survive_the_way_to_the_network_and_back(t: float, name: str) -> None:
    schedule = SCHEDULES[name]
    assert schedule.to_coordinate(schedule.to_model_timestep(t)) == pytest.approx(t, rel=1e-9)
    array = schedule.to_model_timestep(np.array([t]))
    assert schedule.to_coordinate(torch.from_numpy(array)).item() == pytest.approx(t, rel=1e-9)


def test_json_round_trip(schedule: NoiseSchedule) -> None:
    text = json.dumps(schedule.to_dict())
    again = NoiseSchedule.from_dict(json.loads(text))
    assert again == schedule
    assert again.kind == schedule.kind
    assert again.snr_db(schedule.grid()[5].item()) == schedule.snr_db(schedule.grid()[5].item())
    assert copy.deepcopy(schedule) == schedule
    assert again != SCHEDULES["edm" if schedule.kind != "edm" else "flow"]
    if schedule.formula is not None:
        assert len(text) < 300


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseSchedule.named("quadratic"), "schedule.kind: 'quadratic' is not one of linear"),  # type: ignore[arg-type]
        (lambda: NoiseSchedule.named("linear", beta_start=0.5), "schedule.beta_start: 0.5"),
        (lambda: NoiseSchedule.named("linear", 1), "schedule"),
        (lambda: NoiseSchedule.from_betas([0.1, 1.5]), "schedule.betas"),
        (lambda: NoiseSchedule.from_alphas_cumprod([0.1, 0.5]), "schedule.alphas_cumprod"),
        (lambda: NoiseSchedule.vp(5, 1), "schedule.beta_min: 5"),
        (lambda: NoiseSchedule.edm(3, 1), "schedule.sigma_min: 3"),
        (lambda: NoiseSchedule.flow(shift=0), "schedule.shift: 0"),
        (lambda: NoiseSchedule.from_dict({"kind": "vp"}), "not the description of a noise schedule"),
        (lambda: NoiseSchedule.from_dict({"kind": "cold", "num_train_timesteps": 9}), "schedule.kind: 'cold'"),
        (lambda: NoiseSchedule.from_scheduler(object()), "scheduler: object is not a diffusers scheduler"),
        (lambda: SCHEDULES["linear"].check_same(SCHEDULES["cosine"]), "num_train_timesteps: made for 1000, given 400"),
        (lambda: SCHEDULES["linear"].check_same(SCHEDULES["edm"]), "schedule.kind: made for vp"),
    ],
)
def test_mistakes_get_one_line(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_another_schedule_of_as_many_timesteps_warns() -> None:
    with pytest.warns(UserWarning, match="SNR differ by up to"):
        SCHEDULES["linear"].check_same(NoiseSchedule.named("scaled_linear"))


def test_visited_refuses_what_the_scheduler_refuses() -> None:
    from diffusers import DDIMScheduler

    for steps in (0, 5000):
        with pytest.raises(SettingError, match=f"sample.num_inference_steps: {steps}"):
            SCHEDULES["linear"].visited(DDIMScheduler(), steps)


def vp_sigma(schedule: NoiseSchedule, time: float) -> float:
    """sigma_t = noise / signal at a time in (0, 1]."""
    t = schedule.num_train_timesteps * time - 1
    return schedule.noise(t) / schedule.signal(t)


@pytest.mark.parametrize("T", [10, 1000])
def test_continuous_vp_is_its_formula_at_any_time(T: int) -> None:
    schedule = NoiseSchedule.vp(num_train_timesteps=T)
    for time in (1e-5, 1e-3, 0.01234, 0.442, 0.6308, 0.99999, 1.0):
        sigma = math.sqrt(math.expm1(9.95 * time**2 + 0.1 * time))
        assert vp_sigma(schedule, time) == pytest.approx(sigma, rel=1e-9)
        signal = 1 / math.sqrt(1 + sigma**2)
        assert schedule.signal(T * time - 1) == pytest.approx(signal, rel=1e-9)
    float32 = torch.tensor([0.4, 3.7, 8.25], dtype=torch.float32)
    torch.testing.assert_close(schedule.noise(float32), schedule.noise(float32.double()).float(), rtol=1e-6, atol=0)


def test_at_whole_timesteps_the_formula_and_the_table_are_the_same_bits() -> None:
    formula = NoiseSchedule.vp()
    table = NoiseSchedule.from_alphas_cumprod(formula.alphas_cumprod)
    t = formula.grid()
    assert formula.is_formula
    assert not table.is_formula
    assert np.array_equal(formula.snr_db(t), table.snr_db(t))
    assert abs(formula.snr_db(0.5) - table.snr_db(0.5)) > 0.01  # between them the table is only interpolated


@pytest.mark.parametrize("t", [-1.0, -1.5, 999.01, np.array([-1.0, 5]), torch.tensor([999.5])])
def test_times_outside_the_formula_are_refused(t: Any) -> None:
    with pytest.raises(SettingError, match="is not above -1 and at most 999"):
        NoiseSchedule.vp().snr_db(t)
    with pytest.raises(SettingError, match="is not within 0 to 999"):
        SCHEDULES["linear"].snr_db(-0.5)


def test_limits_are_where_noise_levels_end(schedule: NoiseSchedule) -> None:
    low, high = schedule.limits
    expected = {"linear": 0, "cosine": 0, "vp": -0.99, "betas": 0, "edm": 0.002, "flow": 0.0}
    assert low == pytest.approx(expected[next(name for name, s in SCHEDULES.items() if s is schedule)])
    assert high == schedule.grid()[-1]
    assert schedule.is_log == (schedule.kind == "edm")


@given(share=st.floats(0.0005, 0.9995), name=st.sampled_from(sorted(SCHEDULES)))
@settings(max_examples=100)
def test_the_coordinate_of_an_snr_is_its_inverse(share: float, name: str) -> None:
    schedule = SCHEDULES[name]
    low, high = schedule.limits
    t = low + share * (high - low)
    assert schedule.coordinate_at_snr(schedule.snr_db(t)) == pytest.approx(t, rel=1e-7, abs=1e-7)


def test_the_coordinate_of_an_snr_comes_back_as_it_was_and_stays_within(schedule: NoiseSchedule) -> None:
    low, high = schedule.limits
    for extreme in (1e6, math.inf):
        assert schedule.coordinate_at_snr(extreme) == low
        assert schedule.coordinate_at_snr(-extreme) == high
    grid = schedule.grid()[1:-1]
    np.testing.assert_allclose(schedule.coordinate_at_snr(schedule.snr_db(grid.astype(float))), grid, rtol=1e-9)
    single = torch.tensor([[3.0], [-3.0]])
    assert schedule.coordinate_at_snr(single).dtype == torch.float32
    assert schedule.coordinate_at_snr(single).shape == (2, 1)


def test_the_coordinate_of_an_snr_where_the_table_ends_or_stands_still() -> None:
    zero_snr = NoiseSchedule.from_betas(np.append(np.linspace(0.001, 0.3, 40), 1.0))
    assert zero_snr.coordinate_at_snr(-math.inf) == 40
    assert zero_snr.coordinate_at_snr(zero_snr.snr_db(39)) == 39
    flat = NoiseSchedule.from_alphas_cumprod([0.9, 0.5, 0.5, 0.5, 0.1])
    assert 1 <= flat.coordinate_at_snr(0.0) <= 3
    assert flat.coordinate_at_snr(flat.snr_db(3.5)) == pytest.approx(3.5)
