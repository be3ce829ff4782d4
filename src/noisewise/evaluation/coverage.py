"""Precision and recall of samples in feature space (Kynkäänniemi et al. 2019, arXiv:1904.06991).

A set's manifold is estimated by balls around its points, each as large as the distance to the point's k-th nearest
neighbour within the set. Precision: the share of samples that lie in the real images' manifold, how many look real.
Recall: the share of real images that lie in the samples', how much of reality is covered. Both depend on n, so that
they are compared at the same numbers of images only.

Shapes: N, M = images, D = features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from noisewise.errors import SettingError
from noisewise.evaluation.features import Features
from noisewise.evaluation.provenance import check_same_features

NEAREST = 3  # the paper's k
CHUNK = 256  # rows of a distance matrix at a time


@dataclass(frozen=True)
class Coverage:
    """Shares in [0, 1]; higher is better."""

    precision: float
    recall: float


def coverage(samples: Features, reference: Features, k: int = NEAREST) -> Coverage:
    """Precision and recall of samples against real images, over the same features."""
    check_same_features(samples.provenance, reference.provenance)
    return precision_recall(samples.values, reference.values, k)


def precision_recall(samples: np.ndarray, reference: np.ndarray, k: int = NEAREST) -> Coverage:
    """Eq. 1 and 2, with squared distances.

    Args:
        samples: [N, D].
        reference: [M, D].
        k: the neighbour whose distance is a point's radius; it does not count as its own.
    """
    if not 1 <= k < min(len(samples), len(reference)):
        raise SettingError(
            f"evaluate: precision and recall with k = {k} need more than {k} images a side, not {len(samples)} and "
            f"{len(reference)}"
        )
    x, y = samples.astype(np.float64), reference.astype(np.float64)
    return Coverage(_share_within(x, y, _radii(y, k)), _share_within(y, x, _radii(x, k)))


def _radii(points: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of every point to its k-th nearest other one: [N]."""
    parts = []
    for first, distances in _distances(points, points):
        distances[np.arange(len(distances)), first + np.arange(len(distances))] = -1.0  # itself, however it is rounded
        parts.append(np.partition(distances, k, axis=1)[:, k])
    return np.concatenate(parts)


def _share_within(queries: np.ndarray, points: np.ndarray, radii: np.ndarray) -> float:
    """Share of queries [N, D] that lie in some ball around the points [M, D]."""
    return sum(int((distances <= radii).any(1).sum()) for _, distances in _distances(queries, points)) / len(queries)


def _distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Squared Euclidean distances, some rows [n, M] at a time, with the number of the first."""
    squares = (b**2).sum(1)  # [M]
    for first in range(0, len(a), CHUNK):
        some = a[first : first + CHUNK]  # [n, D]
        yield first, ((some**2).sum(1)[:, None] + squares - 2 * some @ b.T).clip(min=0)  # [n, M]
