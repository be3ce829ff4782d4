"""What a sweep of switch points is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError

from noisewise.data.settings import DataSettings
from noisewise.errors import SettingError
from noisewise.schedule import NoiseSchedule
from noisewise.workflow.explain import explain
from noisewise.workflow.networks import DataInfo
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
