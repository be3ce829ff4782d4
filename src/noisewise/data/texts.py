"""What a text-conditioned denoiser is told of each image of a set: encoded once per different caption, memory-mapped.

Shapes: N = images, B = batch, U = different captions, L = tokens, D = width of the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Told: TypeAlias = torch.Tensor | Mapping[str, Any] | None  # class labels [B], or by the names of forward's arguments
NESTED = "."  # between an argument's name and a key inside of it, as in "added_cond_kwargs.time_ids"


@dataclass(frozen=True, eq=False)
class Texts:
    """One split's captions as its denoiser is told them."""

    table: Mapping[str, torch.Tensor]  # flat names -> [U, ...], e.g. encoder_hidden_states [U, L, D]
    rows: torch.Tensor  # [N] int64, which entry of the table is an image's
    null: Mapping[str, torch.Tensor]  # the same names -> [1, ...]: of no caption
    fingerprint: str  # sha256 of captions, encoder and file

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, indices: torch.Tensor, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Of some images [B], by forward's arguments: float32 on ``device``, [B, ...] each."""
        chosen = self.rows[indices]
        return nested({name: values[chosen].to(device).float() for name, values in self.table.items()})

    def of_none(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The same of no caption, [1, ...] each."""
        return nested({name: values.to(device).float() for name, values in self.null.items()})

    def subset(self, chosen: torch.Tensor) -> Texts:
        """Of some images, in the order given; the table stays where it is."""
        digest = hashlib.sha256(f"{self.fingerprint} {chosen.tolist()}".encode()).hexdigest()
        return Texts(self.table, self.rows[chosen], self.null, digest)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat names to forward's arguments, which may be dictionaries."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        argument, _, key = name.partition(NESTED)
        if key:
            found.setdefault(argument, {})[key] = value
        else:
            found[argument] = value
    return found


def flat(told: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `nested`."""
    found: dict[str, Any] = {}
    for name, value in told.items():
        inside = value.items() if isinstance(value, Mapping) else [("", value)]
        found |= {f"{name}{NESTED}{key}" if key else name: each for key, each in inside}
    return found
