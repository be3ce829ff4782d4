"""Exponential moving average of weights, its half-life counted in images (as EDM does, arXiv:2206.00364)."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Ema:
    """Averaged copies of parameters.

    Args:
        parameters: the trained parameters by name, on their final device.
        halflife_images: images after which a past weight counts half; 0 keeps no average.
        rampup: the half-life is at most this fraction of the images seen so far; None switches that off.
    """

    def __init__(
        self, parameters: Mapping[str, torch.Tensor], halflife_images: float, rampup: float | None = 0.05
    ) -> None:
        self.halflife_images, self.rampup = halflife_images, rampup
        self._parameters = {name: parameter.detach() for name, parameter in parameters.items()}  # shares the storage
        self.weights = dict(self._parameters)  # the average; without one, the parameters themselves
        if halflife_images > 0:
            self.weights = {name: parameter.clone() for name, parameter in self._parameters.items()}
        self._pairs = (list(self.weights.values()), list(self._parameters.values()))

    def decay(self, images_seen: int, num_images: int) -> float:
        """What remains of the old average after a step of ``num_images`` that ended at ``images_seen``."""
        if self.halflife_images <= 0:
            return 0.0
        halflife = float(self.halflife_images)
        if self.rampup is not None:
            halflife = min(halflife, self.rampup * images_seen)
        return 0.5 ** (num_images / max(halflife, 1e-8))

    @torch.no_grad()
    def update(self, images_seen: int, num_images: int) -> None:
        """Take in the parameters as they are after a step."""
        if self.halflife_images > 0:
            averages, parameters = self._pairs
            torch._foreach_lerp_(averages, parameters, 1 - self.decay(images_seen, num_images))

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, average in self.weights.items():
            average.copy_(weights[name])

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Overwrite the parameters with their average."""
        for name, parameter in self._parameters.items():
            if parameter is not self.weights[name]:
                parameter.copy_(self.weights[name])
