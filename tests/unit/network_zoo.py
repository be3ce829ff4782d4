"""Tiny networks of every architecture beyond `UNet2DModel` (those are in unet_zoo), and inputs of random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch.utils._pytree import tree_map_only

from noisewise.models.networks import describe


def condition_unet(**changed: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,  # number of heads, whatever its name
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**settings, **changed})


def sd3(**changed: Any) -> SD3Transformer2DModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 4,
        "num_attention_heads": 4,
        "joint_attention_dim": 8,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 6,
        "pos_embed_max_size": 4,
    }
    return SD3Transformer2DModel(**{**settings, **changed})


def dit(**changed: Any) -> DiTTransformer2DModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "num_embeds_ada_norm": 10,
        "out_channels": 8,
    }
    return DiTTransformer2DModel(**{**settings, **changed})


SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 8,
}
NETWORKS: dict[str, Callable[[], Any]] = {
    "sd 1": condition_unet,
    "sd 2": lambda: condition_unet(use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True),
    "sdxl": lambda: condition_unet(**SDXL),
    "upscaler": lambda: condition_unet(in_channels=7, only_cross_attention=(True, False), num_class_embeds=10),
    "unclip": lambda: condition_unet(class_embed_type="projection", projection_class_embeddings_input_dim=12),
    "class concat": lambda: condition_unet(
        class_embed_type="simple_projection", projection_class_embeddings_input_dim=12, class_embeddings_concat=True
    ),
    "guidance distilled": lambda: condition_unet(time_cond_proj_dim=6, attention_head_dim=1),
    "text projection": lambda: condition_unet(encoder_hid_dim=12, resnet_time_scale_shift="scale_shift"),
    "dit": dit,
    "dit of one head": lambda: dit(num_attention_heads=1, attention_head_dim=16, attention_bias=False),
    "sd 3": sd3,
    "sd 3.5": lambda: sd3(qk_norm="rms_norm", dual_attention_layers=(0,)),
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def random_inputs(model: Any, batch_size: int = 2, seed: int = 1) -> dict[str, Any]:
    """Forward's keywords with random numbers in place of zeros, and different timesteps."""
    network = describe(model)
    generator = torch.Generator().manual_seed(seed)

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return torch.arange(len(tensor)) % 3
        return torch.randn(tensor.shape, generator=generator)

    inputs = tree_map_only(torch.Tensor, filled, network.example_inputs(model, batch_size))
    inputs["timestep"] = torch.linspace(3, 700, batch_size).long()
    return inputs


def predict(model: Any, inputs: dict[str, Any] | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(**(inputs or random_inputs(model))).sample
