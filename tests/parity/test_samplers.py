"""The sampler gives what diffusers' stock pipelines give from the same generators."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel

from noisewise.sampling.sampler import sample_images
from noisewise.sampling.schedulers import build_scheduler
from noisewise.schedule import NoiseSchedule
from noisewise.streams import stream

SCHEDULE = NoiseSchedule.named("linear", 1000)


@pytest.fixture(scope="module")
def model() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.mark.parametrize(("kind", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0)])
def test_equal_to_the_stock_pipeline(model: UNet2DModel, kind: str, eta: float) -> None:
    scheduler = build_scheduler(kind, SCHEDULE)
    ours = sample_images(model, scheduler, 3, num_inference_steps=10, seed=7, eta=eta)

    pipeline = (DDIMPipeline if kind == "ddim" else DDPMPipeline)(model, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    options = {"eta": eta} if kind == "ddim" else {}
    generators = [stream(7, "sample", i) for i in range(3)]
    theirs = pipeline(
        batch_size=3, generator=generators, num_inference_steps=10, output_type="np", **options
    ).images  # [3, H, W, C] in [0, 1]
    theirs = torch.from_numpy(theirs).permute(0, 3, 1, 2).mul(255).round().to(torch.uint8)
    assert torch.equal(ours, theirs)
