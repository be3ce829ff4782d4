"""What is known before anything runs: the data's shape, the noise schedule, the networks' cost, and the plan."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.evaluation.cost import TRAINING_FACTOR
from noisewise.objectives import Objective
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule
from noisewise.workflow.conditioning import check_null_class, guidance_of, guidance_settings
from noisewise.workflow.decoders import Decoders, measure_decoders
from noisewise.workflow.latents import LatentStage, check_denoiser, latent_stage, latents_now
from noisewise.workflow.networks import (
    DataInfo,
    check_fits,
    check_time_embedding,
    existing_model,
    make_objective,
    meta_unet2d,
    predicted_by,
    source_of,
    unet2d_config,
    weights_checksum,
)
from noisewise.workflow.plans import Say, facts_of, make_plan, plan_of_schedule, unused_notes
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.rows import NEED_DECODERS
from noisewise.workflow.settings import ExistingModel, ObjectiveSettings, ScheduleSettings
from noisewise.workflow.store import StepSpec, Store
from noisewise.workflow.texts import ROLE, TextStage, text_stage

if TYPE_CHECKING:
    from noisewise.data.images import Dataset
    from noisewise.data.latents import LatentDataset

IMPORTANCE_TIMESTEPS, IMPORTANCE_BATCH = 50, 64  # what importances look at by default, for predictions only
RECOVERY_PASSES = 40  # per image, as measured on a network of 40 layers: halfway through two networks for each layer


@dataclass(frozen=True, eq=False)
class Foundation:
    """The facts that a recipe's graph of steps rests on."""

    data: DataInfo
    objective: Objective
    objective_settings: ObjectiveSettings  # the recipe's, with the prediction type resolved
    network: Mapping[str, Any]  # of a new network its configuration, of an existing one its folder and checksum
    macs: int  # of one forward pass of the base on one image
    parameters: int
    plan: Plan
    decoders: Decoders | None  # the multi-decoder's sizes, where they are known before training
    scheduler: Any  # the sampler
    calls: int  # of the network per image, while sampling
    features_checksum: str
    notes: list[str] = field(default_factory=list)
    latents: LatentStage | None = None  # where networks learn latents instead of pixels
    text: TextStage | None = None  # where they are told captions

    @property
    def seen(self) -> DataInfo:
        """What networks learn: the data's images, or their latents."""
        return self.data if self.latents is None else self.latents.seen

    @property
    def learned_inputs(self) -> dict[str, StepSpec]:
        """Inputs of every step that looks at what networks learn."""
        return {**({} if self.latents is None else {"latents": self.latents.encode}), **self._text_inputs}

    @property
    def image_inputs(self) -> dict[str, StepSpec]:
        """Inputs of every step that makes images."""
        return {**({} if self.latents is None else {"autoencoder": self.latents.autoencoder}), **self._text_inputs}

    @property
    def _text_inputs(self) -> dict[str, StepSpec]:
        return {} if self.text is None else {ROLE: self.text.encode}

    @property
    def schedule(self) -> NoiseSchedule:
        return self.objective.schedule

    @cached_property
    def plan_facts(self) -> dict[str, Any]:
        """The plan as steps know it: what decides their results, without the curves behind it."""
        return facts_of(self.plan)

    @cached_property
    def trained_groups(self) -> tuple[int, ...]:
        """Groups that have noise levels; the others train nothing."""
        return tuple(group.index for group in self.plan.groups if not group.is_empty)

    def is_pruned(self, group: int) -> bool:
        """Whether the group may cost less than the base."""
        return self.plan.groups[group].cost_limit < 1

    @property
    def mean_limit(self) -> float:
        return self.plan.average_cost

    @property
    def image_macs(self) -> float:
        """Cost of an image by the base."""
        return float(self.macs * self.calls)

    @property
    def rival_macs(self) -> float:
        """Predicted cost of an image by the experts, at their cost limits."""
        return self.image_macs * self.mean_limit

    def prune_macs(self, recipe: Recipe, num_timesteps: int) -> float:
        """Predicted cost of a pruning: three passes per importance image, one per scored image, and the recovery's."""
        prune = recipe.prune
        scored = prune.proposer.rounds * prune.proposer.candidates * prune.proposer.num_score_images
        stride = prune.timestep_stride or math.ceil(num_timesteps / IMPORTANCE_TIMESTEPS)
        visits = math.ceil(num_timesteps / stride) if prune.importance in ("taylor", "diff-pruning") else 0
        recovered = RECOVERY_PASSES * prune.num_recovery_images if prune.recovery != "none" else 0
        return float(self.macs) * (TRAINING_FACTOR * visits * IMPORTANCE_BATCH + scored + recovered)


