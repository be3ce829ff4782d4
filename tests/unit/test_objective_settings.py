"""What an objective may be, what its settings default to, and what it tells of itself."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from noisewise.errors import SettingError
from noisewise.objectives import Objective
from noisewise.schedule import NoiseSchedule
from noisewise.streams import stream

VP = NoiseSchedule.vp()
OBJECTIVES = {
    "edm": Objective(NoiseSchedule.edm(), sigma_data=0.4),
    "flow": Objective(NoiseSchedule.flow(shift=3.0)),
    "epsilon": Objective(VP, time="continuous"),
}


@pytest.fixture(params=OBJECTIVES, ids=str)
def objective(request: pytest.FixtureRequest) -> Objective:
    return OBJECTIVES[request.param]


def test_defaults_follow_the_schedule() -> None:
    edm, flow = Objective(NoiseSchedule.edm()), Objective(NoiseSchedule.flow())
    assert (edm.prediction_type, edm.time, edm.noise_distribution) == ("edm", "continuous", "lognormal")
    assert (edm.p_mean, edm.p_std, edm.sigma_data) == (-1.2, 1.2, 0.5)
    assert Objective(NoiseSchedule.edm(), sigma_data=None) == edm
    assert (flow.prediction_type, flow.time, flow.noise_distribution) == ("velocity", "continuous", "uniform")
    logit = Objective(NoiseSchedule.flow(), noise_distribution="logit-normal", p_std=0.7)
    assert (logit.p_mean, logit.p_std) == (0.0, 0.7)
    vp = Objective(VP)
    assert (vp.prediction_type, vp.time, vp.is_discrete) == ("epsilon", "discrete", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace(edm, weighting="p2").p_mean == -1.2
        assert replace(vp, time="continuous").noise_distribution == "uniform"


def test_every_choice_that_matters_is_in_its_json(objective: Objective) -> None:
    values = objective.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert ("sigma_data" in values) == (objective.schedule.kind == "edm") == ("p_mean" in values)
    assert values["time"] == "continuous"
    assert "time" not in Objective(VP).to_dict()  # trainings from before there was a choice go on
    again = Objective(NoiseSchedule.from_dict(values.pop("schedule")), **values)
    assert again == objective


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective(NoiseSchedule.edm(), "epsilon"), r"prediction_type: 'epsilon' is not one of edm \(under"),
        (lambda: Objective(VP, "edm"), r"'edm' is not one of epsilon, v_prediction, sample \(under a vp schedule\)"),
        (lambda: Objective(NoiseSchedule.edm(), variance="learned_range"), "learned_range needs a variance-pres"),
        (lambda: Objective(VP, variance="learned_range", time="continuous"), "learned_range needs a variance-pres"),
        (lambda: Objective(VP, time="sometimes"), r"objective\.time: 'sometimes' is not one of discrete, cont"),
        (lambda: Objective(VP, noise_distribution="lognormal"), r"noise_distribution: 'lognormal' is not one of unif"),
        (lambda: Objective(NoiseSchedule.edm(), p_std=0.0), r"objective\.p_std: 0\.0 is not above 0"),
        (lambda: Objective(NoiseSchedule.edm(), sigma_data=-1.0), r"objective\.sigma_data: -1\.0 is not above 0"),
        (
            lambda: OBJECTIVES["edm"].draw(torch.zeros(1, 1, 1, 1), stream("a"), (1.0, 2.0), ranges=[(1.0, 2.0)]),
            "not both",
        ),
        (lambda: OBJECTIVES["edm"].draw(torch.zeros(1, 1, 1, 1), stream("a"), balanced=True), "need ranges"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("schedule", "settings", "message"),
    [
        (VP, {"p_mean": -1.2}, r"p_mean: -1\.2 is ignored by the uniform distribution"),
        (NoiseSchedule.flow(), {"sigma_data": 0.7}, r"sigma_data: 0\.7 is ignored"),
        (NoiseSchedule.edm(), {"noise_distribution": "uniform", "p_std": 2.0}, r"p_std: 2\.0 is ignored"),
    ],
)
def test_what_nothing_depends_on_is_warned_of(schedule: NoiseSchedule, settings: Any, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        objective = Objective(schedule, **settings)
    assert objective.p_mean is None or schedule.kind == "edm"
