"""Random noise schedules and plans for tests of what holds for all of them."""

from __future__ import annotations

from typing import Any

from hypothesis import reject, settings
from hypothesis import strategies as st

from noisewise.errors import SettingError
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule

LINEAR = NoiseSchedule.named("linear")
COSINE = NoiseSchedule.named("cosine")
COST_SCHEDULES = ["snr", "constant", "increasing", "decreasing"]

schedules = st.one_of(
    st.integers(2, 120).flatmap(
        lambda T: st.lists(st.floats(1e-4, 0.2), min_size=T, max_size=T).map(NoiseSchedule.from_betas)
    ),
    st.builds(NoiseSchedule.edm, st.floats(1e-3, 0.1), st.floats(1, 1000), st.integers(2, 150)),
    st.builds(NoiseSchedule.flow, st.integers(3, 150), st.floats(0.5, 4)),
)


def make_plan(make: Any, *args: Any, **settings: Any) -> Plan:
    try:
        return make(*args, **settings)  # type: ignore[no-any-return]
    except SettingError as error:
        assert "all noise levels have the same SNR" in str(error)  # noqa: PT017 - the clip left nothing
        reject()


plans = st.builds(
    make_plan,
    st.sampled_from([Plan.from_snr, Plan.equal_width]),
    schedules,
    st.integers(1, 15),
    st.floats(0.05, 1.0),
    st.sampled_from(["noise", "data"]),
    cost_schedule=st.sampled_from(COST_SCHEDULES),
    average_cost=st.none() | st.floats(0.1, 1.0),
    clip_db=st.none() | st.floats(20, 40),
)
quick = settings(max_examples=80)