def lay_foundation(
    recipe: Recipe, store: Store | None, data_required: bool = True, say: Say | None = None
) -> Foundation:
    """Look at everything a recipe names without training anything.

    Args:
        store: where decoded images and plans that look at them are kept; without it they stay in memory.
        data_required: whether missing data is an error; without it many a plan can still be made, and it says so.
        say: told what long work (a plan that looks at the data) will cost before it starts.
    """
    notes: list[str] = []
    dataset = _load(recipe, store, data_required, notes)
    data = _describe(recipe, dataset)
    latents = latent_stage(recipe, data)
    seen = data if latents is None else latents.seen
    scheduler: Any = None
    network: dict[str, Any]
    if isinstance(recipe.model, ExistingModel):
        model, scheduler = existing_model(recipe.model)
        source = source_of(recipe.model)
        network = {"from": str(source), "checksum": weights_checksum(source)}
    else:
        network = {"config": unet2d_config(recipe.model, seen, recipe.objective, recipe.conditioning.dropout > 0)}
        model = meta_unet2d(network["config"])
    objective, settings = _objective(recipe, scheduler)
    check_time_embedding(model, objective.schedule)
    if scheduler is not None or "from" in network:
        notes.extend([] if latents is None else check_denoiser(recipe, model, latents))
        check_fits(model, scheduler, seen, objective)
        check_null_class(recipe, model)
    text = text_stage(recipe, data, model)
    sampler, visited = sampler_of(recipe, objective, latents is not None)
    notes.extend(_ignored(recipe, sampler))
    if latents is not None:
        from noisewise.models.autoencoder import check_scheduler

        check_scheduler(sampler)
    if recipe.plan.looks_at_data:  # decoders that would not fit are refused before the long work
        _decoders(recipe, network, Plan.equal_width(objective.schedule, recipe.plan.groups), [])
    learned: Dataset | LatentDataset | None = dataset
    if latents is not None and recipe.plan.looks_at_data:
        asked = text.encode if text is not None and recipe.plan.method == "intervals" else None  # by gradients
        learned = latents_now(latents, recipe, store, data_required, say, asked)
    plan = make_plan(recipe, objective, visited, learned, cache=None if store is None else store.root, say=say)
    if dataset is not None:
        plan.check_data(seen.shape)
    decoders = _decoders(recipe, network, plan, notes)
    guidance = guidance_of(guidance_settings(recipe.sample.guidance_scale, facts_of(plan)))
    calls = sum(guidance.calls_at(float(t)) for t in visited)
    macs, parameters = _cost(model)
    return Foundation(
        data, objective, settings, network, macs, parameters, plan, decoders, sampler, calls,
        _features_checksum(recipe), notes + plan.notes + unused_notes(plan, visited), latents, text,
    )  # fmt: skip


def _ignored(recipe: Recipe, sampler: Any) -> list[str]:
    """Settings that the loss's weighting or the sampler does not look at."""
    found, objective = [], recipe.objective
    for name, weighting in (("min_snr_gamma", "min-snr"), ("p2_gamma", "p2"), ("p2_k", "p2")):
        value = getattr(objective, name)
        if objective.weighting != weighting and value != type(objective).model_fields[name].default:
            found.append(f"objective.{name}: {value:g} is ignored, it belongs to weighting {weighting}")
    if recipe.sample.eta and "eta" not in inspect.signature(sampler.step).parameters:
        found.append(f"sample.eta: {recipe.sample.eta:g} is ignored by {recipe.sample.scheduler}")
    return found


