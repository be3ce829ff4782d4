"""What a sampling step needs beside its network: the decoder of its latents, and the captions it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noisewise.workflow.store import StepSpec
from noisewise.workflow.texts import telling

if TYPE_CHECKING:
    from noisewise.workflow.executor import Runner


def making(sampled: StepSpec, runner: Runner) -> dict[str, Any]:
    """Keywords of `measure.draw_images`: nothing where a network makes images by itself."""
    from noisewise.workflow.latent_steps import AUTOENCODER, decoder

    source = sampled.inputs.get("autoencoder")
    if source is None:
        return telling(sampled, runner)
    folder = runner.store.folder(source) / AUTOENCODER
    return {"decode": decoder(folder, sampled.settings["decode_batch"]), **telling(sampled, runner)}
