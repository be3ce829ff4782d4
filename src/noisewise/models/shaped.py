"""Networks whose layers have widths of their own: what pruning leaves, as ordinary diffusers models.

The configuration holds the settings of the network it was cut from (the skeleton: blocks, resolutions, activations)
and beside them the shape of every layer, the groups of every norm, the heads of every attention, and the blocks that
were taken out. Tensor shapes alone would not tell the last three, so the weights are checked against the
configuration and never the other way round. A residual block whose shortcut is projected although its widths would
not ask for it (as in DDPM++'s resampling blocks) is listed too.

One mechanism serves every architecture: ``class ShapedX(Shaped, X)`` is all that an architecture adds beside the
wiring that `describe` finds for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import nn

from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.models.networks.blocks import add_shortcut, remove, repair, resize, sizes_of, submodule
from noisewise.models.networks.network import SHAPE_SETTINGS
from noisewise.models.networks.wiring import Wiring


class Shaped:
    """What turns a diffusers model into one with a width per layer; it loads, saves, trains and runs as one.

    Args:
        layers: channels ``[in, out]`` of convolutions and linear layers by module path; one that is missing keeps the
            skeleton's. Norms follow from what they normalise.
        norm_groups: number of groups by path of the norm.
        heads: number of heads by path of the attention.
        removed_blocks: paths of residual blocks (without shortcut convolution), attentions and feed-forwards that are
            left out.
        shortcuts: paths of residual blocks that get a shortcut convolution where the skeleton adds them to their input.
        **settings: those of the diffusers model.
    """

    __module__ = "noisewise"  # what diffusers writes into model_index.json, and where it looks again

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if Shaped not in cls.__bases__:
            return
        cls.__module__ = "noisewise"

        def build(self: Any, **settings: Any) -> None:
            _build(self, settings)

        kind: Any = cls.__bases__[1]
        theirs = inspect.signature(kind.__init__)
        own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in SHAPE_SETTINGS]
        # diffusers asks the signature which keys of a configuration to pass
        build.__signature__ = theirs.replace(  # type: ignore[attr-defined]
            parameters=[*theirs.parameters.values(), *own]
        )
        cls.__init__ = build  # type: ignore[method-assign]


def _build(model: Any, settings: dict[str, Any]) -> None:
    """Fill a new model: the skeleton first, then what its shape changes."""
    given = {name: settings.pop(name, None) for name in SHAPE_SETTINGS}
    super(Shaped, model).__init__(**settings)
    shape: dict[str, Any] = {
        "layers": {path: list(sizes) for path, sizes in (given["layers"] or {}).items()},
        "norm_groups": dict(given["norm_groups"] or {}),
        "heads": dict(given["heads"] or {}),
        "removed_blocks": list(given["removed_blocks"] or ()),
        "shortcuts": list(given["shortcuts"] or ()),
    }
    model.register_to_config(**shape)
    for path in shape["removed_blocks"]:
        remove(model, path)
    for path in shape["shortcuts"]:
        add_shortcut(model, path)
    for path, sizes in shape["layers"].items():
        resize(model, path, sizes)
    for path, num_heads in shape["heads"].items():
        submodule(model, "heads", path, Attention).heads = num_heads
    _fit_norms(model, shape["norm_groups"])
    repair(model)
    _check(model)


def _fit_norms(model: Any, norm_groups: Mapping[str, int]) -> None:
    """Give every norm the channels of what it normalises, in the configured number of groups."""
    for path in norm_groups:
        submodule(model, "norm_groups", path, nn.GroupNorm)
    net = _wiring(model)
    for layer in net.layers:
        if layer.kind not in ("norm", "layer-norm"):
            continue
        norm, width = model.get_submodule(layer.path), net.width(layer.inputs, {})
        if layer.kind == "layer-norm":
            if net.axes[layer.inputs[0]].kind != "fixed" and norm.normalized_shape != (width,):
                model.set_submodule(layer.path, _layer_norm(model, norm, width))
            continue
        groups = norm_groups.get(layer.path, norm.num_groups)
        if groups < 1 or width % groups:
            raise SettingError(f"norm_groups.{layer.path}: {groups} groups do not divide its {width} channels")
        place = {"device": norm.weight.device, "dtype": norm.weight.dtype}
        model.set_submodule(layer.path, nn.GroupNorm(groups, width, norm.eps, norm.affine, **place))


def _layer_norm(model: Any, norm: nn.LayerNorm, width: int) -> nn.LayerNorm:
    """The same norm over another number of channels."""
    bias = norm.bias is not None
    place = {"device": model.device, "dtype": model.dtype}
    return type(norm)(width, norm.eps, norm.elementwise_affine, bias=bias, **place)


def _check(model: Any) -> None:
    """Every layer has to read and write as many channels as its neighbours do, every attention whole heads."""
    net = _wiring(model)
    for path in model.config.layers.keys() - {layer.path for layer in net.layers}:
        raise SettingError(f"layers.{path}: the sizes of this layer follow from the network's other settings")
    for layer in net.layers:
        if layer.kind not in ("conv", "linear"):
            continue
        module = model.get_submodule(layer.path)
        given = list(sizes_of(module))
        allowed = [net.width(layer.inputs, {}), net.width(layer.outputs, {})]
        if given != allowed:
            raise SettingError(f"layers.{layer.path}: {given} channels [in, out] given, its neighbours have {allowed}")
    for attention in net.attentions:
        width = net.axes[attention.axis].width
        if attention.heads < 1 or width % attention.heads:
            raise SettingError(f"heads.{attention.path}: {attention.heads} heads do not divide its {width} channels")


def _wiring(model: Any) -> Wiring:
    return describe(model).wiring(model)
