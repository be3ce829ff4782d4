"""What a joint training in several processes and its replay in one have to agree on."""

from __future__ import annotations

import torch

from noisewise import MultiDecoderUNet2DModel, NoiseSchedule, Plan
from noisewise.training.settings import TrainSettings

SCHEDULE = NoiseSchedule.named("linear", 100)
SETTINGS = TrainSettings(num_images=48, batch_size=4, learning_rate=1e-3, ema_halflife_images=0, num_threads=1)


def plan() -> Plan:
    return Plan.equal_width(SCHEDULE, 3)


def ranges() -> list[tuple[float, float]]:
    return [(group.t_start, group.t_stop) for group in plan().groups]


def network() -> MultiDecoderUNet2DModel:
    """Without attention and dropout: some of attention's biases have no gradient but rounding errors."""
    torch.manual_seed(0)
    return MultiDecoderUNet2DModel.build(
        plan(),
        (1.5, 1, 0.5),
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16,),
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
