"""What surrounds the loop: arguments checked, accelerate set up and cleaned away, the identity of a training."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noisewise.errors import SettingError
from noisewise.models.experts import ExpertDenoiser
from noisewise.objectives import ImageSource, Objective
from noisewise.training.labels import Dropout, own_dropout_off
from noisewise.training.levels import Levels
from noisewise.training.optimizer import make_optimizer
from noisewise.training.settings import TrainSettings


def check_arguments(
    objective: Objective,
    data: ImageSource,
    settings: TrainSettings,
    levels: Levels,
    teacher: nn.Module | None,
    snapshots: Sequence[int],
    workspace: Path | None,
) -> None:
    """Refuse what cannot work, warn of what would be ignored."""
    levels.check(objective)
    if len(data) == 0:
        raise SettingError("data: there are no images to train on")
    if settings.distill_weight > 0 and teacher is None:
        raise SettingError(f"distill_weight: {settings.distill_weight} given without a teacher model")
    if teacher is not None and settings.distill_weight == 0:
        warnings.warn("a teacher is ignored while distill_weight is 0", stacklevel=3)
    if levels.timesteps is None and settings.all_timesteps_share > 0:
        warnings.warn("all_timesteps_share is ignored where all timesteps are trained anyway", stacklevel=3)
    beyond = [n for n in snapshots if not 0 < n <= settings.num_images]
    if beyond:
        raise SettingError(f"snapshots: {beyond[0]} is not between 1 and num_images, {settings.num_images}")
    if snapshots and workspace is None:
        raise SettingError("snapshots: need a workspace to be written to")


@contextmanager
def prepared(
    model: nn.Module, settings: TrainSettings, teacher: nn.Module | None
) -> Iterator[tuple[Any, nn.Module, Any]]:
    """Accelerator, wrapped model and optimizer; afterwards the model, threads and random numbers are as before."""
    # with several processes, one may hold no sample of some group, so that its expert gets no gradient there
    accelerator = _accelerator(settings, some_unused=isinstance(model, ExpertDenoiser))
    if settings.batch_size % accelerator.num_processes:
        raise SettingError(
            f"batch_size: {settings.batch_size} cannot be split evenly over {accelerator.num_processes} processes"
        )
    device, own = accelerator.device, set(vars(model))
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if settings.num_threads is not None:
                torch.set_num_threads(settings.num_threads)
            if teacher is not None:
                teacher.to(device).eval()
            model.to(device)
            optimizer = make_optimizer((p for p in model.parameters() if p.requires_grad), settings)
            wrapped, optimizer = accelerator.prepare(model, optimizer)
            with own_dropout_off(model):
                yield accelerator, wrapped, optimizer
    finally:
        torch.set_num_threads(threads)
        for name in set(vars(model)) - own:  # accelerate's mixed-precision forward, bound to the instance
            delattr(model, name)
        model.zero_grad(set_to_none=True)
        if device.type != "cpu":
            accelerator.free_memory()


def _accelerator(settings: TrainSettings, some_unused: bool) -> Any:
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state:  # an earlier training in this process may have used another precision
        AcceleratorState._reset_state()
    try:
        handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if some_unused else []
        accelerator = Accelerator(
            mixed_precision=settings.mixed_precision, cpu=_processes_on_cpu(), kwargs_handlers=handlers
        )
        if settings.mixed_precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError("it needs a GPU; bf16 runs on a CPU")
        return accelerator
    except (ValueError, ImportError) as error:
        raise SettingError(f"mixed_precision: {settings.mixed_precision} is not possible here ({error})") from None


def _processes_on_cpu() -> bool:
    """Whether torchrun started several processes on a machine without GPU; accelerate sees them only when told."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and not torch.cuda.is_available() and not torch.backends.mps.is_available()


def fingerprint(
    model: nn.Module,
    objective: Objective,
    data: ImageSource,
    settings: TrainSettings,
    names: Sequence[object],
    levels: Levels,
    has_teacher: bool,
    horizontal_flip: bool,
    num_processes: int,
    drop_labels: Dropout | None = None,
) -> dict[str, Any]:
    """Everything a checkpoint depends on, as JSON: a run may only go on where all of it is the same."""
    shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    return {
        "settings": settings.model_dump(mode="json", exclude={"checkpoint_images"}),
        "objective": objective.to_dict(),
        "names": [repr(name) for name in names],
        **levels.to_dict(),
        "data": getattr(data, "fingerprint", None) or len(data),
        "network": hashlib.sha256(repr(shapes).encode()).hexdigest(),
        "teacher": has_teacher,
        "horizontal_flip": horizontal_flip,
        "num_processes": num_processes,
        "label_dropout": None if drop_labels is None else drop_labels.probability,
    }


def same_run(then: dict[str, Any], now: dict[str, Any], checkpoint: Path) -> None:
    """Refuse to go on from another training's checkpoint, naming what differs."""
    then, now = (dict(given) | {f"settings.{k}": v for k, v in given["settings"].items()} for given in (then, now))
    differing = [name for name in now if name != "settings" and then.get(name) != now[name]]
    if differing == ["num_processes"]:
        warnings.warn(
            f"going on with {now['num_processes']} processes instead of {then['num_processes']}: images are drawn "
            "in another order than without the interruption",
            stacklevel=2,
        )
    elif differing:
        raise SettingError(
            f"checkpoint: {checkpoint} belongs to another training ({', '.join(differing)} differ); "
            "delete it or train into another folder"
        )
