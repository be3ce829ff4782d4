"""Fréchet distance of real digits to real digits, and to themselves under small changes, as measured once.

It grows in the order a person would give: real, one class missing, half of the classes missing, noise.
"""

from __future__ import annotations

import numpy as np
import pytest

from noisewise.data import Dataset, DigitsSettings, load_data
from noisewise.evaluation import EfficientNetLite0, Features, Statistics, frechet_score, kid_interval


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data(DigitsSettings(kind="sklearn-digits", conditional=True))


@pytest.fixture(scope="module")
def sides(digits: Dataset) -> dict[str, Features]:
    extractor = EfficientNetLite0("block10")
    real = digits.train.pixels[:898]
    noise = np.random.default_rng(0).normal(0, 8, real.shape)
    noisy = np.clip(real + noise, 0, 255).round().astype(np.uint8)
    return {
        "reference": Features.of(extractor, digits.test),
        "real": Features.of(extractor, real),
        "noisy": Features.of(extractor, noisy),
    }


def test_distances_are_those_measured_before(digits: Dataset, sides: dict[str, Features]) -> None:
    reference = Statistics.of(sides["reference"])
    labels = digits.train.labels[:898]
    real, where = sides["real"].values, sides["real"].provenance

    def distance(values: np.ndarray) -> float:
        return frechet_score(Statistics.of(Features(values, where)), reference).value

    assert distance(real) == pytest.approx(5.3, abs=0.1)
    assert distance(real[labels != 3]) == pytest.approx(7.46, abs=0.15)
    assert distance(real[labels < 5]) == pytest.approx(35.0, abs=0.7)
    assert distance(sides["noisy"].values) == pytest.approx(68.5, abs=1.5)


def test_kid_does_not_tell_real_from_real_and_does_tell_noise(sides: dict[str, Features]) -> None:
    reference = sides["reference"].values
    value, low, high = kid_interval(sides["real"].values, reference)
    assert low < 0 < high
    assert kid_interval(sides["noisy"].values, reference)[1] > 10 * (high - value)
