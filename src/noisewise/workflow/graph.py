"""The steps of a run: which there are, what each reads, and which make up a row of the table.

    base ─► prune[g] ─► finetune[g] ─► assemble ─► sample[row] ─► evaluate[row] ─► results, report    (method tdc)
                                       joint ────► sample ...                                         (multi-decoder)

The plan needs no training, so the whole graph is known before anything runs. Steps that several rows need exist once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from noisewise.errors import SettingError
from noisewise.planning.plan import Plan
from noisewise.workflow.explain import did_you_mean
from noisewise.workflow.foundation import Foundation
from noisewise.workflow.networks import DataInfo
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.store import StepSpec, closure


@dataclass(frozen=True, eq=False)
class Row:
    """A row of the table: ``model`` made the network, the others measure it."""

    id: str
    label: str
    note: str
    model: StepSpec
    sample: StepSpec
    evaluate: StepSpec
    loss: StepSpec

    @property
    def training(self) -> list[StepSpec]:
        """Every step whose work went into the network; what only set its cost (`match`) or its `shape` did not.

        Nor does what made its `latents` and encoded the `text`, which all networks of a run share.
        """
        return closure([self.model], but=("match", "shape", "latents", "text"))


@dataclass(frozen=True, eq=False)
class Graph:
    """All steps of a run. ``rows`` are the table's; ``snapshots`` add points to the curve of quality."""

    recipe: Recipe
    base: Foundation
    rows: tuple[Row, ...]
    snapshots: Mapping[int, StepSpec]  # training images -> evaluation of the base at that point
    reference: StepSpec
    timing: StepSpec
    coverage: StepSpec
    ideal_loss: StepSpec | None = None  # of the optimal denoiser, where the report draws it
    reconstruction: StepSpec | None = None  # of images by the autoencoder, where networks learn latents
    text_score: StepSpec | None = None  # of images against their captions, where the user gives an encoder

    @property
    def plan(self) -> Plan:
        return self.base.plan

    @property
    def data(self) -> DataInfo:
        return self.base.data

    @cached_property
    def steps(self) -> tuple[StepSpec, ...]:
        """Inputs first; training before the measurements, but what looks at the data alone before everything.

        A joint training is one long step that waits for little, so that it comes before the many short ones.
        """
        ends = [step for row in self.rows for step in (row.evaluate, row.loss)]
        models = closure(row.model for row in sorted(self.rows, key=lambda row: row.id != "multi-decoder"))
        first = [step for step in (self.reference, self.reconstruction, self.ideal_loss) if step is not None]
        last = [step for step in (self.coverage, self.text_score, self.timing) if step is not None]
        return tuple(closure([*first, *models, *ends, *self.snapshots.values(), *last]))

    def step(self, name: str) -> StepSpec:
        """A step by its name."""
        for step in self.steps:
            if step.name == name:
                return step
        names = [step.name for step in self.steps]
        raise SettingError(f"--only {name}: no such step; there are {', '.join(names)}{did_you_mean(name, names)}")
