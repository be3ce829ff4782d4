"""From files and arrays to uint8 [C, H, W]."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is cut short, altered, or no image at all."""


def decode_image(source: Path | bytes, channels: int, image_size: int | None) -> np.ndarray:
    """Decode one image; with ``image_size`` also crop it to its central square and resize it.

    Returns:
        [C, H, W] uint8.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
        image = flatten(file, channels)
    if image_size is not None and image.size != (image_size, image_size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((image_size, image_size), Image.Resampling.BICUBIC)  # Pillow antialiases when it shrinks
    pixels = np.array(image, dtype=np.uint8)  # [H, W] or [H, W, 3]
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))  # [C, H, W]


def flatten(image: Image.Image, channels: int) -> Image.Image:
    """Grey or RGB, 16-bit grey brought to 8 bits, any transparency laid on white."""
    if image.mode.startswith("I;16"):  # Pillow itself would cut every level above 255 off
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are Pillow's mode {image.mode}, whose black and white nobody knows")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def fit_grey(image: np.ndarray, image_size: int | None) -> np.ndarray:
    """Bring a square grey image to ``image_size``: a larger one pads with black, a smaller one averages boxes.

    Args:
        image: [H, W] uint8.

    Returns:
        [1, image_size, image_size] uint8.
    """
    size = image.shape[0]
    if image_size is None or image_size == size:
        return image[None]
    if image_size > size:
        before = (image_size - size) // 2
        after = image_size - size - before
        return np.pad(image, ((before, after), (before, after)))[None]
    return np.array(Image.fromarray(image).resize((image_size, image_size), Image.Resampling.BOX))[None]
