"""Images of captions: the sampler makes those that diffusers' own pipelines make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from text_zoo import WIDTH, denoiser, saved, stable_diffusion, stable_diffusion_xl

from noisewise import ExpertDenoiser, NoiseSchedule, Plan
from noisewise.errors import SettingError
from noisewise.models.text import TextEncoder
from noisewise.sampling.sampler import sample_images, trajectory
from noisewise.streams import stream

CAPTIONS = ["a cat", "two dogs", "far more letters than fit"]
NOISE = torch.stack([torch.randn(4, 8, 8, generator=stream(7, "sample", i)) for i in range(3)])


def of_pipeline(pipe: Any, **options: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 4, "latents": NOISE.clone(), "output_type": "latent", **options}
    latents: torch.Tensor = pipe(prompt=CAPTIONS, **call).images
    return latents


@pytest.mark.parametrize("pipe", [stable_diffusion, stable_diffusion_xl])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_stock_pipelines_images(pipe: Any, scale: float, tmp_path: Path) -> None:
    built = pipe()
    encoder = TextEncoder.from_pretrained(saved(built, tmp_path))

    *_, last = trajectory(
        built.unet,
        built.scheduler,
        range(3),
        num_inference_steps=4,
        seed=7,
        conditions=encoder.encode(CAPTIONS),
        null_conditions=encoder.null(),
        guidance_scale=scale,
    )

    torch.testing.assert_close(last.x, of_pipeline(built, guidance_scale=scale), rtol=1e-4, atol=1e-4)


def test_a_scale_per_group_and_images_that_do_not_depend_on_their_batch(tmp_path: Path) -> None:
    encoder = TextEncoder.from_pretrained(saved(stable_diffusion(), tmp_path))
    plan = Plan.from_bounds(NoiseSchedule.from_scheduler(stable_diffusion().scheduler), [400])
    model = ExpertDenoiser([denoiser(), denoiser()], plan)

    def images(batch_size: int, scale: Any) -> torch.Tensor:
        return sample_images(
            model,
            stable_diffusion().scheduler,
            3,
            num_inference_steps=4,
            batch_size=batch_size,
            conditions=lambda rows: encoder.encode(CAPTIONS[rows.start : rows.stop]),
            null_conditions=encoder.null(),
            guidance_scale=scale,
        )

    whole, single = (images(batch_size, (1.0, 6.0)).int() for batch_size in (3, 1))
    assert (whole - single).abs().max() <= 1
    assert not torch.equal(whole, images(3, (6.0, 1.0)).int())


def test_guidance_asks_for_what_is_told_of_no_caption() -> None:
    told = {"encoder_hidden_states": torch.zeros(2, 5, WIDTH)}
    steps = trajectory(
        denoiser(), stable_diffusion().scheduler, range(2), num_inference_steps=2, conditions=told, guidance_scale=3.0
    )

    with pytest.raises(SettingError, match="guidance needs null_conditions"):
        next(steps)
