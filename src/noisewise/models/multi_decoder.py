"""One encoder and a decoder per group of noise levels (multi-stage framework, arXiv:2312.09181, section 3).

Every decoder reads the encoder's skip connections, so its widths are free. Built as experts that hold the same encoder:
routing, files, counting and training are those of `ExpertDenoiser`, and each expert is a `ShapedUNet2DModel`, whole in
memory. Shared are ``conv_in``, the time and class embeddings, ``down_blocks`` and, as an option, the bottleneck
(``mid_block``), which has the encoder's widths in either case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch

from noisewise.errors import SettingError
from noisewise.models.experts import ExpertDenoiser
from noisewise.models.networks import describe
from noisewise.models.networks.unet2d import ShapedUNet2DModel
from noisewise.models.networks.wiring import Wiring
from noisewise.models.surgery import cut
from noisewise.planning.plan import Plan

if TYPE_CHECKING:
    from diffusers import ModelMixin, UNet2DModel
    from torch import nn

ENCODER = ("conv_in", "time_proj", "time_embedding", "class_embedding", "down_blocks")
BOTTLENECK = "mid_block"
Decoder = float | Sequence[int] | None


class MultiDecoderUNet2DModel(ExpertDenoiser):
    """An `ExpertDenoiser` whose experts share their encoder; see `build` and `from_unet`."""

    __module__ = "noisewise"  # what diffusers writes into model_index.json, and where it looks again

    @classmethod
    def build(cls, plan: Plan, decoders: Sequence[Decoder], *, share_bottleneck: bool = True, **settings: Any) -> Self:
        """A network with fresh weights, from torch's global generator as any diffusers model.

        Args:
            plan: the groups.
            decoders: [N], one per group, nearest the data first: a factor on the widths that ``settings`` give the
                decoder, or its channels per resolution, highest first as ``block_out_channels``. Widths have to be
                multiples of ``norm_num_groups`` and of whole attention heads. ``None`` for an empty group.
            share_bottleneck: one bottleneck for all groups rather than one each.
            **settings: of the `ShapedUNet2DModel` whose encoder is shared: `UNet2DModel`'s and, where need be, shapes.
        """
        _check_number(decoders, plan, "decoders")
        with torch.device("meta"):
            base = ShapedUNet2DModel(**settings)
        experts: list[ModelMixin | None] = []
        for group, decoder in zip(plan.groups, decoders, strict=True):
            if (decoder is None) != group.is_empty:
                what = "is empty, so it has no decoder" if group.is_empty else "needs a factor or channels"
                raise SettingError(f"decoders.{group.index}: {decoder} given; this group {what}")
            shape = {} if decoder is None else decoder_shape(base, decoder, f"decoders.{group.index}")
            experts.append(None if decoder is None else ShapedUNet2DModel(**{**settings, **shape}))
        return cls(experts, plan, shared_paths(base, share_bottleneck))

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DModel,
        plan: Plan,
        decoders: Sequence[UNet2DModel | None] | None = None,
        *,
        share_bottleneck: bool = True,
    ) -> Self:
        """Start from a trained network: its encoder for all groups, and a decoder each.

        Args:
            unet: the trained network; it stays as it is.
            plan: the groups.
            decoders: [N] networks cut from ``unet`` whose encoder was kept whole (`noisewise.pruning.decoders` makes
                them), taken over; ``None`` stands for a copy of ``unet``'s own decoder. Default: all are copies.
            share_bottleneck: one bottleneck for all groups rather than one each.
        """
        decoders = [None] * len(plan.groups) if decoders is None else decoders
        _check_number(decoders, plan, "decoders")
        experts = [
            None if group.is_empty else cut(unet, {}) if decoder is None else decoder
            for group, decoder in zip(plan.groups, decoders, strict=True)
        ]
        return cls(experts, plan, shared_paths(unet, share_bottleneck))


def shared_paths(unet: nn.Module, share_bottleneck: bool) -> list[str]:
    """The modules of ``unet`` that make up the encoder, those it has."""
    paths = [*ENCODER, BOTTLENECK] if share_bottleneck else ENCODER
    return [path for path in paths if getattr(unet, path, None) is not None]


def decoder_shape(base: ShapedUNet2DModel, decoder: float | Sequence[int], setting: str) -> dict[str, Any]:
    """Sizes of all layers and heads of ``base`` once its decoder has other widths.

    Args:
        base: widths, norms and heads as they were; its weights are not looked at.
        decoder: a factor, or channels per resolution, highest first.
        setting: what errors call the decoder.
    """
    net = describe(base).wiring(base)
    widths = _decoder_widths(base, net, decoder, setting)
    layers = {
        layer.path: [net.width(layer.inputs, widths), net.width(layer.outputs, widths)]
        for layer in net.layers
        if layer.kind in ("conv", "linear")
    }
    heads = {
        spec.path: spec.heads if spec.heads == 1 else widths[spec.axis] * spec.heads // net.axes[spec.axis].width
        for spec in net.attentions
        if spec.axis in widths
    }
    return {"layers": layers, "heads": {**base.config.heads, **heads}}


def _decoder_widths(
    base: ShapedUNet2DModel, net: Wiring, decoder: float | Sequence[int], setting: str
) -> Mapping[str, int]:
    """New width of every axis of the decoder."""
    levels = len(base.up_blocks)
    if isinstance(decoder, int | float):
        if not (math.isfinite(decoder) and decoder > 0):
            raise SettingError(f"{setting}: {decoder} is no positive factor")
    elif len(decoder) != levels:
        raise SettingError(f"{setting}: {list(decoder)} given; the network has {levels} resolutions")
    widths = {}
    for i in range(levels):
        names = [name for name in net.prunable if name.startswith(f"up_blocks.{i}.")]
        unit = _unit(base, net, names)
        for name in names:
            if isinstance(decoder, int | float):
                widths[name] = _whole(decoder * net.axes[name].width, unit, setting)
            else:
                widths[name] = _whole(decoder[levels - 1 - i], unit, setting)
    return widths


def _unit(base: ShapedUNet2DModel, net: Wiring, names: Sequence[str]) -> int:
    """Channels come in multiples of the norms' groups and of whole heads."""
    units = [base.config.norm_num_groups, base.config.get("attn_norm_num_groups") or 1]
    heads = [spec for spec in net.attentions if spec.axis in names and spec.heads > 1]
    units += [net.axes[spec.axis].width // spec.heads for spec in heads]
    return math.lcm(*units)


def _whole(width: float, unit: int, setting: str) -> int:
    if width > 0 and width % unit == 0:
        return int(width)
    lower = int(width // unit) * unit
    nearest = f"{lower} and {lower + unit}" if lower > 0 else f"{unit}"
    raise SettingError(
        f"{setting}: {width:g} channels are not a multiple of {unit} (norm groups and whole attention heads); "
        f"nearest are {nearest}"
    )


def _check_number(decoders: Sequence[object], plan: Plan, setting: str) -> None:
    if len(decoders) != len(plan.groups):
        raise SettingError(f"{setting}: {len(decoders)} given, the plan has {len(plan.groups)} groups")
