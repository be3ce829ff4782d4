"""Figures of clustering: drawn from a plan's settings alone, for every kind of schedule, and what they draw."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from noisewise.errors import SettingError
from noisewise.planning.plan import Plan
from noisewise.report.clustering_figures import (
    pairs_figure,
    similarity_data,
    similarity_figure,
    threshold_data,
    threshold_figure,
)
from noisewise.report.figure_data import csv_of
from noisewise.report.style import svg_of
from noisewise.schedule import NoiseSchedule

SCHEDULES = {"vp": NoiseSchedule.vp(), "edm": NoiseSchedule.edm(), "flow": NoiseSchedule.flow()}


@cache
def make(kind: str, **settings: Any) -> Plan:
    """A plan of 30 random images, as it is read back from JSON."""
    coarse = torch.rand(30, 1, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    given = {"num_draws": 24, "num_levels": 12, "alpha": 0.8, "device": "cpu", **settings}
    if "cut" in given:
        del given["alpha"]
    plan = Plan.from_optimal_denoiser(SCHEDULES[kind], images, **given)
    return Plan.from_dict(json.loads(json.dumps(plan.to_dict())))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_similarity_curves(kind: str) -> None:
    plan = make(kind)
    figure = similarity_figure(plan)
    axis = figure.axes[0]
    drawn = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert np.array_equal(drawn["to the denoiser at no noise"], plan.settings["curves"]["to_start"]["estimate"])
    assert axis.get_xscale() == ("log" if kind == "edm" else "linear")
    bounds = [line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 2]
    assert bounds == pytest.approx([g.t_start for g in plan.groups[1:]], rel=1e-5)
    svg = svg_of(figure)
    assert svg.count("t1 = ") == svg.count("t2 = ") == 1
    assert svg == svg_of(similarity_figure(plan))
    figure.draw_without_rendering()
    first, second = (text.get_window_extent() for text in axis.texts)
    assert first.y0 > second.y1  # however near they are


@pytest.mark.parametrize("kind", SCHEDULES)
def test_bounds_against_alpha(kind: str) -> None:
    plan = make(kind)
    figure = threshold_figure(plan)
    axis = figure.axes[0]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if line.get_marker() == "o"]
    assert points == [(0.8, plan.settings["t1"]), (0.8, plan.settings["t2"])]
    assert len(axis.collections) == 3  # bands
    assert "least mean similarity" in svg_of(figure)


def test_pairs() -> None:
    plan = make("vp", cut="dynamic-programming")
    figure = pairs_figure(plan)
    assert np.asarray(figure.axes[0].collections[0].get_array()).reshape(12, 12) == pytest.approx(
        np.array(plan.settings["curves"]["pairs"])
    )
    assert "mean similarity" in svg_of(figure)
    with pytest.raises(SettingError, match=r"plan.cut: threshold keeps no similarities of pairs"):
        pairs_figure(make("vp"))


def test_a_moved_plan_draws_its_curves_where_they_were_measured() -> None:
    moved = make("vp").to(SCHEDULES["edm"])
    assert svg_of(similarity_figure(moved)) == svg_of(similarity_figure(make("vp")))


def test_columns_are_of_one_length() -> None:
    for data, length in ((similarity_data(make("vp").settings), 12), (threshold_data(make("vp").settings), 72)):
        assert {len(values) for values in data.values()} == {length}
        assert len(csv_of(data).splitlines()) == length + 1
        assert len(data) == 10


def test_a_plan_without_curves_is_refused() -> None:
    with pytest.raises(SettingError, match=r"plan.method: snr has no similarity curves"):
        similarity_figure(Plan.from_snr(SCHEDULES["vp"]))
