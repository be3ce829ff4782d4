"""Where a number comes from, and whether two numbers may stand in one column."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from noisewise.errors import SettingError


@dataclass(frozen=True)
class Provenance:
    """How features, and what is computed from them, came to be; None means unknown, or not applicable."""

    extractor: str | None = None  # e.g. "efficientnet_lite0_block10"
    extractor_sha256: str | None = None  # of the weights' file
    resize: str | None = None  # what was done to images before the network, e.g. "64x64 bicubic, antialiased, 8-bit"
    num_images: int | None = None
    data: str | None = None  # name of the data set, or "samples"
    data_fingerprint: str | None = None  # sha256 of the pixels
    model: str | None = None  # what made the samples
    sampler: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | list[float] | None = None  # one per group; None: no guidance
    seed: int | None = None
    ema: bool | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Provenance:
        """From JSON; keys of a later version are left out."""
        names = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Score:
    """One number of an evaluation with all that decides whether it can be compared with another."""

    metric: str  # e.g. "fd_efficientnet_lite0_block10"
    value: float
    samples: Provenance
    reference: Provenance
    low: float | None = None  # confidence interval, 95 %
    high: float | None = None
    flags: tuple[str, ...] = field(default=())  # what to say beside the number

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"flags": list(self.flags)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Score:
        parts = {name: Provenance.from_dict(values[name]) for name in ("samples", "reference")}
        return cls(**{**values, **parts, "flags": tuple(values.get("flags", ()))})


FEATURE_FIELDS = ("extractor", "extractor_sha256", "resize")
SAMPLE_FIELDS = (*FEATURE_FIELDS, "num_images")
REFERENCE_FIELDS = (*FEATURE_FIELDS, "num_images", "data_fingerprint")


def check_same_features(a: Provenance, b: Provenance) -> list[str]:
    """Refuse features of two extractors; returns what is unknown, in words."""
    return _check(a, b, FEATURE_FIELDS, "the two sides of a metric")


def compare(a: Score, b: Score) -> list[str]:
    """Refuse to compare scores whose metric, features, number of images or reference differ.

    What may differ between the rows of a table (model, sampler, steps, seed, EMA) and what is unknown is returned in
    words, to be printed beside the comparison; an empty list means that nothing else differs.
    """
    if a.metric != b.metric:
        raise SettingError(f"metric: {a.metric} cannot be compared with {b.metric}")
    notes = _check(a.reference, b.reference, REFERENCE_FIELDS, "references")
    notes += _check(a.samples, b.samples, SAMPLE_FIELDS, "samples")
    for name in ("data", "model", "sampler", "num_inference_steps", "guidance_scale", "seed", "ema"):
        left, right = getattr(a.samples, name), getattr(b.samples, name)
        if left != right:
            notes.append(f"samples.{name} differs: {left} and {right}")
    return notes


def _check(a: Provenance, b: Provenance, names: tuple[str, ...], what: str) -> list[str]:
    unknown = []
    for name in names:
        left, right = getattr(a, name), getattr(b, name)
        if left is None or right is None:
            unknown.append(f"{what}: {name} is unknown")
        elif left != right:
            raise SettingError(f"{name}: {what} differ ({left} and {right}) and cannot be compared")
    return unknown
