"""How the loss runs while a model trains: over images, and by ranges of timesteps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

NUM_BINS = 20


@dataclass(frozen=True)
class TrainStep:
    """Where a training stands; the loss is the mean since the last record."""

    images_seen: int
    loss: float
    learning_rate: float
    images_per_second: float
    bins: tuple[float | None, ...]  # mean loss per equal range of timesteps; None: no image fell into it

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bins": list(self.bins)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainStep:
        return cls(**{**values, "bins": tuple(values["bins"])})


class LossBins:
    """Sums of losses per range of timesteps, kept on the device so that no step waits for it.

    Args:
        start, stop: the timesteps that are trained, half-open; cut into at most ``NUM_BINS`` equal ranges.
    """

    def __init__(self, start: int, stop: int, device: torch.device) -> None:
        self.start, self.stop = start, stop
        self.num_bins = min(NUM_BINS, stop - start)
        self._sums = torch.zeros(2, self.num_bins, device=device)  # losses, images

    @property
    def edges(self) -> tuple[float, ...]:
        """[num_bins + 1] timesteps."""
        return tuple(self.start + (self.stop - self.start) * i / self.num_bins for i in range(self.num_bins + 1))

    def add(self, t: torch.Tensor, loss: torch.Tensor) -> None:
        """Count losses [B] at timesteps [B]."""
        index = ((t - self.start) * self.num_bins) // (self.stop - self.start)  # [B]
        self._sums.index_add_(1, index, torch.stack([loss.detach(), torch.ones_like(loss)]))

    def sums(self, reduce: Callable[[torch.Tensor], torch.Tensor] | None = None) -> list[list[float]]:
        """Losses and images per range; waits for the device. ``reduce`` sums over processes."""
        return (self._sums if reduce is None else reduce(self._sums.clone())).tolist()

    def clear(self) -> None:
        self._sums.zero_()

    def load(self, sums: list[list[float]]) -> None:
        self._sums.copy_(torch.tensor(sums))


def means(sums: list[list[float]]) -> tuple[float | None, tuple[float | None, ...]]:
    """Mean loss over all images and per range, from losses and images per range; None where there was no image."""
    losses, images = sums
    mean = sum(losses) / sum(images) if sum(images) else None
    return mean, tuple(loss / n if n else None for loss, n in zip(losses, images, strict=True))
