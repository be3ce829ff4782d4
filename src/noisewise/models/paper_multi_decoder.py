"""The multi-decoder networks of arXiv:2312.09181 (section 4 and the authors' configurations).

Checked, per stage from the data to the noise, with all products of attention counted:

| name                   | one network    | GMACs of the stages   | parameters | bottleneck   |
|------------------------|----------------|-----------------------|------------|--------------|
| multistage-edm-cifar10 | 21.19 G, 55.8M | 35.75 / 21.19 / 7.73  | 128.9M     | one each     |
| multistage-vp-cifar10  | 18.55 G, 106.6M | 30.94 / 18.55 / 7.12 | 236.3M     | shared       |
| multistage-latent      | 101.2 G, 274.1M | 120.4 / 84.15 / 56.64 | 512.4M    | shared       |

The EDM-sized one is EDM's DDPM++ (four blocks per resolution, all of 256 channels behind a first convolution of 128,
projected shortcuts in the resampling blocks, attention at 16x16, in the decoder after the last block only): published
are 21.19 G and 55.7M, 35.75 / 21.19 / 7.73 G and 128.8M. The one difference in cost is the sinusoidal embedding of the
timestep, 256 features here and 128 there: 65,536 parameters and as many MACs. Left out are the division of residual
sums by sqrt(2), EDM's own numbers of norm groups, and the 1,152 parameters that read augmentation labels.

The published counts of the other two, 17.65 G (VP) and 88.39 G (latent), leave attention out altogether, its
projections too: so counted, these networks cost 17.64 G and 88.36 G. The VP one is score_sde's DDPM++ "deep" (eight
blocks per resolution), the latent one LDM's for faces of 256x256 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from noisewise.models.paper import PAPER_NETWORKS


@dataclass(frozen=True)
class MultiDecoderNetwork:
    """Arguments of `MultiDecoderUNet2DModel.build`, but for the plan."""

    settings: Mapping[str, Any]  # of the network with one decoder
    decoders: tuple[float | tuple[int, ...], ...]
    share_bottleneck: bool


def _ddpm_plus_plus(levels: int, blocks: int, **more: Any) -> dict[str, Any]:
    """Projected shortcuts where the resolution changes; attention at the second resolution, once in the decoder."""
    resnets = ["ResnetDownsampleBlock2D"] * levels
    down = [resnets[0], "AttnDownBlock2D", *resnets[2:]]
    up = [name.replace("Downsample", "Upsample").replace("AttnDown", "AttnUp") for name in reversed(down)]
    attended = levels - 2  # the decoder's block of the second resolution
    changes = range(levels - 1)
    return {
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": blocks,
        "down_block_types": down,
        "up_block_types": up,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": None,
        "norm_num_groups": 16,
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "removed_blocks": [f"up_blocks.{attended}.attentions.{i}" for i in range(blocks)],
        "shortcuts": [
            *(f"down_blocks.{i}.downsamplers.0" for i in changes),
            *(f"up_blocks.{i}.upsamplers.0" for i in changes),
        ],
        **more,
    }


def _edm() -> dict[str, Any]:
    """All resolutions of 256 channels, but a first convolution of 128 and a time embedding of 4 x 128."""
    settings = _ddpm_plus_plus(3, 4, block_out_channels=[256, 256, 256], dropout=0.13)
    blocks = [
        *(f"down_blocks.{level}.resnets.{i}" for level in range(3) for i in range(4)),
        *(f"mid_block.resnets.{i}" for i in range(2)),
        *(f"up_blocks.{level}.resnets.{i}" for level in range(3) for i in range(5)),
        *settings["shortcuts"],
    ]
    layers = {f"{block}.time_emb_proj": [512, 256] for block in blocks}
    layers |= {"conv_in": [3, 128], "time_embedding.linear_1": [256, 512], "time_embedding.linear_2": [512, 512]}
    for layer in ("conv1", "conv_shortcut"):
        layers[f"down_blocks.0.resnets.0.{layer}"] = [128, 256]
        layers[f"up_blocks.2.resnets.4.{layer}"] = [256 + 128, 256]  # reads the first convolution's skip
    return {**settings, "layers": layers, "shortcuts": [*settings["shortcuts"], "down_blocks.0.resnets.0"]}


PAPER_MULTI_DECODER_NETWORKS: dict[str, MultiDecoderNetwork] = {
    "multistage-edm-cifar10": MultiDecoderNetwork(_edm(), (1.5, 1.0, 0.125), share_bottleneck=False),
    "multistage-vp-cifar10": MultiDecoderNetwork(
        _ddpm_plus_plus(4, 8, block_out_channels=[128, 256, 256, 256], dropout=0.1), (1.5, 1.0, 0.125), True
    ),
    "multistage-latent": MultiDecoderNetwork(
        {**PAPER_NETWORKS["ldm-ffhq"], "norm_num_groups": 16},
        tuple(tuple(width * i for i in range(1, 5)) for width in (256, 192, 128)),
        True,
    ),
}
