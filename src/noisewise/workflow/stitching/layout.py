"""The steps of a sweep of switch points, in the runs' store, so that the same command resumes.

Switch points between the same two calls of the sampler give the same images, and are sampled once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from noisewise.errors import SettingError
from noisewise.models.stitch import End, macs_of
from noisewise.schedule import NoiseSchedule
from noisewise.workflow import latents
from noisewise.workflow.conditioning import BESIDE_SAMPLE, guidance_settings
from noisewise.workflow.looking import check_captions
from noisewise.workflow.networks import DataInfo, check_fits, weights_checksum
from noisewise.workflow.stitching.pair import Pair, check_switch_point, open_pair
from noisewise.workflow.stitching.settings import StitchSettings, read_settings, settled
from noisewise.workflow.store import StepSpec, Store, closure


@dataclass(frozen=True)
class Point:
    """One way to share the calls. ``t`` is None where one network serves them all."""

    t: float | None
    small_calls: int
    step: StepSpec


@dataclass(frozen=True, eq=False)
class Sweep:
    """All steps of a sweep, from the large network alone to the small one alone."""

    settings: StitchSettings
    folders: tuple[Path, Path]  # small, large, as the user names them
    small_at: End
    pair: Pair
    data: DataInfo
    macs: tuple[int, int]  # of a call of the small and of the large network
    decode_macs: int  # of one image; 0 where nothing is decoded
    num_calls: int
    points: tuple[Point, ...]
    losses: tuple[StepSpec, StepSpec]
    reference: StepSpec

    @property
    def schedule(self) -> NoiseSchedule:
        return self.pair.objective.schedule

    @property
    def steps(self) -> list[StepSpec]:
        """Inputs first."""
        return closure([self.reference, *self.losses, *(point.step for point in self.points)])

    def to_do(self, store: Store) -> tuple[int, float]:
        """Images and MACs of the samples that are not there yet."""
        steps = [step for step in self.steps if not store.is_done(step)]
        sampled = sum(step.action == "stitch_sample" for step in steps)
        return sampled * self.settings.sample.num_images, sum(step.macs for step in steps)


def lay_out(
    small: Path,
    large: Path,
    raw: dict[str, Any],
    overrides: Sequence[str],
    *,
    store: Store,
    small_at: End = "noise",
    num_switch_points: int = 9,
    at: float | None = None,
) -> Sweep:
    """The steps of a sweep.

    Args:
        small, large: folders of pipelines or models.
        raw, overrides: settings as in a recipe, see `StitchSettings`; the number of images and the sampler have
            defaults that suit the data and the schedule.
        small_at: the end of the noise range that the small network serves.
        num_switch_points: between the two networks alone, evenly spaced in t, flow time or log sigma.
        at: one more switch point.
    """
    settings, defaults = read_settings(raw, overrides)
    pair = open_pair(small, large, settings.schedule, settings.objective)
    data = _data(settings, store)
    settings = settled(settings, defaults, data, pair.objective.schedule)
    check_captions(pair.folders[1], pair.large, bool(data.captions))
    if settings.evaluate.text_image_encoder is not None:
        raise SettingError("evaluate.text_image_encoder: given, and a sweep has no such score; leave it out")
    for path, model in ((small, pair.small), (large, pair.large)):
        try:
            check_fits(model, pair.scheduler, pair.seen(data), pair.objective)
        except SettingError as error:
            raise SettingError(f"stitch: {path} and the data do not fit: {error}") from None
    return _Layout(settings, (small, large), pair, data, small_at).sweep(num_switch_points, at)


def _data(settings: StitchSettings, store: Store) -> DataInfo:
    from noisewise.data.load import load_data

    data = load_data(settings.data, cache=store.root / "data")
    return DataInfo(
        data.name, data.channels, data.size, data.num_classes, len(data.train), len(data.test), data.fingerprint,
        data.captions_sha256,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Layout:
    settings: StitchSettings
    folders: tuple[Path, Path]
    pair: Pair
    data: DataInfo
    small_at: End

    def sweep(self, num_switch_points: int, at: float | None) -> Sweep:
        objective, calls = self.pair.objective, len(self.visited)
        bounds = objective.bin_edges(None, num_switch_points + 1)[1:-1]
        if at is not None:
            check_switch_point(objective, at)
            bounds = sorted({*bounds, at})
        middle = [
            Point(t, *self.sample_at(t)) for t in (bounds if self.small_at == "data" else reversed(bounds))
        ]  # fmt: skip
        points = [Point(None, 0, self.sample(0)), *middle, Point(None, calls, self.sample(calls))]
        losses = self.loss("small", bounds), self.loss("large", bounds)
        return Sweep(
            self.settings, self.folders, self.small_at, self.saved_pair(), self.data, self.macs, self.coding_macs[1],
            calls, tuple(points), losses, self.reference,
        )  # fmt: skip

    def saved_pair(self) -> Pair:
        """The pair with a scheduler in any case: bare models get the sweep's sampler."""
        return self.pair if self.pair.scheduler is not None else replace(self.pair, scheduler=self.sampler)

    @cached_property
    def sampler(self) -> Any:
        from noisewise.sampling.schedulers import build_scheduler

        objective = self.pair.objective
        prediction_type: Any = objective.prediction_type
        return build_scheduler(
            self.settings.sample.scheduler, objective.schedule, prediction_type, objective.variance,
            latent=self.pair.autoencoder is not None,
        )  # fmt: skip

    @cached_property
    def visited(self) -> np.ndarray:
        """Coordinates of the sampler's calls, noise first."""
        steps = self.settings.sample.num_inference_steps
        visited = np.asarray(self.pair.objective.schedule.visited(self.sampler, steps), dtype=np.float64)
        return np.sort(visited)[::-1]

    @cached_property
    def macs(self) -> tuple[int, int]:
        return macs_of(self.pair.small), macs_of(self.pair.large)

    @cached_property
    def coding_macs(self) -> tuple[int, int]:
        """Of encoding and of decoding one image; 0 where the networks see pixels."""
        described = self.pair.autoencoder
        return (0, 0) if described is None else latents.macs_of(described, self.data.shape)

    @property
    def told(self) -> dict[str, str]:
        """The captions, among a step's settings where the networks are told any."""
        return {"captions": self.data.captions} if self.data.captions else {}

    @cached_property
    def networks(self) -> dict[str, dict[str, str]]:
        names = zip(("small", "large"), self.pair.folders, strict=True)
        return {name: {"from": str(folder), "checksum": weights_checksum(folder)} for name, folder in names}

    @cached_property
    def features(self) -> dict[str, Any]:
        from noisewise.files import sha256_file

        names = {"features", "tap", "inception_path", "num_threads"}
        path = self.settings.evaluate.inception_path
        if path is not None and not path.is_file():
            raise SettingError(f"evaluate.inception_path: {path} does not exist")
        evaluate = self.settings.evaluate.model_dump(mode="json", include=names)
        return {"evaluate": evaluate, "checksum": "" if path is None else sha256_file(path)}

    @cached_property
    def reference(self) -> StepSpec:
        sample = self.settings.sample
        more = {"data": self.data.fingerprint, "num_images": sample.num_images, "seed": sample.seed}
        return StepSpec("reference", "reference", {**self.features, **more})

    def sample_at(self, t: float) -> tuple[int, StepSpec]:
        """Calls of the small network and the step: the same for all switch points between the same two calls."""
        num_calls = len(self.visited)
        noisy = int((self.visited >= t).sum())
        small_calls = noisy if self.small_at == "noise" else num_calls - noisy
        if noisy in (0, num_calls):
            return small_calls, self.sample(small_calls)
        if self.pair.objective.schedule.is_discrete:
            t = float(np.floor(self.visited[noisy]) + 1)  # the least of them
        else:
            t = float(self.visited[noisy - 1])  # the largest
        return small_calls, self.sample(small_calls, t)

    def sample(self, small_calls: int, t: float | None = None) -> StepSpec:
        """Images with ``small_calls`` by the small network; ``t`` is None where one network serves all calls."""
        sample, objective, num_calls = self.settings.sample, self.pair.objective, len(self.visited)
        settings = {
            "networks": self.networks,
            "small_at": None if t is None else self.small_at,
            "small_calls": small_calls,
            "t": t,
            "scheduler": sample.scheduler,
            "num_inference_steps": sample.num_inference_steps,
            "schedule": objective.schedule.to_dict(),
            "prediction_type": objective.prediction_type,
            "variance": objective.variance,
            **guidance_settings(sample.guidance_scale),
            "sample": sample.model_dump(mode="json", exclude=BESIDE_SAMPLE),
            "shape": self.pair.seen(self.data).shape,
            "num_classes": self.data.num_classes,
            **({} if self.pair.autoencoder is None else {"latent": True}),
            **({"data": self.data.fingerprint, **self.told} if self.told else {}),
            **self.features,
        }
        image_macs = small_calls * self.macs[0] + (num_calls - small_calls) * self.macs[1] + self.coding_macs[1]
        inputs = {"reference": self.reference}
        return StepSpec(
            f"sample[{small_calls} of {num_calls}]",
            "stitch_sample",
            settings,
            inputs,
            macs=float(sample.num_images * image_macs),
        )

    def loss(self, which: str, bounds: Sequence[float]) -> StepSpec:
        """Held-out loss of one network in every range between two switch points."""
        num_draws = self.settings.evaluate.num_loss_images * (len(bounds) + 1)
        settings = {
            "network": self.networks[which],
            "bounds": [float(t) for t in bounds],
            "objective": self.pair.objective_settings,
            "schedule": self.pair.objective.schedule.to_dict(),
            "data": self.data.fingerprint,
            "evaluate": self.settings.evaluate.model_dump(mode="json", include={"num_loss_images", "num_threads"}),
            "seed": self.settings.seed,
            **self.told,
        }
        macs = self.macs[0 if which == "small" else 1] + self.coding_macs[0]
        return StepSpec(f"loss[{which}]", "stitch_loss", settings, macs=float(num_draws * macs))
