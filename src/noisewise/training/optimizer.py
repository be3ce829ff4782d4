"""AdamW, its learning rate as a function of images seen, and its state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from noisewise.training.settings import TrainSettings


def learning_rate(settings: TrainSettings, images_seen: int) -> float:
    """Rate of the step that ends at ``images_seen``: a linear warm-up, then a cosine to 0 or a constant."""
    warmup = settings.effective_warmup_images
    if images_seen < warmup:
        return settings.learning_rate * images_seen / warmup
    if settings.rate == "constant":
        return settings.learning_rate
    progress = (images_seen - warmup) / max(
        settings.num_images - warmup + settings.batch_size, 1
    )  # the last step counts
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(parameters: Iterable[torch.nn.Parameter], settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over parameters that already lie on their device; fused where that kernel exists."""
    parameters = list(parameters)
    fused = bool(parameters) and parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused or None
    )


def optimizer_tensors(optimizer: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """AdamW's state as {"parameter:key": tensor}; ``names`` in the optimizer's order."""
    state = optimizer.state_dict()["state"]
    return {f"{name}:{key}": value for i, name in enumerate(names) for key, value in state.get(i, {}).items()}


def load_optimizer_state(optimizer: Any, names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> None:
    """The reverse of ``optimizer_tensors``."""
    index = {name: i for i, name in enumerate(names)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(":")
        state.setdefault(index[parameter], {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
