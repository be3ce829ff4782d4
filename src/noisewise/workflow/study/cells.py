"""The cells of a study: one arm with one seed each, and the steps that they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from noisewise.workflow.graph import Graph
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.store import StepSpec, closure, plain
from noisewise.workflow.study.definition import Arm, Study


@dataclass(frozen=True, eq=False)
class Cell:
    """One arm with one seed. ``own`` are the steps that its study alone asks for, by role."""

    arm: Arm
    seed: int
    graph: Graph
    own: Mapping[str, StepSpec]

    @property
    def ends(self) -> tuple[StepSpec, ...]:
        """The steps behind which all others stand."""
        return tuple(self.own.values())


@dataclass(frozen=True, eq=False)
class Layout:
    """All cells of a study; see `sampled.SampledLayout` for those whose arms are compared by their images."""

    study: Study
    raw: Mapping[str, Any]  # the user's recipe, before any arm
    recipe: Recipe
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]  # seed by seed, so that a study cut short has whole seeds
    num_resamples: int | None  # of bootstraps; None: as many as suits

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(cell.arm for cell in self.cells if cell.seed == self.seeds[0])

    def cell(self, arm: Arm, seed: int) -> Any:
        return next(cell for cell in self.cells if cell.arm is arm and cell.seed == seed)

    @property
    def reference(self) -> Arm:
        return next(arm for arm in self.arms if arm.label == self.study.reference_label(self.recipe))

    def against(self, arm: Arm) -> Arm:
        """The arm that one is compared with; a reference arm with itself."""
        label = arm.against or self.study.reference_label(self.recipe)
        return next(other for other in self.arms if other.label == label)

    def ends_of(self, cell: Any) -> tuple[StepSpec, ...]:
        """All steps that are a cell's, and not those of a comparison."""
        found: tuple[StepSpec, ...] = cell.ends
        return found

    @cached_property
    def steps(self) -> tuple[StepSpec, ...]:
        """Inputs first, whole seeds one after the other."""
        return tuple(closure(end for cell in self.cells for end in cell.ends))

    @cached_property
    def titles(self) -> Mapping[str, str]:
        """What to call each step where many share a name: its seed, and its arm where it has but one."""
        users: dict[str, list[Cell]] = {}
        for cell in self.cells:
            for step in closure(self.ends_of(cell)):
                users.setdefault(step.id, []).append(cell)
        return {step.id: _title(step, users.get(step.id, [])) for step in self.steps}

    def describe(self) -> dict[str, Any]:
        """What `layout.from_description` lays out again, for worker processes and for the study's folder."""
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
