"""Sets of images as the rest of the package sees them: uint8 in memory or memory-mapped, floats only per batch.

Shapes: N = images, B = batch, C = channels (1 or 3), H = W = size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch

    from noisewise.data.texts import Texts, Told

Split = Literal["train", "test"]
Indices: TypeAlias = "torch.Tensor | np.ndarray | Sequence[int] | slice"


@dataclass(frozen=True, eq=False)
class Images:
    """One split of a data set.

    ``pixels`` may be a read-only memory map: index it, never write to it.
    """

    pixels: np.ndarray  # [N, C, H, W] uint8
    labels: np.ndarray | None  # [N] int64; None: used without classes
    class_names: tuple[str, ...] | None
    name: str
    split: Split
    fingerprint: str  # sha256 of pixels and labels, see fingerprint(), and of what is told of them
    captions: tuple[str, ...] | None = None  # [N]; None: not read
    texts: Texts | None = None  # the captions, encoded: what networks are told in place of labels

    @classmethod
    def from_pixels(
        cls,
        pixels: np.ndarray,
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] | None = None,
        *,
        name: str = "images",
        split: Split = "train",
    ) -> Images:
        """Images from arrays at hand, fingerprint computed here.

        Args:
            pixels: [N, C, H, W] uint8.
            labels: [N] integers, or None.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4:
            raise TypeError(f"pixels must be uint8 [N, C, H, W], not {pixels.dtype} of {pixels.ndim} dimensions")
        if labels is not None:
            labels = np.asarray(labels, dtype=np.int64)
            if labels.shape != (len(pixels),):
                raise ValueError(f"{len(pixels)} images came with labels of shape {labels.shape}")
        digest = fingerprint(hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest(), pixels.shape, labels)
        return cls(pixels, labels, class_names, name, split, digest)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def size(self) -> int:
        """Height and width, in pixels."""
        return int(self.pixels.shape[2])

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one image."""
        return self.channels, self.size, self.size

    def batch(self, indices: Indices, device: torch.device | str = "cpu") -> tuple[torch.Tensor, Told]:
        """Some images as a model sees them.

        Returns:
            x_0 [B, C, H, W] float32 in [-1, 1], and labels [B] int64 or None, or with texts what is told of them by
            the names of forward's arguments; all on ``device``.
        """
        import torch

        rows = _rows(indices)
        chosen = np.array(self.pixels[rows])  # [B, C, H, W] uint8, a copy: memory maps are read-only
        pixels = torch.from_numpy(chosen).to(device)
        told: Told = None if self.labels is None else torch.from_numpy(self.labels[rows].copy()).to(device)  # [B]
        if self.texts is not None:
            told = self.texts.at(_positions(rows, len(self)), device)
        return pixels.float().div_(127.5).sub_(1), told

    def subset(self, indices: Indices) -> Images:
        """A copy of some images, in the order given."""
        rows = _rows(indices)
        labels = None if self.labels is None else self.labels[rows]
        found = Images.from_pixels(
            np.array(self.pixels[rows]), labels, self.class_names, name=self.name, split=self.split
        )
        chosen = _positions(rows, len(self))
        captions = None if self.captions is None else tuple(self.captions[i] for i in chosen.tolist())
        found = replace(found, captions=captions)
        return found if self.texts is None else found.with_texts(self.texts.subset(chosen))

    def with_texts(self, texts: Texts) -> Images:
        """The same images; networks are told their captions."""
        digest = hashlib.sha256(f"{self.fingerprint} {texts.fingerprint}".encode()).hexdigest()
        return replace(self, texts=texts, fingerprint=digest)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The two halves of a data set; nothing is trained on ``test``."""

    train: Images
    test: Images
    num_skipped: int = 0  # images that could not be read and were left out on request

    @property
    def name(self) -> str:
        return self.train.name

    @property
    def channels(self) -> int:
        return self.train.channels

    @property
    def size(self) -> int:
        return self.train.size

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.train.class_names

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None where labels are not used."""
        return None if self.train.class_names is None else len(self.train.class_names)

    @property
    def captions_sha256(self) -> str:
        """Of the captions of both halves; empty where none were read."""
        from noisewise.data.captions import captions_sha256

        train, test = self.train.captions, self.test.captions
        return "" if train is None or test is None else captions_sha256([train, test])

    @property
    def fingerprint(self) -> str:
        """One sha256 for both halves, without captions."""
        return hashlib.sha256(f"{self.train.fingerprint} {self.test.fingerprint}".encode()).hexdigest()


def fingerprint(pixels_sha256: str, shape: tuple[int, ...], labels: np.ndarray | None) -> str:
    """Hexadecimal SHA-256 over the hash of the pixels' bytes, their shape and the labels."""
    digest = hashlib.sha256(f"{pixels_sha256} {[int(n) for n in shape]}".encode())
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def _positions(rows: np.ndarray | slice, num: int) -> torch.Tensor:
    """[B] int64."""
    import torch

    return torch.arange(num)[rows] if isinstance(rows, slice) else torch.from_numpy(rows)


def _rows(indices: Indices) -> np.ndarray | slice:
    return indices if isinstance(indices, slice) else np.asarray(indices, dtype=np.int64)
