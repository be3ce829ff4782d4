"""From settings to a `Dataset`: choose rows, decode each once, keep the pixels in one memory-mapped file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from noisewise.data.decode import UNREADABLE
from noisewise.data.folder import folder_source
from noisewise.data.idx import digits_source, idx_source
from noisewise.data.images import Dataset, Images, Split, fingerprint
from noisewise.data.parquet import parquet_source
from noisewise.data.settings import DataSettings, DigitsSettings, FolderSettings, IdxSettings
from noisewise.data.source import Source
from noisewise.errors import SettingError
from noisewise.files import read_json, write_json
from noisewise.streams import seed_of

CACHE_FORMAT = 2  # of how images are decoded
NPY_HEADER = 128


def load_data(settings: DataSettings, cache: Path | None = None) -> Dataset:
    """Load a data set.

    Args:
        settings: what to load, see `noisewise.data.settings`.
        cache: folder to keep decoded pixels in, one ``.npy`` a split, mapped into memory on use. It may be shared by
            processes and data sets: entries are named by the settings and the files' names, sizes and times, and appear
            whole. Without it pixels stay in memory.
    """
    source = open_source(settings)
    rows = choose_rows(source, settings)
    key = None if cache is None or not source.files else cache_key(settings, source)
    on_corrupt = getattr(settings, "on_corrupt", "fail")
    decoded: dict[Split, Decoded] = {}
    for split in rows:
        entry = None if cache is None or key is None else cache / f"{key}-{split}.npy"
        found = None if entry is None else read_entry(entry)
        decoded[split] = found or decode_rows(source, split, rows[split], entry, on_corrupt)

    images: dict[Split, Images] = {}
    for split, part in decoded.items():
        labels = part.labels if settings.conditional else None
        class_names = source.class_names if settings.conditional else None
        digest = fingerprint(part.pixels_sha256, part.pixels.shape, labels)
        name = settings.name or source.name
        images[split] = Images(part.pixels, labels, class_names, name, split, digest, part.captions)
    if images["train"].shape != images["test"].shape:
        shapes = " and ".join(str(part.shape) for part in images.values())
        raise SettingError(f"{source.setting}: training and test images differ in shape: {shapes}; set data.image_size")
    return Dataset(images["train"], images["test"], sum(part.num_skipped for part in decoded.values()))


def open_source(settings: DataSettings) -> Source:
    """Look at the files, decode nothing."""
    if isinstance(settings, DigitsSettings):
        return digits_source(settings)
    if isinstance(settings, IdxSettings):
        return idx_source(settings)
    return folder_source(settings) if isinstance(settings, FolderSettings) else parquet_source(settings)


def choose_rows(source: Source, settings: DataSettings) -> dict[Split, np.ndarray]:
    """Rows of each split, shuffled by ``split_seed``: the first n are a fair sample (parquet is read in file order)."""
    rng = np.random.default_rng(seed_of("data", "split", settings.split_seed))
    if source.num_test is None:
        fraction = getattr(settings, "test_fraction", 0.1)
        num_test = int(source.num_train * fraction)
        if not 0 < num_test < source.num_train:
            raise SettingError(f"data.test_fraction: {fraction} of {source.num_train} images leaves a split empty")
        order = rng.permutation(source.num_train)
        return {"train": order[num_test:][: settings.num_train], "test": order[:num_test][: settings.num_test]}
    if "test_fraction" in settings.model_fields_set:
        warnings.warn("data.test_fraction is ignored: the data has a test split of its own", stacklevel=3)
    train, test = rng.permutation(source.num_train), rng.permutation(source.num_test)
    return {"train": train[: settings.num_train], "test": test[: settings.num_test]}


@dataclass(frozen=True)
class Decoded:
    """Pixels of one split, and what could not be read."""

    pixels: np.ndarray  # [N, C, H, W] uint8
    labels: np.ndarray | None  # [N] int64
    pixels_sha256: str
    num_skipped: int
    captions: tuple[str, ...] | None = None  # [N]


def decode_rows(source: Source, split: Split, rows: np.ndarray, entry: Path | None, on_corrupt: str) -> Decoded:
    """Decode rows one after the other into the file ``entry``, or into memory where it is None."""
    labels: list[int] = []
    captions: list[str] = []
    corrupt: list[str] = []
    shape: tuple[int, ...] = ()
    num, first, digest = 0, "", hashlib.sha256()
    with _whole_file(entry) as file:
        file.write(npy_header((0, 0, 0, 0)))  # room for the header; the number of images is known at the end
        for item in source.read("train" if source.num_test is None else split, rows):
            try:
                pixels = item.decode()  # [C, H, W]
            except UNREADABLE as error:
                corrupt.append(f"{item.name} ({str(error).partition(chr(10))[0] or type(error).__name__})")
                continue
            if not num:
                shape, first = pixels.shape, item.name
            _check_shape(source, pixels.shape, item.name, shape, first)
            file.write(pixels.tobytes())
            digest.update(pixels.tobytes())
            labels += [] if item.label is None else [item.label]
            captions += [] if item.caption is None else [item.caption]
            num += 1
        _report_corrupt(source, split, corrupt, len(rows), on_corrupt)
        if not num:
            raise SettingError(f"{source.setting}: no image is left for the {split} split")
        file.seek(0)
        file.write(npy_header((num, *shape)))
        if isinstance(file, io.BytesIO):
            decoded = np.frombuffer(file.getbuffer(), np.uint8, offset=NPY_HEADER).reshape(num, *shape)
            array = np.array(labels, dtype=np.int64) if labels else None
            return Decoded(decoded, array, digest.hexdigest(), len(corrupt), tuple(captions) or None)
    assert entry is not None
    about = {"format": CACHE_FORMAT, "pixels_sha256": digest.hexdigest(), "labels": labels, "num_skipped": len(corrupt)}
    write_json(entry.with_suffix(".json"), {**about, **({"captions": captions} if captions else {})})
    kept = read_entry(entry)
    assert kept is not None
    return kept


def cache_key(settings: DataSettings, source: Source) -> str:
    """Names what pixels depend on: the settings, the chosen rows with them, and every file's name, size and time."""
    stats = [(str(path), *_size_and_time(path)) for path in source.files]
    given = settings.model_dump(mode="json", exclude={"name"})
    if given.get("caption_column") is None:  # as before there were captions
        given.pop("caption_column", None)
    what = [CACHE_FORMAT, given, stats]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0  # a link to nothing; decoding names it
    return stat.st_size, stat.st_mtime_ns


