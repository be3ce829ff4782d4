"""Digits of scikit-learn, and folders of IDX files: small grey sets that are arrays from the start."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from noisewise.data.decode import fit_grey
from noisewise.data.images import Split
from noisewise.data.settings import DigitsSettings, IdxSettings
from noisewise.data.source import Item, Source
from noisewise.errors import SettingError

PREFIXES: dict[Split, str] = {"train": "train", "test": "t10k"}


def digits_source(settings: DigitsSettings) -> Source:
    """scikit-learn's digits; their 17 levels 0..16 become 0..255."""
    from sklearn.datasets import load_digits  # half a second, so only when asked for

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    arrays: dict[Split, tuple[np.ndarray, np.ndarray]] = {"train": (pixels, digits.target)}
    class_names = tuple(str(name) for name in digits.target_names)
    read = partial(_read, arrays, settings.image_size, "digits")
    return Source("digits", "data", (), len(pixels), None, class_names, read)


def idx_source(settings: IdxSettings) -> Source:
    """The IDX files of both splits."""
    folder = settings.folder.expanduser()
    if not folder.is_dir():
        raise SettingError(
            f"data.folder: {folder} is not a folder; it must hold IDX files such as train-images-idx3-ubyte"
        )
    files: list[Path] = []
    arrays: dict[Split, tuple[np.ndarray, np.ndarray]] = {}
    for split, prefix in PREFIXES.items():
        images_file, labels_file = (_find(folder, prefix, part) for part in ("images-idx3", "labels-idx1"))
        pixels, labels = read_idx(images_file), read_idx(labels_file)
        if pixels.ndim != 3 or pixels.shape[1] != pixels.shape[2]:
            raise SettingError(f"data.folder: {images_file} holds an array of shape {pixels.shape}, not square images")
        if labels.shape != pixels.shape[:1]:
            raise SettingError(
                f"data.folder: {images_file} has {len(pixels)} images, {labels_file.name} {labels.size} labels"
            )
        arrays[split] = pixels, labels
        files += [images_file, labels_file]
    num_classes = int(max(labels.max(initial=0) for _, labels in arrays.values())) + 1
    class_names = tuple(str(i) for i in range(num_classes))
    read = partial(_read, arrays, settings.image_size, folder.name)
    num_train, num_test = len(arrays["train"][0]), len(arrays["test"][0])
    return Source(folder.name, "data.folder", tuple(files), num_train, num_test, class_names, read)


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes, gzipped or not: two zeros, 0x08, dimensions, each size, then the bytes."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise SettingError(f"data.folder: {path} cannot be read ({error})") from None
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise SettingError(f"data.folder: {path} is not an IDX file of unsigned bytes")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", count=data[3], offset=4))
    start, size = 4 + 4 * data[3], int(np.prod(shape))
    if len(data) - start != size:
        raise SettingError(
            f"data.folder: {path} says {size} bytes of data and holds {len(data) - start}; it is cut short or altered"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _find(folder: Path, prefix: str, part: str) -> Path:
    names = [f"{prefix}-{part}-ubyte", f"{prefix}-{part.replace('-', '.')}-ubyte"]
    names = [name + suffix for name in names for suffix in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise SettingError(f"data.folder: {folder} lacks {names[0]} or {names[1]}")


def _read(
    arrays: dict[Split, tuple[np.ndarray, np.ndarray]],
    image_size: int | None,
    name: str,
    split: Split,
    rows: np.ndarray,
) -> Iterator[Item]:
    pixels, labels = arrays[split]
    for row in rows:
        yield Item(f"{name}[{row}]", int(labels[row]), partial(fit_grey, pixels[row], image_size))
