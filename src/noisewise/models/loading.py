"""A denoiser and its scheduler from a folder that diffusers or noisewise wrote, and back into one."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.files import read_json
from noisewise.models.folders import load_model_folder
from noisewise.models.sources import INDEX, component_of, find_source, holds_two, read_index

if TYPE_CHECKING:
    from diffusers import ModelMixin, SchedulerMixin


def load_denoiser(path: str | Path, **options: Any) -> tuple[ModelMixin, SchedulerMixin | None]:
    """The model in a pipeline's or a model's folder, in evaluation mode, and the scheduler if there is one.

    Args:
        path: a local folder with model_index.json (a pipeline: its ``unet`` or ``transformer``, and ``scheduler``, are
            taken) or with config.json (a bare model); or a name on the Hub. Components may lie in folders of their own
            or beside model_index.json. A pipeline with two transformers gives a router of both.
        options: what the model's ``from_pretrained`` takes, e.g. ``torch_dtype``.
    """
    folder = find_source(path)
    if holds_two(folder):
        from noisewise.models.pairs import load_pair

        return load_pair(folder, **options)
    name = component_of(folder, read_index(folder)) if (folder / INDEX).is_file() else ""
    model = load_model_folder(_component(folder, name) if name else folder, **options)
    _check_known(model)
    return model, load_scheduler(_component(folder, "scheduler"))


def save_pipeline(model: ModelMixin, scheduler: SchedulerMixin, path: str | Path) -> None:
    """Write a stock pipeline's folder: a `DDPMPipeline`, which takes DDIM too, and another scheduler swapped in.

    (`DDIMPipeline` replaces any other scheduler by DDIM, and cannot run one that is swapped in: it passes it ``eta``.)
    A scheduler that rescales the network's input gets a `ConsistencyModelPipeline`, the stock one that asks for it: a
    `DDPMPipeline` would run and give wrong images. So does a network of classes: it is the one that tells them.
    """
    from diffusers import ConsistencyModelPipeline, DDPMPipeline

    from noisewise.models.calls import takes_class_labels

    is_plain = not _rescales(scheduler) and not takes_class_labels(model)
    kind = DDPMPipeline if is_plain else ConsistencyModelPipeline
    kind(unet=model, scheduler=scheduler).save_pretrained(path)


def _rescales(scheduler: Any) -> bool:
    """Whether the network's input is another than the sample that steps are taken on."""
    import torch

    if not hasattr(scheduler, "scale_model_input"):  # flow matching
        return False
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(2)
    sample = torch.ones(1)
    return not torch.equal(scheduler.scale_model_input(sample, scheduler.timesteps[0]), sample)


def _component(folder: Path, name: str) -> Path:
    """A component's folder: its own if it has one, otherwise the pipeline's, as older pipelines have it."""
    return folder / name if (folder / name).is_dir() else folder


def _check_known(model: ModelMixin) -> None:
    from noisewise.models.experts import ExpertDenoiser
    from noisewise.models.networks import describe

    for part in model.experts if isinstance(model, ExpertDenoiser) else [model]:
        if part is not None:
            describe(part)


def load_scheduler(folder: Path) -> SchedulerMixin | None:
    """The scheduler in a folder, of noisewise or diffusers and nowhere else; None where there is none."""
    import diffusers

    import noisewise

    path = folder / "scheduler_config.json"
    if not path.is_file():
        return None
    config = read_json(path, "model.scheduler")
    name = str(config.get("_class_name")) if isinstance(config, dict) else ""
    kind: Any = getattr(noisewise if name in noisewise.__all__ else diffusers, name, None)
    if not inspect.isclass(kind) or not issubclass(kind, diffusers.SchedulerMixin):
        raise SettingError(f"model.scheduler: {path} does not name a diffusers scheduler (_class_name)")
    try:
        scheduler: SchedulerMixin = kind.from_pretrained(folder)  # type: ignore[attr-defined]
    except Exception as error:  # diffusers checks few settings itself, so that one it cannot use may end in any error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingError(f"model.scheduler: {path} cannot be used ({reason})") from error
    return scheduler