def read_entry(entry: Path) -> Decoded | None:
    """A cached split, or None where there is none, or it is not whole."""
    about_file = entry.with_suffix(".json")
    if not (entry.is_file() and about_file.is_file()):
        return None
    about = read_json(about_file, "data cache")
    try:
        pixels = np.load(entry, mmap_mode="r", allow_pickle=False)
    except ValueError:  # shorter than its header says
        return None
    labels = np.array(about["labels"], dtype=np.int64) if about["labels"] else None
    captions = tuple(about.get("captions", ())) or None
    return Decoded(pixels, labels, about["pixels_sha256"], about["num_skipped"], captions)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Header of a ``.npy`` file of uint8, always `NPY_HEADER` bytes, so that it can be written before N is known."""
    about = repr({"descr": "|u1", "fortran_order": False, "shape": tuple(int(n) for n in shape)})
    return (
        b"\x93NUMPY\x01\x00" + (NPY_HEADER - 10).to_bytes(2, "little") + about.ljust(NPY_HEADER - 11).encode() + b"\n"
    )


@contextmanager
def _whole_file(path: Path | None) -> Iterator[BinaryIO]:
    """A file that appears at ``path`` when the block ends without an error; in memory where ``path`` is None."""
    if path is None:
        yield io.BytesIO()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _check_shape(source: Source, shape: tuple[int, ...], name: str, first_shape: tuple[int, ...], first: str) -> None:
    _, height, width = shape
    if height != width:
        raise SettingError(
            f"{source.setting}: {name} is {width}x{height}, not square; set data.image_size to crop and resize"
        )
    if shape != first_shape:
        sizes = f"{first} is {first_shape[2]}x{first_shape[1]}, {name} is {width}x{height}"
        raise SettingError(f"{source.setting}: images differ in size ({sizes}); set data.image_size to crop and resize")


def _report_corrupt(source: Source, split: Split, corrupt: list[str], num: int, on_corrupt: str) -> None:
    if not corrupt:
        return
    some = "; ".join(corrupt[:3]) + ("; ..." if len(corrupt) > 3 else "")
    count = f"{len(corrupt)} of {num} {split} images cannot be read: {some}"
    if on_corrupt == "fail":
        raise SettingError(f"{source.setting}: {count}; set data.on_corrupt to skip to leave them out")
    warnings.warn(f"{source.setting}: {count}; left out", stacklevel=4)
