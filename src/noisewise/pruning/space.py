"""The widths a search may choose from: legal ones, within one budget, with solver and projection at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    share: float = 1.0  # of its width that an even cut leaves every axis it may cut

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
        """The same share of every axis, but of those that stay whole."""
        return {name: legal[-1] * (self.share if len(legal) > 1 else 1.0) for name, legal in self.widths.items()}

    def with_all_blocks(self) -> Space | None:
        """The same choice with no block left out; None where none may be."""
        if all(legal[0] > 0 for legal in self.widths.values()):
            return None
        widths = {name: tuple(width for width in legal if width > 0) for name, legal in self.widths.items()}
        known = self.known if self.known and all(self.known.values()) else None
        return replace(self, widths=widths, known=known)

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
    keep: Sequence[str] = (),
    depth: bool = False,
) -> Space:
    """Legal widths for a budget.

    Axes whose names begin with a module path in ``keep``, e.g. "down_blocks", stay whole. With ``depth`` whole blocks
    that only add to their input may be left out; ``min_width`` holds for those that stay.

    What is "auto" gives way where the budget asks for it: first the least width, halved until every axis at its
    smallest costs less than the budget, then the alignment, halved network-wide until some widths cost
    what was asked. Numbers are kept, and the budget refused where it cannot be met with them.

    Raises:
        SolverError: with the nearest costs that can be reached.
    """
    check_budget(budget, tolerance)
    if min_width != "auto" and (isinstance(min_width, str) or not 0 <= min_width < 1):
        raise SettingError(f'prune.min_width: {min_width!r} is neither "auto" nor in [0, 1) (a fraction of each axis)')
    whole = _kept_whole(wiring, keep)
    share = _even_share(wiring, cost, budget, whole)
    halvings = range(LARGEST_ALIGNMENT.bit_length() if alignment == "auto" else 1)
    tried: list[dict[str, int]] = []
    for halving in halvings:
        steps = alignments(wiring, alignment, halving)
        if steps in tried:
            continue
        tried.append(steps)
        for least in _least_widths(share, min_width):
            widths = network_widths(wiring, steps, least, depth) | {name: (wiring.axes[name].width,) for name in whole}
            space = Space(wiring, cost, budget, tolerance, widths, steps, least, share=share)
            roomy = space.macs({name: legal[0] for name, legal in space.widths.items()}) <= budget * space.base_macs
            if not roomy and least > 0 and min_width == "auto":
                continue
            try:
                return replace(space, known=space.project(space.uniform())[0].widths)
            except SolverError as error:
                refusal = error
    if not depth and set(wiring.removable) - whole:
        settings: dict[str, Any] = {"tolerance": tolerance, "alignment": alignment, "min_width": min_width}
        refusal = _hinted(refusal, lambda: open_space(wiring, cost, budget, keep=keep, depth=True, **settings))
    raise refusal


def _hinted(refusal: SolverError, deeper: Callable[[], Space]) -> SolverError:
    """The refusal, with a word on depth if that would reach the budget."""
    try:
        deeper()
    except SolverError:
        return refusal
    hint = "leaving whole blocks out would meet it: prune.proposer.depth, --depth, or depth=True"
    return SolverError(f"{refusal}; {hint}", refusal.reachable, refusal.proof)


def _kept_whole(wiring: Wiring, keep: Sequence[str]) -> set[str]:
    """The axes that may not be cut."""
    whole: set[str] = set()
    for path in keep:
        found = [name for name in wiring.prunable if name == path or name.startswith(f"{path}.")]
        if not found:
            raise SettingError(f"prune.keep: the network has no axis in {path}")
        whole.update(found)
    if len(whole) == len(wiring.prunable):
        raise SettingError(f"prune.keep: nothing is left to cut beside {', '.join(keep)}")
    return whole


def _even_share(wiring: Wiring, cost: CostForm, budget: float, whole: set[str]) -> float:
    """The same share of every axis that costs the budget.

    Costs grow with the widths' square, hence its square root; where some axes stay whole, the root of the cost form's
    own quadratic in the share, and 0 where these alone cost too much.
    """
    if not whole:
        return math.sqrt(budget)
    full = np.array([wiring.axes[name].width for name in wiring.prunable], dtype=np.float64)  # [A]
    free = np.array([name not in whole for name in wiring.prunable])  # [A]
    cut, kept = full * free, full * ~free
    square = 0.5 * cut @ cost.bilinear @ cut
    slope = cut @ cost.linear + cut @ cost.bilinear @ kept
    fixed = cost.constant + kept @ cost.linear + 0.5 * kept @ cost.bilinear @ kept
    excess = fixed - budget * (square + slope + fixed)
    return 0.0 if excess > 0 else float(-2 * excess / (slope + math.sqrt(slope**2 - 4 * square * excess)))


def _least_widths(share: float, min_width: MinWidth) -> list[float]:
    """Half of what an even cut leaves, then less and less; or what was asked."""
    if min_width != "auto":
        return [float(min_width)]
    half = share / 2
    return [half, half / 2, half / 4, 0.0]


def _scores(importances: Importances, name: str) -> torch.Tensor:
    if name not in importances:
        raise SettingError(f"prune.importance: no scores for axis {name}")
    return importances[name]
