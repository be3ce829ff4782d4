"""The widths a search may choose from: legal ones, within one budget, with solver and projection at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.models.networks.wiring import Wiring
from noisewise.pruning.importance import Importances
from noisewise.pruning.solver import CostForm, Solution, SolverError, check_budget, project, solve
from noisewise.pruning.widths import (
    LARGEST_ALIGNMENT,
    Alignment,
    MinWidth,
    alignments,
    kept_channels,
    kept_values,
    network_widths,
)


@dataclass(frozen=True)
class Space:
    """Legal widths of every axis and the budget that a choice of them must meet."""

    wiring: Wiring
    cost: CostForm
    budget: float
    tolerance: float
    widths: Mapping[str, tuple[int, ...]]  # axis -> legal widths, ascending
    alignments: Mapping[str, int]
    min_width: float
    known: Mapping[str, int] | None = None  # widths that meet the budget: proof that there are some

    @property
    def base_macs(self) -> int:
        return self.macs({name: legal[-1] for name, legal in self.widths.items()})

    def macs(self, widths: Mapping[str, int]) -> int:
        """MACs at these widths; an axis left out keeps its full width."""
        w = np.array([widths.get(name, legal[-1]) for name, legal in self.widths.items()], dtype=np.float64)
        return round(float(self.cost.constant + w @ self.cost.linear + 0.5 * w @ self.cost.bilinear @ w))

    def solve(self, importances: Importances) -> Solution:
        """The widths that keep the most importance."""
        values = {
            name: kept_values(self.wiring.axes[name], _scores(importances, name), legal)
            for name, legal in self.widths.items()
        }
        return solve(self.cost, self.widths, values, self.budget, self.tolerance, self.known)

    def project(self, proposal: Mapping[str, float]) -> tuple[Solution, float]:
        """The legal widths within the budget nearest to ``proposal``, and how far that is: see `solver.project`."""
        return project(self.cost, self.widths, proposal, self.budget, self.tolerance, self.known)

    def uniform(self) -> dict[str, float]:
        """The same share of every axis: the square root of the budget, as costs grow with the widths' square."""
        return {name: legal[-1] * math.sqrt(self.budget) for name, legal in self.widths.items()}

    def kept(self, widths: Mapping[str, int], importances: Importances) -> dict[str, torch.Tensor]:
        """Indices of the channels that stay, for every axis that loses some."""
        return {
            name: kept_channels(self.wiring.axes[name], _scores(importances, name), width)
            for name, width in widths.items()
            if width < self.wiring.axes[name].width
        }


def open_space(
    wiring: Wiring,
    cost: CostForm,
    budget: float,
    *,
    tolerance: float = 0.02,
    alignment: Alignment = "auto",
    min_width: MinWidth = "auto",
) -> Space:
    """Legal widths for a budget.

    What is "auto" gives way where the budget asks for it: first the least width, halved until every axis at its
    smallest costs less than the budget, then the alignment, halved network-wide until some widths cost
    what was asked. Numbers are kept, and the budget refused where it cannot be met with them.

    Raises:
        SolverError: with the nearest costs that can be reached.
    """
    check_budget(budget, tolerance)
    if min_width != "auto" and (isinstance(min_width, str) or not 0 <= min_width < 1):
        raise SettingError(f'prune.min_width: {min_width!r} is neither "auto" nor in [0, 1) (a fraction of each axis)')
    halvings = range(LARGEST_ALIGNMENT.bit_length() if alignment == "auto" else 1)
    tried: list[dict[str, int]] = []
    for halving in halvings:
        steps = alignments(wiring, alignment, halving)
        if steps in tried:
            continue
        tried.append(steps)
        for least in _least_widths(budget, min_width):
            space = Space(wiring, cost, budget, tolerance, network_widths(wiring, steps, least), steps, least)
            roomy = space.macs({name: legal[0] for name, legal in space.widths.items()}) <= budget * space.base_macs
            if not roomy and least > 0 and min_width == "auto":
                continue
            try:
                return replace(space, known=space.project(space.uniform())[0].widths)
            except SolverError as error:
                refusal = error
    raise refusal


def _least_widths(budget: float, min_width: MinWidth) -> list[float]:
    """Half of the uniform share, then less and less; or what was asked."""
    if min_width != "auto":
        return [float(min_width)]
    half = math.sqrt(budget) / 2
    return [half, half / 2, half / 4, 0.0]


def _scores(importances: Importances, name: str) -> torch.Tensor:
    if name not in importances:
        raise SettingError(f"prune.importance: no scores for axis {name}")
    return importances[name]
