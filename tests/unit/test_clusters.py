"""Clusters of noise levels: t1, t2, the bootstrap and the most similar groups against their definitions; the plan."""

from __future__ import annotations

import itertools
import json
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisewise.data.images import Images
from noisewise.errors import SettingError
from noisewise.optimal.denoiser import OptimalDenoiser
from noisewise.optimal.similarity import Similarity, similarities
from noisewise.planning.clusters import (
    Band,
    first_within,
    last_within,
    most_similar_cuts,
    resampling_weights,
    running_means,
)
from noisewise.planning.levels import even_levels
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule

VP = NoiseSchedule.vp()
LINE = np.linspace(0, 1, 11)


def mean_between(axis: np.ndarray, curve: np.ndarray, start: float, stop: float) -> float:
    """Mean of a curve that is linear between its points, by fine sums."""
    fine = np.unique(np.concatenate([np.linspace(start, stop, 4001), axis[(axis > start) & (axis < stop)]]))
    return float(np.trapezoid(np.interp(fine, axis, curve), fine) / (stop - start))


# ---- t1 and t2


def test_bounds_of_straight_lines() -> None:
    assert last_within(LINE, 1 - LINE, np.array([1.0, 0.8, 0.6, 0.5, 0.2])) == pytest.approx([0, 0.4, 0.8, 1, 1])
    assert first_within(LINE, LINE, np.array([1.0, 0.9, 0.5])) == pytest.approx([1, 0.8, 0])
    assert first_within(LINE, 0.5 * LINE, 0.9) == 1  # not even the last level reaches alpha
    assert last_within(LINE, 0.5 - LINE / 2, 0.9) == 0


curves = st.lists(st.floats(0, 1), min_size=3, max_size=12)


@given(curve=curves, gaps=st.data(), alpha=st.floats(0.05, 1))
@settings(max_examples=60)
def test_bounds_are_the_outermost_means_of_at_least_alpha(curve: list[float], gaps: Any, alpha: float) -> None:
    widths = gaps.draw(st.lists(st.floats(0.1, 2), min_size=len(curve) - 1, max_size=len(curve) - 1))
    axis, S = np.concatenate([[0.0], np.cumsum(widths)]), np.array(curve)
    t1 = float(last_within(axis, S, alpha))
    means = running_means(axis, S)
    assert means[1:] == pytest.approx([mean_between(axis, S, 0, tau) for tau in axis[1:]], abs=1e-4)
    assert (means[axis > t1 + 1e-9] < alpha).all()
    if t1 > 0:  # between levels the running mean is taken as linear
        assert np.interp(t1, axis, means) >= alpha - 1e-6
    mirrored = axis[-1] - axis[::-1]
    assert first_within(mirrored, S[::-1], alpha) == pytest.approx(axis[-1] - t1)


def test_curves_of_many_samples_at_once() -> None:
    samples = np.random.default_rng(0).uniform(size=(7, 11)).cumsum(axis=1)[:, ::-1] / 11
    assert last_within(LINE, samples, 0.4) == pytest.approx([float(last_within(LINE, s, 0.4)) for s in samples])


# ---- bootstrap


def test_bootstrap_interval_of_a_mean() -> None:
    rng = np.random.default_rng(1)
    for m in (100, 1600):
        values = rng.normal(size=m)
        weights = resampling_weights(m, 0)
        assert weights.sum(axis=1) == pytest.approx(1)
        band = Band.of(values.mean(), weights @ values)
        assert float(band.half_width) == pytest.approx(1.96 * values.std() / np.sqrt(m), rel=0.12)
        assert band.low < values.mean() < band.high
    assert np.array_equal(resampling_weights(20, 3), resampling_weights(20, 3))
    assert not np.array_equal(resampling_weights(20, 3), resampling_weights(20, 4))


# ---- the most similar groups


@pytest.mark.parametrize(("n", "k"), [(6, 1), (8, 2), (9, 3), (9, 5), (7, 7)])
def test_no_choice_of_groups_is_more_similar(n: int, k: int) -> None:
    noise = np.random.default_rng(10 * n + k).uniform(size=(n, n))
    pairs = (noise + noise.T) / 2 * (1 - np.eye(n)) + np.eye(n)

    def score(cuts: tuple[int, ...]) -> float:
        groups = list(itertools.pairwise([0, *cuts, n]))
        return float(np.concatenate([pairs[a:b, a:b].mean(axis=1) for a, b in groups]).mean())

    cuts, means = most_similar_cuts(pairs, k)
    assert score(tuple(cuts)) == pytest.approx(max(map(score, itertools.combinations(range(1, n), k - 1))))
    assert means == pytest.approx([pairs[a:b, a:b].mean() for a, b in itertools.pairwise([0, *cuts, n])])


