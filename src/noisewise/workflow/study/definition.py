"""What a study is: a question, the arms that answer it, and what the paper reports.

An arm is one row of one recipe; a study runs every arm with every seed and compares all of them with one reference arm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from noisewise.workflow.recipe import Recipe

if TYPE_CHECKING:
    from noisewise.workflow.graph import Graph
    from noisewise.workflow.store import StepSpec, Store
    from noisewise.workflow.study.cells import Cell, Layout

FigureKind = Literal["differences", "cost", "axis", "images", "training", "rounds", "times", "correlations", "scores"]
Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class Arm:
    """One line of a study's table.

    ``overrides`` are dotted settings, or whole sections, laid over the user's recipe; ``row`` says which of the
    recipe's rows is measured.
    """

    label: str
    row: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    paper: tuple[str, ...] = ()  # what the paper prints for it, one per `Paper.columns`
    x: float | None = None  # where it stands on the study's axis
    line: str = ""  # which line of that figure it belongs to
    against: str = ""  # label of the arm it is compared with, where that is not the study's reference

    @property
    def key(self) -> str:
        """The label as part of file and step names."""
        words = "".join(c if c.isalnum() and c.isascii() else " " for c in self.label.lower()).split()
        return "-".join(words)


@dataclass(frozen=True)
class Paper:
    """What the paper reports, to stand beside ours."""

    source: str
    columns: tuple[str, ...] = ()
    limits: str = ""  # where a comparison with ours means nothing
    others: tuple[tuple[str, ...], ...] = ()  # rows of the paper's table that no arm repeats: label, then columns
    effect: float | None = None  # the difference it claims, as a share of its reference's distance


@dataclass(frozen=True)
class OwnColumn:
    """A number that one study measures of every cell, and its column in the table."""

    name: str  # in cells.csv and results.json
    section: str
    title: str
    unit: str
    definition: str
    scaling: Literal["none", "up", "milli", "thousandths"] = "none"
    digits: int = 3


def _nothing(*_: object) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Own:
    """What a study measures beyond what all sampled ones do, or instead of it.

    ``steps`` are a cell's own, by role; ``numbers`` reads a finished cell's, one per column. ``gather`` adds keys to
    `results.json`; ``judge`` adds to each arm, by key, what needs all seeds at once: intervals, its `difference`.
    """

    columns: tuple[OwnColumn, ...]
    steps: Callable[[Arm, Graph], Mapping[str, StepSpec]]
    numbers: Callable[[Cell, Store], Numbers]
    gather: Callable[[Layout, Store], Mapping[str, Any]] = _nothing
    judge: Callable[[Layout, Store], Mapping[str, Mapping[str, Any]]] = _nothing
    compared: str = ""  # of a study without samples: the column that arms are compared by,
    quantity: str = ""  # and what that is, in words
    higher_is_better: bool = False


@dataclass(frozen=True)
class Study:
    """A grid of arms and seeds over shared steps, and how to show it."""

    name: str
    title: str
    question: str
    needs: str  # what a recipe must have, in words
    arms: Callable[[Recipe], Sequence[Arm]]
    reference: str | Callable[[Recipe], str]  # label of the arm that all others are compared with
    paper: Paper
    axis: str = ""  # what `Arm.x` counts
    log_axis: bool = False  # draw it in logarithms
    figures: tuple[FigureKind, ...] = ("differences", "cost")
    cost_to_match: bool = False  # also: when does each arm reach the reference's best distance, by snapshots
    own: Own | None = None
    sampled: bool = True  # whether arms are compared by their images; without, ``own`` says what is done and compared

    def reference_label(self, recipe: Recipe) -> str:
        """``reference``, where the recipe has a say in it."""
        return self.reference if isinstance(self.reference, str) else self.reference(recipe)


def only_plan(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    """The recipe's plan section with single settings changed, as an override of the whole section."""
    given = recipe.plan.model_dump(mode="json", exclude_defaults=True)
    return {"plan": {**given, **changes}}
