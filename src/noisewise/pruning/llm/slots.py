"""The lines of the prompt's table: one axis each, or, where a network has too many, several summarised as one.

A *slot* has a menu of few values. For one axis these are legal widths; for several, percent of each one's width, which
the projection makes legal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from noisewise.models.networks.wiring import AxisKind
from noisewise.pruning.importance import Importances
from noisewise.pruning.space import Space
from noisewise.pruning.widths import kept_values

Detail = Literal["axis", "kind", "block", "stage"]
DETAILS: tuple[Detail, ...] = ("axis", "kind", "block", "stage")  # how finely a network is told, finest first
MOST_VALUES = 8  # on a menu
WORDS: dict[AxisKind, str] = {
    "residual": "residual streams",
    "inner": "insides of residual blocks",
    "attention": "attention heads",
}


@dataclass(frozen=True)
class Slot:
    """What a candidate names one value for."""

    id: str
    place: str  # in words
    widths: Mapping[str, int]  # full width of each of its axes
    menu: tuple[int, ...]  # ascending; the last one keeps everything
    macs: float  # share of the MACs of the layers it takes part in
    parameters: float  # the same for parameters
    ranks: Mapping[str, int]  # by importance's kind; 1 loses most per MAC saved

    @property
    def in_percent(self) -> bool:
        return len(self.widths) > 1

    @property
    def width(self) -> int:
        return sum(self.widths.values())

    def proposal(self, value: int) -> dict[str, float]:
        """Widths that a value of the menu stands for."""
        if self.in_percent:
            return {name: width * value / 100 for name, width in self.widths.items()}
        return dict.fromkeys(self.widths, float(value))

    def value(self, widths: Mapping[str, int]) -> int:
        """How measured widths read in the table: a width, or percent."""
        kept = sum(widths[name] for name in self.widths)
        return round(100 * kept / self.width) if self.in_percent else kept


def slots_of(space: Space, hints: Mapping[str, Importances], detail: Detail) -> list[Slot]:
    """The table of a network, in its own order; axes with one legal width only are no choice and left out."""
    together: dict[object, list[str]] = {}
    for name, legal in space.widths.items():
        if len(legal) > 1:
            together.setdefault(_key(name, space.wiring.axes[name].kind, detail), []).append(name)
    groups = list(together.values())
    ranks = {kind: _ranks(space, scores, groups) for kind, scores in hints.items()}
    base_macs, base_parameters = space.base_macs, space.cost.parameters({})
    slots = []
    for i, names in enumerate(groups):
        gone = dict.fromkeys(names, 0)
        slots.append(
            Slot(
                id=f"a{i + 1}",
                place=_place(space, names, detail),
                widths={name: space.widths[name][-1] for name in names},
                menu=_menu([space.widths[name] for name in names]),
                macs=1 - space.macs(gone) / base_macs,
                parameters=1 - space.cost.parameters(gone) / base_parameters,
                ranks={kind: places[i] for kind, places in ranks.items()},
            )
        )
    return slots


def _block(name: str) -> str:
    """``down_blocks.0.resnets.1.inner`` lies in ``down_blocks.0``, ``mid_block.resnets.0.inner`` in ``mid_block``."""
    parts = name.split(".")
    return ".".join(parts[: 2 if len(parts) > 1 and parts[1].isdecimal() else 1])


def _key(name: str, kind: AxisKind, detail: Detail) -> object:
    """Axes of equal keys share a slot."""
    if detail == "axis":
        return name
    if detail == "kind":
        return _block(name), kind
    return _block(name) if detail == "block" else name.partition(".")[0]


def _place(space: Space, names: Sequence[str], detail: Detail) -> str:
    axes = [space.wiring.axes[name] for name in names]
    if len(axes) == 1:
        return axes[0].place
    where = _block(names[0]) if detail != "stage" else names[0].partition(".")[0]
    kinds = " and ".join(WORDS[kind] for kind in dict.fromkeys(axis.kind for axis in axes))
    return f"the {len(axes)} {kinds} of {where}"


def _menu(legal: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """At most `MOST_VALUES`, evenly spread."""
    if len(legal) == 1:
        (widths,) = legal
        chosen = np.linspace(0, len(widths) - 1, min(len(widths), MOST_VALUES)).round().astype(int)
        return tuple(widths[i] for i in chosen)
    least = min(widths[0] / widths[-1] for widths in legal)
    percents = np.linspace(100 * least, 100, MOST_VALUES).round().astype(int)
    return tuple(dict.fromkeys(percents.tolist()))


def _ranks(space: Space, scores: Importances, groups: Sequence[Sequence[str]]) -> list[int]:
    """Rank of each group of axes by the importance lost per MAC saved when all of them go to their smallest widths."""
    prices = []
    for names in groups:
        saved = space.base_macs - space.macs({name: space.widths[name][0] for name in names})
        lost = 0.0
        for name in names:
            values = kept_values(space.wiring.axes[name], scores[name], space.widths[name])
            lost += values[-1] - values[0]
        prices.append(lost / max(saved, 1))
    order = np.argsort(-np.array(prices), kind="stable")
    ranks = np.empty(len(groups), dtype=int)
    ranks[order] = np.arange(1, len(groups) + 1)
    return [int(rank) for rank in ranks]
