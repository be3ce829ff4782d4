"""How a number came to be: versions, machine, command, in words that hold on another machine."""

from __future__ import annotations

import platform
import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from noisewise.workflow.machine import available_cores

PACKAGES = ("noisewise", "torch", "diffusers", "accelerate", "safetensors", "numpy", "scipy")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def command() -> str:
    """The command given, without the folders of this machine."""
    words = [re.sub(r"(^|=)/(\S*/)?", r"\1", word) for word in sys.argv[1:]]
    return " ".join(["noisewise", *words])


def machine() -> str:
    """The machine in general words."""
    import torch

    cores = available_cores()
    words = f"{cores} core{'s' if cores != 1 else ''}, {platform.machine()} CPU"
    if torch.cuda.is_available():
        words += f", {torch.cuda.get_device_name(0)}"
    return words


def provenance() -> dict[str, Any]:
    """What a step's record says of its making."""
    return {"versions": versions(), "machine": machine(), "command": command()}
