"""A study laid out: the steps of all arms and seeds over one store, where equal steps have equal ids: done once."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from noisewise.errors import SettingError
from noisewise.workflow.builder import build_graph
from noisewise.workflow.graph import Graph, Row
from noisewise.workflow.recipe import Recipe, apply_overrides, check_recipe
from noisewise.workflow.store import StepSpec, Store, closure, plain
from noisewise.workflow.study.definition import Arm, Study

NUM_SPLITS = 20  # of real images into halves, for the metric's own noise
NUM_NEIGHBOURS = 1000  # images a cell whose nearest training image is looked for
AGAIN = 1_000_000  # added to the seed of images for the second sampling of one model


@dataclass(frozen=True, eq=False)
class Cell:
    """One arm with one seed."""

    arm: Arm
    seed: int
    graph: Graph
    row: Row
    neighbours: StepSpec

    @property
    def ends(self) -> tuple[StepSpec, ...]:
        return self.row.evaluate, self.row.loss, self.neighbours


@dataclass(frozen=True, eq=False)
class Layout:
    """All cells of a study and the steps that compare them."""

    study: Study
    raw: Mapping[str, Any]  # the user's recipe, before any arm
    recipe: Recipe
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]  # seed by seed, so that a study cut short has whole seeds
    floor: StepSpec
    again: StepSpec  # the reference arm's first network, sampled and evaluated once more
    resamples: Mapping[int, StepSpec]  # by seed
    timings: tuple[StepSpec, ...]  # one per sampler, of the first seed
    num_resamples: int | None

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(cell.arm for cell in self.cells if cell.seed == self.seeds[0])

    def cell(self, arm: Arm, seed: int) -> Cell:
        return next(cell for cell in self.cells if cell.arm is arm and cell.seed == seed)

    @property
    def reference(self) -> Arm:
        return next(arm for arm in self.arms if arm.label == self.study.reference_label(self.recipe))

    @property
    def reference_step(self) -> StepSpec:
        """Features of the real images, of the first seed."""
        return self.cells[0].graph.reference

    def against(self, arm: Arm) -> Arm:
        """The arm that one is compared with; a reference arm with itself."""
        label = arm.against or self.study.reference_label(self.recipe)
        return next(other for other in self.arms if other.label == label)

    @cached_property
    def snapshots(self) -> dict[Cell, dict[int, StepSpec]]:
        """Evaluations of networks on their way, by training images, where the study draws quality along training."""
        if not {"images", "training"} & {*self.study.figures}:
            return {}
        found = {cell: _snapshots(cell) for cell in self.cells}
        return {cell: steps for cell, steps in found.items() if steps}

    @cached_property
    def steps(self) -> tuple[StepSpec, ...]:
        """Inputs first; the metric's noise before everything, then whole seeds, training before measurements."""
        ordered: list[StepSpec] = [self.floor]
        for seed in self.seeds:
            cells = [cell for cell in self.cells if cell.seed == seed]
            ordered += [cell.row.model for cell in cells]
            ordered += [end for cell in cells for end in cell.ends]
            ordered += [step for cell in cells for step in self.snapshots.get(cell, {}).values()]
            ordered += [self.resamples[seed]] if self.resamples else []
        return tuple(closure([*ordered, self.again, *self.timings]))

    @cached_property
    def titles(self) -> dict[str, str]:
        """What to call each step where many share a name: its seed, and its arm where it has but one."""
        users: dict[str, list[Cell]] = {}
        for cell in self.cells:
            for step in closure([*cell.ends, *self.snapshots.get(cell, {}).values()]):
                users.setdefault(step.id, []).append(cell)
        titles = {step.id: _title(step, users.get(step.id, [])) for step in self.steps}
        return titles | {step.id: f"seed {seed} · {step.name}" for seed, step in self.resamples.items()}

    def describe(self) -> dict[str, Any]:
        """What `from_description` lays out again, for worker processes and for the study's folder."""
        return {
            "study": self.study.name,
            "num_seeds": len(self.seeds),
            "num_resamples": self.num_resamples,
            "recipe": plain(self.raw),
        }


def _title(step: StepSpec, cells: Sequence[Cell]) -> str:
    seeds, arms = {cell.seed for cell in cells}, {cell.arm.label for cell in cells}
    parts = [f"seed {seeds.pop()}" if len(seeds) == 1 else "", arms.pop() if len(arms) == 1 else "", step.name]
    return " · ".join(part for part in parts if part)


def from_description(raw: Mapping[str, Any], store: Store | None) -> Layout:
    """The layout that `Layout.describe` described."""
    from noisewise.workflow.study.registry import find_study

    return lay_out(find_study(raw["study"]), raw["recipe"], raw["num_seeds"], store, raw["num_resamples"])


