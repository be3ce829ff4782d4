"""Checkpoints that are whole or refused: tensors and a JSON with their checksums, written beside, then moved.

checkpoint/            the newest: model, ema and optimizer .safetensors, state.json
checkpoint.previous/   the one before, for the case that the newest is damaged
checkpoint.new/        being written
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from noisewise.errors import SettingError
from noisewise.files import load_tensors, read_json, sha256_file, write_json

FORMAT = 1
Tensors = Mapping[str, Mapping[str, torch.Tensor]]


def save_checkpoint(workspace: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Replace the checkpoint; at every moment a whole one lies on the disk.

    Args:
        tensors: by file name, e.g. {"model": {parameter: tensor}}.
        state: JSON values, exactly restored.
    """
    newest, previous, beside = _places(workspace)
    try:
        with writing(workspace / "checkpoint"):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            checksums = {}
            for name, group in tensors.items():
                path = beside / f"{name}.safetensors"
                save_file({key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}, path)
                _sync(path)
                checksums[path.name] = sha256_file(path)
            body = {"format": FORMAT, **state, "files": checksums}
            write_json(beside / "state.json", {**body, "digest": _digest(body)})
            shutil.rmtree(previous, ignore_errors=True)
            if newest.exists():
                newest.rename(previous)
            beside.rename(newest)
    except SettingError:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def load_checkpoint(workspace: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]] | None:
    """The newest whole checkpoint, or None where there is none.

    A damaged one is passed over, with a warning, for the one before; without one before it is refused.
    """
    newest, previous, _ = _places(workspace)
    if not newest.exists() and not previous.exists():
        return None
    chosen, *rest = [place for place in (newest, previous) if place.exists()]
    if (damage := _damage(chosen)) is not None:
        if not rest or _damage(rest[0]) is not None:
            places = " and ".join(map(str, (chosen, *rest)))
            raise SettingError(f"{damage}; delete {places} to train from the start")
        warnings.warn(f"{damage}; going on from the checkpoint before it", stacklevel=2)
        chosen = rest[0]
    state = read_json(chosen / "state.json", "checkpoint")
    return {Path(name).stem: load_tensors(chosen / name) for name in state["files"]}, state


def finish_move(workspace: Path) -> None:
    """Put a whole new checkpoint in its place where a process ended between the two moves; for one process to call."""
    newest, _, beside = _places(workspace)
    if beside.exists() and _damage(beside) is None and (not newest.exists() or _damage(newest) is not None):
        shutil.rmtree(newest, ignore_errors=True)
        beside.rename(newest)


def drop_previous(workspace: Path) -> None:
    """Free the older checkpoint's space."""
    shutil.rmtree(_places(workspace)[1], ignore_errors=True)


def has_checkpoint(workspace: Path | None) -> bool:
    return workspace is not None and any(place.exists() for place in _places(workspace)[:2])


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a full or read-only disk into one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingError(f"{path}: cannot be written ({reason}); what lay there before is untouched") from error


def _places(workspace: Path) -> tuple[Path, Path, Path]:
    return tuple(workspace / f"checkpoint{suffix}" for suffix in ("", ".previous", ".new"))  # type: ignore[return-value]


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None where it is whole."""
    path = folder / "state.json"
    try:
        state = read_json(path, "checkpoint")
        digest = state.pop("digest")
        if digest != _digest(state) or state["format"] != FORMAT:
            return f"checkpoint: {path} was altered (its checksum differs)"
    except (SettingError, AttributeError, KeyError, TypeError):
        return f"checkpoint: {path} is missing, cut short or altered"
    for name, checksum in state["files"].items():
        if not (folder / name).exists():
            return f"checkpoint: {folder / name} is missing"
        if sha256_file(folder / name) != checksum:
            return f"checkpoint: {folder / name} was cut short or altered (its checksum differs)"
    return None


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
