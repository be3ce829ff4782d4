"""What several studies of pruning say of their arms: one group, a proposer's settings, the language model's arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noisewise.errors import SettingError
from noisewise.pruning.settings import SearchSettings
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.study.definition import Arm

KEEP = 0.7  # of the base's MACs: the paper's keep ratio, where the recipe names no plan.average_cost
KINDS = {"random": "random", "magnitude": "magnitude", "Taylor": "taylor", "Diff-Pruning": "diff-pruning"}
SEARCH = "evolutionary search"
ONE_MODEL = "the widths are this model's; the row speaks for no other"


def budget_of(recipe: Recipe) -> float:
    """MACs to keep where one network is pruned for all timesteps."""
    return recipe.plan.average_cost or KEEP


def one_group(recipe: Recipe) -> dict[str, Any]:
    """All timesteps as one group at the budget: pruning alone, with the images of one group's stage 2."""
    plan = {"method": "equal-width", "num_groups": 1, "cost_schedule": "constant", "average_cost": budget_of(recipe)}
    return {"plan": plan}


def proposing(recipe: Recipe, kind: str, **changes: Any) -> dict[str, Any]:
    """A proposer's settings: the recipe's own where it is of that kind, else what all proposers share of them."""
    own = recipe.prune.proposer
    names = {*(type(own) if own.kind == kind else SearchSettings).model_fields}
    return {"prune.proposer": {**own.model_dump(mode="json", include=names), "kind": kind, **changes}}


def by_importance(recipe: Recipe, importance: str) -> dict[str, Any]:
    """Pruning by importances alone: the solver's answer, and no search."""
    return {"prune.importance": importance, **proposing(recipe, "importance", rounds=1, candidates=1)}


def has_language_model(recipe: Recipe) -> bool:
    return recipe.prune.proposer.kind == "llm"


def language_model(recipe: Recipe, prefix: str = "", **more: Any) -> list[Arm]:
    """The arm of the recipe's language model, by its name; none where the recipe asks for none."""
    if not has_language_model(recipe):
        return []
    overrides = {**more.pop("overrides", {}), **proposing(recipe, "llm", **more.pop("changes", {}))}
    return [Arm(f"{prefix}language model {_name(recipe)}", "tdc", overrides, ONE_MODEL, **more)]


def _name(recipe: Recipe) -> str:
    """The model's name, also where only a transcript of its replies is given."""
    from noisewise.pruning.llm.transcript import read

    proposer: Any = recipe.prune.proposer
    if proposer.model is not None:
        return str(proposer.model)
    names = [exchange.model for section in read(Path(proposer.replay)) for exchange in section.exchanges]
    found = next((name for name in names if name), None)
    if found is None:
        raise SettingError(f"prune.proposer.replay: {proposer.replay} does not say which model replied; give its name")
    return found
