"""Small networks of every kind that the pruner has to understand, and random cuts of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DModel

from noisewise.models.networks.wiring import Wiring

DOWN = {
    "plain": ("DownBlock2D", "DownBlock2D"),
    "attention": ("DownBlock2D", "AttnDownBlock2D"),
    "resnet": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
}
UP = {
    "plain": ("UpBlock2D", "UpBlock2D"),
    "attention": ("AttnUpBlock2D", "UpBlock2D"),
    "resnet": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
}


def settings(blocks: str, **changed: Any) -> dict[str, Any]:
    defaults = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "down_block_types": DOWN[blocks],
        "up_block_types": UP[blocks],
    }
    return {**defaults, **changed}


ZOO: dict[str, dict[str, Any]] = {
    "plain": settings("plain", add_attention=False, downsample_padding=0),
    "heads": settings("attention"),
    "one head": settings("attention", attention_head_dim=None, layers_per_block=2),
    "scale_shift": settings("attention", resnet_time_scale_shift="scale_shift", out_channels=6),
    "attention norm": settings("attention", resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4),
    "resnet": settings("resnet", block_out_channels=(16, 16)),
    "attention, resnet": settings("attention", downsample_type="resnet", upsample_type="resnet"),
    "classes": settings("plain", num_class_embeds=10),
    "class timesteps": settings("plain", class_embed_type="timestep", mid_block_type=None),
    "one resolution": settings(
        "plain", block_out_channels=(32,), down_block_types=("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",)
    ),
    "four resolutions": settings(
        "plain",
        block_out_channels=(32, 32, 64, 64),
        norm_num_groups=32,
        down_block_types=("DownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D"),
    ),
    "fourier": settings("plain", time_embedding_type="fourier", in_channels=1, out_channels=1, sample_size=(8, 16)),
}


def build(name: str) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**ZOO[name]).eval()


def random_cuts(net: Wiring, number: int, seed: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    """Kept channels in whole units, at random, of a random half of the axes."""
    rng = random.Random(seed)
    for _ in range(number):
        kept = {}
        for name in net.prunable:
            axis = net.axes[name]
            if rng.random() < 0.5:
                units = rng.sample(range(axis.num_units), rng.randint(1, axis.num_units))
                kept[name] = torch.cat([torch.arange(u * axis.unit, (u + 1) * axis.unit) for u in sorted(units)])
        yield kept


def two_levels() -> UNet2DModel:
    """A small network of two resolutions with attention between them, in evaluation mode."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()
