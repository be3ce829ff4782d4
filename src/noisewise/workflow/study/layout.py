"""A study laid out: the steps of all arms and seeds over one store, where equal steps have equal ids: done once."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from noisewise.errors import SettingError
from noisewise.workflow.builder import build_graph
from noisewise.workflow.graph import Graph
from noisewise.workflow.recipe import Recipe, apply_overrides, check_recipe
from noisewise.workflow.store import Store, plain
from noisewise.workflow.study.cells import Cell, Layout
from noisewise.workflow.study.definition import Arm, Study
from noisewise.workflow.study.sampled import compared_by_images, sampled_cell


def from_description(raw: Mapping[str, Any], store: Store | None) -> Layout:
    """The layout that `Layout.describe` described."""
    from noisewise.workflow.study.registry import find_study

    return lay_out(find_study(raw["study"]), raw["recipe"], raw["num_seeds"], store, raw["num_resamples"])


def lay_out(
    study: Study,
    raw: Mapping[str, Any],
    num_seeds: int,
    store: Store | None,
    num_resamples: int | None = None,
    data_required: bool = True,
) -> Layout:
    """Every cell's steps.

    Args:
        raw: the recipe's settings, overrides of the command line included.
        num_seeds: training seeds recipe.seed, recipe.seed + 1, ...; the seed of images goes with them, alike in all
            arms.
        num_resamples: of the bootstrap; None: as many as the number of features allows.
        data_required: whether missing data is an error; without it the layout is good for a prediction only.
    """
    if num_seeds < 1:
        raise SettingError(f"--seeds: {num_seeds} given; 1 or more are possible")
    recipe = check_recipe(copy.deepcopy(dict(raw)))
    arms = tuple(study.arms(recipe))
    seeds = tuple(recipe.seed + i for i in range(num_seeds))
    cells = tuple(
        cell for i, seed in enumerate(seeds) for cell in _cells(study, raw, recipe, arms, seed, i, store, data_required)
    )
    layout = Layout(study, raw, recipe, seeds, cells, num_resamples)
    return compared_by_images(layout) if study.sampled else layout


def _cells(
    study: Study,
    raw: Mapping[str, Any],
    recipe: Recipe,
    arms: Sequence[Arm],
    seed: int,
    index: int,
    store: Store | None,
    data_required: bool,
) -> Iterator[Cell]:
    """The arms of one seed; those with the same settings share one graph."""
    together: dict[str, list[Arm]] = {}
    for arm in arms:
        together.setdefault(json.dumps(plain(arm.overrides), sort_keys=True), []).append(arm)
    graphs: dict[str, Graph] = {}
    for key, sharing in together.items():
        settings = copy.deepcopy(dict(raw))
        section = settings.setdefault("sample", {})
        settings |= {"seed": seed, "sample": {**section, "seed": recipe.sample.seed + index}}
        apply_overrides(settings, [f"{name}={json.dumps(value)}" for name, value in json.loads(key).items()])
        rows = dict.fromkeys(arm.row for arm in sharing)
        settings["compare"] = [row for row in rows if row != settings.get("method", recipe.method)]
        graph = _graph(settings, sharing, store, data_required, own=key != json.dumps({}))
        graphs |= {arm.label: graph for arm in sharing}
    for arm in arms:
        graph = graphs[arm.label]
        cell = Cell(arm, seed, graph, study.own.steps(arm, graph) if study.own is not None else {})
        yield sampled_cell(cell) if study.sampled else cell


def _graph(settings: dict[str, Any], arms: Sequence[Arm], store: Store | None, data_required: bool, own: bool) -> Graph:
    """One graph; where arms have settings of their ``own``, a mistake is said with their labels."""
    try:
        return build_graph(check_recipe(settings), store, data_required)
    except SettingError as error:
        if not own:
            raise
        raise SettingError(f"{', '.join(arm.label for arm in arms)}: {error}") from None
