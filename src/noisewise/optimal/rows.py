"""A data set as rows of numbers, read a chunk at a time, and squared distances to them that do not cancel.

The logit of an image is its squared distance over 2 sigma^2. At sigma = 0.01 an error of 1e-4 in a distance of 1000,
the usual one in float32, is half a logit; so distances are exact here. Products of 8-bit pixels are whole numbers,
which float32 adds without error up to 2^24; other data is multiplied in float64.

Shapes: n = images, c = images of a chunk, B = queries, D = numbers of an image.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from noisewise.errors import SettingError

if TYPE_CHECKING:
    from noisewise.data import Images
    from noisewise.data.latents import Latents

EXACT_TERMS = 1024  # products of numbers in [-128, 127] that float32 sums exactly: 1024 * 128^2 = 2^24


def wide(device: torch.device) -> torch.dtype:
    """float64, or what the device has instead."""
    return torch.float32 if device.type == "mps" else torch.float64


class Rows(ABC):
    """Images as rows [n, D] in units of their own: an image is ``row * scale + offset``.

    Attributes:
        shape: [C, H, W] (or whatever an image's shape is).
        low, high: the range of an image's numbers.
    """

    def __init__(self, data: Any, device: torch.device, scale: float, offset: float, low: float, high: float) -> None:
        if data.ndim < 2 or len(data) == 0:
            raise SettingError(f"images: shape {list(data.shape)}; allowed: [N, C, H, W] with N of 1 or more")
        self.data = data
        self.device = device
        self.shape = tuple(int(size) for size in data.shape[1:])
        self.dim = math.prod(self.shape)
        self.scale, self.offset, self.low, self.high = scale, offset, low, high

    def __len__(self) -> int:
        return len(self.data)

    @abstractmethod
    def chunk(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop``: [c, D] float32."""

    @abstractmethod
    def anchor(self, x: torch.Tensor) -> torch.Tensor:
        """The point [B, D], in units of the rows, nearest to images [B, D], from which distances are exact."""

    @abstractmethod
    def products(self, anchor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """anchor . row: [B, c], exact but for the rounding of float64."""

    def image(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [..., D] as numbers of images, in place."""
        return rows.mul_(self.scale).add_(self.offset)

    @abstractmethod
    def squares(self, rows: torch.Tensor) -> torch.Tensor:
        """|row|^2: [c], exact but for the rounding of float64."""

    @cached_property
    def mean(self) -> torch.Tensor:
        """[D] mean image; one pass over the data."""
        total = torch.zeros(self.dim, dtype=wide(self.device), device=self.device)
        for start in range(0, len(self), EXACT_TERMS):
            total += self.chunk(start, min(start + EXACT_TERMS, len(self))).sum(0)
        return self.image(total / len(self)).float()

    @cached_property
    def num_duplicates(self) -> int:
        """Images that equal an earlier one; one pass over the data."""
        seen = {hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest() for image in self.data}
        return len(self) - len(seen)


class PixelRows(Rows):
    """8-bit images, [n, C, H, W] uint8 in memory or memory-mapped; a row is pixel - 128, an image pixel / 127.5 - 1."""

    def __init__(self, pixels: np.ndarray, device: torch.device) -> None:
        super().__init__(pixels, device, 1 / 127.5, 128 / 127.5 - 1, -1.0, 1.0)

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(self.data[start:stop])).to(self.device)  # a copy: maps are read-only
        return pixels.flatten(1).float().sub_(128)  # [c, D]

    def anchor(self, x: torch.Tensor) -> torch.Tensor:
        return x.sub(self.offset).div_(self.scale).round_().clamp_(-128, 127)  # [B, D]

    def products(self, anchor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(len(anchor), len(rows), dtype=wide(self.device), device=self.device)  # [B, c]
        for first in range(0, self.dim, EXACT_TERMS):
            part = slice(first, first + EXACT_TERMS)
            total += anchor[:, part] @ rows[:, part].T
        return total

    def squares(self, rows: torch.Tensor) -> torch.Tensor:
        parts = (rows[:, first : first + EXACT_TERMS] for first in range(0, self.dim, EXACT_TERMS))
        return sum((part.square().sum(1).to(wide(self.device)) for part in parts), torch.zeros((), device=self.device))


class FloatRows(Rows):
    """Images of any numbers, a float tensor [n, ...]."""

    def __init__(self, images: torch.Tensor, device: torch.device) -> None:
        low, high = images.aminmax() if images.numel() else torch.zeros(2)
        if not (low.isfinite() and high.isfinite()):
            raise SettingError("images: some numbers are not finite")
        super().__init__(images.detach(), device, 1.0, 0.0, float(low), float(high))

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        return self.data[start:stop].to(self.device).flatten(1).float()  # [c, D]

    def anchor(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()  # distances from anywhere are exact here

    def products(self, anchor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return anchor.to(wide(self.device)) @ rows.to(wide(self.device)).T

    def squares(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.to(wide(self.device)).square().sum(1)

    @cached_property
    def num_duplicates(self) -> int:
        seen = {
            hashlib.blake2b(image.detach().cpu().float().numpy().tobytes(), digest_size=16).digest()
            for image in self.data
        }
        return len(self) - len(seen)


def as_rows(images: Images | Latents | torch.Tensor | np.ndarray, device: torch.device) -> Rows:
    """Rows of a data set, of a uint8 array or tensor, or of a float tensor in about [-1, 1]."""
    data: Any = images
    for name in ("pixels", "rows"):  # of images, of latents
        data = getattr(data, name, data)
    if isinstance(data, torch.Tensor) and data.dtype == torch.uint8:
        data = data.cpu().numpy()
    if isinstance(data, np.ndarray):
        if data.dtype == np.uint8:
            return PixelRows(data, device)
        data = torch.from_numpy(np.array(data))
    if not data.is_floating_point():
        raise SettingError(f"images: numbers of type {data.dtype}; allowed: uint8 pixels or floats in [-1, 1]")
    return FloatRows(data, device)
