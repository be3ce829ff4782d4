"""One job on one model, outside of any run: plan, prune, sample."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from noisewise.errors import SettingError
from noisewise.files import disk_errors, write_json
from noisewise.models.loading import load_denoiser, save_pipeline
from noisewise.models.networks import describe, known_network
from noisewise.models.sources import find_source, has_more_than_denoiser, save_in_place_of
from noisewise.planning.plan import Plan
from noisewise.pruning.settings import SearchSettings, TimingSettings
from noisewise.pruning.time_budget import Budget
from noisewise.sampling.guidance import Guidance
from noisewise.sampling.kinds import SchedulerKind
from noisewise.schedule import NoiseSchedule
from noisewise.workflow import measure
from noisewise.workflow.explain import explain
from noisewise.workflow.foundation import make_schedule
from noisewise.workflow.looking import as_learned
from noisewise.workflow.machine import device
from noisewise.workflow.networks import make_objective
from noisewise.workflow.plan_settings import PlanSettings, Section
from noisewise.workflow.plans import plan_of_schedule, unused_notes
from noisewise.workflow.prompts import CAPTIONS, captions_file, grid_columns, in_turn, told_prompts
from noisewise.workflow.recipe import Recipe, apply_overrides

USUAL_SAMPLER: dict[str, SchedulerKind] = {"vp": "ddim", "edm": "edm-heun", "flow": "flow-euler"}
DECODE_BATCH = 16  # latents of a pipeline decoded at once
PREDICTION = {"vp": None, "edm": "edm", "flow": "velocity"}  # None: the scheduler says it


class _PlanOfModel(Section):
    """What `--set` may change when a model is planned for without a recipe."""

    plan: PlanSettings = PlanSettings()


@dataclass(frozen=True)
class Planned:
    """A plan with what it means for a network."""

    plan: Plan
    macs: int  # of one forward pass of the base on one image
    parameters: int
    scheduler: Any
    num_inference_steps: int
    costs: Sequence[int | None] | None = None  # [N] MACs of each group's way, where they are known and no limits
    resident: int = 0  # parameters of those ways together
    guidance: Guidance = field(default_factory=Guidance)
    notes: Sequence[str] = ()  # beside the plan's own


def plan_model(
    folder: Path, overrides: Sequence[str], sampler: SchedulerKind | None, num_inference_steps: int
) -> Planned:
    """A plan for an existing model by its own noise schedule."""
    from noisewise.models.cost import count_parameters

    model, scheduler = load_denoiser(folder)
    if scheduler is None:
        raise SettingError(f"{folder}: has no scheduler; give the folder of a pipeline, or a recipe with `model.from`")
    raw = apply_overrides({}, overrides)
    try:
        settings = _PlanOfModel.model_validate(raw).plan
    except ValidationError as error:
        raise SettingError(explain(error, _PlanOfModel)) from None
    schedule = NoiseSchedule.from_scheduler(scheduler)
    chosen = sampler_for(sampler, scheduler)
    if settings.looks_at_data:
        raise SettingError(f"plan.method: {settings.method} looks at training images; give a recipe, which names them")
    visited = schedule.visited(chosen, num_inference_steps)
    plan = plan_of_schedule(settings, schedule, visited)
    macs, notes = measure.macs_of(model), unused_notes(plan, visited)
    return Planned(plan, macs, count_parameters(model), chosen, num_inference_steps, notes=notes)


def sampler_for(kind: SchedulerKind | None, scheduler: Any, latent: bool = False) -> Any:
    """A sampler for the network of a pipeline with ``scheduler``: the one named, or its noise schedule's usual one."""
    from noisewise.sampling.kinds import family, kinds_of
    from noisewise.sampling.schedulers import build_scheduler

    schedule = NoiseSchedule.from_scheduler(scheduler).kind
    kind = kind or USUAL_SAMPLER[schedule]
    if family(kind) != schedule:
        allowed = ", ".join(kinds_of(schedule))
        raise SettingError(f"sampler: {kind} does not sample the pipeline's {schedule} schedule; allowed: {allowed}")
    prediction_type: Any = PREDICTION[schedule] or scheduler.config.get("prediction_type", "epsilon")
    return build_scheduler(kind, scheduler, prediction_type, latent=latent)


