"""Distances class by class: do samples of a class look like real images of that class?

The Fréchet distance where every class has at least as many images as there are features, on both sides; KID otherwise,
whose expectation does not depend on n. One metric for all classes, so that they can be compared.

Shapes: N = images, D = features, K = classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from noisewise.evaluation.features import Features
from noisewise.evaluation.metrics import frechet_score, kid_score
from noisewise.evaluation.provenance import Score
from noisewise.evaluation.statistics import Statistics

LEAST = 3  # images of a class on each side, for KID with an interval


@dataclass(frozen=True)
class ClassMetric:
    """Which distance is taken class by class, and why."""

    kind: Literal["frechet", "kid"] | None  # None: some class has too few images for either
    why: str
    counts: dict[str, tuple[int, ...]]  # by side, [K] images of each class

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "why": self.why, "counts": {side: list(n) for side, n in self.counts.items()}}


def choose_metric(sides: Mapping[str, np.ndarray], names: Sequence[str], num_features: int) -> ClassMetric:
    """The distance that the numbers of images per class allow.

    Args:
        sides: [N] class numbers of the images on every side that is compared, e.g. "sampled" and "held-out".
        names: [K] of the classes.
        num_features: D.
    """
    counts = {side: tuple(int(n) for n in np.bincount(labels, minlength=len(names))) for side, labels in sides.items()}
    fewest, name, side = min(
        (n, name, side) for side, numbers in counts.items() for n, name in zip(numbers, names, strict=True)
    )
    why = f"class {name!r} has {fewest} {side} images"
    if fewest < LEAST:
        return ClassMetric(None, f"{why}, and a distance needs {LEAST} or more", counts)
    if fewest < num_features:
        return ClassMetric("kid", f"{why}, fewer than the {num_features} features", counts)
    return ClassMetric("frechet", f"{why}, no fewer than the {num_features} features", counts)


def class_scores(
    metric: ClassMetric, sampled: Features, sampled_labels: np.ndarray, real: Features, real_labels: np.ndarray
) -> list[Score]:
    """[K] distances of each class's samples from its real images; none where the metric is none."""
    num_classes = len(next(iter(metric.counts.values()))) if metric.kind else 0
    scores = []
    for label in range(num_classes):
        x, y = of_class(sampled, sampled_labels, label), of_class(real, real_labels, label)
        is_frechet = metric.kind == "frechet"
        scores.append(frechet_score(Statistics.of(x), Statistics.of(y)) if is_frechet else kid_score(x, y))
    return scores


def of_class(features: Features, labels: np.ndarray, label: int) -> Features:
    """Those of one class's images."""
    values = features.values[labels == label]  # [n, D]
    return Features(values, replace(features.provenance, num_images=len(values)))
