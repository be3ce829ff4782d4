"""A recipe: every setting of a run, read from YAML, checked whole before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from noisewise.data.settings import DataSettings
from noisewise.errors import SettingError
from noisewise.training.settings import TrainSettings
from noisewise.workflow.explain import explain
from noisewise.workflow.settings import (
    BaseSettings,
    EvaluateSettings,
    ExistingModel,
    ModelSettings,
    ObjectiveSettings,
    PlanSettings,
    PruneSettings,
    RowId,
    SampleSettings,
    ScheduleSettings,
    Section,
    SingleStageSettings,
)
from noisewise.workflow.yaml_file import parse_yaml, read_mapping, to_yaml


class Recipe(Section):
    """All settings of a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    """Name of the run and of its folder: letters, digits, dots, dashes and underscores."""
    data: DataSettings
    """Where the images come from."""
    horizontal_flip: bool = False
    """Mirror training images at random; not for digits, letters and the like."""
    schedule: ScheduleSettings | None = None
    """The forward process; default: that of an existing model (`model.from`), else linear with 1000 timesteps."""
    method: Literal["tdc", "single-stage"] = "tdc"
    """tdc: a base, then an expert per group, pruned and fine-tuned; single-stage: every expert from scratch."""
    model: ModelSettings
    """The base network, or `from: FOLDER` of an existing one."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """What the networks learn to predict."""
    base: BaseSettings
    """Stage 1: training of the base."""
    plan: PlanSettings = PlanSettings()
    """Groups of timesteps and their cost limits."""
    prune: PruneSettings = PruneSettings()
    """Pruning of each group's expert."""
    finetune: TrainSettings
    """Stage 2: training of each group's expert on its own timesteps; num_images is per group."""
    single_stage: SingleStageSettings = SingleStageSettings()
    """Method single-stage."""
    sample: SampleSettings
    """Images for the evaluation."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Comparison of the rows."""
    compare: tuple[RowId, ...] = ("base-continued", "base-fewer-steps", "unpruned", "uniform")
    """Rows beside the method's own, all at the same total number of training images (`base`: stage 1 alone)."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random but the evaluation's images (`sample.seed`)."""

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Recipe:
        existing = isinstance(self.model, ExistingModel)
        if self.base.num_images == 0 and not existing:
            raise ValueError("base.num_images: 0 given; a new network must be trained, only `model.from` allows 0")
        if self.base.num_images == 0 and self.base.num_snapshots:
            raise ValueError("base.num_snapshots: nothing is trained at base.num_images 0, so it must be 0 too")
        if self.method == "single-stage" and existing:
            raise ValueError("method: single-stage trains from scratch, `model.from` has no part in it")
        if "distilled" in self.compare and not self.finetune.distill_weight:
            raise ValueError("compare: distilled needs finetune.distill_weight above 0")
        if len(set(self.compare)) < len(self.compare):
            raise ValueError("compare: names a row twice")
        return self

    @property
    def rows(self) -> tuple[RowId, ...]:
        """Rows of the table, in its order: context first, the method's own before its rivals."""
        wanted = {self.method, *self.compare} | ({"distilled"} if self.finetune.distill_weight else set())
        order: tuple[RowId, ...] = (
            "base", "base-continued", "base-fewer-steps", "unpruned", "uniform", "single-stage", "tdc", "distilled"
        )  # fmt: skip
        return tuple(row for row in order if row in wanted)

    def to_dict(self) -> dict[str, Any]:
        """Every setting as JSON, those that are unset by default left out; `check_recipe` gives the same recipe."""
        return _without_unset(self, self.model_dump(mode="json", by_alias=True))

    def to_yaml(self) -> str:
        return to_yaml(self.to_dict())


def _without_unset(section: BaseModel, dumped: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is null by default; a null the user wrote (`clip_norm: null`) stays."""
    kept = {}
    for name, field in type(section).model_fields.items():
        value, dump = getattr(section, name), dumped[field.alias or name]
        if value is None and field.default is None:
            continue
        kept[field.alias or name] = _without_unset(value, dump) if isinstance(value, BaseModel) else dump
    return {**kept, **(section.model_extra or {})}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and change single settings by dotted names.

    Args:
        path: a YAML file.
        overrides: ``a.b=value`` each, the value in YAML, later ones win.
    """
    return check_recipe(apply_overrides(read_mapping(path), overrides))


def check_recipe(raw: dict[str, Any]) -> Recipe:
    """Validate settings; a mistake is a `SettingError` of one line."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise SettingError(explain(error, Recipe)) from None


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Settings with single ones changed, in place."""
    for override in overrides:
        _override(raw, override)
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise SettingError(f"--set {override}: give it as a.b=value, e.g. --set plan.num_groups=8")
    section: dict[str, Any] = raw
    for depth, key in enumerate(path[:-1], start=1):
        value = section.setdefault(key, {})
        if not isinstance(value, dict):
            raise SettingError(f"--set {override}: {'.'.join(path[:depth])} is a single value, it has no {path[depth]}")
        section = value
    section[path[-1]] = parse_yaml(text, f"--set {name}")