def prune_model(
    folder: Path,
    budget: Budget,
    out: Path,
    importance: str,
    recipe: Recipe | None,
    timesteps: tuple[int, int] | None,
    seed: int,
    proposer: SearchSettings | None = None,
    log: Callable[[str], None] = lambda line: None,
    *,
    depth: bool = False,
    timing: TimingSettings | None = None,
) -> Any:
    """Prune one model to one budget and save it; with a recipe its images and objective score the channels.

    With a proposer its candidates are measured on those images too, and ``log`` takes a line for each; whether whole
    blocks may be left out then stands in its settings, and else in ``depth``.
    """
    check_new(out)
    if proposer is not None:
        proposer.check_ready()
    source = folder = find_source(folder)
    model, scheduler = load_denoiser(folder)
    needed = _looked_at(importance, recipe, timesteps, scheduler, proposer is not None)
    if "images" in needed:
        needed["images"] = as_learned(source, model, needed["images"])
    model = model.to(device())
    names = ("recovery", "num_recovery_images")
    recovery = {} if recipe is None else {name: getattr(recipe.prune, name) for name in names}
    timing = timing or TimingSettings()
    records = None
    if proposer is None:
        from noisewise.pruning.prune import prune_to_budget

        inputs = describe(model).example_inputs(model)
        looking = {"depth": depth, "timing": timing, "seed": seed, **needed, **recovery}
        small, info = prune_to_budget(model, inputs, budget, importance, **looking)  # type: ignore[arg-type]  # the kind is checked where it is used
    else:
        from noisewise.workflow.proposing import search_model

        assert recipe is not None
        found, records = search_model(
            model,
            budget,
            proposer,
            out,
            importance=importance,
            recipe=recipe,
            timing=timing,
            seed=seed,
            log=log,
            **needed,
        )
        small, info = found.model, found.info
    small = small.to("cpu")
    with whole_folder(out) as folder:
        if scheduler is None:
            small.save_pretrained(folder)
        else:
            _save_like(source, small, scheduler, folder)
        said = {} if records is None else {"proposed": found.proposed, "proposer": dict(found.account)}
        write_json(folder / "pruning.json", {**info.to_dict(), **said})
        if records is not None:
            shutil.copytree(records, folder, dirs_exist_ok=True)
    if records is not None:
        shutil.rmtree(records)
    return info


def _save_like(source: Path, small: Any, scheduler: Any, folder: Path) -> None:
    """A pipeline of the kind in ``source`` with another network."""
    if has_more_than_denoiser(source):
        save_in_place_of(small, source, folder)
    else:
        save_pipeline(small, scheduler, folder)


def _looked_at(
    importance: str, recipe: Recipe | None, timesteps: tuple[int, int] | None, scheduler: Any, searching: bool
) -> dict[str, Any]:
    """Objective, images and timesteps, where anything looks at them."""
    asking = "--proposer" if searching else f"--importance {importance}"
    recovering = recipe is not None and recipe.prune.recovery != "none"
    if not searching and not recovering and importance not in ("taylor", "diff-pruning"):
        for option, given in (("--timesteps", timesteps), ("--recipe", recipe)):
            if given is not None:
                raise SettingError(f"{option}: {importance} importance would ignore it; use taylor or diff-pruning")
        return {}
    if recipe is None:
        rest = "" if searching else ", or use magnitude or random"
        raise SettingError(f"{asking}: it looks at images; name a recipe with their `data` by --recipe{rest}")
    from noisewise.data.load import load_data

    schedule = make_schedule(recipe.schedule, scheduler)
    return {
        "objective": make_objective(recipe.objective, schedule),
        "images": load_data(recipe.data).train,
        "timesteps": timesteps,
    }


