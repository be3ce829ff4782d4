"""What this process runs on: its cores, its rank among several processes, its device."""

from __future__ import annotations

import os


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_rank() -> int:
    """This process's rank under `accelerate launch` or torchrun; 0 where it was started alone."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """Processes that `accelerate launch` or torchrun started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> str:
    """Where work is done: CUDA (each of several processes its own), Apple, or CPU, whichever is there."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "mps" if torch.backends.mps.is_available() else "cpu"
