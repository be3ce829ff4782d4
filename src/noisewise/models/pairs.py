"""Two experts the way diffusers' Wan 2.2 pipelines hold them: `transformer`, `transformer_2` and `boundary_ratio`.

The pipelines' rule: a timestep ``t >= boundary_ratio * num_train_timesteps`` goes to `transformer`, which is the one at
the noise, any other to `transformer_2`. Folders are read and written without the pipeline's text encoders.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.files import write_json
from noisewise.models.experts import ExpertDenoiser
from noisewise.models.folders import load_model_folder
from noisewise.models.loading import load_scheduler
from noisewise.models.sources import INDEX, SECOND, has_component, read_index
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import ModelMixin

PIPELINES = ("WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline", "LucyEditPipeline")  # those that take pairs
HIGH, LOW, RATIO = "transformer", SECOND, "boundary_ratio"


@dataclass(frozen=True)
class ExpertPair:
    """Two experts and where they change."""

    high: ModelMixin  # serves t >= boundary_ratio * num_train_timesteps
    low: ModelMixin
    boundary_ratio: float


def to_pair(model: ExpertDenoiser) -> ExpertPair:
    """The two experts of a router, and the ratio at which diffusers changes at exactly the router's boundary."""
    present = [group for group in model.plan.groups if not group.is_empty]
    if len(present) != 2:
        raise SettingError(f"experts: a pair has two, this model has {len(present)}")
    schedule = model.plan.schedule
    if schedule.model_timestep not in ("timestep", "flow-time"):
        raise SettingError(
            f"plan.schedule: a pair changes at a share of the training timesteps, this network is told {schedule.kind} "
            "noise levels"
        )
    low, high = (model.experts[group.index] for group in present)
    boundary = schedule.to_model_timestep(float(present[1].t_start))
    return ExpertPair(high, low, _ratio(boundary, schedule.num_train_timesteps))


def _ratio(boundary: float, num_train_timesteps: int) -> float:
    """The number that multiplied by ``num_train_timesteps`` gives ``boundary`` bit by bit, or else the least above."""
    ratio = boundary / num_train_timesteps
    while ratio * num_train_timesteps < boundary:
        ratio = math.nextafter(ratio, math.inf)
    while math.nextafter(ratio, 0) * num_train_timesteps >= boundary:
        ratio = math.nextafter(ratio, 0)
    return ratio


def from_pair(high: ModelMixin, low: ModelMixin, boundary_ratio: float, scheduler: Any) -> ExpertDenoiser:
    """One router of a pair's two experts.

    Args:
        high, low: `transformer` and `transformer_2`.
        boundary_ratio: of the pipeline, above 0 and below 1.
        scheduler: the pipeline's.
    """
    if not 0 < boundary_ratio < 1:
        raise SettingError(f"{RATIO}: {boundary_ratio} given; a number between 0 and 1 is possible")
    schedule = NoiseSchedule.from_scheduler(scheduler)
    boundary = boundary_ratio * schedule.num_train_timesteps  # as the pipelines compute it
    if schedule.is_discrete:
        start: float = math.ceil(boundary)  # timesteps are whole
    else:
        start = schedule.to_coordinate(boundary)
    return ExpertDenoiser([low, high], Plan.from_bounds(schedule, [start]))


def load_pair(folder: str | Path, **options: Any) -> tuple[ExpertDenoiser, Any]:
    """The experts of a pipeline's folder with a pair in it, in evaluation mode, and the pipeline's scheduler.

    Args:
        options: what the experts' ``from_pretrained`` takes, e.g. ``torch_dtype``.
    """
    folder, index = Path(folder), read_index(Path(folder))
    ratio = index.get(RATIO)
    missing = [name for name in (HIGH, LOW) if not has_component(index, name) or not (folder / name).is_dir()]
    if missing or not isinstance(ratio, int | float):
        lacks = missing[0] if missing else RATIO
        raise SettingError(f"model: {folder} holds no pair of experts (it has no {lacks})")
    scheduler = load_scheduler(folder / "scheduler")
    if scheduler is None:
        raise SettingError(f"model: {folder} has no scheduler")
    high, low = (load_model_folder(folder / name, **options) for name in (HIGH, LOW))
    return from_pair(high, low, float(ratio), scheduler).eval(), scheduler


def save_pair(model: ExpertDenoiser, source: str | Path, out: str | Path) -> None:
    """Write a copy of a pipeline's folder with the router's two experts as its `transformer` and `transformer_2`.

    Args:
        model: a router of two experts.
        source: folder of one of the pipelines that take pairs; its own transformers are left out.
        out: folder to write; must not exist yet.
    """
    source, out, pair = Path(source), Path(out).absolute(), to_pair(model)
    index = read_index(source)
    if index.get("_class_name") not in PIPELINES:
        raise SettingError(
            f"model: {index.get('_class_name')} takes no pair of experts; diffusers has {', '.join(PIPELINES)}"
        )
    if out.exists():
        raise SettingError(f"out: {out} exists already; name another folder")
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        shutil.copytree(source, beside, ignore=lambda at, _: (HIGH, LOW) if Path(at) == source else ())
        for name, expert in ((HIGH, pair.high), (LOW, pair.low)):
            expert.save_pretrained(beside / name)
            index[name] = [_library(expert), type(expert).__name__]
        write_json(beside / INDEX, {**index, RATIO: pair.boundary_ratio})
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _library(expert: ModelMixin) -> str:
    return type(expert).__module__.partition(".")[0]
