"""Metrics against their textbook formulas, computed the slow way."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from noisewise.evaluation import frechet_distance, kid_interval

RNG = np.random.default_rng(0)


def random_gaussian(dim: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    factor = RNG.normal(size=(rank, dim))
    return RNG.normal(size=dim), factor.T @ factor / rank


@pytest.mark.parametrize("dim", [1, 5, 40])
def test_the_symmetric_form_is_the_matrix_square_root_of_the_product(dim: int) -> None:
    (mean_1, s_1), (mean_2, s_2) = random_gaussian(dim, 3 * dim), random_gaussian(dim, 2 * dim)
    root = sqrtm(s_1 @ s_2)
    expected = ((mean_1 - mean_2) ** 2).sum() + np.trace(s_1 + s_2 - 2 * np.real(root))

    assert frechet_distance(mean_1, s_1, mean_2, s_2) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(mean_2, s_2, mean_1, s_1) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_agree_with_the_limit_of_regular_ones() -> None:
    (mean_1, s_1), (mean_2, s_2) = random_gaussian(12, 5), random_gaussian(12, 7)
    ridge = 1e-9 * np.eye(12)
    root = np.real(sqrtm((s_1 + ridge) @ (s_2 + ridge)))
    expected = ((mean_1 - mean_2) ** 2).sum() + np.trace(s_1 + s_2) - 2 * np.trace(root)

    assert frechet_distance(mean_1, s_1, mean_2, s_2) == pytest.approx(expected, rel=1e-4)


def naive_kid(x: np.ndarray, y: np.ndarray) -> float:
    """Eq. 4 of arXiv:1801.01401, one pair at a time."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(k(x[i], y[j]) for i in range(n) for j in range(m)) / (n * m)
    return within_x + within_y - 2 * across


def test_kid_and_its_jackknife_are_those_of_the_double_loop() -> None:
    x, y = RNG.normal(0.3, 1, (9, 4)), RNG.normal(0, 1, (7, 4))
    value, low, high = kid_interval(x, y)
    without_x = np.array([naive_kid(np.delete(x, i, 0), y) for i in range(len(x))])
    without_y = np.array([naive_kid(x, np.delete(y, i, 0)) for i in range(len(y))])
    variance = (len(x) - 1) * without_x.var() + (len(y) - 1) * without_y.var()

    assert value == pytest.approx(naive_kid(x, y), rel=1e-12)
    assert (high - low) / 2 == pytest.approx(1.959964 * variance**0.5, rel=1e-9)
    assert (high + low) / 2 == pytest.approx(value, rel=1e-9)
