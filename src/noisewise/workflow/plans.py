"""The recipe's plan. One that looks at images or networks is made once and kept in the store for later commands."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.models.sources import find_source
from noisewise.planning.clusters import NUM_DRAWS, NUM_LEVELS
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule
from noisewise.workflow.machine import device
from noisewise.workflow.networks import weights_checksum
from noisewise.workflow.plan_settings import OPTIMAL, PlanSettings
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.settings import ExistingModel
from noisewise.workflow.store import file_lock, plain

if TYPE_CHECKING:
    from noisewise.data.images import Dataset
    from noisewise.data.latents import LatentDataset
    from noisewise.objectives import Objective

    Learned = Dataset | LatentDataset

FOLDER = "plans"  # in the store
CURVES = "curves"  # of a plan's settings: what only the report draws
GRADIENT_DRAWS = 256
FORMAT = 1  # of what the methods compute; a change that makes kept plans wrong raises it
Say = Callable[[str], None]


def make_plan(
    recipe: Recipe,
    objective: Objective,
    visited: Any,
    dataset: Learned | None,
    *,
    cache: Path | None = None,
    say: Say | None = None,
) -> Plan:
    """The plan, made from the schedule, from images, or read from a file.

    Args:
        visited: coordinates at which sampling calls the network, of `snr_range: visited`.
        dataset: what networks learn, images or latents; None where it cannot be read and the plan does not look at it.
        cache: the store's folder, where plans that look at data are kept; without it they are made anew.
        say: told what long work will cost before it starts.
    """
    settings, schedule = recipe.plan, objective.schedule
    if settings.path is not None:
        plan = Plan.load(settings.path)
        plan.check_schedule(schedule)
    elif settings.looks_at_data:
        assert dataset is not None  # missing images are refused where they are loaded
        plan = _kept(recipe, objective, visited, dataset, cache, say)
    else:
        plan = plan_of_schedule(settings, schedule, visited)
    return plan


def _costs(settings: PlanSettings, visited: Any) -> dict[str, Any]:
    return {**settings.to_costs(), "visited": visited if settings.snr_range == "visited" else None}


def plan_of_schedule(settings: PlanSettings, schedule: NoiseSchedule, visited: Any) -> Plan:
    """A plan that needs no images."""
    costs = _costs(settings, visited)
    if settings.bounds is not None:
        return Plan.from_bounds(schedule, settings.bounds, **costs)
    if settings.method == "intervals":
        assert settings.interval_cost != "gradient"  # looks at data
        return Plan.from_intervals(schedule, settings.interval_cost, settings.groups, **costs)
    make = Plan.from_snr if settings.method == "snr" else Plan.equal_width
    return make(schedule, settings.groups, **costs)


def unused_notes(plan: Plan, visited: Any) -> list[str]:
    """Says which groups are trained and then serve none of the calls at ``visited`` coordinates."""
    serving = {plan.group_of(float(t)) for t in visited}
    unused = [str(group.index) for group in plan.groups if not group.is_empty and group.index not in serving]
    if not unused:
        return []
    which = f"group {unused[0]} serves" if len(unused) == 1 else f"groups {', '.join(unused)} serve"
    return [f"{which} none of the {len(visited)} calls of sampling: trained in vain, unless you sample with more steps"]


def _kept(
    recipe: Recipe,
    objective: Objective,
    visited: Any,
    dataset: Learned,
    cache: Path | None,
    say: Say | None,
) -> Plan:
    """A plan that looks at data, from the store if it is there; two processes that want it make it once."""
    settings = recipe.plan
    by_gradients = settings.method == "intervals"
    identity = {
        "settings": plain(settings),
        "objective": objective.to_dict() if by_gradients else objective.schedule.to_dict(),
        "visited": None if settings.snr_range == "all" else [float(t) for t in visited],
        "data": dataset.train.fingerprint,
        "networks": [weights_checksum(path) for path in _networks(recipe)] if by_gradients else [],
        "format": FORMAT,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    if cache is None:
        if digest not in _made:
            _made[digest] = _from_data(recipe, objective, visited, dataset, say)
        return _made[digest]
    path = cache / FOLDER / f"{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with file_lock(lock):
        try:
            if not path.is_file():
                _from_data(recipe, objective, visited, dataset, say).save(path)
        except SettingError:
            lock.unlink(missing_ok=True)  # settings that cannot be used leave nothing behind
            raise
    return Plan.load(path)


_made: dict[str, Plan] = {}  # where nothing may be written, by digest


def _from_data(recipe: Recipe, objective: Objective, visited: Any, dataset: Learned, say: Say | None) -> Plan:
    settings, schedule = recipe.plan, objective.schedule
    costs = _costs(settings, visited)
    if settings.method == "intervals":
        gradients = _gradients(recipe, objective, dataset, say)
        return Plan.from_intervals(schedule, "gradient", settings.groups, gradients=gradients, **costs)
    options = settings.model_dump(include={*OPTIMAL}, exclude_none=True)
    if say is not None:
        say(_cost_of_similarities(settings, schedule, dataset))
    return Plan.from_optimal_denoiser(schedule, dataset.train, settings.groups, device=device(), **options, **costs)


def _cost_of_similarities(settings: PlanSettings, schedule: NoiseSchedule, dataset: Learned) -> str:
    """What the optimal denoiser's similarities will take, and about how long here, by a short probe."""
    from noisewise.optimal.denoiser import OptimalDenoiser
    from noisewise.workflow.predict import in_words

    draws = settings.num_draws or NUM_DRAWS
    levels = settings.num_levels or min(NUM_LEVELS, schedule.num_train_timesteps)
    cost = OptimalDenoiser(dataset.train, schedule, device=device()).cost(draws, levels)
    return (
        f"plan: the optimal denoiser of {len(dataset.train):,} images, {draws:,} draws at {levels} noise levels: "
        f"{cost}; about {in_words(cost.macs / _products_per_second())} on this machine"
    )