def test_blocks_are_found() -> None:
    group = np.repeat([0, 1, 2], [5, 9, 4])
    pairs = np.where(group[:, None] == group[None, :], 0.9, 0.3)
    assert most_similar_cuts(pairs, 3)[0] == [5, 14]


# ---- the plan


@cache
def images() -> Images:
    """40 smooth random images of 1x6x6."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, size=(40, 1, 3, 3))
    return Images.from_pixels(coarse.repeat(2, 2).repeat(2, 3).astype(np.uint8), name="blocks")


@cache
def measured() -> Similarity:
    return similarities(OptimalDenoiser(images(), VP, device="cpu"), even_levels(VP, 20), 64, seed=5)


def make(**given: Any) -> Plan:
    return Plan.from_optimal_denoiser(VP, measured(), **{"seed": 5, **given})


def test_images_and_their_similarities_give_the_same_groups() -> None:
    plan = Plan.from_optimal_denoiser(VP, images(), num_draws=64, num_levels=20, seed=5, device="cpu", alpha=0.8)
    assert plan.groups == make(alpha=0.8).groups
    assert plan.settings["data"] == {
        "name": "blocks", "fingerprint": images().fingerprint, "shape": [1, 6, 6], "num_images": 40
    }  # fmt: skip
    plan.check_data((1, 6, 6))
    with pytest.raises(SettingError, match="made from blocks, images of 1x6x6"):
        plan.check_data((1, 8, 8))
    tensor = images().batch(slice(None))[0]
    other = Plan.from_optimal_denoiser(VP, tensor, num_draws=64, num_levels=20, seed=5, device="cpu", alpha=0.8)
    assert other.settings["data"]["shape"] == [1, 6, 6]
    assert other.settings["t1"] == pytest.approx(plan.settings["t1"], rel=1e-3)


def test_bounds_are_where_the_mean_similarity_is_alpha() -> None:
    similarity = measured()
    for reference, curve in (("end", similarity.to_end), ("mean", similarity.to_mean)):
        plan = make(alpha=0.8, reference=reference)
        t1, t2 = plan.settings["t1"], plan.settings["t2"]
        assert [g.t_start for g in plan.groups] == [0, np.ceil(t1), np.ceil(t2)]
        t, S = similarity.levels, similarity.to_start.mean(1)
        assert mean_between(t, S, t[0], t1) == pytest.approx(0.8, abs=0.01)
        assert mean_between(t, curve.mean(1), t2, t[-1]) == pytest.approx(0.8, abs=0.01)
        assert 0 < plan.settings["t1_half_width"] < 0.2
        assert [g.cost_limit for g in plan.groups] == [1, 1, 1]
    assert make(alpha=0.9).groups[0].t_stop < make(alpha=0.8).groups[0].t_stop


def test_settings_hold_what_the_figures_need() -> None:
    plan = make(alpha=0.8)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False)))
    assert again == plan
    curves = plan.settings["curves"]
    assert curves["t"] == measured().levels.tolist()
    for name in ("to_start", "to_end", "to_mean"):
        band = {part: np.array(values) for part, values in curves[name].items()}
        assert band["estimate"] == pytest.approx(getattr(measured(), name).mean(1), abs=1e-5)
        assert (band["low"] <= band["estimate"] + 1e-5).all()
        assert (band["estimate"] <= band["high"] + 1e-5).all()
    at = curves["alphas"].index(0.8)
    assert curves["t1"]["estimate"][at] == pytest.approx(plan.settings["t1"], rel=1e-5)
    assert curves["t2_end"]["estimate"][at] == pytest.approx(plan.settings["t2"], rel=1e-5)
    assert (np.diff(curves["t1"]["estimate"]) <= 1e-9).all()
    assert (np.diff(curves["t2_mean"]["estimate"]) >= -1e-9).all()
    assert "pairs" not in curves
    assert any("bootstrap half-width" in note for note in plan.notes)  # 64 draws are few


@pytest.mark.parametrize("num_groups", [1, 2, 4, 5])
def test_any_number_of_groups(num_groups: int) -> None:
    plan = make(num_groups=num_groups, min_cost=0.4, big_model_at="data", average_cost=0.7)
    assert len(plan.groups) == num_groups
    assert not any(g.is_empty for g in plan.groups)
    assert len(plan.settings["similarity_within"]) == num_groups
    assert np.shape(plan.settings["curves"]["pairs"]) == (20, 20)
    assert plan.average_cost == pytest.approx(0.7)
    cuts, _ = most_similar_cuts(measured().pairs, num_groups)
    t = measured().levels
    assert [g.t_start for g in plan.groups[1:]] == [np.ceil((t[i - 1] + t[i]) / 2) for i in cuts]


@pytest.mark.parametrize("schedule", [NoiseSchedule.edm(), NoiseSchedule.flow(), NoiseSchedule.named("cosine", 30)])
def test_every_kind_of_schedule(schedule: NoiseSchedule) -> None:
    plan = Plan.from_optimal_denoiser(schedule, images(), num_draws=32, alpha=0.8, device="cpu")
    assert [g.is_empty for g in plan.groups] == [False] * 3
    assert plan.settings["num_levels"] == min(50, schedule.num_train_timesteps)
    moved = plan.to(NoiseSchedule.edm(1e-4, 1e6))
    assert [g.is_empty for g in moved.groups] == [False] * 3
    assert moved.settings["curves"] == plan.settings["curves"]


def test_copies_are_counted() -> None:
    copies = Images.from_pixels(np.concatenate([images().pixels, images().pixels[:3]]))
    plan = Plan.from_optimal_denoiser(VP, copies, num_draws=16, num_levels=10, alpha=0.8, device="cpu")
    assert plan.settings["num_duplicates"] == 3
    assert any("3 images equal an earlier one" in note for note in plan.notes)


def test_an_alpha_that_leaves_a_group_empty_is_refused_with_those_that_do_not() -> None:
    with pytest.raises(SettingError, match=r"plan.alpha: 0.05 leaves a group empty") as error:
        make(alpha=0.05)
    low, high = str(error.value).split(" does not")[0].split("; alpha from ")[-1].split(" to ")
    assert not any(g.is_empty for g in make(alpha=float(low)).groups)
    assert not any(g.is_empty for g in make(alpha=float(high)).groups)
    with pytest.raises(SettingError, match="leaves a group empty"):
        make(alpha=float(low) - 0.002)

    one = torch.zeros(1, 1, 4, 4)  # its denoiser is the same at every level
    with pytest.raises(SettingError, match="so does every other alpha here"):
        Plan.from_optimal_denoiser(VP, one, num_draws=4, num_levels=5, device="cpu")


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"alpha": 0.0}, "plan.alpha: 0.0"),
        ({"alpha": 1.5}, "plan.alpha: 1.5"),
        ({"reference": "start"}, "plan.reference: 'start' is not one of end, mean"),
        ({"cut": "middle"}, "plan.cut: 'middle' is not one of threshold, dynamic-programming"),
        ({"cut": "threshold", "num_groups": 4}, "plan.cut: threshold makes 3 groups, plan.num_groups is 4"),
        ({"num_groups": 0}, "plan.num_groups: 0"),
        ({"num_groups": 21}, "plan.num_groups: 21 intervals cannot be cut from 20"),
        ({"schedule": NoiseSchedule.edm()}, "plan.schedule: the similarities' noise levels are not those of this edm"),
        ({"schedule": NoiseSchedule.named("cosine")}, "plan.schedule"),
        ({"images": images, "num_draws": 1}, "plan.num_draws: 1"),
        ({"images": images, "num_levels": 2}, "plan.num_levels: 2"),
        ({"images": images, "num_levels": 2000}, "plan.num_levels: 2000"),
        ({"images": images, "eta": -1.0, "num_draws": 2}, "plan.eta: -1.0"),
        ({"min_cost": 0.0}, "plan.min_cost: 0.0"),
    ],
)
def test_mistakes_get_one_line(given_: dict[str, Any], message: str) -> None:
    given_ = dict(given_)
    schedule, source = given_.pop("schedule", VP), given_.pop("images", measured)
    with pytest.raises(SettingError, match=message) as error:
        Plan.from_optimal_denoiser(schedule, source(), **given_)
    assert "\n" not in str(error.value)


def test_alpha_beside_dynamic_programming_warns() -> None:
    with pytest.warns(UserWarning, match="plan.alpha: 0.7 is ignored"):
        make(alpha=0.7, cut="dynamic-programming")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(cut="dynamic-programming")
