"""Intervals of studies against brute force, closed forms and repeated simulation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm

from noisewise.workflow.study.statistics import (
    Difference,
    Spread,
    difference,
    random_halves,
    resampled_distances,
    resolution,
    student_half_width,
)


def plain_frechet(x: np.ndarray, y: np.ndarray) -> float:
    """The formula as printed, by a matrix square root."""
    mean = x.mean(0) - y.mean(0)
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(mean @ mean + np.trace(first + second - 2 * np.real(sqrtm(first @ second))))


def test_resampled_distances_are_those_of_the_same_draws_done_by_hand() -> None:
    rng = np.random.default_rng(0)
    real, arms = rng.normal(size=(30, 4)), [rng.normal(i, 1 + i, size=(20, 4)) for i in range(3)]
    found = resampled_distances(real, arms, 5, np.random.default_rng(7))
    again = np.random.default_rng(7)
    for b in range(5):
        chosen_real, chosen = again.integers(30, size=30), again.integers(20, size=20)
        by_hand = [plain_frechet(real[chosen_real], values[chosen]) for values in arms]
        assert found[:, b] == pytest.approx(by_hand, rel=1e-6)


def test_equal_arms_differ_by_nothing_however_noisy_they_are() -> None:
    rng = np.random.default_rng(1)
    real, arm = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    distances = resampled_distances(real, [arm, arm.copy()], 30, rng)
    found = difference([0.0], (distances[1] - distances[0])[None], rng)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert found.relation == "no difference shown"


def test_pairing_tells_what_unpaired_noise_hides() -> None:
    rng = np.random.default_rng(2)
    real, base = rng.normal(size=(200, 5)), rng.normal(size=(200, 5)) + 1
    better = base - 0.05
    observed = plain_frechet(real, better) - plain_frechet(real, base)
    distances = resampled_distances(real, [base, better], 200, rng)
    paired = difference([observed], (distances[1] - distances[0])[None], rng)
    unpaired = difference([observed], (distances[1] - rng.permutation(distances[0]))[None], rng)
    assert paired.relation == "better"
    assert unpaired.relation == "no difference shown"


def test_one_seed_gives_the_images_interval_around_the_estimate() -> None:
    rng = np.random.default_rng(3)
    resampled = rng.normal(50, 2, size=(1, 4000))  # repeated images shift all distances; the shift must not count
    found = difference([-1.0], resampled, rng)
    assert found.low == pytest.approx(-1 - 1.96 * 2, abs=0.25)
    assert found.high == pytest.approx(-1 + 1.96 * 2, abs=0.25)


def test_several_seeds_are_never_narrower_than_student_and_the_bootstrap() -> None:
    rng = np.random.default_rng(4)
    values = np.array([-3.0, -1.0, 0.5])
    half = student_half_width(values)
    assert half == pytest.approx(4.3027 * values.std(ddof=1) / np.sqrt(3), rel=1e-4)
    calm = difference(values.tolist(), np.zeros((3, 200)), rng)
    assert (calm.low, calm.high) == pytest.approx((values.mean() - half, values.mean() + half))
    noisy = difference(values.tolist(), rng.normal(0, 100, size=(3, 2000)), rng)
    assert noisy.low < calm.low
    assert noisy.high > calm.high


def coverage(luck: float, images: float, num_seeds: int, repeats: int = 400) -> tuple[float, float]:
    """How often the interval, and the bootstrap's part of it alone, hold the true difference of zero."""
    rng = np.random.default_rng(5)
    whole = alone = 0
    for _ in range(repeats):
        values = rng.normal(0, luck, num_seeds) + rng.normal(0, images, num_seeds)
        resampled = rng.normal(0, images, size=(num_seeds, 200))
        found = difference(values.tolist(), resampled, rng)
        whole += found.low <= 0 <= found.high
        drawn = values[rng.integers(num_seeds, size=(400, num_seeds))].mean(1)
        drawn += rng.normal(0, images / np.sqrt(num_seeds), 400)
        low, high = np.quantile(drawn, [0.025, 0.975])
        alone += low <= 0 <= high
    return whole / repeats, alone / repeats


@pytest.mark.parametrize(("luck", "images"), [(1.0, 0.1), (1.0, 1.0), (0.0, 1.0)])
def test_intervals_of_three_seeds_hold_the_truth_as_often_as_they_say(luck: float, images: float) -> None:
    whole, alone = coverage(luck, images, 3)
    assert whole >= 0.93
    if luck > images:
        assert alone < 0.88  # why Student's interval is there at all


def test_relations_and_spread() -> None:
    assert Difference(-2, -3, -1, 3).relation == "better"
    assert Difference(2, 1, 3, 3).relation == "worse"
    assert Difference(-2, -3, 0.1, 3).relation == "no difference shown"
    assert Spread.of([1.0]).deviation is None
    assert Spread.of([1.0, 3.0]) == Spread(2.0, pytest.approx(np.sqrt(2)), (1.0, 3.0))


def test_halves_are_disjoint_and_resolution_is_that_of_a_difference() -> None:
    halves = random_halves(21, 10, 4, np.random.default_rng(6))
    for one, other in halves:
        assert len({*one, *other}) == 20
    assert resolution(1.0, 1) == pytest.approx(1.96 * np.sqrt(2), rel=1e-4)
    assert resolution(1.0, 4) == pytest.approx(resolution(1.0, 1) / 2)


def test_arms_of_two_studies_are_compared_by_the_seeds_they_share(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "cells.csv").write_text("arm,seed,frechet\na,0,10\na,1,12\na,2,17\na,3,90\n")
    (tmp_path / "cells.csv").write_text("arm,seed,frechet\nb,2,10\nb,0,9\nb,1,10\nc,0,1\n")
    script = Path(__file__).parents[2] / "benchmarks" / "compare_arms.py"
    words = [sys.executable, str(script), f"{tmp_path / 'one'}:a"]
    done = subprocess.run([*words, f"{tmp_path}:b"], capture_output=True, text=True)
    # of 1, 2 and 7: 10 / 3 and 4.3027 sqrt(31 / 3) / sqrt(3) to either side
    assert done.stdout == f"less {tmp_path}:b: 3.333 [-4.652, 11.32], 3 seeds\n"
    refused = (
        ([f"{tmp_path}:c"], "1 of its seeds are also of"),
        ([f"{tmp_path}:d"], "no such arm; "),
        ([f"{tmp_path}:x:d"], "is missing; finish the study"),
        (["d"], "no arm is named; give STUDY:ARM"),
        ([f"{tmp_path}:b", "--number", "loss"], "has arm, seed, frechet"),
        ([f"{tmp_path}:b", "--number", "arm"], "is no number (a, a, a, a)"),
    )
    for more, said in refused:
        done = subprocess.run([*words, *more], capture_output=True, text=True)
        assert done.returncode == 1
        assert said in done.stderr
