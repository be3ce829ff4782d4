"""Files that are either whole or absent: written beside their place, then moved into it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError

if TYPE_CHECKING:
    import torch


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """A full disk is a user's problem with one clear line. safetensors has an error of its own for it."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        full = (errno.ENOSPC, errno.EDQUOT)
        if getattr(error, "errno", None) not in full and not any(f"(os error {n})" in str(error) for n in full):
            raise
        raise SettingError(f"{place}: the disk is full; free some space and give the same command again") from None


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write ``data`` so that a reader, or a crash, never sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with disk_errors(path), beside.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def check_target(path: Path, option: str) -> None:
    """Refuse a file that cannot be written, before the work that would fill it; ``option`` is what named it."""
    if path.is_dir():
        raise SettingError(f"{option} {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise SettingError(f"{option} {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise SettingError(f"{option} {path}: the folder {path.parent} may not be written to")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; infinities and NaN are refused, since other readers refuse them too."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read JSON from ``path``; ``what`` names the file's role in errors, e.g. "plan"."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise SettingError(f"{what}: {path} does not exist") from None
    except OSError as error:
        raise SettingError(f"{what}: {path} cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(f"{what}: {path} is not JSON ({error})") from None


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(contiguous, dict(metadata or {})))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file onto the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise SettingError(f"{path} does not exist") from None
    except SafetensorError as error:
        raise SettingError(f"{path} is not a whole safetensors file ({error})") from None
