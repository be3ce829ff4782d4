"""Records of a training: a hundred lines of metrics.jsonl at fixed image counts, and ``log`` a few times a second."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from noisewise.files import write_atomic
from noisewise.training.checkpoint import writing
from noisewise.training.curve import LossBins, TrainStep, means
from noisewise.training.settings import TrainSettings

NUM_RECORDS = 100
LOG_SECONDS = 0.4


class Recorder:
    """Looks at the loss as seldom as it can, since looking waits for the device."""

    def __init__(
        self,
        accelerator: Any,
        bins: LossBins,
        settings: TrainSettings,
        workspace: Path | None,
        log: Callable[[TrainStep], None] | None,
    ) -> None:
        self.accelerator, self.bins, self.log = accelerator, bins, log
        self.every = max(settings.batch_size, settings.num_images // NUM_RECORDS)
        self.last = settings.num_images
        self.path = None if workspace is None else workspace / "metrics.jsonl"
        self.curve: list[TrainStep] = []
        self._seconds_before = 0.0  # of earlier calls, up to their checkpoint

    def start(self, images_seen: int) -> None:
        """Begin to count time; lines of metrics.jsonl beyond the checkpoint are dropped."""
        self._started = self._logged = self._rated = time.monotonic()
        self._rated_images = images_seen
        if self.path is not None and self.accelerator.is_main_process:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self.path, "".join(map(_line, self.curve)))

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def after_step(self, before: int, images_seen: int, rate: float) -> float | None:
        """Record or log where it is time; returns the mean loss where it was looked at."""
        now = time.monotonic()
        if images_seen // self.every > before // self.every or images_seen >= self.last:
            step = self._look(images_seen, rate, self._sum_over_processes)
            if math.isfinite(step.loss):
                self._record(step)
                if now - self._logged >= LOG_SECONDS or images_seen >= self.last:
                    self._call_log(step)
            return step.loss
        # Between records a process looks for itself, and must not stop alone where others wait for it.
        alone = self.accelerator.num_processes == 1
        if now - self._logged < LOG_SECONDS or not (alone or self.accelerator.is_main_process):
            return None
        step = self._look(images_seen, rate, None)
        self._call_log(step)
        return step.loss if alone else None

    def mean_loss(self) -> float | None:
        """Since the last record, over all processes."""
        return means(self.bins.sums(self._sum_over_processes))[0]

    def state(self) -> dict[str, Any]:
        """For a checkpoint; every process must call it."""
        return {
            "seconds": self.seconds,
            "curve": [step.to_dict() for step in self.curve],
            "bins": self.bins.sums(self._sum_over_processes),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self._seconds_before = state["seconds"]
        self.curve = [TrainStep.from_dict(step) for step in state["curve"]]
        if self.accelerator.is_main_process:  # the sums are those of all processes
            self.bins.load(state["bins"])

    def _sum_over_processes(self, sums: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(sums, reduction="sum")

    def _look(self, images_seen: int, rate: float, reduce: Callable[[torch.Tensor], torch.Tensor] | None) -> TrainStep:
        loss, bins = means(self.bins.sums(reduce))
        assert loss is not None, "a step came before"
        now = time.monotonic()
        speed = (images_seen - self._rated_images) / max(now - self._rated, 1e-9)
        return TrainStep(images_seen, loss, rate, speed, bins)

    def _record(self, step: TrainStep) -> None:
        self.bins.clear()
        self.curve.append(step)
        self._rated, self._rated_images = time.monotonic(), step.images_seen
        if self.path is not None and self.accelerator.is_main_process:
            with writing(self.path), self.path.open("a") as file:
                file.write(_line(step))

    def _call_log(self, step: TrainStep) -> None:
        self._logged = time.monotonic()
        if self.log is not None and self.accelerator.is_main_process and math.isfinite(step.loss):
            self.log(step)


def _line(step: TrainStep) -> str:
    values = step.to_dict()
    return json.dumps({"images": values.pop("images_seen"), **values}) + "\n"
