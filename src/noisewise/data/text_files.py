"""A folder of encoded captions: made once, checked on reading, memory-mapped.

It holds ``captions.safetensors`` (every different caption once, which of them is each image's, and what is told of no
caption) and ``captions.json``, which says whose captions and whose encoder they are of.

Shapes: N = images, U = different captions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from noisewise.data.captions import captions_sha256
from noisewise.data.images import Dataset
from noisewise.data.mapped_file import MappedFile, TensorSpec, open_mapped
from noisewise.data.settings import LatentDtype
from noisewise.data.texts import Texts, flat
from noisewise.errors import SettingError
from noisewise.files import read_json, sha256_file, write_json

ABOUT, FILE = "captions.json", "captions.safetensors"
FORMAT = 1
SPLITS = ("train", "test")
EXACT = ("time_ids",)  # keys that are kept in float32: sizes in pixels, which half precision would round
Encode = Callable[[Sequence[str]], Mapping[str, Any]]


def captions_of(images: Dataset) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The captions of both halves; a data set without is refused."""
    train, test = images.train.captions, images.test.captions
    if train is None or test is None:
        raise SettingError("data.caption_column: missing; the images were read without captions")
    return train, test


def write_texts(
    folder: Path,
    images: Dataset,
    encode: Encode,
    null: Mapping[str, Any],
    *,
    encoder: str,
    dtype: LatentDtype = "float16",
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Encode the captions of both splits into ``folder``.

    Args:
        encode: captions to what the denoiser is told, by its arguments' names: [B, ...] each.
        null: the same of no caption, [1, ...].
        encoder: hash of what ``encode`` is.
        progress: called with captions done and to do.

    Returns:
        What ``captions.json`` says.
    """
    halves = captions_of(images)
    different = sorted({caption for captions in halves for caption in captions})
    rows = {caption: row for row, caption in enumerate(different)}
    kept = {name: dtype if name.rpartition(".")[2] not in EXACT else "float32" for name in flat(null)}
    specs = {name: TensorSpec((len(different), *one.shape[1:]), kept[name]) for name, one in flat(null).items()}
    specs |= {f"null.{name}": TensorSpec(tuple(one.shape), kept[name]) for name, one in flat(null).items()}
    specs |= {f"rows.{split}": TensorSpec((len(half),), "int64") for split, half in zip(SPLITS, halves, strict=True)}
    file = MappedFile(folder / FILE, specs)
    for split, captions in zip(SPLITS, halves, strict=True):
        file.put(f"rows.{split}", slice(None), torch.tensor([rows[caption] for caption in captions]))
    for name, one in flat(null).items():
        _put(file, f"null.{name}", slice(None), one, "", dtype)
    for start in range(0, len(different), batch_size):
        part = different[start : start + batch_size]
        for name, values in flat(encode(part)).items():
            _put(file, name, slice(start, start + len(part)), values, part[0], dtype)
        if progress is not None:
            progress(start + len(part), len(different))
    file.close()
    path = folder / FILE
    about = {
        "format": FORMAT,
        "dtype": dtype,
        "encoder": encoder,
        "captions": captions_sha256(halves),
        "num_captions": len(different),
        "num_images": [len(half) for half in halves],
        "size": path.stat().st_size,
        "sha256": sha256_file(path),
    }
    write_json(folder / ABOUT, about)
    return about


def _put(file: MappedFile, name: str, where: slice, values: torch.Tensor, first: str, dtype: str) -> None:
    if file.put(name, where, values):
        return
    file.discard()
    if values.isfinite().all():
        raise SettingError(f"conditioning.dtype: {name} reaches {values.abs().max():.4g}, beyond {dtype}; use bfloat16")
    raise SettingError(
        f"model.text_encoder: {name} of captions from {first!r} on is not finite; its weights may be damaged"
    )


def load_texts(folder: Path, images: Dataset, encoder: str) -> tuple[Texts, Texts]:
    """What ``folder`` holds of the training and of the held-out images, memory-mapped.

    Args:
        images: whose captions they must be.
        encoder: hash of what must have encoded them.
    """
    about, path = read_json(folder / ABOUT, "captions"), folder / FILE
    redo = f"delete {folder}, and the same command encodes anew"
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise SettingError(f"captions: {folder / ABOUT} is not what this version writes; {redo}")
    if about["encoder"] != encoder:
        raise SettingError(f"captions: {folder} was encoded by another text encoder; {redo}")
    if about["captions"] != captions_sha256(captions_of(images)):
        raise SettingError(f"captions: {path} holds other captions than those of {images.name}; {redo}")
    tensors = open_mapped(path, about, "captions", redo)
    rows = {split: tensors.pop(f"rows.{split}") for split in SPLITS}
    null = {name: tensors.pop(f"null.{name}") for name in [n for n in tensors if f"null.{n}" in tensors]}
    digests = [hashlib.sha256(f"{about['sha256']} {encoder} {split}".encode()).hexdigest() for split in SPLITS]
    train, test = (Texts(tensors, rows[split], null, each) for split, each in zip(SPLITS, digests, strict=True))
    return train, test
