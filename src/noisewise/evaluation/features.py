"""Images to feature vectors, the first of three pure parts: features -> statistics -> metric.

Shapes: N, M = images, D = features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from noisewise.data.images import Images
from noisewise.errors import SettingError
from noisewise.evaluation.provenance import Provenance


class FeatureExtractor(Protocol):
    """A fixed network that describes images by vectors."""

    @property
    def name(self) -> str:
        """Part of the metric's name, e.g. "efficientnet_lite0_block10"."""

    @property
    def sha256(self) -> str:
        """Of the weights' file."""

    @property
    def resize(self) -> str:
        """What it does to images before the network."""

    @property
    def num_features(self) -> int: ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] uint8 to [N, D] float32."""


@dataclass(frozen=True, eq=False)
class Features:
    """Feature vectors with where they come from."""

    values: np.ndarray  # [N, D] float32
    provenance: Provenance

    @classmethod
    def of(
        cls,
        extractor: FeatureExtractor,
        images: Images | np.ndarray | torch.Tensor,
        *,
        batch_size: int = 64,
        **provenance: Any,
    ) -> Features:
        """Features of a data set's split or of uint8 images [N, C, H, W].

        Args:
            provenance: fields of `Provenance` that only the caller knows: sampler, seed, ...
        """
        if not len(images):
            raise SettingError("evaluate: there are no images to take features of")
        digest, parts = hashlib.sha256(), []
        with torch.no_grad():
            for batch in _uint8_batches(images, batch_size):
                digest.update(batch.numpy().tobytes())
                parts.append(extractor(batch).float().cpu().numpy())  # [batch_size, D]
        where = Provenance(
            extractor=extractor.name,
            extractor_sha256=extractor.sha256,
            resize=extractor.resize,
            num_images=len(images),
            data=images.name if isinstance(images, Images) else "samples",
            data_fingerprint=digest.hexdigest(),
        )
        return cls(np.concatenate(parts), replace(where, **provenance))

    def __len__(self) -> int:
        return len(self.values)


def as_colour(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 1 or 3, H, W] to float32 [N, 3, H, W] in [0, 255]; grey is repeated."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise TypeError(f"images must be uint8 [N, 1 or 3, H, W], not {images.dtype} {list(images.shape)}")
    return images.float().expand(-1, 3, -1, -1)


def resize_bicubic(images: torch.Tensor, size: int) -> torch.Tensor:
    """Float [N, C, H, W] in [0, 255] to whole levels [N, C, size, size]: bicubic, antialiased where it shrinks.

    Overshoot is cut off and levels are rounded, as in an 8-bit image: a resized data set and samples saved at that
    size then score alike.
    """
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp(0, 255).round()


def nearest_neighbours(
    queries: np.ndarray, references: np.ndarray, *, batch_size: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance of every query to its nearest reference, and which that is.

    Features or flattened pixels will do; near-copies of training images show as unusually small distances.

    Args:
        queries: [N, D].
        references: [M, D].

    Returns:
        [N] float64 distances and [N] int64 indices.
    """
    points = references.astype(np.float64)  # [M, D]
    squares = (points**2).sum(1)  # [M]
    distances, indices = np.empty(len(queries)), np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), batch_size):
        some = queries[start : start + batch_size].astype(np.float64)  # [n, D]
        nearest = (squares - 2 * some @ points.T).argmin(1)  # [n]; |q|^2 does not change which is nearest
        indices[start : start + batch_size] = nearest
        distances[start : start + batch_size] = np.linalg.norm(some - points[nearest], axis=1)
    return distances, indices


def share_of_near_copies(samples: np.ndarray, train: np.ndarray, test: np.ndarray, quantile: float = 0.01) -> float:
    """Share of samples nearer to a training image than all but ``quantile`` of held-out images are.

    About ``quantile`` for a model that does not memorise, near 1 for one that copies.

    Args:
        samples, train, test: [N, D] each, features or flattened pixels.
    """
    limit = np.quantile(nearest_neighbours(test, train)[0], quantile)
    return float((nearest_neighbours(samples, train)[0] <= limit).mean())


def _uint8_batches(images: Images | np.ndarray | torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    if isinstance(images, Images):
        images = images.pixels
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        yield batch.cpu().contiguous() if isinstance(batch, torch.Tensor) else torch.from_numpy(np.array(batch))
