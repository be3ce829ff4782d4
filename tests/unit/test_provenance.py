from __future__ import annotations

from dataclasses import replace

import pytest

from noisewise.errors import SettingError
from noisewise.evaluation import Provenance, Score, compare
from noisewise.files import read_json, write_json

SAMPLES = Provenance(
    extractor="net",
    extractor_sha256="ab",
    resize="64",
    num_images=898,
    data="samples",
    model="base",
    sampler="ddim",
    num_inference_steps=50,
    seed=0,
    ema=True,
)
REFERENCE = Provenance("net", "ab", "64", 898, data="digits", data_fingerprint="cd")
SCORE = Score("fd_net", 12.0, SAMPLES, REFERENCE)


def test_equal_provenance_compares_without_a_word() -> None:
    assert compare(SCORE, replace(SCORE, value=11.0)) == []


@pytest.mark.parametrize(
    ("side", "field", "value"),
    [
        ("samples", "extractor", "other"),
        ("samples", "extractor_sha256", "xx"),
        ("samples", "resize", "32"),
        ("samples", "num_images", 500),
        ("reference", "num_images", 500),
        ("reference", "data_fingerprint", "xx"),
    ],
)
def test_numbers_that_measure_different_things_are_refused(side: str, field: str, value: object) -> None:
    other = replace(SCORE, **{side: replace(getattr(SCORE, side), **{field: value})})
    with pytest.raises(SettingError, match=f"^{field}: {side}.* differ"):
        compare(SCORE, other)
    with pytest.raises(SettingError, match=f"^{field}: "):
        compare(other, SCORE)


def test_two_metrics_are_refused() -> None:
    with pytest.raises(SettingError, match="metric: fd_net cannot be compared with kid_net"):
        compare(SCORE, replace(SCORE, metric="kid_net"))


def test_what_a_table_varies_and_what_is_unknown_is_said() -> None:
    fewer_steps = replace(SCORE, samples=replace(SAMPLES, num_inference_steps=20))
    assert compare(SCORE, fewer_steps) == ["samples.num_inference_steps differs: 50 and 20"]
    unknown = replace(SCORE, reference=replace(REFERENCE, data_fingerprint=None))
    assert compare(SCORE, unknown) == ["references: data_fingerprint is unknown"]


def test_scores_survive_json(tmp_path) -> None:
    score = replace(SCORE, low=11.0, high=13.0, flags=("few images",))
    write_json(tmp_path / "score.json", score.to_dict())
    assert Score.from_dict(read_json(tmp_path / "score.json", "score")) == score
    assert Provenance.from_dict({"extractor": "net", "of_a_later_version": 1}) == Provenance("net")
