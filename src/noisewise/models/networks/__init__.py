"""What the tool knows of each architecture. Nobody else tests for a class: ask `describe`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noisewise.errors import SettingError
from noisewise.models.networks.network import Network

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Network", "describe"]


def describe(model: nn.Module) -> Network:
    """The architecture of ``model``: a diffusers ``UNet2DModel``, or a ``ShapedUNet2DModel`` cut from one."""
    from diffusers import UNet2DModel

    from noisewise.models.networks.unet2d import UNET2D

    if isinstance(model, UNet2DModel):
        return UNET2D
    raise SettingError(
        f"model: {type(model).__name__} is not a network noisewise knows; it knows UNet2DModel and ShapedUNet2DModel"
    )
