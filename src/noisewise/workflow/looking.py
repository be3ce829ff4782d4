"""Images as the network in a pipeline's folder sees them, for the commands that look at some of them outside of a run.

A latent pipeline's images are encoded, and a text-to-image pipeline's captions too, each time they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from noisewise.errors import SettingError
from noisewise.workflow.machine import device
from noisewise.workflow.prompts import single_network, text_arguments

COLUMN = "data.caption_column"


@dataclass(frozen=True, eq=False)
class CaptionedOnDemand:
    """Images, or what stands for them, with their captions as a denoiser is told them: for few looks at few."""

    images: Any  # gives batches by indices, as `noisewise.data.Images` does
    captions: Sequence[str]  # [N]
    encode: Callable[[Sequence[str]], Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Any, device: torch.device | str = "cpu") -> tuple[torch.Tensor, dict[str, Any]]:
        """Images [B, C, H, W] float32, and what is told of each by the names of forward's arguments: [B, ...]."""
        numbers = torch.arange(len(self))
        chosen = numbers[indices] if isinstance(indices, slice) else torch.as_tensor(indices, device="cpu")  # [B]
        told = self.encode([self.captions[i] for i in chosen.tolist()])
        x, _ = self.images.batch(indices, device)
        return x, tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), dict(told))


def as_learned(source: Path, model: Any, images: Any, batch_size: int | None = None) -> Any:
    """Images of a data set as ``model`` learned them.

    Args:
        source: folder of the pipeline, or of the network alone, that ``model`` is from.
        images: half of a data set.
        batch_size: images encoded at once; None: all that are looked at.
    """
    return _captioned(source, model, images, _latents(source, images, batch_size))


def _latents(source: Path, images: Any, batch_size: int | None) -> Any:
    from noisewise.data.latents import EncodedOnDemand
    from noisewise.models.autoencoder import is_latent_pipeline
    from noisewise.workflow.latent_steps import load

    if not is_latent_pipeline(source):
        return images
    autoencoder = load(source)
    if images.channels != autoencoder.in_channels:
        raise SettingError(
            f"data: images of {images.channels} channels, the autoencoder in {source} takes {autoencoder.in_channels}"
        )
    autoencoder.latent_shape(images.size)  # refuses what it cannot halve
    return EncodedOnDemand(images, autoencoder.encode, batch_size)


def _captioned(source: Path, model: Any, images: Any, seen: Any) -> Any:
    """What is seen, with captions where the network is told some."""
    check_captions(source, model, images.captions is not None)
    if images.captions is None:
        return seen
    from noisewise.models.text import TextEncoder

    encoder = TextEncoder.from_pretrained(source, images.size)
    encoder.check_denoiser(single_network(model).config)
    return CaptionedOnDemand(seen, images.captions, encoder.to(device()).encode)


def check_captions(source: Path, model: Any, given: bool) -> None:
    """Refuse images without captions where ``model``, from ``source``, is told text, and captions where it is not."""
    from noisewise.models.text import reads_text

    needed = text_arguments(model)
    if not needed:
        if given:
            raise SettingError(f"{COLUMN}: given, and the network in {source} takes no text; leave it out")
        return
    if not reads_text(source):
        raise SettingError(
            f"model: the network in {source} is told {needed} of every image, and there is no text encoder; give the "
            "folder of a whole pipeline"
        )
    if not given:
        raise SettingError(
            f"{COLUMN}: missing; the network in {source} is told a text of every image. Name the column of "
            f"metadata.csv or parquet that has it, e.g. --set {COLUMN}=text"
        )
