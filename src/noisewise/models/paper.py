"""The networks of the TDC paper's tables (arXiv:2312.13307) as `UNet2DModel` settings.

Checked: parameters and MACs, the latter without the products inside attention (the papers' "FLOPs") and with them.

| name             | parameters  | MACs as in the papers | with attention products |
|------------------|-------------|-----------------------|-------------------------|
| iddpm-cifar10    | 52,545,926  | 8.137 G               | 8.387 G                 |
| iddpm-imagenet64 | 121,062,918 | 39.35 G               | 39.74 G                 |
| ddpm-cifar10     | 35,746,307  | 6.054 G               | 6.222 G                 |
| ldm-ffhq         | 274,056,163 | 96.02 G               | 101.2 G                 |

`UNet2DModel` has one width of an attention head for all resolutions where IDDPM has four heads at each: with 384
channels ``iddpm-imagenet64`` has three heads of 128, which changes neither parameters nor MACs. With ``scale_shift``
it leaves out the norm of the middle attention, which IDDPM's own code has (52,546,438 parameters for CIFAR-10);
``attn_norm_num_groups: 32`` would put it back.
"""

from __future__ import annotations

from typing import Any

_IDDPM: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 6,  # the prediction and the variance, which is learned
    "layers_per_block": 3,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "scale_shift",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
}

PAPER_NETWORKS: dict[str, dict[str, Any]] = {
    "iddpm-cifar10": {
        **_IDDPM,
        "sample_size": 32,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 64,
    },
    "iddpm-imagenet64": {
        **_IDDPM,
        "sample_size": 64,
        "block_out_channels": [128, 256, 384, 512],
        "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        "attention_head_dim": 128,
    },
    "ddpm-cifar10": {
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 2,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": None,
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    },
    "ldm-ffhq": {
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 2,
        "block_out_channels": [224, 448, 672, 896],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 32,
        "norm_num_groups": 32,
    },
}
