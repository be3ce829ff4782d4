"""A `UNet2DModel` whose layers have widths of their own: what pruning leaves, as an ordinary diffusers model.

The configuration holds the settings of the network it was cut from (the skeleton: blocks, resolutions, activations)
and beside them the shape of every layer, the groups of every norm, the heads of every attention, and the blocks that
were taken out. Tensor shapes alone would not tell the last three, so the weights are checked against the
configuration and never the other way round. A residual block whose shortcut is projected although its widths would
not ask for it (as in DDPM++'s resampling blocks) is listed too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from noisewise.errors import SettingError
from noisewise.models.networks.unet2d import RemovedBlock, wiring

SHAPE_SETTINGS = ("layers", "norm_groups", "heads", "removed_blocks", "shortcuts")


class ShapedUNet2DModel(UNet2DModel):
    """A `UNet2DModel` with a width per layer; it loads, saves, trains and runs in pipelines as one.

    Args:
        layers: channels ``[in, out]`` of convolutions and linear layers by module path; one that is missing keeps the
            skeleton's. Norms follow from what they normalise.
        norm_groups: number of groups by path of the norm.
        heads: number of heads by path of the attention.
        removed_blocks: paths of residual blocks (without shortcut convolution) and attentions that are left out.
        shortcuts: paths of residual blocks that get a shortcut convolution where the skeleton adds them to their input.
        **settings: those of `UNet2DModel`.
    """

    __module__ = "noisewise"  # what diffusers writes into model_index.json, and where it looks again

    def __init__(
        self,
        *,
        layers: Mapping[str, Sequence[int]] | None = None,
        norm_groups: Mapping[str, int] | None = None,
        heads: Mapping[str, int] | None = None,
        removed_blocks: Sequence[str] = (),
        shortcuts: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        shape: dict[str, Any] = {
            "layers": {path: list(sizes) for path, sizes in (layers or {}).items()},
            "norm_groups": dict(norm_groups or {}),
            "heads": dict(heads or {}),
            "removed_blocks": list(removed_blocks),
            "shortcuts": list(shortcuts),
        }
        self.register_to_config(**shape)
        for path in removed_blocks:
            _remove(self, path)
        for path in shortcuts:
            _add_shortcut(self, path)
        for path, sizes in shape["layers"].items():
            _resize(self, path, sizes)
        for path, num_heads in shape["heads"].items():
            _submodule(self, "heads", path, Attention).heads = num_heads
        _repair(self)
        _fit_norms(self, shape["norm_groups"])
        _check(self)


def _signature() -> inspect.Signature:
    """`UNet2DModel`'s settings and ours by name: diffusers asks the signature which keys of a configuration to pass."""
    base = inspect.signature(UNet2DModel.__init__)
    own = inspect.signature(ShapedUNet2DModel.__init__)
    parameters = [*base.parameters.values(), *(own.parameters[name] for name in SHAPE_SETTINGS)]
    return own.replace(parameters=parameters)


ShapedUNet2DModel.__init__.__signature__ = _signature()  # type: ignore[attr-defined]


def skeleton(model: UNet2DModel) -> dict[str, Any]:
    """The `UNet2DModel` settings of ``model``, those of its skeleton if it is already a shaped one."""
    known = inspect.signature(UNet2DModel.__init__).parameters
    return {name: value for name, value in model.config.items() if name in known}


def _submodule(model: nn.Module, setting: str, path: str, *kinds: type[nn.Module]) -> Any:
    """The module at ``path``, which has to be one of ``kinds``."""
    names = " or ".join(kind.__name__ for kind in kinds)
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise SettingError(f"{setting}.{path}: the network has no such module (a {names} is expected there)") from None
    if not isinstance(module, kinds):
        raise SettingError(f"{setting}.{path}: a {type(module).__name__} is there, not a {names}")
    return module


def _remove(model: nn.Module, path: str) -> None:
    block = _submodule(model, "removed_blocks", path, ResnetBlock2D, Attention)
    if isinstance(block, ResnetBlock2D) and (block.conv_shortcut is not None or block.up or block.down):
        raise SettingError(
            f"removed_blocks.{path}: this residual block changes the width or the resolution; "
            "only blocks that add to their input can be left out"
        )
    model.set_submodule(path, RemovedBlock())


def _add_shortcut(model: nn.Module, path: str) -> None:
    block = _submodule(model, "shortcuts", path, ResnetBlock2D)
    if block.conv_shortcut is not None:
        raise SettingError(f"shortcuts.{path}: this residual block has a shortcut convolution already")
    weight = block.conv1.weight
    place = {"device": weight.device, "dtype": weight.dtype}
    block.conv_shortcut = nn.Conv2d(block.in_channels, block.out_channels, 1, **place)
    block.use_in_shortcut = True


def _resize(model: nn.Module, path: str, sizes: Sequence[int]) -> None:
    """Replace the layer at ``path`` by a fresh one with ``[in, out]`` channels; everything else stays as it is."""
    layer = _submodule(model, "layers", path, nn.Conv2d, nn.Linear)
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise SettingError(f"layers.{path}: {sizes} given; two positive numbers of channels [in, out] are needed")
    width_in, width_out = sizes
    bias, place = layer.bias is not None, {"device": layer.weight.device, "dtype": layer.weight.dtype}
    fresh: nn.Module
    if isinstance(layer, nn.Linear):
        fresh = nn.Linear(width_in, width_out, bias, **place)
    else:
        fresh = nn.Conv2d(
            width_in, width_out, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=bias, **place
        )
    model.set_submodule(path, fresh)


def _repair(model: nn.Module) -> None:
    """Set the sizes that diffusers' blocks keep as plain attributes to what their layers say."""
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            module.in_channels, module.out_channels = module.conv1.in_channels, module.conv2.out_channels
            for resampler in (module.upsample, module.downsample):
                if resampler is not None:
                    resampler.channels = resampler.out_channels = module.in_channels
        elif isinstance(module, Downsample2D | Upsample2D) and module.use_conv:
            module.channels, module.out_channels = module.conv.in_channels, module.conv.out_channels
        elif isinstance(module, Attention):
            module.query_dim = module.cross_attention_dim = module.to_q.in_features
            module.inner_dim = module.inner_kv_dim = module.to_q.out_features
            module.out_dim = module.out_context_dim = module.to_out[0].out_features
            module.sliceable_head_dim = module.heads
            module.scale = (module.inner_dim // module.heads) ** -0.5 if module.scale_qk else 1.0


def _fit_norms(model: UNet2DModel, norm_groups: Mapping[str, int]) -> None:
    """Give every norm the channels of what it normalises, in the configured number of groups."""
    for path in norm_groups:
        _submodule(model, "norm_groups", path, nn.GroupNorm)
    net = wiring(model)
    for layer in net.layers:
        if layer.kind != "norm":
            continue
        norm, width = model.get_submodule(layer.path), net.width(layer.inputs, {})
        groups = norm_groups.get(layer.path, norm.num_groups)
        if groups < 1 or width % groups:
            raise SettingError(f"norm_groups.{layer.path}: {groups} groups do not divide its {width} channels")
        place = {"device": norm.weight.device, "dtype": norm.weight.dtype}
        model.set_submodule(layer.path, nn.GroupNorm(groups, width, norm.eps, norm.affine, **place))


def _check(model: UNet2DModel) -> None:
    """Every layer has to read and write as many channels as its neighbours do, every attention whole heads."""
    net = wiring(model)
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


def sizes_of(layer: nn.Module) -> tuple[int, int]:
    """Channels a convolution or linear layer reads and writes."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, nn.Conv2d)
    return layer.in_channels, layer.out_channels
