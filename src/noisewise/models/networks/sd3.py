"""The axes of diffusers' `SD3Transformer2DModel`: Stable Diffusion 3 and 3.5, trained by flow matching.

Image and text each have a stream of their own, as wide as the positional embedding, the timestep's modulation and each
other ask for: both stay whole. Inside a block may be cut

- the joint attention, by whole heads: queries, keys and values of image and text share an axis. A norm of queries and
  keys (3.5) runs within a head and stays;
- the second attention that some blocks have over the image alone (3.5), the same way;
- the insides of the feed-forwards, one for the image and one for the text.

Each of them only adds to its stream, so it may be left out.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SD3Transformer2DModel

from noisewise.models.networks.blocks import NothingToAdd
from noisewise.models.networks.network import Network
from noisewise.models.networks.unet2d import image_and_timestep
from noisewise.models.networks.walk import Walk
from noisewise.models.networks.wiring import AttentionSpec, Wiring
from noisewise.models.shaped import Shaped

TEXT_LENGTH = 77 + 256  # tokens of the CLIP encoders, side by side, and of T5: the pipeline's own lengths


class ShapedSD3Transformer2DModel(Shaped, SD3Transformer2DModel):
    """An `SD3Transformer2DModel` with a width per layer; see `Shaped`."""


def wiring(model: SD3Transformer2DModel) -> Wiring:
    """Axes, layers and attentions of ``model``, with the widths its modules have now."""
    walk = _Walk()
    stream = walk.fixed("stream", model.inner_dim, "stream of the image")
    context = walk.fixed("context", model.context_embedder.out_features, "stream of the text")
    for i, block in enumerate(model.transformer_blocks):
        path = f"transformer_blocks.{i}"
        walk.joint_attention(f"{path}.attn", block.attn, stream, context)
        if block.attn2 is not None:
            walk.inner_attention(f"{path}.attn2", block.attn2, stream)
        walk.feed_forward(f"{path}.ff", block.ff, stream)
        if block.ff_context is not None:
            walk.feed_forward(f"{path}.ff_context", block.ff_context, context)
    return walk.wiring()


class _Walk(Walk):
    """Blocks that update image and text together."""

    def joint_attention(self, path: str, attention: Any, stream: str, context: str) -> None:
        if isinstance(attention, NothingToAdd):
            return
        width, heads = attention.to_q.out_features, attention.heads
        axis = self.axis(path, width, width // heads, "attention", f"inside of {path}", path)
        for name in ("q", "k", "v"):
            self.linear(f"{path}.to_{name}", stream, axis)
            self.linear(f"{path}.add_{name}_proj", context, axis)
        self.linear(f"{path}.to_out.0", axis, stream)
        if not attention.context_pre_only:
            self.linear(f"{path}.to_add_out", axis, context)
        self.head_norms(path, attention)
        self.attentions.append(AttentionSpec(path, axis, heads))


def example_inputs(model: Any, batch_size: int = 1) -> dict[str, Any]:
    """Zeros as images and as text of 333 tokens, timestep 1."""
    place = {"device": model.device, "dtype": model.dtype}
    return {
        **image_and_timestep(model, batch_size, "hidden_states"),
        "encoder_hidden_states": torch.zeros(batch_size, TEXT_LENGTH, model.config.joint_attention_dim, **place),
        "pooled_projections": torch.zeros(batch_size, model.config.pooled_projection_dim, **place),  # [B, E]
    }


SD3 = Network(
    kind=SD3Transformer2DModel,
    shaped=ShapedSD3Transformer2DModel,
    component="transformer",
    wiring=wiring,
    example_inputs=example_inputs,
    arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "pooled_projections",
        "timestep",
        "block_controlnet_hidden_states",
        "joint_attention_kwargs",
        "return_dict",
        "skip_layers",
    ),
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "pooled_projections",
        "timestep",
        "block_controlnet_hidden_states",
    ),
    conditions=("encoder_hidden_states", "pooled_projections"),
    pipeline_attributes=("sample_size", "patch_size", "in_channels", "out_channels", "joint_attention_dim"),
    timestep_per_sample=True,
)
