"""A safetensors file that is filled in place, for more than memory holds; it appears whole when it is closed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.files import sha256_file

NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "int64": "I64"}  # in the file's header
STORED = {"float16": np.int16, "bfloat16": np.int16, "float32": np.float32, "int64": np.int64}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written."""

    shape: tuple[int, ...]
    dtype: str  # one of NAMES

    @property
    def item_size(self) -> int:
        """Bytes of a number."""
        return np.dtype(STORED[self.dtype]).itemsize

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.item_size


class MappedFile:
    """Tensors of known shapes, written slice by slice beside ``path`` until `close`; the widest numbers come first."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorSpec]) -> None:
        self.path, self.specs = path, dict(tensors)
        self.beside = path.with_name(f".{path.name}.{os.getpid()}")
        header: dict[str, Any] = {}
        starts, offset = {}, 0
        for name, spec in sorted(tensors.items(), key=lambda item: -item[1].item_size):  # so that all are aligned
            starts[name], stop = offset, offset + spec.num_bytes
            header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, stop]}
            offset = stop
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.beside.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
        self._arrays: dict[str, Any] = {
            name: np.memmap(self.beside, np.dtype(STORED[spec.dtype]), "r+", 8 + len(text) + starts[name], spec.shape)
            for name, spec in tensors.items()
        }

    def put(self, name: str, where: Any, values: torch.Tensor) -> bool:
        """Write ``values`` into a slice of a tensor; whether they are finite in its number format."""
        spec = self.specs[name]
        kept = values.detach().cpu().to(getattr(torch, spec.dtype))
        self._arrays[name][where] = (kept.view(torch.int16) if STORED[spec.dtype] is np.int16 else kept).numpy()
        return bool(kept.isfinite().all())

    def close(self) -> None:
        """Everything is written: the file takes its place."""
        for array in self._arrays.values():
            array.flush()
        self._arrays = {}
        self.beside.replace(self.path)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._arrays = {}
        self.beside.unlink(missing_ok=True)


def open_mapped(path: Path, known: Mapping[str, Any], what: str, redo: str) -> dict[str, torch.Tensor]:
    """Every tensor of a file that was written whole, memory-mapped: nothing is read yet but for the checksum.

    Args:
        known: its ``size`` in bytes and ``sha256``, as they were when it was written.
        what: what errors call its content.
        redo: what errors tell the user to do.
    """
    from safetensors import safe_open

    if not path.is_file() or path.stat().st_size != known["size"]:
        state = f"has {path.stat().st_size:,} of {known['size']:,} bytes" if path.is_file() else "is missing"
        raise SettingError(f"{what}: {path} {state}; {redo}")
    if sha256_file(path) != known["sha256"]:
        raise SettingError(f"{what}: {path} was altered (checksum); {redo}")
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping, it has keys
