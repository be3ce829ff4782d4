"""How the loss runs while a model trains: over images, and by ranges of timesteps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class TrainStep:
    """Where a training stands; the loss is the mean since the last record."""

    images_seen: int
    loss: float
    learning_rate: float
    images_per_second: float
    bins: tuple[float | None, ...]  # mean loss per range of noise levels; None: no image fell into it

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bins": list(self.bins)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainStep:
        return cls(**{**values, "bins": tuple(values["bins"])})


class LossBins:
    """Sums of losses per range of noise levels, kept on the device so that no step waits for it.

    Args:
        edges: [bins + 1] coordinates, ascending; what lies beyond them counts to the outermost bins.
    """

    def __init__(self, edges: Sequence[float], device: torch.device) -> None:
        self.edges = tuple(edges)
        wide = torch.float32 if device.type == "mps" else torch.float64
        self._inner = torch.tensor(self.edges[1:-1], dtype=wide, device=device)  # [bins - 1]
        self._sums = torch.zeros(2, len(self.edges) - 1, device=device)  # losses, images

    def add(self, t: torch.Tensor, loss: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        """Count losses [B] at coordinates [B]; a loss that was multiplied by a weight [B] counts as so many images."""
        index = torch.bucketize(t.to(self._inner.dtype), self._inner, right=True)  # [B]
        images = torch.ones_like(loss) if weight is None else weight.to(loss.dtype)  # [B]
        self._sums.index_add_(1, index, torch.stack([loss.detach(), images]))

    def sums(self, reduce: Callable[[torch.Tensor], torch.Tensor] | None = None) -> list[list[float]]:
        """Losses and images per bin; waits for the device. ``reduce`` sums over processes."""
        return (self._sums if reduce is None else reduce(self._sums.clone())).tolist()

    def clear(self) -> None:
        self._sums.zero_()

    def load(self, sums: list[list[float]]) -> None:
        self._sums.copy_(torch.tensor(sums))


def means(sums: list[list[float]]) -> tuple[float | None, tuple[float | None, ...]]:
    """Mean loss over all images and per bin, from losses and images per bin; None where there was no image."""
    losses, images = sums
    mean = sum(losses) / sum(images) if sum(images) else None
    return mean, tuple(loss / n if n else None for loss, n in zip(losses, images, strict=True))
