"""A recipe: every setting of a run, read from YAML, checked whole before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from noisewise.data.settings import DataSettings
from noisewise.errors import SettingError
from noisewise.training.settings import TrainSettings
from noisewise.workflow.conditioning import ConditioningSettings, check_conditioning
from noisewise.workflow.explain import explain
from noisewise.workflow.latent_settings import AutoencoderSettings
from noisewise.workflow.plan_settings import PlanSettings, Section, other_method
from noisewise.workflow.rows import FROM_SCRATCH, METHOD_B, NEED_DECODERS, NEED_STAGE_2, ORDER, Method, RowId
from noisewise.workflow.settings import (
    BaseSettings,
    EvaluateSettings,
    ExistingModel,
    MergeSettings,
    ModelSettings,
    MultiDecoderSettings,
    ObjectiveSettings,
    PruneSettings,
    SampleSettings,
    ScheduleSettings,
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
    conditioning: ConditioningSettings = ConditioningSettings()
    """Labels as conditions of the networks."""
    autoencoder: AutoencoderSettings | None = None
    """Networks learn latents instead of pixels: those of an existing autoencoder (`from: FOLDER`) or of a small one
    that is trained first (`kind: kl`). Default: the pipeline's own where `model.from` has one, else pixels."""
    schedule: ScheduleSettings | None = None
    """The forward process; default: that of an existing model (`model.from`), else linear with 1000 timesteps."""
    method: Method = "tdc"
    """tdc: a base, then an expert per group, pruned and fine-tuned; single-stage: every expert from scratch;
    multi-decoder: one encoder for all groups, a decoder for each."""
    model: ModelSettings
    """The base network, or `from: FOLDER` of an existing one."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """What the networks learn to predict."""
    base: BaseSettings
    """Stage 1: training of the base; and of every network that starts from scratch."""
    plan: PlanSettings = PlanSettings()
    """Groups of timesteps and their cost limits."""
    prune: PruneSettings = PruneSettings()
    """Pruning of each group's expert."""
    finetune: TrainSettings | None = None
    """Stage 2: training of each group's expert on its own timesteps; num_images is per group. With it every row sees
    the images of stage 1 and of all groups together; without it (rows that start from scratch only) those of `base`."""
    single_stage: SingleStageSettings = SingleStageSettings()
    """Method single-stage."""
    multi_decoder: MultiDecoderSettings = MultiDecoderSettings()
    """Method multi-decoder, and the rows it is compared with."""
    merge: MergeSettings = MergeSettings()
    """Row merged."""
    sample: SampleSettings
    """Images for the evaluation."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Comparison of the rows."""
    compare: tuple[RowId, ...] = ("base-continued", "base-fewer-steps", "unpruned", "uniform")
    """Rows beside the method's own, all at the same total number of training images (with a stage 2, `base` is stage 1
    alone). Default without a stage 2: base, base-fewer-steps, separate."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random but the evaluation's images (`sample.seed`)."""

    @model_validator(mode="before")
    @classmethod
    def _compare_with_what_needs_no_stage_2(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("finetune") is not None or "compare" in raw:
            return raw
        if raw.get("method") not in ("multi-decoder", "single-stage"):
            return raw
        more = ["separate"] if raw["method"] == "multi-decoder" else []
        return {**raw, "compare": ["base", "base-fewer-steps", *more]}

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Recipe:
        existing = isinstance(self.model, ExistingModel)
        if self.base.num_images == 0 and not existing:
            raise ValueError("base.num_images: 0 given; a new network must be trained, only `model.from` allows 0")
        if self.base.num_images == 0 and self.base.num_snapshots:
            raise ValueError("base.num_snapshots: nothing is trained at base.num_images 0, so it must be 0 too")
        if self.method == "single-stage" and existing:
            raise ValueError("method: single-stage trains from scratch, `model.from` has no part in it")
        if len(set(self.compare)) < len(self.compare):
            raise ValueError("compare: names a row twice")
        self._check_stage_2()
        self._check_scratch(existing)
        if self.prune.budget_in == "seconds" and "multi-decoder" in self.rows and self.multi_decoder.start == "base":
            raise ValueError("prune.budget_in: seconds given; a multi-decoder's decoders are pruned by MACs")
        check_conditioning(self)
        return self

    def _check_stage_2(self) -> None:
        from_base = ("multi-decoder",) if self.multi_decoder.start == "base" else ()
        asking = [row for row in self.rows if row in (*NEED_STAGE_2, *from_base)]
        if self.finetune is None and asking:
            row = self.method if self.method in asking else asking[0]
            raise ValueError(f"finetune: missing; {row} needs a stage 2, at least finetune.num_images")
        if "distilled" in self.compare and not (self.finetune and self.finetune.distill_weight):
            raise ValueError("compare: distilled needs finetune.distill_weight above 0")

    def _check_scratch(self, existing: bool) -> None:
        """Rows that start from scratch need a network to build, and widths where it is the multi-decoder's."""
        from_scratch = self.multi_decoder.start == "scratch"
        for row in self.rows:
            if row in NEED_DECODERS and from_scratch and self.multi_decoder.decoders is None:
                raise ValueError(
                    f"multi_decoder.decoders: missing; row {row} needs a width for every group, e.g. [1.5, 1, 0.25], "
                    "or multi_decoder.start: base, which prunes the base's decoder to the plan's cost limits"
                )
            if existing and (row in FROM_SCRATCH or (row == "multi-decoder" and from_scratch)):
                raise ValueError(f"compare: {row} trains from scratch, `model.from` has no part in it")

    @property
    def rows(self) -> tuple[RowId, ...]:
        """Rows of the table, in its order: context first, the method's own before its rivals."""
        wanted = {self.method, *self.compare} | ({"distilled"} if self.distills else set())
        return tuple(row for row in ORDER if row in wanted)

    @property
    def distills(self) -> bool:
        return self.finetune is not None and self.finetune.distill_weight > 0

    @property
    def stage_2(self) -> TrainSettings:
        """`finetune`, where a row needs it (without it such rows are refused)."""
        assert self.finetune is not None
        return self.finetune

    @property
    def has_method_b(self) -> bool:
        """Whether a row is one of the multi-stage framework's."""
        return any(row in METHOD_B for row in self.rows)

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


def load_recipe(path: Path, overrides: Sequence[str] = (), plan_method: str | None = None) -> Recipe:
    """Read a recipe and change single settings by dotted names.

    Args:
        path: a YAML file.
        overrides: ``a.b=value`` each, the value in YAML, later ones win.
        plan_method: cut the noise range this way; the file's settings of another way are left out.
    """
    raw = read_mapping(path)
    plan = raw.get("plan", {})
    if plan_method is not None and isinstance(plan, dict):
        raw["plan"] = other_method(plan, plan_method)
    return check_recipe(apply_overrides(raw, overrides))


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
