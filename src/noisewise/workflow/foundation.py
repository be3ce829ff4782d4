"""What is known before anything runs: the data's shape, the noise schedule, the base network's cost, and the plan."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from noisewise.errors import SettingError
from noisewise.evaluation.cost import TRAINING_FACTOR
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule
from noisewise.workflow.networks import (
    DataInfo,
    check_fits,
    existing_model,
    meta_unet2d,
    unet2d_config,
    weights_checksum,
)
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.settings import ExistingModel, PlanSettings, ScheduleSettings
from noisewise.workflow.store import Store

IMPORTANCE_TIMESTEPS, IMPORTANCE_BATCH = 50, 64  # what importances look at by default, for predictions only


@dataclass(frozen=True, eq=False)
class Foundation:
    """The facts that a recipe's graph of steps rests on."""

    data: DataInfo
    schedule: NoiseSchedule
    network: Mapping[str, Any]  # of a new network its configuration, of an existing one its folder and checksum
    macs: int  # of one forward pass of the base on one image
    parameters: int
    plan: Plan
    calls: int  # of the network per image, while sampling
    features_checksum: str
    notes: list[str] = field(default_factory=list)

    @cached_property
    def trained_groups(self) -> tuple[int, ...]:
        """Groups that have timesteps; the others train nothing."""
        return tuple(group.index for group in self.plan.groups if not group.is_empty)

    @property
    def mean_limit(self) -> float:
        return self.plan.average_cost

    @property
    def image_macs(self) -> float:
        """Cost of an image by the base."""
        return float(self.macs * self.calls)

    @property
    def rival_macs(self) -> float:
        """Predicted cost of an image by the experts."""
        return self.image_macs * self.mean_limit

    def prune_macs(self, recipe: Recipe, num_timesteps: int) -> float:
        """Predicted cost of a pruning: three passes per importance image, one per scored image."""
        prune = recipe.prune
        scored = prune.proposer.rounds * prune.proposer.candidates * prune.proposer.num_score_images
        stride = prune.timestep_stride or math.ceil(num_timesteps / IMPORTANCE_TIMESTEPS)
        visits = math.ceil(num_timesteps / stride) if prune.importance in ("taylor", "diff-pruning") else 0
        return float(self.macs) * (TRAINING_FACTOR * visits * IMPORTANCE_BATCH + scored)


def lay_foundation(recipe: Recipe, store: Store | None, data_required: bool = True) -> Foundation:
    """Look at everything a recipe names without training anything.

    Args:
        store: where decoded images are kept; without it they stay in memory.
        data_required: whether missing data is an error; without it a plan can still be made, and it says so.
    """
    notes: list[str] = []
    data = _look_at_data(recipe, store, data_required, notes)
    scheduler: Any = None
    network: dict[str, Any]
    if isinstance(recipe.model, ExistingModel):
        model, scheduler = existing_model(recipe.model)
        check_fits(model, scheduler, data, recipe.objective)
        network = {"from": str(recipe.model.source), "checksum": weights_checksum(recipe.model.source)}
    else:
        network = {"config": unet2d_config(recipe.model, data, recipe.objective)}
        model = meta_unet2d(network["config"])
    schedule = make_schedule(recipe.schedule, scheduler)
    visited = visited_timesteps(recipe, schedule)
    plan = make_plan(recipe.plan, schedule, visited)
    macs, parameters = _cost(model)
    return Foundation(
        data, schedule, network, macs, parameters, plan, len(visited), _features_checksum(recipe), notes + plan.notes
    )


def _look_at_data(recipe: Recipe, store: Store | None, required: bool, notes: list[str]) -> DataInfo:
    from noisewise.data.load import load_data

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = load_data(recipe.data, cache=None if store is None else store.root / "data")
        notes.extend(str(warning.message) for warning in caught)
    except SettingError as error:
        size = recipe.data.image_size
        if required or size is None:
            raise
        notes.append(f"the data cannot be read, so only its recipe is known ({error})")
        return DataInfo(recipe.data.name or recipe.data.kind, getattr(recipe.data, "channels", 1), size, None, 0, 0, "")
    info = DataInfo(
        data.name, data.channels, data.size, data.num_classes, len(data.train), len(data.test), data.fingerprint
    )
    if recipe.sample.num_images > min(info.num_train, info.num_test):
        raise SettingError(
            f"sample.num_images: {recipe.sample.num_images} given; at most {min(info.num_train, info.num_test)} are "
            f"possible, since the real images ({info.num_train} training, {info.num_test} held-out) must give as many"
        )
    return info


def make_schedule(settings: ScheduleSettings | None, scheduler: Any = None) -> NoiseSchedule:
    """The recipe's noise schedule; that of an existing pipeline must be the same."""
    found = None if scheduler is None else NoiseSchedule.from_scheduler(scheduler)
    if settings is None:
        return found or NoiseSchedule.named("linear", 1000)
    if settings.kind == "given":
        schedule = NoiseSchedule.from_betas(settings.betas)
    elif settings.kind == "vp":
        schedule = NoiseSchedule.vp(settings.beta_min, settings.beta_max, settings.num_train_timesteps)
    else:
        schedule = NoiseSchedule.named(settings.kind, settings.num_train_timesteps)
    if found is not None:
        found.check_same(schedule, "schedule")
    return schedule


def make_plan(settings: PlanSettings, schedule: NoiseSchedule, visited: Any) -> Plan:
    """The recipe's plan: made from the schedule, or read from a file."""
    if settings.path is not None:
        plan = Plan.load(settings.path)
        plan.check_schedule(schedule)
        return plan
    make = Plan.from_snr if settings.method == "snr" else Plan.equal_width
    return make(
        schedule,
        settings.num_groups,
        settings.min_cost,
        settings.big_model_at,
        cost_schedule=settings.cost_schedule,
        average_cost=settings.average_cost,
        snr_range=settings.snr_range,
        visited=visited if settings.snr_range == "visited" else None,
        clip_db=settings.clip_db,
    )


def visited_timesteps(recipe: Recipe, schedule: NoiseSchedule) -> Any:
    """The timesteps at which sampling calls the network."""
    from noisewise.sampling.schedulers import build_scheduler

    scheduler = build_scheduler(recipe.sample.scheduler, schedule, recipe.objective.prediction_type)
    return schedule.visited(scheduler, recipe.sample.num_inference_steps)


def _cost(model: Any) -> tuple[int, int]:
    from noisewise.models.cost import count_macs, count_parameters
    from noisewise.models.networks import describe

    return count_macs(model, describe(model).example_inputs(model)), count_parameters(model)


def _features_checksum(recipe: Recipe) -> str:
    """Checksum of a feature extractor given as a file: another file makes another evaluation."""
    from noisewise.files import sha256_file

    path = recipe.evaluate.inception_path
    if path is None:
        return ""
    if not path.is_file():
        raise SettingError(f"evaluate.inception_path: {path} does not exist")
    return sha256_file(path)
