"""Cells whose arms are compared by their images: samples, distances, losses, neighbours, and the metric's own noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from noisewise.errors import SettingError
from noisewise.workflow.graph import Graph, Row
from noisewise.workflow.store import StepSpec, closure, plain
from noisewise.workflow.study.cells import Cell, Layout
from noisewise.workflow.study.definition import Study
from noisewise.workflow.text_scores import text_score_step

NUM_SPLITS = 20  # of real images into halves, for the metric's own noise
NUM_NEIGHBOURS = 1000  # images a cell whose nearest training image is looked for
AGAIN = 1_000_000  # added to the seed of images for the second sampling of one model


@dataclass(frozen=True, eq=False)
class SampledCell(Cell):
    """A row of the arm's table with one seed."""

    row: Row
    neighbours: StepSpec

    @property
    def ends(self) -> tuple[StepSpec, ...]:
        return self.row.evaluate, self.row.loss, self.neighbours, *self.own.values()


@dataclass(frozen=True, eq=False)
class SampledLayout(Layout):
    """All cells of a study and the steps that compare them."""

    cells: tuple[SampledCell, ...]
    floor: StepSpec
    again: StepSpec  # the reference arm's first network, sampled and evaluated once more
    resamples: Mapping[int, StepSpec]  # by seed
    text_scores: Mapping[int, StepSpec]  # by seed; none where the user gives no encoder
    timings: tuple[StepSpec, ...]  # one per sampler, of the first seed

    @property
    def reference_step(self) -> StepSpec:
        """Features of the real images, of the first seed."""
        return self.cells[0].graph.reference

    @cached_property
    def snapshots(self) -> dict[SampledCell, dict[int, StepSpec]]:
        """Evaluations of networks on their way, by training images, where the study draws quality along training."""
        if not {"images", "training"} & {*self.study.figures}:
            return {}
        found = {cell: _snapshots(cell) for cell in self.cells}
        return {cell: steps for cell, steps in found.items() if steps}

    def ends_of(self, cell: SampledCell) -> tuple[StepSpec, ...]:
        return *cell.ends, *self.snapshots.get(cell, {}).values()

    @cached_property
    def steps(self) -> tuple[StepSpec, ...]:
        """Inputs first; the metric's noise before everything, then whole seeds, training before measurements."""
        ordered: list[StepSpec] = [self.floor]
        for seed in self.seeds:
            cells = [cell for cell in self.cells if cell.seed == seed]
            ordered += [cell.row.model for cell in cells]
            ordered += [end for cell in cells for end in cell.ends]
            ordered += [step for cell in cells for step in self.snapshots.get(cell, {}).values()]
            ordered += [steps[seed] for steps in (self.resamples, self.text_scores) if steps]
        return tuple(closure([*ordered, self.again, *self.timings]))

    @cached_property
    def titles(self) -> Mapping[str, str]:
        titles = dict(super().titles)
        shared = [*self.resamples.items(), *self.text_scores.items()]
        return titles | {step.id: f"seed {seed} · {step.name}" for seed, step in shared}


def compared_by_images(layout: Layout) -> SampledLayout:
    """The whole layout of a study that samples, from its cells."""
    cells: tuple[SampledCell, ...] = layout.cells  # type: ignore[assignment]  # made by `sampled_cell`
    first = {cell.arm.label: cell for cell in cells if cell.seed == layout.seeds[0]}
    _check_same_ruler(layout.study, list(first.values()))
    reference = first[layout.study.reference_label(layout.recipe)]
    resamples = {
        seed: _resample([cell for cell in cells if cell.seed == seed], seed, layout.num_resamples)
        for seed in layout.seeds
    } if len(first) > 1 else {}  # fmt: skip
    text_scores = {
        seed: step
        for seed in layout.seeds
        if (step := _text_score([cell for cell in cells if cell.seed == seed])) is not None
    }
    floor = StepSpec("floor", "floor", {**reference.graph.reference.settings, "num_splits": NUM_SPLITS})
    return SampledLayout(
        layout.study, layout.raw, layout.recipe, layout.seeds, cells, layout.num_resamples, floor=floor,
        again=_again(reference.row), resamples=resamples, text_scores=text_scores,
        timings=tuple(_timings(list(first.values()))),
    )  # fmt: skip


def sampled_cell(cell: Cell) -> SampledCell:
    """A cell with the row that its arm names."""
    row = next(row for row in cell.graph.rows if row.id == cell.arm.row)
    return SampledCell(cell.arm, cell.seed, cell.graph, cell.own, row, _neighbours(cell.graph, row))


def _check_same_ruler(study: Study, cells: Sequence[SampledCell]) -> None:
    """One reference set, one number of images and one way to take features, or nothing is comparable."""
    if len({cell.graph.reference.id for cell in cells}) > 1:
        raise SettingError(f"study {study.name}: its arms are measured against different images or features")


def _snapshots(cell: SampledCell) -> dict[int, StepSpec]:
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


def _resample(cells: Sequence[SampledCell], seed: int, num_resamples: int | None) -> StepSpec:
    inputs = {cell.arm.key: cell.row.evaluate for cell in cells}
    reference = cells[0].graph.reference
    settings = {"seed": seed, "num_resamples": num_resamples}
    return StepSpec("resample", "resample", settings, {**inputs, "reference": reference})


def _text_score(cells: Sequence[SampledCell]) -> StepSpec | None:
    graph = cells[0].graph
    return text_score_step(graph.recipe, graph.base, {cell.arm.key: cell.row.sample for cell in cells})


def _timings(cells: Sequence[SampledCell]) -> Iterator[StepSpec]:
    """Arms in turns, those of one sampler together."""
    by_sampler: dict[str, list[SampledCell]] = {}
    for cell in cells:
        by_sampler.setdefault(json.dumps(plain(cell.graph.timing.settings), sort_keys=True), []).append(cell)
    for sharing in by_sampler.values():
        inputs = {
            f"{kind}[{cell.arm.key}]": getattr(cell.row, kind) for cell in sharing for kind in ("model", "sample")
        }
        yield StepSpec("timing", "timing", sharing[0].graph.timing.settings, inputs, exclusive=True)
