"""What the study of pruning scores does: cut random schemes, score each in several ways, train each a little."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.workflow.machine import device

if TYPE_CHECKING:
    from noisewise.workflow.executor import Job

SCHEME = "scheme-{}"  # folder of a scheme's network within the step
Result = dict[str, Any]


def schemes(job: Job) -> Result:
    """Networks of random widths, from a search's memory bank, and what is known of each before any training.

    Each is scored on the draws that all share, and on as many of its own; a share of the importances is lost by each.
    """
    from noisewise.models.surgery import cut
    from noisewise.pruning.prune import resolve_importance
    from noisewise.pruning.search import BANK, mean_error
    from noisewise.pruning.widths import kept_channels
    from noisewise.workflow.steps import load_model, objective_of, read_lines, without_places

    settings, prune, objective = job.settings, job.settings["prune"], objective_of(job)
    source, images = load_model(job.input("source")), job.learned().train
    looking = {"objective": objective, "images": images, "timesteps": settings["timesteps"], "seed": settings["seed"]}
    scores = resolve_importance(source, prune.importance, timestep_stride=prune.timestep_stride, **looking)
    axes = describe(source).wiring(source).axes
    paired = _draws(job, "score")
    mean_error(source, objective, paired)  # the first time is slower, whatever is scored
    found: list[Result] = []
    accepted = [record for record in read_lines(job.input("bank") / BANK) if record["accepted"]]
    if len(accepted) < 3:
        raise SettingError(f"study pruning-score: only {len(accepted)} random schemes could be cut; 3 are the least")
    for i, record in enumerate(accepted):
        started = time.perf_counter()
        kept = {
            name: kept_channels(axes[name], scores[name], width)
            for name, width in record["widths"].items()
            if width < axes[name].width
        }
        lost = 1 - _share(scores, kept, record["widths"])
        after_importance = time.perf_counter()
        small = cut(source, kept)
        loss, _ = mean_error(small, objective, paired)
        after_paired = time.perf_counter()
        unpaired, _ = mean_error(small, objective, _draws(job, "score", "of its own", i))
        cutting = after_importance - started
        found.append({
            "cost": record["cost"], "importance_lost": lost, "paired": loss, "unpaired": unpaired,
            "seconds": {"importance": cutting, "paired": after_paired - started,
                        "unpaired": cutting + time.perf_counter() - after_paired},
        })  # fmt: skip
        folder = job.workspace / SCHEME.format(i)
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was stopped here
        without_places(small).to("cpu").save_pretrained(folder / "model")
        job.update(i + 1, len(accepted), f"loss {loss:.4f}")
    return {"schemes": found}


def _share(scores: Any, kept: Any, widths: Any) -> float:
    """Of all importance of the axes that may be cut, how much the kept channels hold."""
    total = sum(float(scores[name].sum()) for name in widths)
    held = sum(float(scores[name][kept[name]].sum() if name in kept else scores[name].sum()) for name in widths)
    return held / total if total > 0 else 1.0


def _draws(job: Job, *names: object) -> Any:
    """Draws of training images that a candidate is scored on; those named "score" alone are the search's own."""
    from noisewise.workflow.steps import objective_of

    settings = job.settings
    return objective_of(job).fixed_draws(
        job.learned().train, settings["prune"].proposer.num_score_images,
        (settings["seed"], *settings["names"], *names), settings["timesteps"], device=device(),
    )  # fmt: skip


def probe(job: Job) -> Result:
    """A scheme's score on the shared draws after a few images of training, for growing numbers of them."""
    from noisewise.pruning.search import mean_error
    from noisewise.training.loop import train
    from noisewise.workflow.steps import load_model, objective_of

    settings, objective, losses, seconds = job.settings, objective_of(job), [], []
    draws = _draws(job, "score")
    for done, training in enumerate(settings["trainings"], start=1):
        started = time.perf_counter()
        model: Any = load_model(job.input("schemes") / SCHEME.format(settings["scheme"]))
        train(
            model, objective, job.learned().train, training, seed=settings["seed"], names=(*settings["names"], "probe"),
            timesteps=settings["timesteps"], horizontal_flip=settings["horizontal_flip"],
        )  # fmt: skip
        losses.append(mean_error(model, objective, draws)[0])
        seconds.append(time.perf_counter() - started)
        job.update(done, len(settings["trainings"]), f"loss {losses[-1]:.4f}")
    return {"losses": losses, "seconds": seconds}
