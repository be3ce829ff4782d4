"""What the study of pruning scores does: cut random schemes, score each in several ways, train each a little."""

from __future__ import annotations

import copy
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.workflow.machine import device

if TYPE_CHECKING:
    import torch

    from noisewise.workflow.executor import Job

SCHEME = "scheme-{}"  # folder of a scheme's network within the step
Result = dict[str, Any]


def schemes(job: Job) -> Result:
    """Networks of random widths, from a search's memory bank, and how each scores before any training."""
    from noisewise.pruning.search import BANK
    from noisewise.workflow.steps import read_lines, without_places

    accepted = [record for record in read_lines(job.input("bank") / BANK) if record["accepted"]]
    if len(accepted) < 3:
        raise SettingError(f"study pruning-score: only {len(accepted)} random schemes could be cut; 3 are the least")
    bench, found = _Bench(job), []
    for i, record in enumerate(accepted):
        small, scores, seconds = bench.measured(i, record["widths"])
        found.append({"cost": record["cost"], "scores": scores, "seconds": seconds})
        folder = job.workspace / SCHEME.format(i)
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was stopped here
        without_places(small).to("cpu").save_pretrained(folder / "model")
        job.update(i + 1, len(accepted), f"loss {scores['paired']:.4f}")
    return {"schemes": found}


class _Bench:
    """Cuts schemes from one network and scores them: on the draws that all share, on as many of their own, on the
    shared ones after recovery by least squares, and by the share of the importances that is lost."""

    def __init__(self, job: Job) -> None:
        from noisewise.pruning.prune import resolve_importance
        from noisewise.pruning.search import mean_error
        from noisewise.workflow.steps import load_model, objective_of

        settings, prune = job.settings, job.settings["prune"]
        self.job, self.objective, self.images = job, objective_of(job), job.learned().train
        self.source: Any = load_model(job.input("source"))
        self.importances = resolve_importance(
            self.source, prune.importance, objective=self.objective, images=self.images,
            timesteps=settings["timesteps"], timestep_stride=prune.timestep_stride, seed=settings["seed"],
        )  # fmt: skip
        self.axes = describe(self.source).wiring(self.source).axes
        self.shared = _draws(job, "score")
        mean_error(self.source, self.objective, self.shared)  # the first time is slower, whatever is scored

    def measured(self, number: int, widths: Mapping[str, int]) -> tuple[Any, dict[str, float], dict[str, float]]:
        """A scheme's network, its scores, and the seconds that each took, cutting included."""
        from noisewise.models.surgery import cut
        from noisewise.pruning.search import mean_error
        from noisewise.pruning.widths import kept_channels

        started = time.perf_counter()
        kept = {
            name: kept_channels(self.axes[name], self.importances[name], width)
            for name, width in widths.items()
            if width < self.axes[name].width
        }
        scores = {"importance": 1 - _share(self.importances, kept, widths)}
        seconds = {"importance": time.perf_counter() - started}
        small = cut(self.source, kept)
        cutting = time.perf_counter() - started
        ways: dict[str, Callable[[], tuple[float, float]]] = {
            "paired": lambda: mean_error(small, self.objective, self.shared),
            "unpaired": lambda: mean_error(small, self.objective, _draws(self.job, "score", "of its own", number)),
            "recovered": lambda: mean_error(self._repaired(small, kept), self.objective, self.shared),
        }
        for name, score in ways.items():
            started = time.perf_counter()
            scores[name], _ = score()
            seconds[name] = cutting + time.perf_counter() - started
        return small, scores, seconds

    def _repaired(self, small: Any, kept: Mapping[str, torch.Tensor]) -> Any:
        from noisewise.pruning.recovery import recover

        settings, repaired = self.job.settings, copy.deepcopy(small)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where it does not help, the weights stay: that is its score then
            recover(
                self.source, repaired, kept, objective=self.objective, images=self.images,
                timesteps=settings["timesteps"], num_images=settings["prune"].num_recovery_images,
                names=(settings["seed"], *settings["names"], "schemes"),
            )  # fmt: skip
        return repaired


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
