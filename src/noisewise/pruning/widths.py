"""Which widths an axis may have, and which of its channels stay at a given width.

A legal width is a multiple of the axis's unit (one group of its norm, one attention head) and of its alignment, or the
full width; with depth also 0 where the axis's whole block may be left out. Alignment buys speed: kernels work in blocks
of channels, so 33 channels often cost the time of 48.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch

from noisewise.errors import SettingError
from noisewise.models.networks.wiring import Axis, Wiring

Alignment = int | Literal["auto"]
MinWidth = float | Literal["auto"]

LARGEST_ALIGNMENT = 16  # on the CPUs measured, a 3x3 convolution's time steps up every 16 channels
FEWEST_LEVELS = 4  # an automatic alignment leaves at least this many widths to choose from


def auto_alignment(axis: Axis) -> int:
    """The largest power of two up to 16 that still leaves four legal widths; 1 where none does."""
    alignment = LARGEST_ALIGNMENT
    while alignment > 1 and math.lcm(axis.unit, alignment) * FEWEST_LEVELS > axis.width:
        alignment //= 2
    return alignment


def alignments(wiring: Wiring, alignment: Alignment, halvings: int = 0) -> dict[str, int]:
    """Alignment of every axis that may be cut.

    An integer is the same for all; "auto" suits each axis, and is halved ``halvings`` times network-wide.
    """
    if alignment == "auto":
        return {name: max(auto_alignment(wiring.axes[name]) >> halvings, 1) for name in wiring.prunable}
    if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1:
        raise SettingError(f'prune.alignment: {alignment!r} is neither "auto" nor a number of channels of at least 1')
    return dict.fromkeys(wiring.prunable, alignment)


def legal_widths(axis: Axis, alignment: int = 1, min_width: float = 0.0, depth: bool = False) -> tuple[int, ...]:
    """Ascending multiples of unit and alignment, none less than ``min_width`` of the axis, and the full width.

    With ``depth`` the first is 0 where the block around the axis may be left out: ``min_width`` keeps blocks from
    becoming bottlenecks, and a block that is not there is none.
    """
    step = math.lcm(axis.unit, alignment)
    fewest = max(math.ceil(min_width * axis.width / step - 1e-9), 1) * step
    none = (0,) if depth and axis.removes else ()
    return (*none, *range(fewest, axis.width, step), axis.width)


def network_widths(
    wiring: Wiring, steps: Mapping[str, int], min_width: float = 0.0, depth: bool = False
) -> dict[str, tuple[int, ...]]:
    """Legal widths of every axis that may be cut, given each one's alignment."""
    return {name: legal_widths(wiring.axes[name], steps[name], min_width, depth) for name in wiring.prunable}


def unit_scores(axis: Axis, scores: torch.Tensor) -> torch.Tensor:
    """Importance [width] of channels summed over each unit: [num_units] float64."""
    if scores.shape != (axis.width,):
        raise SettingError(
            f"prune.importance: axis {axis.name} has {axis.width} channels, its scores have shape {tuple(scores.shape)}"
        )
    scores = scores.detach().cpu().double()
    if not bool((torch.isfinite(scores) & (scores >= 0)).all()):
        raise SettingError(f"prune.importance: scores of axis {axis.name} must be finite and not negative")
    return scores.reshape(axis.num_units, axis.unit).sum(1)


def kept_channels(axis: Axis, scores: torch.Tensor, width: int) -> torch.Tensor:
    """Ascending indices [width] of the channels in the most important units; earlier units win ties."""
    best = torch.sort(unit_scores(axis, scores), descending=True, stable=True).indices
    units = best[: width // axis.unit].sort().values
    return (units[:, None] * axis.unit + torch.arange(axis.unit)).flatten()


def kept_values(axis: Axis, scores: torch.Tensor, widths: tuple[int, ...]) -> list[float]:
    """Importance kept at each of ``widths`` when the most important units stay."""
    best = unit_scores(axis, scores).sort(descending=True).values
    total = torch.cat([torch.zeros(1, dtype=torch.float64), best.cumsum(0)])  # [num_units + 1]
    return [float(total[width // axis.unit]) for width in widths]
