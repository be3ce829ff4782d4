"""What the steps of the multi-stage framework (method B) do: make decoders from a trained base, stop early."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from noisewise.models.loading import load_denoiser
from noisewise.planning.plan import Plan
from noisewise.streams import stream
from noisewise.workflow.machine import device

if TYPE_CHECKING:
    from noisewise.data.images import Images
    from noisewise.data.latents import Latents
    from noisewise.workflow.executor import Job

Result = dict[str, Any]


def split_off(images: Images | Latents, one_in: int, seed: int) -> tuple[Any, Any]:
    """Images to train on, and one in ``one_in`` to decide when to stop; the same for everyone who names the seed."""
    import torch

    order = torch.randperm(len(images), generator=stream(seed, "held out"))
    num = max(1, len(images) // one_in)
    return images.subset(order[num:].sort().values), images.subset(order[:num].sort().values)


def pick(job: Job) -> Result:
    """Of a training's snapshots, the one with the least loss in its own range on images it was not trained on."""
    from noisewise.evaluation.losses import range_loss
    from noisewise.workflow.steps import MODEL, cost_of, objective_of

    settings, objective = job.settings, objective_of(job)
    _, images = split_off(job.learned().train, settings["held_out"], settings["seed"])
    losses = {}
    for done, count in enumerate(settings["snapshots"], start=1):
        model, _ = load_denoiser(job.input("source") / f"snapshot-{count}" / MODEL)
        found = range_loss(
            model.to(device()), objective, settings["timesteps"], settings["evaluate"]["num_loss_images"], images,
            seed=settings["seed"], device=device(),
        )  # fmt: skip
        losses[count] = found.mean
        job.update(done, len(settings["snapshots"]), f"loss {found.mean:.4f} after {count:,} images")
    best = min(losses, key=losses.__getitem__)
    folder = job.workspace / MODEL
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was stopped here
    shutil.copytree(job.input("source") / f"snapshot-{best}" / MODEL, folder)
    model, _ = load_denoiser(folder)
    return {
        **cost_of(model),
        "num_images": best,
        "losses": {str(count): value for count, value in losses.items()},
        "held_out_images": len(images),
    }


def decoders(job: Job) -> Result:
    """A multi-decoder network from the trained base: its encoder whole, its decoder cut to every group's cost limit."""
    from noisewise.models.networks import describe
    from noisewise.pruning.decoders import prune_decoders
    from noisewise.workflow.steps import load_model, objective_of, save_model

    settings, prune = job.settings, job.settings["prune"]
    looked_at: dict[str, Any] = {}
    if prune.importance in ("taylor", "diff-pruning") or prune.recovery != "none":
        looked_at = {
            "objective": objective_of(job), "images": job.learned().train, "timestep_stride": prune.timestep_stride
        }  # fmt: skip
    source: Any = load_model(job.input("source"))
    model, infos = prune_decoders(
        source,
        Plan.from_dict(settings["plan"]),
        describe(source).example_inputs(source),
        prune.importance,
        share_bottleneck=settings["share_bottleneck"],
        tolerance=prune.tolerance,
        recovery=prune.recovery,
        num_recovery_images=prune.num_recovery_images,
        alignment=prune.proposer.alignment,
        min_width=prune.proposer.min_width,
        depth=prune.proposer.depth,
        seed=settings["seed"],
        **looked_at,
    )
    return {**save_model(job, model), "groups": [None if info is None else info.to_dict() for info in infos]}
