"""How a wiring is declared: step by step along the path of the hidden states, for every architecture alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from noisewise.models.networks.wiring import AttentionSpec, Axis, AxisKind, Layer, LayerKind, Wiring

if TYPE_CHECKING:
    from torch import nn

Parts = tuple[str, ...]


@dataclass
class Walk:
    """What has been declared so far. ``norm_groups`` are the groups of the network's norms over channels of images."""

    norm_groups: int = 1
    axes: dict[str, Axis] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    attentions: list[AttentionSpec] = field(default_factory=list)
    norm_sizes: dict[str, list[int]] = field(default_factory=dict)  # axis -> group sizes of its own norms
    scale: int = 1  # 1/scale of the image's resolution

    def axis(self, name: str, width: int, unit: int, kind: AxisKind, place: str, removes: str = "") -> str:
        self.axes[name] = Axis(name, width, unit, kind, place, removes)
        return name

    def fixed(self, name: str, width: int, place: str) -> str:
        return self.axis(name, width, width, "fixed", place)

    def residual(self, path: str, width: int, base_width: int) -> str:
        """A residual stream that starts at ``path``; its unit is settled once all its norms are known."""
        unit = math.gcd(width, max(base_width // self.norm_groups, 1))
        return self.axis(path, width, unit, "residual", f"residual stream from {path} on{self.resolution}")

    @property
    def resolution(self) -> str:
        return f", at 1/{self.scale} resolution" if self.scale > 1 else ""

    def layer(self, path: str, kind: LayerKind, inputs: Parts, outputs: Parts) -> None:
        self.layers.append(Layer(path, kind, inputs, outputs))

    def linear(self, path: str, inputs: str, outputs: str, copies: int = 1) -> None:
        """A linear layer from one axis to another, which it may write several times over."""
        self.layer(path, "linear", (inputs,), (outputs,) * copies)

    def norm(self, path: str, norm: nn.GroupNorm, parts: Parts) -> None:
        self.layer(path, "norm", parts, parts)
        if len(parts) == 1:
            self.norm_sizes.setdefault(parts[0], []).append(norm.num_channels // norm.num_groups)

    def wiring(self) -> Wiring:
        """A residual or inner axis leaves in whole groups of all its own norms: their least common multiple."""
        for name, sizes in self.norm_sizes.items():
            self.axes[name] = replace(self.axes[name], unit=math.lcm(*sizes))
        return Wiring(self.axes, tuple(self.layers), tuple(self.attentions))


def unknown(path: str, module: nn.Module, known: tuple[type, ...]) -> str:
    """The message for a module that no walk knows how to pass."""
    names = ", ".join(kind.__name__ for kind in known)
    return f"model.{path}: a {type(module).__name__} of this kind is not one noisewise can prune; it knows {names}"
