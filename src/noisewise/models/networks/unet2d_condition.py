"""The axes of diffusers' `UNet2DConditionModel`: Stable Diffusion 1.x, 2.x, SDXL and networks of the same blocks.

Beside the rules of `unet2d`:

- A `Transformer2DModel` between residual blocks has a stream of its own, from ``proj_in`` to ``proj_out``: an axis that
  its attentions and feed-forwards add to and its LayerNorms run over. Its answer is added to the stream around it.
- Queries, keys and values of self-attention (``attn1``) share an axis, and so do those of cross-attention (``attn2``),
  whose keys and values read the text. Both are cut by whole heads, or left out.
- The inside of a feed-forward is an axis; a gated one (GEGLU) writes it twice, the value first, then the gate.
- Text, class, size and time embeddings are fixed.

A LayerNorm takes its mean and variance over what is left of its stream, so those of a cut stream differ from the full
one's; heads and insides leave without a trace.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets import unet_2d_blocks as blocks
from torch import nn

from noisewise.errors import SettingError
from noisewise.models.networks.network import Network
from noisewise.models.networks.unet2d import BlockWalk, Kinds, image_and_timestep
from noisewise.models.networks.walk import unknown
from noisewise.models.networks.wiring import Wiring
from noisewise.models.shaped import Shaped

TEXT_LENGTH = 77  # tokens that the CLIP text encoders of Stable Diffusion give
NUM_TIME_IDS = 6  # SDXL: original size, crop, target size, two numbers each
KNOWN = {  # settings that bring modules noisewise does not know -> the values it does
    "addition_embed_type": (None, "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "attention_type": ("default",),
    "dual_cross_attention": (False,),
    "cross_attention_norm": (None,),
}


class ShapedUNet2DConditionModel(Shaped, UNet2DConditionModel):
    """A `UNet2DConditionModel` with a width per layer; see `Shaped`."""


def wiring(model: UNet2DConditionModel) -> Wiring:
    """Axes, layers and attentions of ``model``, with the widths its modules have now."""
    for name, values in KNOWN.items():
        if model.config.get(name) not in values:
            allowed = " or ".join(map(str, values))
            raise SettingError(f"model.{name}: noisewise knows {allowed}, this network has {model.config[name]!r}")
    if model.config.norm_num_groups is None:
        raise SettingError("model.norm_num_groups: None, a network without norms, is not one noisewise can prune")
    walk = _Walk(norm_groups=model.config.norm_num_groups)
    walk.embeddings(model)
    return walk.image_path(model)


class _Walk(BlockWalk):
    """The 2-D blocks, and transformers that read text."""

    down_kinds: ClassVar[Kinds] = (blocks.CrossAttnDownBlock2D, *BlockWalk.down_kinds)
    mid_kinds: ClassVar[Kinds] = (blocks.UNetMidBlock2DCrossAttn, *BlockWalk.mid_kinds)
    up_kinds: ClassVar[Kinds] = (blocks.CrossAttnUpBlock2D, *BlockWalk.up_kinds)

    def embeddings(self, model: Any) -> None:
        """What the residual blocks are told of the timestep, the class and the image's sizes, and the text."""
        self.fixed("time", model.time_embedding.linear_2.out_features, "time embedding")
        self.embedder("time", model.time_embedding, "time_embedding", "time")
        told = "time"
        if model.config.class_embeddings_concat:
            told = self.fixed("class", self.axes["time"].width, "class embedding")
            self.time_parts = ("time", "class")
        embedding = model.class_embedding
        if isinstance(embedding, nn.Embedding):
            self.layer("class_embedding", "embedding", (), (told,))
        elif isinstance(embedding, nn.Linear):
            self.linear("class_embedding", self.fixed("class_features", embedding.in_features, "class features"), told)
        elif isinstance(embedding, TimestepEmbedding):
            self.embedder("class", embedding, "class_embedding", told)
        if model.config.addition_embed_type is not None:
            self.embedder("added", model.add_embedding, "add_embedding", "time")
        if model.encoder_hid_proj is not None:
            given = self.fixed("text_given", model.encoder_hid_proj.in_features, "text, before its projection")
            self.linear("encoder_hid_proj", given, self.text(model.encoder_hid_proj.out_features))

    def embedder(self, name: str, embedder: Any, path: str, output: str) -> None:
        """Two linear layers from fixed features to a fixed embedding."""
        features = self.fixed(f"{name}_features", embedder.linear_1.in_features, f"features of the {name} embedding")
        hidden = self.fixed(f"{name}_hidden", embedder.linear_1.out_features, f"inside of the {name} embedding")
        if embedder.cond_proj is not None:
            told = self.fixed(f"{name}_told", embedder.cond_proj.in_features, f"added to the {name} features")
            self.linear(f"{path}.cond_proj", told, features)
        self.linear(f"{path}.linear_1", features, hidden)
        self.linear(f"{path}.linear_2", hidden, output)

    def text(self, width: int) -> str:
        return self.fixed(f"text_{width}", width, "text that cross-attention reads")

    def attention(self, path: str, attention: Any, hidden: str) -> str:
        if not isinstance(attention, Transformer2DModel):
            return super().attention(path, attention, hidden)
        width, outside = attention.proj_in.weight.shape[:2]
        assert outside == self.axes[hidden].width, "a transformer reads the stream around it"
        stream = self.axis(f"{path}.stream", width, 1, "residual", f"residual stream inside of {path}{self.resolution}")
        kind: Any = "linear" if attention.use_linear_projection else "conv"
        self.norm(f"{path}.norm", attention.norm, (hidden,))
        self.layer(f"{path}.proj_in", kind, (hidden,), (stream,))
        for i, block in enumerate(attention.transformer_blocks):
            self.transformer_block(f"{path}.transformer_blocks.{i}", block, stream)
        self.layer(f"{path}.proj_out", kind, (stream,), (hidden,))
        return hidden

    def transformer_block(self, path: str, block: Any, stream: str) -> None:
        if block.norm_type != "layer_norm" or block.double_self_attention or block.pos_embed is not None:
            raise SettingError(unknown(path, block, (type(block),)))
        self.layer_norm(f"{path}.norm1", stream)
        self.inner_attention(
            f"{path}.attn1", block.attn1, stream, self.context(block.attn1) if block.only_cross_attention else ""
        )
        if block.attn2 is not None:
            self.layer_norm(f"{path}.norm2", stream)
            self.inner_attention(f"{path}.attn2", block.attn2, stream, self.context(block.attn2))
        self.layer_norm(f"{path}.norm3", stream)
        self.feed_forward(f"{path}.ff", block.ff, stream)

    def context(self, attention: Any) -> str:
        """The axis of the text that a cross-attention reads."""
        return "" if not hasattr(attention, "to_k") else self.text(attention.to_k.in_features)


