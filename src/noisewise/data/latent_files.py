"""A folder of latents: encoded once, checked on reading, memory-mapped.

It holds a safetensors file per split and ``latents.json``, which says whose latents they are: hashes of the images, of
the autoencoder and of the files.

Shapes: N = images, B = batch, R = 1, or 2 with the mirror images' latents second, C, H, W = an image or its latents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from noisewise.data.images import Dataset, Images
from noisewise.data.latents import Encode, LatentDataset, Latents
from noisewise.data.mapped_file import MappedFile, TensorSpec, open_mapped
from noisewise.data.settings import LatentDtype
from noisewise.errors import SettingError
from noisewise.files import read_json, sha256_file, write_json

ABOUT = "latents.json"
FORMAT = 1
SPLITS = ("train", "test")
KEYS = ("mean", "std")  # of the posterior, where there is one


def write_latents(
    folder: Path,
    images: Dataset,
    encode: Encode,
    *,
    autoencoder: str,
    dtype: LatentDtype = "float16",
    batch_size: int = 64,
    mirrored: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Encode both splits into ``folder``.

    Args:
        encode: images [B, C, H, W] in [-1, 1] to mean and standard deviation (or None), both scaled.
        autoencoder: hash of what ``encode`` is.
        mirrored: keep the mirror images' latents of the training split too.
        progress: called with images done and to do.

    Returns:
        What ``latents.json`` says, with mean and standard deviation of the training split's numbers, as drawn.
    """
    repeats = {"train": 2 if mirrored else 1, "test": 1}
    total = sum(repeats[split] * len(getattr(images, split)) for split in SPLITS)
    done, splits = 0, {}
    for split in SPLITS:
        part: Images = getattr(images, split)
        writer = _Writer(folder / f"{split}.safetensors", dtype, repeats[split], part.name)
        for turn in range(repeats[split]):
            for start in range(0, len(part), batch_size):
                pixels, _ = part.batch(slice(start, start + batch_size), device)
                writer.put(turn, start, len(part), encode(pixels.flip(-1) if turn else pixels))
                done += len(pixels)
                if progress is not None:
                    progress(done, total)
        splits[split] = {"images": part.fingerprint, "num_images": len(part), **writer.close()}
        if split == "train":
            statistics = writer.statistics()
    about = {"format": FORMAT, "dtype": dtype, "autoencoder": autoencoder, "splits": splits, **statistics}
    write_json(folder / ABOUT, about)
    return about


class _Writer:
    """Fills one split's file, which appears whole when it is closed."""

    def __init__(self, path: Path, dtype: LatentDtype, repeats: int, name: str) -> None:
        self.path, self.dtype, self.repeats, self.name = path, dtype, repeats, name
        self.file: MappedFile | None = None
        self.shape: tuple[int, ...] = ()
        self.sums = torch.zeros(3, dtype=torch.float64)  # how many numbers, their sum, their squares' sum

    def put(self, turn: int, start: int, num: int, encoded: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        parts = [part.detach().float().cpu() for part in encoded if part is not None]  # [B, C, H, W] each
        keys = KEYS[: len(parts)]
        if self.file is None:
            self.shape = (self.repeats, num, *parts[0].shape[1:])
            self.file = MappedFile(self.path, {key: TensorSpec(self.shape, self.dtype) for key in keys})
        for key, part in zip(keys, parts, strict=True):
            if not self.file.put(key, (turn, slice(start, start + len(part))), part):
                self.file.discard()
                self._refuse(start, part)
        wide = [part.double() for part in parts]
        squares = sum(part.square().sum() for part in wide)  # of draws: the mean's and the deviation's
        self.sums += torch.tensor([wide[0].numel(), wide[0].sum(), squares], dtype=torch.float64)

    def _refuse(self, start: int, part: torch.Tensor) -> None:
        if part.isfinite().all():
            raise SettingError(
                f"autoencoder.dtype: latents of {self.name} reach {part.abs().max():.4g}, beyond {self.dtype}; use "
                "bfloat16, or check the autoencoder's scaling_factor"
            )
        row = start + int((~part.flatten(1).isfinite().all(1)).nonzero()[0])
        raise SettingError(
            f"autoencoder: the latents of {self.path.stem} image {row} of {self.name} are not finite; its weights "
            "may be damaged, or trained with too high a learning rate"
        )

    def close(self) -> dict[str, Any]:
        assert self.file is not None  # no split is empty
        self.file.close()
        return {"shape": list(self.shape), "size": self.path.stat().st_size, "sha256": sha256_file(self.path)}

    def statistics(self) -> dict[str, float]:
        num, total, squares = self.sums.tolist()
        return {"mean": total / num, "std": math.sqrt(max(squares / num - (total / num) ** 2, 0.0))}


def load_latents(folder: Path, images: Dataset, autoencoder: str) -> LatentDataset:
    """The latents in ``folder``, memory-mapped.

    Args:
        images: whose latents they must be.
        autoencoder: hash of what must have encoded them.
    """
    about = read_json(folder / ABOUT, "latents")
    redo = f"delete {folder}, and the same command encodes anew"
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise SettingError(f"latents: {folder / ABOUT} is not what this version writes; {redo}")
    if about["autoencoder"] != autoencoder:
        raise SettingError(
            f"latents: {folder} was encoded by another autoencoder (hash {about['autoencoder'][:12]}, this one's is "
            f"{autoencoder[:12]}); {redo}"
        )
    halves = [_load_split(folder, about, getattr(images, split), redo) for split in SPLITS]
    return LatentDataset(*halves)


def _load_split(folder: Path, about: dict[str, Any], images: Images, redo: str) -> Latents:
    path, known = folder / f"{images.split}.safetensors", about["splits"][images.split]
    if known["images"] != images.fingerprint:
        raise SettingError(f"latents: {path} holds latents of other images than {images.name}; {redo}")
    tensors = open_mapped(path, known, "latents", redo)
    digest = hashlib.sha256(f"{images.fingerprint} {about['autoencoder']} {known['sha256']}".encode()).hexdigest()
    return Latents(
        tensors["mean"], tensors.get("std"), images.labels, images.class_names, images.name, images.split, digest
    )
