"""Random streams named by what they are for, so that any part of a run can be repeated alone and resumed exactly."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(*names: object) -> int:
    """A 63-bit seed that depends on every name and on their order; names are told apart by ``repr``."""
    digest = hashlib.blake2b("\x1f".join(map(repr, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(*names: object, device: str = "cpu") -> torch.Generator:
    """A fresh generator for these names, e.g. ``stream(seed, "finetune", group, "images", images_seen)``."""
    import torch

    return torch.Generator(device).manual_seed(seed_of(*names))
