"""How a denoiser is called, whatever its architecture calls its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from noisewise.errors import SettingError
from noisewise.models.networks import known_network


def denoise(
    model: Callable[..., Any],
    x_t: torch.Tensor,
    t: torch.Tensor | int | float,
    class_labels: torch.Tensor | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """A denoiser's raw output, [B, C or 2C, H, W]: of a diffusers network, or of any callable that returns a tensor.

    Class labels reach only models that embed them; for others they are the evaluation's business.

    Args:
        conditions: what else forward is told of each sample, by the names of its arguments: text, for one.
    """
    keywords = dict(conditions or {})
    if takes_class_labels(model):
        if class_labels is None:
            raise SettingError("data: the model is conditioned on classes, and these images have no labels")
        keywords["class_labels"] = class_labels
    network = known_network(model)
    if network is None:
        output = model(x_t, t, **keywords)
    else:
        for name in network.conditions:
            if name not in keywords:
                raise SettingError(f"data: a {network.name} is told {name} of every image, and these come without")
        output = model(**{network.image: x_t, "timestep": network.timesteps(t, x_t)}, **keywords)
    return output if isinstance(output, torch.Tensor) else output.sample


def takes_class_labels(model: Callable[..., Any]) -> bool:
    """Whether the model embeds class labels; a wrapper for several processes is looked through."""
    model = getattr(model, "module", model)
    network = known_network(model)
    if network is not None:
        return network.takes_class_labels(model)
    if getattr(model, "class_embedding", None) is not None:
        return True
    config = getattr(model, "config", None)
    return any(getattr(config, name, None) is not None for name in ("num_class_embeds", "class_embed_type"))
