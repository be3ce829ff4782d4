"""Images as one picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError

if TYPE_CHECKING:
    from PIL.Image import Image


def sample_grid(images: Any, columns: int = 8, scale: int | None = None) -> Image:
    """A grid of images, row by row, with clear gaps between them.

    Args:
        images: uint8 array or CPU tensor [N, C, H, W]; C is 1 (grey) or 3 (colour).
        columns: images side by side.
        scale: each pixel becomes a square of ``scale`` pixels (nearest neighbour, so that tiny images stay what they
            are); by default what makes an image at least 32 pixels high.
    """
    import numpy as np
    from PIL import Image as PillowImage

    pixels = np.asarray(images)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or pixels.dtype != np.uint8 or len(pixels) == 0:
        raise SettingError(
            f"sample_grid: images of shape {list(pixels.shape)} and type {pixels.dtype}; "
            "allowed: uint8 [N, 1 or 3, H, W] with N of 1 or more"
        )
    if columns < 1 or (scale is not None and scale < 1):
        raise SettingError(f"sample_grid: columns {columns} and scale {scale}; allowed: 1 or more")
    num, channels, height, width = pixels.shape
    scale = scale or max(1, math.ceil(32 / height))
    columns = min(columns, num)
    rows, gap = math.ceil(num / columns), scale
    pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)  # [N, C, H * scale, W * scale]
    height, width = height * scale, width * scale
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap)
    canvas = np.zeros((*size, channels + 1), np.uint8)  # last channel: opacity, 0 in the gaps
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width, :channels] = image.transpose(1, 2, 0)
        canvas[top : top + height, left : left + width, channels] = 255
    return PillowImage.fromarray(canvas, "LA" if channels == 1 else "RGBA")
