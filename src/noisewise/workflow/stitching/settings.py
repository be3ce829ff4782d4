"""What a sweep of switch points is told, and the two networks it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from noisewise.data.settings import DataSettings
from noisewise.errors import SettingError
from noisewise.models.loading import load_denoiser
from noisewise.models.stitch import check_pair
from noisewise.objectives import Objective
from noisewise.schedule import NoiseSchedule
from noisewise.workflow.explain import explain
from noisewise.workflow.foundation import make_schedule
from noisewise.workflow.networks import DataInfo, make_objective, predicted_by
from noisewise.workflow.plan_settings import Section
from noisewise.workflow.recipe import apply_overrides
from noisewise.workflow.settings import EvaluateSettings, ObjectiveSettings, SampleSettings, ScheduleSettings
from noisewise.workflow.single import USUAL_SAMPLER

NUM_IMAGES = 1000  # per switch point, where the data has as many


class StitchSettings(Section):
    """What `--data` and `--set` say of a sweep."""

    data: DataSettings
    """The images: the held-out ones give losses and the distance's reference."""
    schedule: ScheduleSettings | None = None
    """The forward process; by default the pipelines' own."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """What the networks predict; by default what the pipelines say."""
    sample: SampleSettings
    """Images per switch point."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Features and number of loss draws, the latter per range between two switch points."""
    seed: int = Field(default=0, ge=0)
    """Seed of the loss draws."""


def read_settings(raw: dict[str, Any], overrides: Sequence[str]) -> tuple[StitchSettings, set[str]]:
    """The settings, and which of the sample's are defaults still to be settled."""
    raw = apply_overrides(raw, overrides)
    if "data" not in raw:
        raise SettingError("--data: missing; name the images as in a recipe, e.g. --data '{kind: sklearn-digits}'")
    sample = raw.get("sample", {})
    defaults = {"num_images", "scheduler"} - set(sample if isinstance(sample, dict) else ())
    if isinstance(sample, dict):
        raw = {**raw, "sample": {"num_images": NUM_IMAGES, **sample}}
    try:
        return StitchSettings.model_validate(raw), defaults
    except ValidationError as error:
        raise SettingError(explain(error, StitchSettings)) from None


def settled(settings: StitchSettings, defaults: set[str], data: DataInfo, schedule: NoiseSchedule) -> StitchSettings:
    """The settings with the number of images and the sampler that suit data and schedule where none are given."""
    most = min(data.num_train, data.num_test)
    changed: dict[str, Any] = {}
    if "num_images" in defaults:
        changed["num_images"] = min(NUM_IMAGES, most)
    elif settings.sample.num_images > most:
        raise SettingError(
            f"sample.num_images: {settings.sample.num_images} given; at most {most} are possible, since the real "
            f"images ({data.num_train} training, {data.num_test} held-out) must give as many"
        )
    if "scheduler" in defaults:
        changed["scheduler"] = USUAL_SAMPLER[schedule.kind]
    return settings.model_copy(update={"sample": settings.sample.model_copy(update=changed)})


@dataclass(frozen=True)
class Pair:
    """The two networks and the schedule and objective they share."""

    small: Any
    large: Any
    scheduler: Any  # of the large one's pipeline, or of the small one's; None for two bare models
    objective: Objective
    objective_settings: ObjectiveSettings


def open_pair(
    small: Path, large: Path, schedule: ScheduleSettings | None = None, objective: ObjectiveSettings | None = None
) -> Pair:
    """Load two checkpoints and check that one can go on where the other stops."""
    from noisewise.models.autoencoder import is_latent_pipeline

    for folder in (small, large):
        if is_latent_pipeline(folder):
            raise SettingError(f"stitch: {folder} is a pipeline of latents; stitch compares pipelines of pixels")
    (cheap, its_scheduler), (dear, scheduler) = load_denoiser(small), load_denoiser(large)
    check_pair(cheap, dear)
    if scheduler is not None and its_scheduler is not None:
        theirs = NoiseSchedule.from_scheduler(scheduler)
        theirs.check_same(NoiseSchedule.from_scheduler(its_scheduler), "stitch: SMALL's schedule")
        kinds = [predicted_by(each) for each in (its_scheduler, scheduler)]
        if None not in kinds and kinds[0] != kinds[1]:
            raise SettingError(f"stitch: SMALL predicts {kinds[0]}, LARGE {kinds[1]}; they have to predict the same")
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
    return Pair(cheap, dear, scheduler, made, settings)


def check_switch_point(objective: Objective, t: float) -> None:
    """Raise unless ``t`` lies within the noise range, and is whole where timesteps are."""
    start, stop = objective.schedule.span
    whole = objective.schedule.is_discrete
    if not start < t < stop or (whole and t != int(t)):
        kind = "a whole number " if whole else ""
        raise SettingError(f"--at: {t:g} given; {kind}between {start:g} and {stop:g} is possible")
