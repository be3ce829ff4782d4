"""`noisewise prune` with a proposer: a search on one model, which the same command takes up again if it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.objectives import Objective
from noisewise.pruning.brief import checksum
from noisewise.pruning.settings import SearchSettings, TimingSettings
from noisewise.pruning.time_budget import Budget
from noisewise.workflow.explain import explain
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.settings import PruneSettings, Section
from noisewise.workflow.store import plain

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from noisewise.pruning.search import SearchResult


class _Proposing(Section):
    prune: PruneSettings


def proposer_settings(recipe: Recipe, kind: str, given: Mapping[str, Any]) -> SearchSettings:
    """Settings of a proposer: the recipe's where it names the same kind, and those given, which win.

    What a transcript to replay was made with fills in the rest.
    """
    own = recipe.prune.proposer
    known = own.model_dump(exclude_unset=True) if own.kind == kind else {}
    merged = {**known, **given}
    if kind == "llm" and merged.get("replay"):
        from noisewise.pruning.llm.transcript import recorded_settings

        merged = {**recorded_settings(Path(merged["replay"])), **merged}
    try:
        checked = _Proposing.model_validate({"prune": {"proposer": {**merged, "kind": kind}}})
    except ValidationError as error:
        raise SettingError(explain(error, _Proposing)) from None
    return checked.prune.proposer


def search_model(
    model: ModelMixin,
    budget: Budget,
    settings: SearchSettings,
    out: Path,
    *,
    objective: Objective,
    images: Any,
    timesteps: tuple[int, int] | None,
    importance: str,
    recipe: Recipe,
    timing: TimingSettings,
    seed: int,
    log: Callable[[str], None],
) -> tuple[SearchResult, Path]:
    """Search for widths; what was tried and said lies in a hidden folder beside ``out`` until it is kept or removed.

    Returns:
        The result, and that folder.
    """
    from noisewise.pruning.search import search

    depends_on = [checksum(model), budget, plain(settings), timesteps, importance, plain(recipe), seed]
    depends_on += [plain(timing)] if isinstance(budget, Mapping) else []
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    out = out.absolute()
    workspace = out.with_name(f".{out.name}.{digest[:8]}")
    found = search(
        model,
        describe(model).example_inputs(model),
        budget,
        settings,
        objective=objective,
        images=images,
        timesteps=timesteps,
        importance=importance,  # type: ignore[arg-type]  # checked where it is used
        timestep_stride=recipe.prune.timestep_stride,
        tolerance=recipe.prune.tolerance,
        timing=timing,
        recovery=recipe.prune.recovery,
        num_recovery_images=recipe.prune.num_recovery_images,
        workspace=workspace,
        seed=seed,
        log=log,
    )
    return found, workspace