def _load(recipe: Recipe, store: Store | None, required: bool, notes: list[str]) -> Dataset | None:
    from noisewise.data.load import load_data

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = load_data(recipe.data, cache=None if store is None else store.root / "data")
        notes.extend(str(warning.message) for warning in caught)
        return data
    except SettingError as error:
        if required or recipe.data.image_size is None:
            raise
        if recipe.plan.looks_at_data:
            raise SettingError(
                f"plan.method: {recipe.plan.method} looks at the training images, which cannot be read ({error})"
            ) from None
        notes.append(f"the data cannot be read, so only its recipe is known ({error})")
        return None


def _describe(recipe: Recipe, data: Dataset | None) -> DataInfo:
    if data is None:
        size = recipe.data.image_size
        assert size is not None  # unknown images without a size are refused
        return DataInfo(recipe.data.name or recipe.data.kind, getattr(recipe.data, "channels", 1), size, None, 0, 0, "")
    info = DataInfo(
        data.name, data.channels, data.size, data.num_classes, len(data.train), len(data.test), data.fingerprint,
        data.captions_sha256,
    )  # fmt: skip
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
    elif settings.kind == "edm":
        schedule = NoiseSchedule.edm(settings.sigma_min, settings.sigma_max, settings.num_train_timesteps)
    elif settings.kind == "flow":
        schedule = NoiseSchedule.flow(settings.num_train_timesteps, settings.shift)
    else:
        schedule = NoiseSchedule.named(settings.kind, settings.num_train_timesteps)
    if found is not None:
        found.check_same(schedule, "schedule")
    return schedule


def _objective(recipe: Recipe, scheduler: Any) -> tuple[Objective, ObjectiveSettings]:
    """The objective, and its settings with the prediction type resolved: an existing pipeline's unless it is given."""
    settings, schedule = recipe.objective, make_schedule(recipe.schedule, scheduler)
    if settings.prediction_type is None and schedule.kind == "vp":
        settings = settings.model_copy(update={"prediction_type": predicted_by(scheduler)})
    objective = make_objective(settings, schedule)
    return objective, settings.model_copy(update={"prediction_type": objective.prediction_type})


def sampler_of(recipe: Recipe, objective: Objective, latent: bool = False) -> tuple[Any, Any]:
    """The recipe's sampler, and the coordinates at which it calls the network."""
    from noisewise.sampling.schedulers import build_scheduler

    prediction_type: Any = objective.prediction_type
    scheduler = build_scheduler(
        recipe.sample.scheduler, objective.schedule, prediction_type, objective.variance, latent=latent
    )
    return scheduler, objective.schedule.visited(scheduler, recipe.sample.num_inference_steps)


def num_trained_groups(recipe: Recipe, *numbers: int) -> list[int]:
    """For each of ``numbers``: how many groups have noise levels if the plan has so many; no image is looked at."""
    if recipe.plan.looks_at_data or recipe.plan.path is not None:  # leave no group empty, or are not ours to say
        return list(numbers)
    scheduler = existing_model(recipe.model)[1] if isinstance(recipe.model, ExistingModel) else None
    objective, _ = _objective(recipe, scheduler)
    _, visited = sampler_of(recipe, objective)
    settings = [recipe.plan.model_copy(update={"num_groups": number}) for number in numbers]
    plans = [plan_of_schedule(each, objective.schedule, visited) for each in settings]
    return [sum(not group.is_empty for group in plan.groups) for plan in plans]


def _decoders(recipe: Recipe, network: Mapping[str, Any], plan: Plan, notes: list[str]) -> Decoders | None:
    """The multi-decoder's sizes where a row needs them and they come from the recipe rather than from pruning."""
    settings, proposer = recipe.multi_decoder, recipe.prune.proposer.kind
    if settings.start == "base" and proposer != "importance" and "multi-decoder" in recipe.rows:
        notes.append(f"prune.proposer: {proposer} proposes nothing for decoders, which are cut by importance alone")
    if settings.decoders is None:
        return None
    if not any(row in NEED_DECODERS for row in recipe.rows):
        notes.append(f"multi_decoder.decoders: ignored, none of the rows needs decoders ({', '.join(recipe.rows)})")
        return None
    found, more = measure_decoders(
        network["config"], plan, facts_of(plan), settings.decoders, settings.share_bottleneck
    )
    notes.extend(more)
    return found


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