def sample_model(
    folder: Path,
    out: Path,
    num_images: int,
    sampler: SchedulerKind | None,
    num_inference_steps: int,
    seed: int,
    batch_size: int,
    eta: float,
    progress: Callable[[float], None] | None = None,
    *,
    guidance_scale: Sequence[float] = (1.0,),
    class_labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
) -> np.ndarray:
    """Images of a model as PNG files, and a grid of the first.

    Args:
        guidance_scale: one value, or one per group of the model.
        class_labels: of the images, in turn; by default every class.
        prompts: of the images, in turn, where the pipeline makes images of text; a table of them lies beside.
    """
    from PIL import Image

    check_new(out)
    images = images_of(
        folder, num_images, sampler, num_inference_steps, seed, batch_size, eta, progress,
        guidance_scale=guidance_scale, class_labels=class_labels, prompts=prompts,
    )  # fmt: skip
    digits = len(str(num_images - 1))
    names = [f"{i:0{digits}d}.png" for i in range(num_images)]
    with whole_folder(out) as folder:
        for name, image in zip(names, images, strict=True):
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            Image.fromarray(pixels).save(folder / name)
        columns = None if prompts is None else grid_columns(len(prompts))
        (folder / measure.GRID).write_bytes(measure.png_grid(images, columns))
        if prompts is not None:
            (folder / CAPTIONS).write_text(captions_file(names, in_turn(prompts, num_images)), encoding="utf-8")
    return images


def images_of(
    folder: Path,
    num_images: int,
    sampler: SchedulerKind | None,
    num_inference_steps: int,
    seed: int,
    batch_size: int,
    eta: float,
    progress: Callable[[float], None] | None = None,
    *,
    guidance_scale: Sequence[float] = (1.0,),
    class_labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
) -> np.ndarray:
    """[num_images, C, H, W] uint8 from a model's or pipeline's folder."""
    from noisewise.sampling.sampler import sample_images

    folder = find_source(folder)
    model, scheduler = load_denoiser(folder)
    if scheduler is None:
        raise SettingError(f"{folder}: has no scheduler; give the folder of a pipeline")
    network = known_network(model)
    if network is not None and network.makes_videos:
        raise SettingError(
            f"model: the {network.name} in {folder} makes videos, which its pipeline samples; noisewise makes images"
        )
    model = model.to(device()).eval()
    decode = latent_decoder(folder)
    return sample_images(
        model,
        sampler_for(sampler, scheduler, latent=decode is not None),
        num_images,
        num_inference_steps=num_inference_steps,
        seed=seed,
        batch_size=batch_size,
        class_labels=_labels_in_turn(model, num_images, class_labels),
        **told_prompts(folder, model, prompts),
        guidance_scale=guidance_scale,
        eta=eta,
        progress=progress,
        decode=decode,
    ).numpy()


def _labels_in_turn(model: Any, num_images: int, class_labels: Sequence[int] | None) -> Any:
    """[num_images] int64: the labels asked for, else every class, over and over; None where the model has none."""
    import torch

    from noisewise.models.labels import classes_of

    classes = classes_of(model)
    if class_labels is None:
        return measure.class_labels(num_images, None if classes is None else classes.num_classes)
    if classes is None:
        raise SettingError(f"class_labels: {class_labels[0]} given; the network takes no class labels")
    classes.check(class_labels, "class_labels")
    return torch.tensor(class_labels)[torch.arange(num_images) % len(class_labels)]


def latent_decoder(folder: Path) -> Any:
    """What turns the samples of a latent pipeline's network into images; None of a pipeline of pixels."""
    from noisewise.models.autoencoder import is_latent_pipeline
    from noisewise.workflow.latent_steps import decoder

    return decoder(folder, DECODE_BATCH) if is_latent_pipeline(folder) else None


def check_new(out: Path, option: str = "--out") -> None:
    """Nothing of the user's is overwritten, and no work done that cannot be kept."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingError(f"{option} {out}: exists and is not an empty folder; name another")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise SettingError(f"{option} {out}: no folder can be made in {above}")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which appears at ``out`` when the block ends without an error."""
    out = out.absolute()
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        with disk_errors(out):
            yield beside
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
