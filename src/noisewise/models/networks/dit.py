"""The axes of diffusers' `DiTTransformer2DModel`: transformers over latent patches with adaLN-zero (arXiv:2212.09748).

The residual stream stays whole: positional embedding, timestep's modulation and output read all of it. Inside a block
may be cut

- the attention, by whole heads;
- the inside of the feed-forward.

Both only add to the stream, behind a gate of their own, so each may be left out. The modulation of a block (its shift,
scale and gate, a sixth of a stream each) is computed in one product that stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiTTransformer2DModel

from noisewise.models.networks.network import Network
from noisewise.models.networks.unet2d import image_and_timestep
from noisewise.models.networks.walk import Walk
from noisewise.models.networks.wiring import Wiring
from noisewise.models.shaped import Shaped


class ShapedDiTTransformer2DModel(Shaped, DiTTransformer2DModel):
    """A `DiTTransformer2DModel` with a width per layer; see `Shaped`."""


def wiring(model: DiTTransformer2DModel) -> Wiring:
    """Axes, layers and attentions of ``model``, with the widths its modules have now."""
    walk = Walk()
    stream = walk.fixed("stream", model.inner_dim, "residual stream of the patches")
    for i, block in enumerate(model.transformer_blocks):
        path = f"transformer_blocks.{i}"
        walk.inner_attention(f"{path}.attn1", block.attn1, stream)
        walk.feed_forward(f"{path}.ff", block.ff, stream)
    return walk.wiring()


def example_inputs(model: Any, batch_size: int = 1) -> dict[str, Any]:
    """Zeros as latents, timestep 1 and class 0."""
    return {
        **image_and_timestep(model, batch_size, "hidden_states"),
        "class_labels": torch.zeros(batch_size, device=model.device, dtype=torch.int64),  # [B]
    }


DIT = Network(
    kind=DiTTransformer2DModel,
    shaped=ShapedDiTTransformer2DModel,
    component="transformer",
    wiring=wiring,
    example_inputs=example_inputs,
    arguments=("hidden_states", "timestep", "class_labels", "cross_attention_kwargs", "return_dict"),
    batch_arguments=("hidden_states", "timestep", "class_labels"),
    class_settings=("num_embeds_ada_norm",),
    num_classes_setting="num_embeds_ada_norm",
    null_class_follows=True,
    pipeline_attributes=("sample_size", "patch_size", "in_channels", "out_channels", "num_embeds_ada_norm"),
    timestep_per_sample=True,
)