def lay_out(
    study: Study, raw: Mapping[str, Any], num_seeds: int, store: Store | None, num_resamples: int | None = None
) -> Layout:
    """Every cell's steps.

    Args:
        raw: the recipe's settings, overrides of the command line included.
        num_seeds: training seeds recipe.seed, recipe.seed + 1, ...; the seed of images goes with them, alike in all
            arms.
        num_resamples: of the bootstrap; None: as many as the number of features allows.
    """
    if num_seeds < 1:
        raise SettingError(f"--seeds: {num_seeds} given; 1 or more are possible")
    recipe = check_recipe(copy.deepcopy(dict(raw)))
    arms = tuple(study.arms(recipe))
    seeds = tuple(recipe.seed + i for i in range(num_seeds))
    cells = tuple(cell for i, seed in enumerate(seeds) for cell in _cells(raw, recipe, arms, seed, i, store))
    first = {cell.arm.label: cell for cell in cells if cell.seed == seeds[0]}
    _check_same_ruler(study, list(first.values()))
    reference = first[study.reference_label(recipe)]
    resamples = {
        seed: _resample([cell for cell in cells if cell.seed == seed], seed, num_resamples) for seed in seeds
    } if len(arms) > 1 else {}  # fmt: skip
    floor = StepSpec("floor", "floor", {**reference.graph.reference.settings, "num_splits": NUM_SPLITS})
    timings = tuple(_timings(list(first.values())))
    again = _again(reference.row)
    return Layout(study, raw, recipe, seeds, cells, floor, again, resamples, timings, num_resamples)


def _cells(
    raw: Mapping[str, Any], recipe: Recipe, arms: Sequence[Arm], seed: int, index: int, store: Store | None
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
        graph = _graph(settings, sharing, store)
        graphs |= {arm.label: graph for arm in sharing}
    for arm in arms:
        graph = graphs[arm.label]
        row = next(row for row in graph.rows if row.id == arm.row)
        yield Cell(arm, seed, graph, row, _neighbours(graph, row))


def _graph(settings: dict[str, Any], arms: Sequence[Arm], store: Store | None) -> Graph:
    try:
        return build_graph(check_recipe(settings), store)
    except SettingError as error:
        raise SettingError(f"{', '.join(arm.label for arm in arms)}: {error}") from None


def _check_same_ruler(study: Study, cells: Sequence[Cell]) -> None:
    """One reference set, one number of images and one way to take features, or nothing is comparable."""
    if len({cell.graph.reference.id for cell in cells}) > 1:
        raise SettingError(f"study {study.name}: its arms are measured against different images or features")


def _snapshots(cell: Cell) -> dict[int, StepSpec]:
    """Where the row is one training that keeps snapshots: each sampled and evaluated as the row is."""
    row, found = cell.row, {}
    for images in row.model.settings.get("snapshots", ()):
        name = f"{row.id}@{images}"
        settings = {**row.sample.settings, "snapshot": images}
        sample = replace(row.sample, name=f"sample[{name}]", settings=settings)
        inputs = {**row.evaluate.inputs, "sample": sample}
        found[images] = replace(row.evaluate, name=f"evaluate[{name}]", inputs=inputs)
    return found


def _neighbours(graph: Graph, row: Row) -> StepSpec:
    settings = {
        "data": graph.reference.settings["data"],
        "num_images": min(NUM_NEIGHBOURS, graph.recipe.sample.num_images),
        "seed": graph.recipe.sample.seed,
    }
    real = StepSpec("neighbours[real]", "neighbours", settings)
    return StepSpec(f"neighbours[{row.id}]", "neighbours", settings, {"sample": row.sample, "real": real})


def _again(row: Row) -> StepSpec:
    """The same network, other noise: what sampling alone moves the metric by."""
    sampling = {**row.sample.settings["sample"]}
    sampling["seed"] += AGAIN
    sample = replace(row.sample, name="sample[again]", settings={**row.sample.settings, "sample": sampling})
    inputs = {"sample": sample, "reference": row.evaluate.inputs["reference"]}
    return StepSpec("evaluate[again]", "evaluate", row.evaluate.settings, inputs)


def _resample(cells: Sequence[Cell], seed: int, num_resamples: int | None) -> StepSpec:
    inputs = {cell.arm.key: cell.row.evaluate for cell in cells}
    reference = cells[0].graph.reference
    settings = {"seed": seed, "num_resamples": num_resamples}
    return StepSpec("resample", "resample", settings, {**inputs, "reference": reference})


def _timings(cells: Sequence[Cell]) -> Iterator[StepSpec]:
    """Arms in turns, those of one sampler together."""
    by_sampler: dict[str, list[Cell]] = {}
    for cell in cells:
        by_sampler.setdefault(json.dumps(plain(cell.graph.timing.settings), sort_keys=True), []).append(cell)
    for sharing in by_sampler.values():
        inputs = {
            f"{kind}[{cell.arm.key}]": getattr(cell.row, kind) for cell in sharing for kind in ("model", "sample")
        }
        yield StepSpec("timing", "timing", sharing[0].graph.timing.settings, inputs, exclusive=True)
