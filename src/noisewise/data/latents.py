"""Latents of a data set, encoded once: memory-mapped float16 or bfloat16, read by training as images are.

Shapes: N = images, B = batch, R = 1, or 2 with the mirror images' latents second, C, H, W = an image's latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from noisewise.data.images import Images, Indices
from noisewise.data.texts import Texts, Told

Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True, eq=False)
class Latents:
    """One split's latents. Training draws them from their posterior (`draw`), all else looks at its mean (`batch`)."""

    mean: torch.Tensor  # [R, N, C, H, W] float16 or bfloat16, scaled, may be memory-mapped
    std: torch.Tensor | None  # the same of the posterior's standard deviation; None: there is no posterior
    labels: np.ndarray | None  # [N] int64
    class_names: tuple[str, ...] | None
    name: str
    split: str
    fingerprint: str  # sha256 of images, autoencoder and file, and of what is told of them
    texts: Texts | None = None  # captions, encoded: what networks are told in place of labels

    def __len__(self) -> int:
        return self.mean.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one image's latents."""
        channels, height, width = self.mean.shape[2:]
        return channels, height, width

    @property
    def rows(self) -> torch.Tensor:
        """[N, C, H, W] means, of the images as they are."""
        return self.mean[0]

    def batch(self, indices: Indices, device: torch.device | str = "cpu") -> tuple[torch.Tensor, Told]:
        """The means of some images' latents, the same for everyone who asks.

        Returns:
            [B, C, H, W] float32, and labels [B] int64 or None, or with texts what is told of them by the names of
            forward's arguments; all on ``device``.
        """
        chosen = _positions(indices, len(self))
        return self.rows[chosen].to(device).float(), self._told(chosen, device)

    def draw(
        self, indices: Indices, device: torch.device | str, generator: torch.Generator
    ) -> tuple[torch.Tensor, Told]:
        """Latents as training sees them: drawn from the posterior, of the mirror image as often as of the image.

        Args:
            generator: on the CPU; says what is drawn, on whatever device.
        """
        chosen = _positions(indices, len(self))
        repeats = len(self.mean)
        flat = chosen
        if repeats > 1:
            flat = chosen + len(self) * torch.randint(repeats, chosen.shape, generator=generator)
        x_0 = self.mean.flatten(0, 1)[flat].to(device).float()  # [B, C, H, W]
        if self.std is not None:
            place = torch.device(device)
            if place.type != "cpu":  # drawn where it is used
                seed = int(torch.randint(2**62, (), generator=generator))
                generator = torch.Generator(place).manual_seed(seed)
            noise = torch.randn(x_0.shape, generator=generator, device=generator.device)
            x_0 = x_0.addcmul_(noise, self.std.flatten(0, 1)[flat].to(device).float())
        return x_0, self._told(chosen, device)

    def subset(self, indices: Indices) -> Latents:
        """A copy of some images' latents, in the order given."""
        chosen = _positions(indices, len(self))
        labels = None if self.labels is None else self.labels[chosen.numpy()]
        digest = hashlib.sha256(f"{self.fingerprint} {chosen.tolist()}".encode()).hexdigest()
        std = None if self.std is None else self.std[:, chosen]
        texts = None if self.texts is None else self.texts.subset(chosen)
        return Latents(self.mean[:, chosen], std, labels, self.class_names, self.name, self.split, digest, texts)

    def with_texts(self, texts: Texts) -> Latents:
        """The same latents; networks are told their captions."""
        digest = hashlib.sha256(f"{self.fingerprint} {texts.fingerprint}".encode()).hexdigest()
        return replace(self, texts=texts, fingerprint=digest)

    def _told(self, chosen: torch.Tensor, device: torch.device | str) -> Told:
        if self.texts is not None:
            return self.texts.at(chosen, device)
        return None if self.labels is None else torch.from_numpy(self.labels[chosen.numpy()]).to(device)


def _positions(indices: Indices, num: int) -> torch.Tensor:
    """[B] int64."""
    if isinstance(indices, slice):
        return torch.arange(num)[indices]
    return torch.as_tensor(indices, dtype=torch.int64, device="cpu")


@dataclass(frozen=True, eq=False)
class LatentDataset:
    """The latents of both halves of a data set."""

    train: Latents
    test: Latents

    @property
    def name(self) -> str:
        return self.train.name


@dataclass(frozen=True, eq=False)
class EncodedOnDemand:
    """Images that are encoded each time they are asked for: the means of their latents, for few looks at few images."""

    images: Images
    encode: Encode
    batch_size: int | None = None  # encoded at once; None: all that are asked for

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Indices, device: torch.device | str = "cpu") -> tuple[torch.Tensor, Told]:
        """[B, C, H, W] float32 and labels [B] int64 or None."""
        pixels, labels = self.images.batch(indices, device)
        parts = pixels.split(self.batch_size or len(pixels))
        return torch.cat([self.encode(part)[0] for part in parts]), labels
