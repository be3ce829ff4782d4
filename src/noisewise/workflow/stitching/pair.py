"""The two networks of a sweep, and what they have to share: schedule, prediction, and the latents or text they see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.models.loading import load_denoiser
from noisewise.models.networks import describe
from noisewise.models.sources import INDEX, find_source, read_index
from noisewise.models.stitch import check_pair
from noisewise.objectives import Objective
from noisewise.schedule import NoiseSchedule
from noisewise.workflow.foundation import make_schedule
from noisewise.workflow.networks import DataInfo, make_objective, predicted_by
from noisewise.workflow.settings import ObjectiveSettings, ScheduleSettings

if TYPE_CHECKING:
    from noisewise.models.autoencoder import Autoencoder

NAMES = ("SMALL", "LARGE")


@dataclass(frozen=True)
class Pair:
    """The two networks and the schedule and objective they share."""

    small: Any
    large: Any
    folders: tuple[Path, Path]  # small, large: where they lie, names on the Hub fetched
    scheduler: Any  # of the large one's pipeline, or of the small one's; None for two bare models
    objective: Objective
    objective_settings: ObjectiveSettings
    autoencoder: Autoencoder | None = None  # of pipelines of latents, without its weights
    whole: Path | None = None  # the pipeline of latents whose other components a stitched one keeps

    def seen(self, data: DataInfo) -> DataInfo:
        """What the networks see of images: themselves, or their latents."""
        if self.autoencoder is None:
            return data
        if self.autoencoder.in_channels != data.channels:
            raise SettingError(
                f"data: images of {data.channels} channels, the autoencoder takes {self.autoencoder.in_channels}"
            )
        channels, size, _ = self.autoencoder.latent_shape(data.size)
        made_for = describe(self.large).image_size(self.large)
        if made_for is not None and made_for != (size, size):
            raise SettingError(
                f"data.image_size: images of {data.size} pixels have latents of {size}x{size}, the networks are made "
                f"for {made_for[0]}x{made_for[1]}; set data.image_size: {made_for[0] * self.autoencoder.factor}"
            )
        return replace(data, channels=channels, size=size)


def open_pair(
    small: Path, large: Path, schedule: ScheduleSettings | None = None, objective: ObjectiveSettings | None = None
) -> Pair:
    """Load two checkpoints and check that one can go on where the other stops."""
    folders = find_source(small), find_source(large)
    (cheap, its_scheduler), (dear, scheduler) = (load_denoiser(folder) for folder in folders)
    check_pair(cheap, dear)
    autoencoder = _shared_autoencoder(folders)
    _check_text(folders)
    if scheduler is not None and its_scheduler is not None:
        theirs = NoiseSchedule.from_scheduler(scheduler)
        theirs.check_same(NoiseSchedule.from_scheduler(its_scheduler), "stitch: SMALL's schedule")
        kinds = [predicted_by(each) for each in (its_scheduler, scheduler)]
        if None not in kinds and kinds[0] != kinds[1]:
            raise SettingError(f"stitch: SMALL predicts {kinds[0]}, LARGE {kinds[1]}; they have to predict the same")
    whole = None if autoencoder is None else folders[0 if scheduler is None else 1]
    scheduler = its_scheduler if scheduler is None else scheduler
    if scheduler is None and schedule is None:
        raise SettingError(
            "stitch: neither folder has a scheduler; give pipelines, or the schedule by --set schedule.kind=linear"
        )
    settings, found = objective or ObjectiveSettings(), make_schedule(schedule, scheduler)
    if settings.prediction_type is None and found.kind == "vp":
        settings = settings.model_copy(update={"prediction_type": predicted_by(scheduler)})
    made = make_objective(settings, found)
    settings = settings.model_copy(update={"prediction_type": made.prediction_type})
    return Pair(cheap, dear, folders, scheduler, made, settings, autoencoder, whole)


def _shared_autoencoder(folders: tuple[Path, Path]) -> Autoencoder | None:
    """The autoencoder of two pipelines of latents, which has to be one and the same; None of two of pixels."""
    from noisewise.models.autoencoder import describe_autoencoder, is_latent_pipeline, load_autoencoder

    latent = [is_latent_pipeline(folder) for folder in folders]
    if not any(latent):
        return None
    if not all(latent):
        ours, theirs = NAMES if latent[0] else NAMES[::-1]
        raise SettingError(
            f"stitch: {ours} is a pipeline of latents, {theirs} has no autoencoder; both have to share one"
        )
    described = [
        describe_autoencoder(folder, setting=f"stitch: {name}") for name, folder in zip(NAMES, folders, strict=True)
    ]
    scales = [each.scaling_factor for each in described]
    if scales[0] != scales[1]:
        raise SettingError(
            f"stitch: SMALL has learned latents scaled by {scales[0]:g}, LARGE by {scales[1]:g}; both have to share "
            "their autoencoder"
        )
    if folders[0].resolve() != folders[1].resolve():
        prints = {load_autoencoder(folder).fingerprint for folder in folders}
        if len(prints) > 1:
            raise SettingError(
                "stitch: the autoencoders of SMALL and LARGE differ in their settings or weights; both have to share "
                "one, since the one network goes on with the other's latents"
            )
    return described[1]


def _check_text(folders: tuple[Path, Path]) -> None:
    """Two pipelines have to read prompts alike: the stitched one has one set of text encoders."""
    found = [set(_text_encoders(folder)) for folder in folders]
    for name in sorted(found[0] | found[1]):
        lacking = [which for which, names in zip(NAMES, found, strict=True) if name not in names]
        if lacking:
            raise SettingError(f"stitch: {lacking[0]} has no {name}, the other has; both have to share it")
        if len({_tensors_digest((folder / name).glob("*.safetensors")) for folder in folders}) > 1:
            raise SettingError(f"stitch: the {name} of SMALL and of LARGE has other weights; both have to share it")


def _text_encoders(folder: Path) -> Iterable[str]:
    if not (folder / INDEX).is_file():
        return ()
    index = read_index(folder)
    return (name for name, value in index.items() if name.startswith("text_encoder") and value[0] is not None)


def _tensors_digest(files: Iterable[Path]) -> str:
    """Of all tensors in some safetensors files, however they are spread over them."""
    import torch
    from safetensors import safe_open

    digests = []
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no dictionary
                tensor = tensors.get_tensor(name).contiguous()
                content = tensor.view(-1).view(torch.uint8).numpy().data
                digests.append(f"{name} {tensor.dtype} {list(tensor.shape)} {hashlib.sha256(content).hexdigest()}")
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def check_switch_point(objective: Objective, t: float) -> None:
    """Raise unless ``t`` lies within the noise range, and is whole where timesteps are."""
    start, stop = objective.schedule.span
    whole = objective.schedule.is_discrete
    if not start < t < stop or (whole and t != int(t)):
        kind = "a whole number " if whole else ""
        raise SettingError(f"--at: {t:g} given; {kind}between {start:g} and {stop:g} is possible")
