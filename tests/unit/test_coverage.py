"""Precision, recall and distances per class, against brute force and on sets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from noisewise.errors import SettingError
from noisewise.evaluation.classes import choose_metric, class_scores
from noisewise.evaluation.coverage import coverage, precision_recall
from noisewise.evaluation.features import Features
from noisewise.evaluation.metrics import kid
from noisewise.evaluation.provenance import Provenance


def points(seed: int, n: int, dim: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim))


def features(values: np.ndarray, extractor: str = "test") -> Features:
    return Features(
        values, Provenance(extractor=extractor, extractor_sha256="1", resize="none", num_images=len(values))
    )


def by_hand(samples: np.ndarray, reference: np.ndarray, k: int) -> tuple[float, float]:
    def share(queries: np.ndarray, centres: np.ndarray) -> float:
        radii = [sorted(np.linalg.norm(centres - centre, axis=1))[k] for centre in centres]  # [0] is the point itself
        inside = [
            any(np.linalg.norm(query - centre) <= radius for centre, radius in zip(centres, radii, strict=True))
            for query in queries
        ]
        return float(np.mean(inside))

    return share(samples, reference), share(reference, samples)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_what_their_definition_says(k: int) -> None:
    samples, reference = points(0, 40) * 1.3 + 1.2, points(1, 30)
    found = precision_recall(samples, reference, k)
    assert (found.precision, found.recall) == pytest.approx(by_hand(samples, reference, k))
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


def test_more_rows_than_a_chunk_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, reference = points(2, 50) + 0.5, points(3, 60)
    whole = precision_recall(samples, reference)
    monkeypatch.setattr("noisewise.evaluation.coverage.CHUNK", 7)
    assert precision_recall(samples, reference) == whole


def test_a_lost_mode_costs_recall_and_bad_samples_cost_precision() -> None:
    here, there = points(4, 100), points(5, 100) + 50
    reference = np.concatenate([here, there])
    one_mode = precision_recall(points(6, 200), reference)
    assert one_mode.precision > 0.8
    assert one_mode.recall < 0.55
    broken = precision_recall(np.concatenate([points(7, 100), points(8, 100) - 50]), here)
    assert broken.precision < 0.55
    assert broken.recall > 0.8
    assert precision_recall(reference, reference).precision == 1


def test_too_few_images_and_other_features_are_refused() -> None:
    with pytest.raises(SettingError, match="k = 3 need more than 3 images a side, not 3 and 9"):
        precision_recall(points(0, 3), points(1, 9))
    with pytest.raises(SettingError, match="extractor"):
        coverage(features(points(0, 9)), features(points(1, 9), "other"))


def test_the_metric_per_class_follows_from_the_number_of_images() -> None:
    labels, names = np.arange(60) % 3, ["a", "b", "c"]
    same = {"sampled": labels, "held-out": labels}
    assert choose_metric(same, names, num_features=20).kind == "frechet"
    scarce = choose_metric({**same, "held-out": np.append(labels, [0, 1])}, names, num_features=21)
    assert (scarce.kind, scarce.counts["held-out"]) == ("kid", (21, 21, 20))
    assert scarce.why == "class 'a' has 20 sampled images, fewer than the 21 features"
    few = choose_metric({**same, "held-out": np.array([0, 0, 0, 1, 1, 1, 2, 2])}, names, 20)
    assert (few.kind, few.why) == (None, "class 'c' has 2 held-out images, and a distance needs 3 or more")
    assert choose_metric({**same, "sampled": np.arange(9) % 2}, names, 20).counts["sampled"] == (5, 4, 0)
    assert class_scores(few, features(points(0, 60)), labels, features(points(1, 60)), labels) == []


def test_distances_per_class_see_whether_the_class_is_right() -> None:
    labels = np.arange(120) % 2
    real = points(9, 120) + 3 * labels[:, None]
    good, swapped = points(10, 120) + 3 * labels[:, None], points(10, 120) + 3 * (1 - labels[:, None])
    sides = {"sampled": labels, "held-out": labels}
    few = choose_metric(sides, ["a", "b"], num_features=61)
    right = class_scores(few, features(good), labels, features(real), labels)
    wrong = class_scores(few, features(swapped), labels, features(real), labels)
    assert [score.metric for score in right] == ["kid_test", "kid_test"]
    assert right[1].value == pytest.approx(kid(good[labels == 1], real[labels == 1]))
    assert right[1].samples.num_images == 60
    assert all(r.high < w.low for r, w in zip(right, wrong, strict=True))  # type: ignore[operator]

    many = choose_metric(sides, ["a", "b"], num_features=4)
    frechet = class_scores(many, features(good), labels, features(real), labels)
    assert {score.metric for score in frechet} == {"fd_test"}
    assert max(score.value for score in frechet) < 2 < 30 < frechet_of_swapped(many, swapped, real, labels)


def frechet_of_swapped(metric: object, swapped: np.ndarray, real: np.ndarray, labels: np.ndarray) -> float:
    return min(score.value for score in class_scores(metric, features(swapped), labels, features(real), labels))  # type: ignore[arg-type]
