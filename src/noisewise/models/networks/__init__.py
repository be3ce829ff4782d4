"""What the tool knows of each architecture. Nobody else tests for a class: ask `describe`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from noisewise.errors import SettingError
from noisewise.models.networks.network import Network

__all__ = ["Network", "describe", "known_network", "network_of_class"]

_HOMES = {  # diffusers' class -> where its description lies, loaded on first use
    "UNet2DModel": ("unet2d", "UNET2D"),
    "SD3Transformer2DModel": ("sd3", "SD3"),
    "DiTTransformer2DModel": ("dit", "DIT"),
    "UNet2DConditionModel": ("unet2d_condition", "UNET2D_CONDITION"),
}
NAMES = tuple(_HOMES)
_HOMES |= {"WanTransformer3DModel": ("wan", "WAN")}  # routed, saved and loaded, but not pruned


def describe(model: Any) -> Network:
    """The architecture of ``model``: a diffusers network, or a shaped one cut from it."""
    network = _network_of(model)
    if network is not None:
        return network
    if isinstance(getattr(model, "network", None), Network):
        raise SettingError(
            f"model: {type(model).__name__} given, which consists of experts; this takes one network, e.g. the "
            "folder of one of them"
        )
    raise SettingError(
        f"model: {type(model).__name__} is not a network noisewise knows; it knows {', '.join(NAMES)}, and what it cut "
        "from them itself (Shaped...)"
    )


def known_network(model: Any) -> Network | None:
    """How ``model``, a network or a router of several, is called; None where it is something else.

    Wrappers for several processes and of `torch.compile` are looked through.
    """
    model = getattr(model, "module", model)
    model = getattr(model, "_orig_mod", model)
    of_router = getattr(model, "network", None)
    return of_router if isinstance(of_router, Network) else _network_of(model)


def _network_of(model: Any) -> Network | None:
    for kind in type(model).__mro__:
        if kind.__module__.startswith("diffusers.") and kind.__name__ in _HOMES:
            return network_of_class(kind.__name__)
    return None


def network_of_class(name: str) -> Network:
    """The architecture of diffusers' class ``name``, one of ``NAMES``."""
    module, attribute = _HOMES[name]
    found: Network = getattr(import_module(f"{__name__}.{module}"), attribute)
    return found
