"""What a proposer that reads, such as a language model, is told beyond the numbers that all proposers see."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from noisewise.objectives import Objective
from noisewise.pruning.importance import Importances


@dataclass(frozen=True)
class Brief:
    """Gathered where a proposer's settings ask for `hints`."""

    hints: Mapping[str, Importances]  # by kind, over the group's timesteps
    snr_db: tuple[float, float]  # at the group's first and last timestep
    identity: Mapping[str, Any]  # JSON that tells this search from others: the network's checksum, group, budget ...
    workspace: Path | None  # for files of its own, which are there again when a stopped search goes on


def snr_range(objective: Objective, timesteps: Any) -> tuple[float, float]:
    """Signal-to-noise ratio in decibels at the first and last timestep of a range."""
    levels = objective.levels(timesteps)
    first, last = (float(objective.schedule.snr_db(float(levels[i]))) for i in (0, -1))
    return first, last


def identity_of(model: torch.nn.Module, **search: Any) -> dict[str, Any]:
    """What a search belongs to, as JSON: its network's weights and whatever else decides its candidates."""
    named: dict[str, Any] = json.loads(json.dumps({"model_sha256": checksum(model), **search}))
    return named


def checksum(model: torch.nn.Module) -> str:
    """SHA-256 of a network's tensors with their names, whatever device they are on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
