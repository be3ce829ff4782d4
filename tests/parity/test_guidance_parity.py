"""Guidance as diffusers' own DiTPipeline does it, image for image."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from noisewise.models.labels import Classes, classes_of
from noisewise.sampling.sampler import trajectory
from noisewise.streams import stream

LABELS = [3, 998, 0]


def tiny_dit() -> DiTTransformer2DModel:
    """A thousand classes, since DiTPipeline takes 1000 for the null class whatever the network; variance learned."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=2,
        out_channels=4,
        num_layers=1,
        sample_size=8,
        patch_size=4,
        num_embeds_ada_norm=1000,
        norm_num_groups=1,
    ).eval()
    for parameter in model.parameters():  # DiT starts at zero, and its labels with it
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_guided_images_are_those_of_the_dit_pipeline() -> None:
    model, scheduler = tiny_dit(), DDIMScheduler(clip_sample=False)
    assert classes_of(model) == Classes(1000, 1000)
    vae = AutoencoderKL(in_channels=1, out_channels=1, latent_channels=2, norm_num_groups=4, block_out_channels=(4,))
    pipeline = DiTPipeline(model, vae.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def theirs(scale: float) -> np.ndarray:
        generators = [stream(7, "sample", i) for i in range(3)]
        options = {"guidance_scale": scale, "num_inference_steps": 4, "output_type": "np"}
        return pipeline(class_labels=LABELS, generator=generators, **options).images

    def ours(scale: float) -> np.ndarray:
        steps = trajectory(
            model, scheduler, range(3), num_inference_steps=4, seed=7, class_labels=torch.tensor(LABELS),
            guidance_scale=scale,
        )  # fmt: skip
        latents = [step.x for step in steps][-1]
        with torch.no_grad():
            decoded = vae.decode(latents / vae.config.scaling_factor).sample
        return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()

    for scale in (1.0, 3.0):
        np.testing.assert_allclose(ours(scale), theirs(scale), atol=1e-5)
    assert np.abs(ours(1.0) - ours(3.0)).max() > 1e-3
