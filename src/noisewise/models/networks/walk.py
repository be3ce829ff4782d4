"""How a wiring is declared: step by step along the path of the hidden states, for every architecture alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from diffusers.models.activations import GEGLU, GELU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention

from noisewise.errors import SettingError
from noisewise.models.networks.blocks import NothingToAdd
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

    def layer_norm(self, path: str, stream: str) -> None:
        """A norm over all channels of a stream, with or without weights."""
        self.layer(path, "layer-norm", (stream,), (stream,))

    def norm(self, path: str, norm: nn.GroupNorm, parts: Parts) -> None:
        self.layer(path, "norm", parts, parts)
        if len(parts) == 1:
            self.norm_sizes.setdefault(parts[0], []).append(norm.num_channels // norm.num_groups)

    def inner_attention(self, path: str, attention: Any, stream: str, context: str = "") -> None:
        """An attention whose answer is added to ``stream``; keys and values read ``context`` where that is given."""
        if isinstance(attention, NothingToAdd):
            return
        odd = (attention.group_norm, attention.spatial_norm, attention.norm_cross, attention.added_kv_proj_dim)
        if type(attention) is not Attention or attention.residual_connection or any(part is not None for part in odd):
            raise SettingError(unknown(path, attention, (Attention,)))
        width, heads = attention.to_q.out_features, attention.heads
        unit = width // heads if heads > 1 or attention.norm_q is not None else 1
        axis = self.axis(path, width, unit, "attention", f"inside of {path}{self.resolution}", path)
        for name in ("to_q", "to_k", "to_v"):
            self.linear(f"{path}.{name}", stream if name == "to_q" or not context else context, axis)
        self.linear(f"{path}.to_out.0", axis, stream)
        self.head_norms(path, attention)
        self.attentions.append(AttentionSpec(path, axis, heads))

    def head_norms(self, path: str, attention: Any) -> None:
        """Norms of queries and keys: within a head, so they stay as they are while the attention does."""
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            norm = getattr(attention, name, None)
            if norm is not None and norm.weight is not None:
                self.layer_norm(f"{path}.{name}", self.fixed(f"{path}.head", len(norm.weight), f"a head of {path}"))

    def feed_forward(self, path: str, block: Any, stream: str) -> None:
        """A feed-forward whose answer is added to ``stream``; a gated one writes its inside twice, value and gate."""
        if isinstance(block, NothingToAdd):
            return
        if type(block) is not FeedForward or type(block.net[0]) not in (GELU, GEGLU):
            raise SettingError(unknown(path, block, (FeedForward,)))
        inner = self.axis(
            f"{path}.inner", block.net[2].in_features, 1, "inner", f"inside of {path}{self.resolution}", path
        )
        self.linear(f"{path}.net.0.proj", stream, inner, copies=2 if type(block.net[0]) is GEGLU else 1)
        self.linear(f"{path}.net.2", inner, stream)

    def wiring(self) -> Wiring:
        """A residual or inner axis leaves in whole groups of all its own norms: their least common multiple."""
        for name, sizes in self.norm_sizes.items():
            self.axes[name] = replace(self.axes[name], unit=math.lcm(*sizes))
        return Wiring(self.axes, tuple(self.layers), tuple(self.attentions))


def unknown(path: str, module: nn.Module, known: tuple[type, ...]) -> str:
    """The message for a module that no walk knows how to pass."""
    names = ", ".join(kind.__name__ for kind in known)
    return f"model.{path}: a {type(module).__name__} of this kind is not one noisewise can prune; it knows {names}"