def example_inputs(model: Any, batch_size: int = 1) -> dict[str, Any]:
    """Zeros as images, text of 77 tokens and everything else, timestep 1 and class 0."""
    config, place = model.config, {"device": model.device, "dtype": model.dtype}
    inputs = image_and_timestep(model, batch_size, "sample")
    width = config.encoder_hid_dim or config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    inputs["encoder_hidden_states"] = torch.zeros(batch_size, TEXT_LENGTH, width, **place)  # [B, L, E]
    if isinstance(model.class_embedding, nn.Embedding) or config.class_embed_type == "timestep":
        inputs["class_labels"] = torch.zeros(batch_size, device=model.device, dtype=torch.int64)  # [B]
    elif model.class_embedding is not None:
        features = config.projection_class_embeddings_input_dim or model.time_embedding.linear_2.out_features
        inputs["class_labels"] = torch.zeros(batch_size, features, **place)  # [B, E]
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - NUM_TIME_IDS * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.zeros(batch_size, pooled, **place),  # [B, E]
            "time_ids": torch.zeros(batch_size, NUM_TIME_IDS, **place),  # [B, 6]
        }
    return inputs


UNET2D_CONDITION = Network(
    kind=UNet2DConditionModel,
    shaped=ShapedUNet2DConditionModel,
    component="unet",
    wiring=wiring,
    example_inputs=example_inputs,
    arguments=(
        "sample",
        "timestep",
        "encoder_hidden_states",
        "class_labels",
        "timestep_cond",
        "attention_mask",
        "cross_attention_kwargs",
        "added_cond_kwargs",
        "down_block_additional_residuals",
        "mid_block_additional_residual",
        "down_intrablock_additional_residuals",
        "encoder_attention_mask",
        "return_dict",
    ),
    batch_arguments=(
        "sample",
        "timestep",
        "encoder_hidden_states",
        "class_labels",
        "timestep_cond",
        "attention_mask",
        "added_cond_kwargs",
        "down_block_additional_residuals",
        "mid_block_additional_residual",
        "down_intrablock_additional_residuals",
        "encoder_attention_mask",
    ),
    conditions=("encoder_hidden_states",),
    class_settings=("class_embed_type", "num_class_embeds"),
    pipeline_attributes=(
        "sample_size",
        "in_channels",
        "out_channels",
        "center_input_sample",
        "class_embed_type",
        "num_class_embeds",
        "cross_attention_dim",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "time_cond_proj_dim",
    ),
    pipeline_modules=("add_embedding",),
)
