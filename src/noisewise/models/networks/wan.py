"""How diffusers' `WanTransformer3DModel` (video, text cross-attention, flow matching) is called: enough to route it.

Its axes are not declared, so that it can be neither pruned nor counted.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from diffusers import ModelMixin, WanTransformer3DModel

from noisewise.errors import SettingError
from noisewise.models.networks.network import Network

FRAMES, SIZE, TEXT_LENGTH = 1, 16, 8  # of example inputs


def wiring(model: ModelMixin) -> NoReturn:
    raise SettingError(f"model: {type(model).__name__} can be routed, saved and loaded, but its channels not be pruned")


def example_inputs(model: Any, batch_size: int = 1) -> dict[str, Any]:
    config, place = model.config, {"device": model.device, "dtype": model.dtype}
    return {
        "hidden_states": torch.zeros(batch_size, config.in_channels, FRAMES, SIZE, SIZE, **place),  # [B, C, F, H, W]
        "timestep": torch.zeros(batch_size, device=model.device),  # [B]
        "encoder_hidden_states": torch.zeros(batch_size, TEXT_LENGTH, config.text_dim, **place),  # [B, L, E]
    }


WAN = Network(
    kind=WanTransformer3DModel,
    shaped=WanTransformer3DModel,
    component="transformer",
    wiring=wiring,
    example_inputs=example_inputs,
    arguments=(
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_hidden_states_image",
        "return_dict",
        "attention_kwargs",
    ),
    batch_arguments=("hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_image"),
    conditions=("encoder_hidden_states",),
    pipeline_attributes=("patch_size", "in_channels", "out_channels", "image_dim"),
    pipeline_modules=("cache_context",),
    timestep_per_sample=True,
    makes_videos=True,
)
