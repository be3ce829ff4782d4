"""Distances class by class: do samples of a class look like real images of that class?

The Fréchet distance where every class has at least as many images as there are features, on both sides; KID otherwise,
whose expectation does not depend on n. One metric for all classes, so that they can be compared.

Shapes: N = images, D = features, K = classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from noisewise.errors import SettingError
from noisewise.evaluation.features import Features
from noisewise.evaluation.metrics import frechet_score, kid_score
from noisewise.evaluation.provenance import Score
from noisewise.evaluation.statistics import Statistics

LEAST = 3  # images of a class on each side, for KID with an interval


@dataclass(frozen=True)
class ClassMetric:
    """Which distance is taken class by class, and why."""

    kind: str  # "frechet" or "kid"
    why: str
    num_samples: tuple[int, ...]  # [K]
    num_real: tuple[int, ...]  # [K]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "num_samples": list(self.num_samples), "num_real": list(self.num_real)}


def choose_metric(sampled: np.ndarray, real: np.ndarray, names: Sequence[str], num_features: int) -> ClassMetric:
    """The distance that the numbers of images per class allow.

    Args:
        sampled, real: [N] class numbers of both sides' images.
        names: [K] of the classes.
        num_features: D.
    """
    counts = [np.bincount(labels, minlength=len(names))[: len(names)] for labels in (sampled, real)]
    for side, numbers in zip(("sampled", "held-out"), counts, strict=True):
        if numbers.min() < LEAST:
            name = names[int(numbers.argmin())]
            raise SettingError(
                f"sample.num_images: class {name!r} has {numbers.min()} {side} images; distances per class need "
                f"{LEAST} or more"
            )
    fewest, name = min((int(n), name) for numbers in counts for n, name in zip(numbers, names, strict=True))
    kind = "frechet" if fewest >= num_features else "kid"
    verb = "at least as many as" if kind == "frechet" else "fewer than"
    why = f"class {name!r} has {fewest} images, {verb} the {num_features} features"
    return ClassMetric(kind, why, *(tuple(int(n) for n in numbers) for numbers in counts))


def class_scores(
    metric: ClassMetric, sampled: Features, sampled_labels: np.ndarray, real: Features, real_labels: np.ndarray
) -> list[Score]:
    """[K] distances of each class's samples from its real images."""
    scores = []
    for label in range(len(metric.num_samples)):
        x, y = of_class(sampled, sampled_labels, label), of_class(real, real_labels, label)
        scores.append(
            frechet_score(Statistics.of(x), Statistics.of(y)) if metric.kind == "frechet" else kid_score(x, y)
        )
    return scores


def of_class(features: Features, labels: np.ndarray, label: int) -> Features:
    """Those of one class's images."""
    values = features.values[labels == label]  # [n, D]
    return Features(values, replace(features.provenance, num_images=len(values)))
