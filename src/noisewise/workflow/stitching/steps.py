"""What the steps of a sweep of switch points do: losses of one network, images and distances of a stitched one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.files import write_atomic
from noisewise.models.stitch import stitch
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule
from noisewise.workflow import measure
from noisewise.workflow.looking import as_learned
from noisewise.workflow.machine import device
from noisewise.workflow.networks import make_objective
from noisewise.workflow.prompts import told_prompts
from noisewise.workflow.single import DECODE_BATCH, latent_decoder

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from noisewise.workflow.executor import Job

Result = dict[str, Any]


def load(network: Mapping[str, Any]) -> ModelMixin:
    """One of the two networks, from where the user has it."""
    from noisewise.models.loading import load_denoiser

    return load_denoiser(Path(network["from"]))[0]


def stitch_loss(job: Job) -> Result:
    """Held-out loss of one network in each range between two switch points, on the draws that both networks see."""
    from noisewise.evaluation.losses import range_loss

    settings = job.settings
    schedule = NoiseSchedule.from_dict(settings["schedule"])
    objective = make_objective(settings["objective"], schedule)
    plan = Plan.from_bounds(schedule, settings["bounds"])
    model = load(settings["network"]).to(device()).eval()
    images = as_learned(Path(settings["network"]["from"]), model, job.dataset().test, DECODE_BATCH)
    num_images = settings["evaluate"]["num_loss_images"]
    losses = []
    for group in plan.groups:
        found = range_loss(
            model, objective, (group.t_start, group.t_stop), num_images, images, settings["seed"], device=device()
        )
        losses.append({"mean": found.mean, "standard_error": found.standard_error, "share": _share(plan, group.index)})
        job.update(group.index + 1, len(plan.groups))
    return {"bounds": [[group.t_start, group.t_stop] for group in plan.groups], "ranges": losses}


def _share(plan: Plan, group: int) -> float:
    """The range's part of all timesteps, flow times or log sigmas."""
    return plan.groups[group].num_timesteps / plan.num_train_timesteps


def stitch_sample(job: Job) -> Result:
    """Images of the two networks stitched at one switch point (or of one alone), their cost and their distances."""
    from noisewise.evaluation.features import Features

    settings = job.settings
    model = _stitched(settings).to(device()).eval()
    total, steps = settings["sample"]["num_images"], settings["num_inference_steps"]
    started = time.perf_counter()
    pipeline = Path(settings["networks"]["large"]["from"])  # whose other components are the small one's too
    made = {"decode": latent_decoder(pipeline), **_told(job, pipeline, model)}
    images = measure.draw_images(model, settings, total, steps, lambda done: job.update(int(done), total), **made)
    seconds = time.perf_counter() - started
    write_atomic(job.workspace / measure.GRID, measure.png_grid(images))
    features = Features.of(
        measure.extractor_of(settings), images, model=job.step.id, sampler=str(settings["scheduler"]),
        num_inference_steps=steps, seed=settings["sample"]["seed"],
    )  # fmt: skip
    cost = measure.image_cost(model, settings, steps)
    reference = measure.load_features(job.input("reference"))
    return {**cost, **measure.scores(features, reference), "seconds": round(seconds, 3)}


def _told(job: Job, pipeline: Path, model: Any) -> dict[str, Any]:
    """Captions of the images that samples are compared with, where the networks are told any."""
    if "captions" not in job.settings:
        return {}
    sample = job.settings["sample"]
    real = measure.chosen(job.dataset().test, sample["num_images"], sample["seed"])
    return told_prompts(pipeline, model, real.captions)


def _stitched(settings: Mapping[str, Any]) -> ModelMixin:
    """What serves ``small_calls`` of the calls by the small network and the others by the large one."""
    networks, t = settings["networks"], settings["t"]
    if t is None:
        return load(networks["small" if settings["small_calls"] else "large"])
    schedule = NoiseSchedule.from_dict(settings["schedule"])
    return stitch(load(networks["small"]), load(networks["large"]), schedule, t, settings["small_at"])
