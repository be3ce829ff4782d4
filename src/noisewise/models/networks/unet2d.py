"""The axes of diffusers' `UNet2DModel`, declared by walking its modules along the path of the hidden states.

The rules, for every network made of the standard 2-D blocks:

- `conv_in`, a residual block with a `conv_shortcut`, and a convolution that changes the resolution each start a new
  residual axis. A residual block without a shortcut convolution adds to its input, so its output is its input's axis;
  the same holds for an attention, and for a residual block that changes the resolution.
- The inside of a residual block (conv1's output, norm2, the time projection, conv2's input) is an axis of its own;
  with ``scale_shift`` the time projection writes it twice, the scale first, then the shift.
- Queries, keys and values of an attention share an axis. With several heads it is cut by whole heads.
- A residual block that only adds to its input, and any attention, may be left out once nothing of its inside is kept.
- Up blocks read the concatenation (hidden, skip); skips are popped in the reverse order of the down blocks.
- Image channels, the sinusoidal time features and the time embedding are fixed.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets import unet_2d_blocks as blocks
from diffusers.models.upsampling import Upsample2D
from torch import nn

from noisewise.errors import SettingError
from noisewise.models.networks.blocks import RemovedBlock
from noisewise.models.networks.network import Network
from noisewise.models.networks.walk import Parts, Walk, unknown
from noisewise.models.networks.wiring import AttentionSpec, Wiring
from noisewise.models.shaped import Shaped

Kinds = tuple[type[nn.Module], ...]


class ShapedUNet2DModel(Shaped, UNet2DModel):
    """A `UNet2DModel` with a width per layer; see `Shaped`."""


def wiring(model: UNet2DModel) -> Wiring:
    """Axes, layers and attentions of ``model``, with the widths its modules have now."""
    walk = BlockWalk(norm_groups=model.config.norm_num_groups)
    walk.time_embedding(model)
    return walk.image_path(model)


class BlockWalk(Walk):
    """A walk over the standard 2-D blocks; each method returns the axis of the hidden states it leaves behind."""

    down_kinds: ClassVar[Kinds] = (blocks.DownBlock2D, blocks.AttnDownBlock2D, blocks.ResnetDownsampleBlock2D)
    mid_kinds: ClassVar[Kinds] = (blocks.UNetMidBlock2D,)
    up_kinds: ClassVar[Kinds] = (blocks.UpBlock2D, blocks.AttnUpBlock2D, blocks.ResnetUpsampleBlock2D)
    time_parts: Parts = ("time",)  # what residual blocks are told of the timestep

    def image_path(self, model: Any) -> Wiring:
        """All blocks from the noisy image to the prediction."""
        base_widths = tuple(model.config.block_out_channels)  # widths before any cut: they set the default units
        self.fixed("image_in", model.conv_in.in_channels, "channels of the noisy image")
        hidden = self.residual("conv_in", model.conv_in.out_channels, base_widths[0])
        self.layer("conv_in", "conv", ("image_in",), (hidden,))
        skips = [hidden]
        for i, block in enumerate(model.down_blocks):
            hidden = self.down_block(f"down_blocks.{i}", block, hidden, skips, base_widths[i])
        if model.mid_block is not None:
            hidden = self.mid_block("mid_block", model.mid_block, hidden, base_widths[-1])
        for i, block in enumerate(model.up_blocks):
            hidden = self.up_block(f"up_blocks.{i}", block, hidden, skips, base_widths[-1 - i])

        self.norm("conv_norm_out", model.conv_norm_out, (hidden,))
        self.fixed("image_out", model.conv_out.out_channels, "channels of the prediction")
        self.layer("conv_out", "conv", (hidden,), ("image_out",))
        return self.wiring()

    def time_embedding(self, model: UNet2DModel) -> None:
        features = self.fixed("time_features", model.time_embedding.linear_1.in_features, "features of the timestep")
        hidden = self.fixed("time_hidden", model.time_embedding.linear_1.out_features, "inside of the time embedding")
        self.fixed("time", model.time_embedding.linear_2.out_features, "time embedding")
        if isinstance(model.time_proj, nn.Embedding):
            self.layer("time_proj", "embedding", (), (features,))
        embedders = ["time_embedding"]
        if isinstance(model.class_embedding, nn.Embedding):
            self.layer("class_embedding", "embedding", (), ("time",))
        elif model.class_embedding is not None and not isinstance(model.class_embedding, nn.Identity):
            embedders.append("class_embedding")
        for path in embedders:
            self.layer(f"{path}.linear_1", "linear", (features,), (hidden,))
            self.layer(f"{path}.linear_2", "linear", (hidden,), ("time",))

    def down_block(self, path: str, block: Any, hidden: str, skips: list[str], base_width: int) -> str:
        if type(block) not in self.down_kinds:
            raise SettingError(unknown(path, block, self.down_kinds))
        for i, resnet in enumerate(block.resnets):
            hidden = self.resnet(f"{path}.resnets.{i}", resnet, (hidden,), base_width)
            if hasattr(block, "attentions"):
                hidden = self.attention(f"{path}.attentions.{i}", block.attentions[i], hidden)
            skips.append(hidden)
        for i, resampler in enumerate(block.downsamplers or ()):
            self.scale *= 2
            hidden = self.resampler(f"{path}.downsamplers.{i}", resampler, hidden, base_width)
            skips.append(hidden)
        return hidden

    def mid_block(self, path: str, block: Any, hidden: str, base_width: int) -> str:
        if type(block) not in self.mid_kinds:
            raise SettingError(unknown(path, block, self.mid_kinds))
        hidden = self.resnet(f"{path}.resnets.0", block.resnets[0], (hidden,), base_width)
        for i, attention in enumerate(block.attentions):
            if attention is not None:
                hidden = self.attention(f"{path}.attentions.{i}", attention, hidden)
            hidden = self.resnet(f"{path}.resnets.{i + 1}", block.resnets[i + 1], (hidden,), base_width)
        return hidden

    def up_block(self, path: str, block: Any, hidden: str, skips: list[str], base_width: int) -> str:
        if type(block) not in self.up_kinds:
            raise SettingError(unknown(path, block, self.up_kinds))
        for i, resnet in enumerate(block.resnets):
            hidden = self.resnet(f"{path}.resnets.{i}", resnet, (hidden, skips.pop()), base_width)
            if hasattr(block, "attentions"):
                hidden = self.attention(f"{path}.attentions.{i}", block.attentions[i], hidden)
        for i, resampler in enumerate(block.upsamplers or ()):
            self.scale //= 2
            hidden = self.resampler(f"{path}.upsamplers.{i}", resampler, hidden, base_width)
        return hidden

    def resampler(self, path: str, resampler: Any, hidden: str, base_width: int) -> str:
        if type(resampler) is ResnetBlock2D:
            return self.resnet(path, resampler, (hidden,), base_width)
        if type(resampler) not in (Downsample2D, Upsample2D):
            raise SettingError(unknown(path, resampler, (Downsample2D, Upsample2D, ResnetBlock2D)))
        if not resampler.use_conv:
            return hidden
        axis = self.residual(path, resampler.conv.out_channels, base_width)
        self.layer(f"{path}.conv", "conv", (hidden,), (axis,))
        return axis

    def resnet(self, path: str, resnet: Any, parts: Parts, base_width: int) -> str:
        if isinstance(resnet, RemovedBlock):
            return parts[0]
        if type(resnet) is not ResnetBlock2D:
            raise SettingError(unknown(path, resnet, (ResnetBlock2D,)))
        adds = resnet.conv_shortcut is None and not (resnet.up or resnet.down) and resnet.output_scale_factor == 1
        place = f"inside of {path}{self.resolution}"
        inner = self.axis(f"{path}.inner", resnet.conv1.out_channels, 1, "inner", place, path if adds else "")
        self.norm(f"{path}.norm1", resnet.norm1, parts)
        self.layer(f"{path}.conv1", "conv", parts, (inner,))
        if resnet.time_emb_proj is not None:
            copies = 2 if resnet.time_embedding_norm == "scale_shift" else 1
            self.layer(f"{path}.time_emb_proj", "linear", self.time_parts, (inner,) * copies)
        self.norm(f"{path}.norm2", resnet.norm2, (inner,))
        if resnet.conv_shortcut is None:
            (output,) = parts  # adds to its input, which is one axis then
        else:
            output = self.residual(path, resnet.conv_shortcut.out_channels, base_width)
            self.layer(f"{path}.conv_shortcut", "conv", parts, (output,))
        self.layer(f"{path}.conv2", "conv", (inner,), (output,))
        return output

    def attention(self, path: str, attention: Any, hidden: str) -> str:
        if isinstance(attention, RemovedBlock):
            return hidden
        if type(attention) is not Attention or not attention.residual_connection or attention.norm_q is not None:
            raise SettingError(unknown(path, attention, (Attention,)))
        width, heads = attention.to_q.out_features, attention.heads
        unit, place = width // heads if heads > 1 else 1, f"inside of {path}{self.resolution}"
        adds = attention.rescale_output_factor == 1
        axis = self.axis(path, width, unit, "attention", place, path if adds else "")
        if attention.group_norm is not None:
            self.norm(f"{path}.group_norm", attention.group_norm, (hidden,))
        for name in ("to_q", "to_k", "to_v"):
            self.layer(f"{path}.{name}", "linear", (hidden,), (axis,))
        self.layer(f"{path}.to_out.0", "linear", (axis,), (hidden,))
        self.attentions.append(AttentionSpec(path, axis, heads))
        return hidden


def image_and_timestep(model: Any, batch_size: int, image: str) -> dict[str, Any]:
    """Zeros as images and timestep 1 (a Fourier time embedding divides by t), for forward."""
    size = model.config.sample_size
    if size is None:
        raise SettingError("model.sample_size: the model's configuration has none; give the example inputs yourself")
    height, width = (size, size) if isinstance(size, int) else size
    shape = (batch_size, model.config.in_channels, height, width)  # [B, C, H, W]
    return {
        image: torch.zeros(shape, device=model.device, dtype=model.dtype),
        "timestep": torch.ones(batch_size, device=model.device, dtype=torch.int64),  # [B]
    }


def example_inputs(model: Any, batch_size: int = 1) -> dict[str, Any]:
    """Zeros as images, timestep 1 and class 0."""
    inputs = image_and_timestep(model, batch_size, "sample")
    if isinstance(model.class_embedding, nn.Identity):
        time_width = model.time_embedding.linear_2.out_features
        inputs["class_labels"] = torch.zeros(batch_size, time_width, device=model.device, dtype=model.dtype)
    elif model.class_embedding is not None:
        inputs["class_labels"] = torch.zeros(batch_size, device=model.device, dtype=torch.int64)
    return inputs


UNET2D = Network(
    kind=UNet2DModel,
    shaped=ShapedUNet2DModel,
    component="unet",
    wiring=wiring,
    example_inputs=example_inputs,
    arguments=("sample", "timestep", "class_labels", "return_dict"),
    batch_arguments=("sample", "timestep", "class_labels"),
    class_settings=("class_embed_type", "num_class_embeds"),
    pipeline_attributes=(
        "sample_size",
        "in_channels",
        "out_channels",
        "center_input_sample",
        "class_embed_type",
        "num_class_embeds",
    ),
)
