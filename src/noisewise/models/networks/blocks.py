"""diffusers' blocks as shaped networks need them: layers resized, blocks left out, attributes that follow repaired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from noisewise.errors import SettingError


class RemovedBlock(nn.Module):
    """Stands where a block was taken out that adds to its own input: hands its hidden states on."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


class NothingToAdd(nn.Module):
    """Stands where an attention or feed-forward was taken out whose answer the network adds to its input: zeros.

    Args:
        joint: also for the text that a joint attention updates along with the image.
    """

    def __init__(self, joint: bool = False) -> None:
        super().__init__()
        self.joint = joint

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **kwargs: Any) -> Any:
        nothing = torch.zeros_like(hidden_states)
        return (nothing, torch.zeros_like(encoder_hidden_states)) if self.joint else nothing


REMOVED = (RemovedBlock, NothingToAdd)


def submodule(model: nn.Module, setting: str, path: str, *kinds: type[nn.Module]) -> Any:
    """The module at ``path``, which has to be one of ``kinds``."""
    names = " or ".join(kind.__name__ for kind in kinds)
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise SettingError(f"{setting}.{path}: the network has no such module (a {names} is expected there)") from None
    if not isinstance(module, kinds):
        raise SettingError(f"{setting}.{path}: a {type(module).__name__} is there, not a {names}")
    return module


def remove(model: nn.Module, path: str) -> None:
    """Leave out the block at ``path``, which may only add to its input."""
    block = submodule(model, "removed_blocks", path, ResnetBlock2D, Attention, FeedForward)
    if isinstance(block, ResnetBlock2D) and (block.conv_shortcut is not None or block.up or block.down):
        raise SettingError(
            f"removed_blocks.{path}: this residual block changes the width or the resolution; "
            "only blocks that add to their input can be left out"
        )
    divisor = getattr(block, "output_scale_factor", 1.0)
    if isinstance(block, Attention) and block.residual_connection:
        divisor = block.rescale_output_factor
    if divisor != 1:
        raise SettingError(
            f"removed_blocks.{path}: this block divides its input with what it adds to it by {divisor:g}; "
            "only blocks that hand their input on as it is can be left out"
        )
    adds_itself = isinstance(block, ResnetBlock2D) or (isinstance(block, Attention) and block.residual_connection)
    joint = isinstance(block, Attention) and block.added_kv_proj_dim is not None
    model.set_submodule(path, RemovedBlock() if adds_itself else NothingToAdd(joint))


def add_shortcut(model: nn.Module, path: str) -> None:
    """Give the residual block at ``path`` a shortcut convolution."""
    block = submodule(model, "shortcuts", path, ResnetBlock2D)
    if block.conv_shortcut is not None:
        raise SettingError(f"shortcuts.{path}: this residual block has a shortcut convolution already")
    weight = block.conv1.weight
    place = {"device": weight.device, "dtype": weight.dtype}
    block.conv_shortcut = nn.Conv2d(block.in_channels, block.out_channels, 1, **place)
    block.use_in_shortcut = True


def resize(model: nn.Module, path: str, sizes: Sequence[int]) -> None:
    """Replace the layer at ``path`` by a fresh one with ``[in, out]`` channels; everything else stays as it is."""
    layer = submodule(model, "layers", path, nn.Conv2d, nn.Linear)
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


def repair(model: nn.Module) -> None:
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
            _repair_attention(module)
        elif isinstance(module, Transformer2DModel):
            module.in_channels = module.out_channels = module.proj_in.weight.shape[1]
            module.inner_dim = module.proj_in.weight.shape[0]
        elif isinstance(module, BasicTransformerBlock):
            module.dim = module.norm3.normalized_shape[0]


def _repair_attention(attention: Any) -> None:
    attention.query_dim = attention.to_q.in_features
    attention.cross_attention_dim = attention.to_k.in_features
    attention.inner_dim = attention.to_q.out_features
    attention.inner_kv_dim = attention.to_k.out_features
    attention.out_dim = attention.out_context_dim = attention.to_out[0].out_features
    if getattr(attention, "to_add_out", None) is not None:
        attention.out_context_dim = attention.to_add_out.out_features
    attention.sliceable_head_dim = attention.heads
    attention.scale = (attention.inner_dim // attention.heads) ** -0.5 if attention.scale_qk else 1.0


def sizes_of(layer: nn.Module) -> tuple[int, int]:
    """Channels a convolution or linear layer reads and writes."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, nn.Conv2d)
    return layer.in_channels, layer.out_channels
