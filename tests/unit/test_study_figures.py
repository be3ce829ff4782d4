"""Figures of studies: where their axes have ticks."""

from __future__ import annotations

from typing import Any

import pytest

from noisewise.report.study_figures import axis_figure


def results(places: list[float], log_axis: bool = False) -> dict[str, Any]:
    spread = {"mean": 30.0, "deviation": 1.0, "values": [29.0, 31.0]}
    arms = [{"x": x, "line": "", "frechet": spread} for x in places]
    return {"arms": arms, "axis": "places", "log_axis": log_axis, "metric": {"floor": {"mean": 5.0}}}


@pytest.mark.parametrize(
    ("places", "log_axis", "ticks"),
    [
        ([20, 1, 4], False, ["1", "4", "20"]),
        ([0.3, 0.5], False, None),  # matplotlib's own
        ([30_000, 60_000], True, ["30k", "60k"]),
    ],
)
def test_ticks_stand_where_the_arms_are(places: list[float], log_axis: bool, ticks: list[str] | None) -> None:
    figure = axis_figure(results(places, log_axis))
    figure.canvas.draw()
    axis = figure.axes[0]
    if ticks is None:
        assert len(axis.get_xticks()) > len(places)
    else:
        assert [label.get_text() for label in axis.get_xticklabels()] == ticks
        assert axis.get_xticks().tolist() == sorted(places)
