"""Cutting channels out of a network: a new, smaller model whose weights are slices of the old one's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.models.networks.wiring import AttentionSpec, Layer, Wiring, norm_groups_after

if TYPE_CHECKING:
    from diffusers import ModelMixin


def kept_widths(model: ModelMixin) -> dict[str, int]:
    """The width of every axis that may be cut."""
    net = describe(model).wiring(model)
    return {name: net.axes[name].width for name in net.prunable}


@torch.no_grad()
def cut(model: ModelMixin, kept: Mapping[str, torch.Tensor]) -> ModelMixin:
    """A new model that keeps only some channels of some axes; ``model`` stays as it is.

    Channels keep their order. If they leave in whole units of their axis, the norm groups that stay see exactly the
    channels they saw before. An attention with several heads loses whole heads. One with a single head keeps its
    temperature 1/sqrt(d) of before: the change of d is folded into the weights of its queries. An axis of which nothing
    stays takes its whole block along, if the block only adds to its input (`Axis.removes`).

    Args:
        model: a network that `describe` knows; one on the meta device, without weights, gives one there.
        kept: indices of the channels that stay, by name of the axis; an axis that is missing stays whole.
    """
    network = describe(model)
    net = network.wiring(model)
    channels = {name: torch.arange(axis.width) for name, axis in net.axes.items()}  # on the CPU, to be looked at
    for name, indices in kept.items():
        channels[name] = _checked(net, name, indices)
    for attention in net.attentions:
        _check_whole_heads(net, attention, channels[attention.axis])

    removed = net.removed_blocks({name: len(indices) for name, indices in channels.items()})
    small = network.reshaped(model, _shape(model, net, channels, removed))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if not _within(name, removed)}
    for layer in net.layers:
        if layer.kind != "embedding" and not _within(layer.path, removed):
            _slice(state, net, layer, channels)
    for attention in net.attentions:
        if not _within(attention.path, removed):
            _keep_temperature(state, net, attention, len(channels[attention.axis]))
    small.load_state_dict(state, strict=True, assign=True)
    _copy_fixed_tables(model, small)
    if model.is_gradient_checkpointing:
        small.enable_gradient_checkpointing()
    return small.train(model.training)


def _copy_fixed_tables(model: ModelMixin, small: ModelMixin) -> None:
    """Buffers that are computed and not saved, such as a positional embedding: none of them has an axis to cut."""
    saved = model.state_dict()
    tables = {name: buffer for name, buffer in model.named_buffers() if name not in saved}
    for name, _ in list(small.named_buffers()):
        if name in tables:
            path, _, own_name = name.rpartition(".")
            small.get_submodule(path)._buffers[own_name] = tables[name].clone()


def _within(path: str, blocks: tuple[str, ...]) -> bool:
    """Whether a module or parameter is, or lies in, one of ``blocks``."""
    return any(f"{path}.".startswith(f"{block}.") for block in blocks)


def _checked(net: Wiring, name: str, indices: torch.Tensor) -> torch.Tensor:
    """Sorted indices of an axis that may be cut."""
    if name not in net.axes:
        raise SettingError(f"kept.{name}: the network has no such axis")
    axis = net.axes[name]
    indices = torch.as_tensor(indices, dtype=torch.int64, device="cpu").sort().values
    if axis.kind == "fixed" and len(indices) != axis.width:
        raise SettingError(f"kept.{name}: this axis is fixed ({axis.place})")
    if len(indices) == 0 and axis.removes:
        return indices
    if len(indices) == 0 or len(indices.unique()) != len(indices) or indices[0] < 0 or indices[-1] >= axis.width:
        fewest = 0 if axis.removes else 1
        raise SettingError(
            f"kept.{name}: {len(indices)} indices given, {fewest} to {axis.width} different channels are needed"
        )
    return indices


def _check_whole_heads(net: Wiring, attention: AttentionSpec, kept: torch.Tensor) -> None:
    unit = net.axes[attention.axis].unit
    starts = kept[::unit]
    whole = (starts[:, None] + torch.arange(unit)).flatten()  # [heads kept * unit]
    if len(kept) % unit or not torch.equal(whole, kept) or bool((starts % unit).any()):
        raise SettingError(f"kept.{attention.axis}: this attention keeps or loses whole heads of {unit} channels")


def _shape(
    model: ModelMixin, net: Wiring, channels: Mapping[str, torch.Tensor], removed: tuple[str, ...]
) -> dict[str, Any]:
    """The settings of the smaller network: sizes of layers, groups of norms, heads, and what is or was removed."""
    widths = {name: len(indices) for name, indices in channels.items()}
    layers, norm_groups = {}, {}
    for layer in net.layers:
        if _within(layer.path, removed):
            continue
        width_in, width_out = net.width(layer.inputs, widths), net.width(layer.outputs, widths)
        if layer.kind == "norm":
            groups = model.get_submodule(layer.path).num_groups
            norm_groups[layer.path] = norm_groups_after(groups, net.width(layer.inputs, {}), width_in)
        elif layer.kind in ("conv", "linear"):
            layers[layer.path] = [width_in, width_out]
    heads = {
        a.path: a.heads if a.heads == 1 else widths[a.axis] // net.axes[a.axis].unit
        for a in net.attentions
        if not _within(a.path, removed)
    }
    return {
        "layers": layers,
        "norm_groups": norm_groups,
        "heads": heads,
        "removed_blocks": [*model.config.get("removed_blocks", ()), *removed],
        "shortcuts": list(model.config.get("shortcuts", ())),
    }


def concatenated(net: Wiring, parts: tuple[str, ...], channels: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Kept channels of a concatenation of axes, counted from its start."""
    pieces, start = [], 0
    for name in parts:
        pieces.append(channels[name] + start)
        start += net.axes[name].width
    return torch.cat(pieces)


def _slice(state: dict[str, torch.Tensor], net: Wiring, layer: Layer, channels: Mapping[str, torch.Tensor]) -> None:
    """Cut the layer's weight [out, in, ...] (a norm's: [out]) and bias [out] in place of ``state``."""
    writes = concatenated(net, layer.outputs, channels)
    for name in (f"{layer.path}.weight", f"{layer.path}.bias"):
        if name in state:
            state[name] = state[name].index_select(0, writes.to(state[name].device))
    if layer.kind in ("conv", "linear"):
        weight = state[f"{layer.path}.weight"]
        reads = concatenated(net, layer.inputs, channels)
        state[f"{layer.path}.weight"] = weight.index_select(1, reads.to(weight.device))


def _keep_temperature(state: dict[str, torch.Tensor], net: Wiring, attention: AttentionSpec, width: int) -> None:
    """Attention divides q·k by sqrt(width of a head); with one head the new width must not change the old divisor."""
    before = net.axes[attention.axis].width
    if attention.heads > 1 or width == before:
        return
    for name in (f"{attention.path}.to_q.weight", f"{attention.path}.to_q.bias"):
        if name in state:
            state[name] *= (width / before) ** 0.5
