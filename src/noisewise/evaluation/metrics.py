"""Distances between two sets of images from their features: the third of three pure parts.

"FID" is the Fréchet distance of the standard Inception's features; with any other extractor it is ``fd_<extractor>``.

Shapes: N, M = images, D = features.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np

from noisewise.errors import SettingError
from noisewise.evaluation.features import Features
from noisewise.evaluation.provenance import Provenance, Score, check_same_features
from noisewise.evaluation.statistics import Statistics

INCEPTION = "inception-2015-12-05"
Z_95 = 1.959964  # half-width of a normal's central 95 %, in standard deviations


def frechet_name(extractor: str | None) -> str:
    """The metric's name, "fid" only for the standard Inception."""
    return "fid" if extractor == INCEPTION else f"fd_{extractor or 'unknown'}"


def frechet_distance(
    mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray
) -> float:
    """Fréchet distance of two Gaussians, arXiv:1706.08500: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric and
    positive semi-definite: no complex root, and singular covariances do no harm.

    Args:
        mean_1, mean_2: [D].
        covariance_1, covariance_2: [D, D].
    """
    values, vectors = np.linalg.eigh(covariance_1.astype(np.float64))  # [D], [D, D]
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T  # [D, D], S1^(1/2)
    product = root @ covariance_2.astype(np.float64) @ root  # [D, D]
    trace_root = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    difference = mean_1.astype(np.float64) - mean_2.astype(np.float64)  # [D]
    return float(difference @ difference + np.trace(covariance_1) + np.trace(covariance_2) - 2 * trace_root)


def frechet_score(samples: Statistics, reference: Statistics, *, strict: bool = False) -> Score:
    """Fréchet distance with its provenance; fewer images than features are flagged, or with ``strict`` refused."""
    flags = check_same_features(samples.provenance, reference.provenance)
    if samples.num_features != reference.num_features:
        raise SettingError(
            f"evaluate.reference: it has {reference.num_features} features, the samples {samples.num_features}"
        )
    for what, side in (("samples", samples), ("reference", reference)):
        if side.n is None:
            flags.append(f"{what}: number of images is unknown")
        elif side.n < side.num_features:
            message = (
                f"{what}: {side.n} images are fewer than the {side.num_features} features; the covariance is singular"
            )
            if strict:
                raise SettingError(f"evaluate.num_images: {message}")
            warnings.warn(message, stacklevel=2)
            flags.append(message)
    value = frechet_distance(samples.mean, samples.covariance, reference.mean, reference.covariance)
    name = frechet_name(samples.provenance.extractor or reference.provenance.extractor)
    return Score(name, value, _with_n(samples), _with_n(reference), flags=tuple(flags))


def kid(samples: np.ndarray, reference: np.ndarray) -> float:
    """Unbiased kernel distance (MMD^2) under k(x, y) = (x . y / D + 1)^3, arXiv:1801.01401; about 0 for equal sets.

    Args:
        samples: [N, D].
        reference: [M, D].
    """
    return kid_interval(samples, reference)[0]


def kid_interval(samples: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """KID and its 95 % confidence interval.

    The variance is the two-sample jackknife's (leave out one image at a time), which on average is not below the
    true one (Efron and Stein 1981), also where both sets have one distribution and first-order formulas give 0.
    Deterministic, and as cheap as KID itself: leaving an image out takes its row from the kernel's sums.

    Returns:
        value, low, high.
    """
    n, m = len(samples), len(reference)
    if min(n, m) < 3:
        raise SettingError(f"evaluate: KID with an interval needs at least 3 images a side, not {n} and {m}")
    x, y = samples.astype(np.float64), reference.astype(np.float64)
    within_x, within_y = _row_sums(x, x) - _diagonal(x), _row_sums(y, y) - _diagonal(y)  # [N], [M], without k(x, x)
    across_x, across_y = _row_sums(x, y), _row_sums(y, x)  # [N], [M]
    sum_x, sum_y, sum_xy = within_x.sum(), within_y.sum(), across_x.sum()

    mean_x, mean_y, mean_xy = sum_x / (n * (n - 1)), sum_y / (m * (m - 1)), sum_xy / (n * m)
    value = mean_x + mean_y - 2 * mean_xy
    without_x = (sum_x - 2 * within_x) / ((n - 1) * (n - 2)) + mean_y - 2 * (sum_xy - across_x) / ((n - 1) * m)  # [N]
    without_y = mean_x + (sum_y - 2 * within_y) / ((m - 1) * (m - 2)) - 2 * (sum_xy - across_y) / (n * (m - 1))  # [M]
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    half = Z_95 * math.sqrt(variance)
    return float(value), float(value - half), float(value + half)


def kid_score(samples: Features, reference: Features) -> Score:
    """KID with its confidence interval and provenance."""
    flags = check_same_features(samples.provenance, reference.provenance)
    value, low, high = kid_interval(samples.values, reference.values)
    name = "kid" if samples.provenance.extractor == INCEPTION else f"kid_{samples.provenance.extractor or 'unknown'}"
    return Score(name, value, samples.provenance, reference.provenance, low, high, tuple(flags))


def _row_sums(x: np.ndarray, y: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """Sum over y of k(x, y): [N], a block of rows at a time."""
    dim = x.shape[1]
    blocks = (x[start : start + chunk] @ y.T for start in range(0, len(x), chunk))
    return np.concatenate([((block / dim + 1) ** 3).sum(1) for block in blocks])


def _diagonal(x: np.ndarray) -> np.ndarray:
    """k(x, x): [N]."""
    return ((x**2).sum(1) / x.shape[1] + 1) ** 3


def _with_n(side: Statistics) -> Provenance:
    return replace(side.provenance, num_images=side.n)