def _products_per_second() -> float:
    """Multiply-accumulates a second in a matrix product as the optimal denoiser's."""
    import torch

    draws, images = torch.ones(256, 1024, device=device()), torch.ones(1024, 4096, device=device())
    started = 0.0
    for turn in range(4):
        if turn == 1:  # the first product is slower
            started = time.perf_counter()
        (draws @ images).sum().item()  # waits for the device
    return 3 * 256 * 1024 * 4096 / (time.perf_counter() - started)


def _networks(recipe: Recipe) -> tuple[Path, ...]:
    """Whose gradients method intervals compares."""
    if recipe.plan.gradients_of is not None:
        return tuple(find_source(path, "plan.gradients_of") for path in recipe.plan.gradients_of)
    if isinstance(recipe.model, ExistingModel):
        return (find_source(recipe.model.source),)
    raise SettingError(
        "plan.gradients_of: missing; interval_cost: gradient compares a trained network's gradients, name the folder "
        "of one (another run's pipeline/unet, say), or use model.from"
    )


def _gradients(recipe: Recipe, objective: Objective, dataset: Learned, say: Say | None) -> Any:
    """Gradients of trained networks per noise level, for `interval_cost: gradient`."""
    from noisewise.evaluation.cost import TRAINING_FACTOR
    from noisewise.models.cost import count_macs
    from noisewise.models.loading import load_denoiser
    from noisewise.models.networks import describe
    from noisewise.planning.gradients import level_gradients
    from noisewise.workflow.predict import si

    settings = recipe.plan
    models = [load_denoiser(folder)[0].to(device()) for folder in _networks(recipe)]
    draws, levels = settings.num_draws or GRADIENT_DRAWS, settings.num_levels or NUM_LEVELS
    if say is not None:
        macs = sum(count_macs(model, describe(model).example_inputs(model)) for model in models)
        say(
            f"plan: gradients of {len(models)} network(s), {draws} draws at each of {levels} noise levels: "
            f"{si(TRAINING_FACTOR * macs * draws * levels)}MACs"
        )
    seed = settings.seed
    return level_gradients(models, objective, dataset.train, num_draws=draws, num_levels=levels, seed=seed)


def facts_of(plan: Plan) -> dict[str, Any]:
    """The plan as steps know it: groups and what made them, without the curves that only the report draws."""
    facts = plan.to_dict()
    return {**facts, "settings": {name: value for name, value in facts["settings"].items() if name != CURVES}}
