"""Which channels of a network are tied together: axes, and the layers that read and write them.

An *axis* is one set of coupled channels, e.g. a residual stream between two resamplings, the inside of one residual
block, or the heads of one attention. A layer's input channels are the concatenation of the axes it reads, its output
channels the concatenation of the axes it writes (a `scale_shift` time projection writes the same axis twice). That is
all a pruner needs: cutting an axis cuts every layer that names it, and a layer's cost is bilinear in its widths.

Normalisation after cutting. Channels leave in whole *units* of ``Axis.unit`` neighbours, one group of the axis's own
norm, so that the statistics of the groups that stay are untouched and the number of norm groups falls instead. Where
a norm runs over a concatenation whose groups straddle the parts, `norm_groups_after` picks the group size closest to
the original one that divides the new width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

AxisKind = Literal["fixed", "residual", "inner", "attention"]
LayerKind = Literal["conv", "linear", "norm", "layer-norm", "embedding"]  # norm: in groups; layer-norm: over all


@dataclass(frozen=True)
class Axis:
    """One set of coupled channels.

    ``width`` channels in whole units of ``unit`` neighbours; a ``fixed`` axis (image channels, the time embedding) is
    never cut. ``place`` says in words where in the network it lies. ``removes`` is the path of the block, e.g. a
    residual block or an attention, that has nothing left to add to its input at width 0 and may then be left out.
    """

    name: str
    width: int
    unit: int
    kind: AxisKind
    place: str
    removes: str = ""

    @property
    def num_units(self) -> int:
        return self.width // self.unit


@dataclass(frozen=True)
class Layer:
    """A module with weights, the axes whose concatenation it reads, and those it writes (a norm: the same)."""

    path: str
    kind: LayerKind
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class AttentionSpec:
    """An attention module: ``axis`` is the inner width of its queries, keys and values, split into ``heads``."""

    path: str
    axis: str
    heads: int


@dataclass(frozen=True)
class Wiring:
    """All axes of a network, its layers, and its attentions."""

    axes: Mapping[str, Axis]
    layers: tuple[Layer, ...]
    attentions: tuple[AttentionSpec, ...] = ()

    @property
    def prunable(self) -> tuple[str, ...]:
        """Names of the axes that may be cut, in the network's order."""
        return tuple(name for name, axis in self.axes.items() if axis.kind != "fixed")

    @property
    def removable(self) -> tuple[str, ...]:
        """Names of the axes whose whole block may be left out."""
        return tuple(name for name, axis in self.axes.items() if axis.removes)

    def removed_with(self, path: str) -> str:
        """The axis at whose width 0 the module at ``path`` leaves with its block; empty where it always stays."""
        around = (
            name for name, axis in self.axes.items() if axis.removes and f"{path}.".startswith(f"{axis.removes}.")
        )
        return next(around, "")

    def removed_blocks(self, widths: Mapping[str, int]) -> tuple[str, ...]:
        """Paths of the blocks that are left out at these widths."""
        return tuple(self.axes[name].removes for name in self.removable if widths.get(name) == 0)

    def width(self, parts: tuple[str, ...], widths: Mapping[str, int]) -> int:
        """Channels of a concatenation of axes; an axis missing from ``widths`` keeps its full width."""
        return sum(widths.get(name, self.axes[name].width) for name in parts)


def norm_groups_after(groups: int, width: int, new_width: int) -> int:
    """Norm groups once ``width`` channels in ``groups`` groups have become ``new_width`` channels.

    The number of groups, at most ``groups``, that divides ``new_width`` and whose group size is closest to the
    original one (in ratio; the smaller groups on a tie).
    """
    size = width / groups
    divisors = [g for g in range(1, groups + 1) if new_width % g == 0]

    def distance(g: int) -> tuple[float, int]:
        ratio = (new_width / g) / size
        return (max(ratio, 1 / ratio), -g)

    return min(divisors, key=distance)
