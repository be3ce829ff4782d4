from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from noisewise.errors import SettingError
from noisewise.evaluation import (
    Features,
    Provenance,
    Statistics,
    frechet_distance,
    frechet_score,
    kid,
    kid_interval,
    kid_score,
)

KNOWN = Provenance(extractor="net", extractor_sha256="ab", resize="none", num_images=50, data_fingerprint="cd")


def features(num: int = 50, dim: int = 4, shift: float = 0.0, *, seed: int = 0, **known: object) -> Features:
    values = np.random.default_rng(seed).normal(shift, 1, (num, dim)).astype(np.float32)
    return Features(values, Provenance(**{**KNOWN.to_dict(), "num_images": num, **known}))


def test_the_distance_of_a_set_to_itself_is_zero_and_of_a_shift_its_square() -> None:
    side = Statistics.of(features())
    assert frechet_distance(side.mean, side.covariance, side.mean, side.covariance) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(side.mean, side.covariance, side.mean + 3, side.covariance) == pytest.approx(4 * 9)


def test_diagonal_covariances_give_the_closed_form() -> None:
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 4.0, 1.0])  # one variance is zero: singular
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(np.zeros(3), np.diag(a), np.zeros(3), np.diag(b)) == pytest.approx(expected)


def test_scores_carry_name_and_provenance() -> None:
    samples, reference = features(seed=1), features(seed=2)
    score = frechet_score(Statistics.of(samples), Statistics.of(reference))

    assert score.metric == "fd_net"
    assert score.flags == ()
    assert (score.samples, score.reference) == (samples.provenance, reference.provenance)
    distance = kid_score(samples, reference)
    assert distance.metric == "kid_net"
    assert distance.low < distance.value < distance.high


def test_fewer_images_than_features_are_flagged_or_refused() -> None:
    few, many = Statistics.of(features(3)), Statistics.of(features(50))
    with pytest.warns(UserWarning, match="samples: 3 images are fewer than the 4 features"):
        score = frechet_score(few, many)
    assert any("fewer" in flag for flag in score.flags)
    with pytest.raises(SettingError, match=r"evaluate\.num_images: reference: 3 images"):
        frechet_score(many, few, strict=True)


def test_features_of_two_extractors_are_refused() -> None:
    ours, theirs = features(), features(extractor_sha256="ef")
    with pytest.raises(SettingError, match=r"extractor_sha256: .* differ"):
        frechet_score(Statistics.of(ours), Statistics.of(theirs))
    with pytest.raises(SettingError, match=r"extractor_sha256: .* differ"):
        kid_score(ours, theirs)
    with pytest.raises(SettingError, match="4 features, the samples 5"):
        frechet_score(Statistics.of(features(dim=5)), Statistics.of(ours))


def test_statistics_survive_saving(tmp_path: Path) -> None:
    before = Statistics.of(features())
    before.save(tmp_path / "reference.npz")
    after = Statistics.load(tmp_path / "reference.npz")

    assert np.array_equal(before.mean, after.mean)
    assert np.array_equal(before.covariance, after.covariance)
    assert (before.n, before.provenance) == (after.n, after.provenance)


def test_pytorch_fid_files_are_read_and_their_unknown_provenance_is_said(tmp_path: Path) -> None:
    ours = Statistics.of(features())
    np.savez(tmp_path / "theirs.npz", mu=ours.mean, sigma=ours.covariance)
    theirs = Statistics.load(tmp_path / "theirs.npz")
    score = frechet_score(ours, theirs)

    assert score.value == pytest.approx(0, abs=1e-9)
    assert theirs.n is None
    assert any("extractor is unknown" in flag for flag in score.flags)
    assert "reference: number of images is unknown" in score.flags


def test_files_that_hold_no_statistics_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], dtype=object), sigma=np.zeros((1, 1)))
    Statistics.of(features()).save(tmp_path / "cut.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-50])
    for name in ("other", "odd", "pickled", "cut", "none"):
        with pytest.raises(SettingError, match=rf"evaluate\.reference: .*{name}\.npz"):
            Statistics.load(tmp_path / f"{name}.npz")
    with pytest.raises(SettingError, match="not finite"):
        Statistics.of(Features(np.array([[1.0], [np.nan]], np.float32), KNOWN))


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_kid_is_unbiased_and_its_interval_holds_the_truth(shift: float) -> None:
    """Against the expectation from a large sample; the interval is 95 %, conservative where the sets agree."""
    rng = np.random.default_rng(0)
    dim, trials = 3, 200
    truth = kid(rng.normal(shift, 1, (4000, dim)), rng.normal(0, 1, (4000, dim))) if shift else 0.0
    intervals = [kid_interval(rng.normal(shift, 1, (40, dim)), rng.normal(0, 1, (60, dim))) for _ in range(trials)]
    values = np.array([value for value, _, _ in intervals])
    covered = np.mean([low <= truth <= high for _, low, high in intervals])

    assert abs(values.mean() - truth) < 4 * values.std() / trials**0.5 + (0.05 * truth)
    assert 0.88 <= covered <= 1


def test_kid_tells_distributions_apart_that_its_interval_at_the_floor_contains() -> None:
    floor = kid_interval(features(300, seed=1).values, features(300, seed=2).values)
    shifted = kid_interval(features(300, shift=0.5, seed=3).values, features(300, seed=2).values)
    assert floor[1] < 0 < floor[2] < shifted[1]
    with pytest.raises(SettingError, match="at least 3 images"):
        kid(np.zeros((2, 4)), np.zeros((9, 4)))
