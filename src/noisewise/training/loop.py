"""The training loop: stage 1, stage 2, single stage and uniform pruning differ only in what they hand to ``train``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noisewise.errors import SettingError, TrainingError
from noisewise.files import save_tensors
from noisewise.noise_distribution import Timesteps
from noisewise.objectives import Draw, ImageSource, Objective, RandomSource
from noisewise.streams import seed_of, stream
from noisewise.training.checkpoint import (
    drop_previous,
    finish_move,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
    writing,
)
from noisewise.training.curve import LossBins, TrainStep
from noisewise.training.ema import Ema
from noisewise.training.environment import check_arguments, fingerprint, prepared, same_run
from noisewise.training.labels import Dropout, check_labels, dropout_of
from noisewise.training.levels import GroupDraws, Levels
from noisewise.training.optimizer import learning_rate, load_optimizer_state, optimizer_tensors
from noisewise.training.recorder import Recorder
from noisewise.training.settings import TrainSettings


@dataclass(frozen=True)
class TrainResult:
    """A finished training."""

    model: nn.Module  # the one that was passed in, now with averaged weights, in eval mode
    num_images: int
    seconds: float  # of the loop, over all its interruptions
    resumed_at: int  # images a checkpoint saved this call; 0: it began at the start
    curve: tuple[TrainStep, ...]  # about a hundred records
    bin_edges: tuple[float, ...]  # [bins + 1] coordinates, of TrainStep.bins

    @property
    def loss_bins(self) -> tuple[float | None, ...]:
        """Mean training loss per bin of noise levels, at the end."""
        return self.curve[-1].bins


def train(
    model: nn.Module,
    objective: Objective,
    data: ImageSource,
    settings: TrainSettings,
    *,
    seed: int,
    workspace: Path | None = None,
    names: Sequence[object] = ("base",),
    timesteps: Timesteps | None = None,
    ranges: Sequence[Timesteps] | None = None,
    group_draws: GroupDraws = "host",
    teacher: nn.Module | None = None,
    horizontal_flip: bool = False,
    label_dropout: float = 0.0,
    snapshots: Sequence[int] = (),
    log: Callable[[TrainStep], None] | None = None,
) -> TrainResult:
    """Train ``model`` in place and give it back with the moving average of its weights.

    Under ``accelerate launch`` or ``torchrun`` every process calls this with the same arguments, and the batch is split
    among them. Everything random comes from streams of (seed, names, rank, images seen), so a call that is repeated
    after an interruption goes on from the last checkpoint in ``workspace`` and, on CPU with as many threads, ends with
    the same bits.

    Args:
        model: a diffusers denoiser; becomes float32 and moves to the device that accelerate finds.
        seed, names: where this training's random numbers come from.
        workspace: folder for checkpoint/, metrics.jsonl and snapshots/; None writes nothing.
        timesteps: the only noise levels to train, a half-open range; None means all.
        ranges: of the groups that are trained together, from data to noise; the recorded loss then tells them apart.
        group_draws: "host" draws noise levels by the objective's distribution; "uniform" first one of ``ranges``, all
            alike, then by the distribution within it; "balanced" the same, weighted so that the objective stays.
        teacher: of ``settings.distill_weight``; takes the same inputs.
        label_dropout: probability with which an image's class label becomes the network's null class, or its caption
            none.
        snapshots: image counts at which the averaged weights are kept as snapshots/IMAGES.safetensors.
        log: called a few times a second at most, in the main process only.
    """
    levels = Levels(timesteps, None if ranges is None else tuple(ranges), group_draws)
    check_arguments(objective, data, settings, levels, teacher, snapshots, workspace)
    check_labels(model, data)
    drop_labels = dropout_of(label_dropout, model, data)
    with prepared(model.float(), settings, teacher) as (accelerator, wrapped, optimizer):
        loop = _Loop(accelerator, wrapped, optimizer, objective, data, settings)
        loop.names, loop.levels = (seed, *names), levels
        loop.teacher, loop.horizontal_flip, loop.drop_labels = teacher, horizontal_flip, drop_labels
        loop.start(workspace, snapshots, log)
        loop.run()
        return loop.finish()


class _Loop:
    """The state of a training between two steps."""

    names: tuple[object, ...] = ()
    levels = Levels()
    teacher: nn.Module | None = None
    horizontal_flip = False
    drop_labels: Dropout | None = None

    def __init__(
        self,
        accelerator: Any,
        wrapped: nn.Module,
        optimizer: Any,
        objective: Objective,
        data: ImageSource,
        settings: TrainSettings,
    ) -> None:
        self.accelerator, self.wrapped, self.optimizer = accelerator, wrapped, optimizer
        self.objective, self.data, self.settings = objective, data, settings
        self.model = accelerator.unwrap_model(wrapped)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.has_dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.model.modules())
        self.images_seen = 0

    # ---- start and end

    def start(self, workspace: Path | None, snapshots: Sequence[int], log: Callable[[TrainStep], None] | None) -> None:
        """Take up the last checkpoint where there is one."""
        self.workspace = workspace
        self.fingerprint = fingerprint(
            self.model, self.objective, self.data, self.settings, self.names, self.levels,
            self.teacher is not None, self.horizontal_flip, self.accelerator.num_processes, self.drop_labels,
        )  # fmt: skip
        self.ema = Ema(self.trained, self.settings.ema_halflife_images, self.settings.ema_rampup)
        edges = self.levels.bin_edges(self.objective, self.settings.all_timesteps_share)
        self.bins = LossBins(edges, self.accelerator.device)
        self.recorder = Recorder(self.accelerator, self.bins, self.settings, workspace, log)
        if workspace is not None and self.accelerator.is_main_process:
            finish_move(workspace)
        self.accelerator.wait_for_everyone()
        if workspace is not None and (checkpoint := load_checkpoint(workspace)) is not None:
            self._restore(*checkpoint)
        self.resumed_at = self.images_seen
        self.recorder.start(self.images_seen)
        self.pending_snapshots = [n for n in sorted(set(snapshots)) if n > self.images_seen]

    def finish(self) -> TrainResult:
        self.ema.copy_to_parameters()
        if self.workspace is not None and self.accelerator.is_main_process:
            drop_previous(self.workspace)
        self.model.eval()
        recorder = self.recorder
        return TrainResult(
            self.model, self.images_seen, recorder.seconds, self.resumed_at, tuple(recorder.curve), self.bins.edges
        )

    # ---- steps

    def run(self) -> None:
        num_images = self.settings.num_images
        self.wrapped.train()
        while self.images_seen < num_images:
            before, batch = self.images_seen, min(self.settings.batch_size, num_images - self.images_seen)
            rate = self.step(batch)
            self.images_seen += batch
            self.ema.update(self.images_seen, batch)
            self.check(self.recorder.after_step(before, self.images_seen, rate))
            self.keep_snapshots()
            every = self.settings.effective_checkpoint_images
            if self.workspace is not None and (
                self.images_seen // every > before // every or self.images_seen >= num_images
            ):
                self.save()

    def step(self, batch: int) -> float:
        """One optimizer step on ``batch`` images, all processes together; returns the learning rate."""
        rate = learning_rate(self.settings, self.images_seen + batch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        draw = self.draw(max(1, batch // self.accelerator.num_processes))
        with self.accelerator.autocast():
            loss = self.objective.loss(
                self.wrapped, draw, teacher=self.teacher, distill_weight=self.settings.distill_weight
            )  # [B]
        self.bins.add(draw.t, loss, draw.weight)
        self.accelerator.backward(loss.mean())
        if self.settings.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.trained.values(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def draw(self, num_images: int) -> Draw:
        """This process's part of the batch; depends on nothing but the seed, the names, the rank and images_seen."""
        device = self.accelerator.device
        names = (*self.names, "rank", self.accelerator.process_index, "images", self.images_seen)
        generator = stream(*names)
        indices = torch.randint(len(self.data), (num_images,), generator=generator)
        if isinstance(self.data, RandomSource):
            x_0, labels = self.data.draw(indices, device, generator)
        else:
            x_0, labels = self.data.batch(indices, device)
        if self.horizontal_flip:
            flipped = (torch.rand(num_images, 1, 1, 1, generator=generator) < 0.5).to(device)
            x_0 = torch.where(flipped, x_0.flip(-1), x_0)
        if self.drop_labels is not None:
            labels = self.drop_labels(labels, names)
        if self.has_dropout:
            torch.manual_seed(seed_of(*names, "dropout"))  # dropout knows only the global generator
        if device.type != "cpu":
            generator = stream(*names, "device", device=str(device))
        return self.levels.draw(self.objective, x_0, generator, labels, self.settings.all_timesteps_share)

    # ---- disk

    def check(self, loss: float | None) -> None:
        """Stop where a loss that was looked at is not finite."""
        if loss is None or math.isfinite(loss):
            return
        kept = "no checkpoint had been written yet"
        if self.workspace is not None and has_checkpoint(self.workspace):
            kept = f"the last good checkpoint is in {self.workspace / 'checkpoint'}"
        raise TrainingError(
            f"training {'/'.join(map(str, self.names[1:]))}: the loss is not a number after {self.images_seen:,} "
            f"images; {kept}. Try a lower learning_rate, more warmup_images, a smaller clip_norm, or "
            f"mixed_precision: no (now {self.settings.learning_rate:g}, {self.settings.effective_warmup_images}, "
            f"{self.settings.clip_norm}, {self.settings.mixed_precision})"
        )

    def keep_snapshots(self) -> None:
        while self.pending_snapshots and self.pending_snapshots[0] <= self.images_seen:
            count = self.pending_snapshots.pop(0)
            if self.accelerator.is_main_process and self.workspace is not None:
                path = self.workspace / "snapshots" / f"{count}.safetensors"
                with writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    save_tensors(path, {**self.model.state_dict(), **self.ema.weights}, {"images": str(count)})

    def save(self) -> None:
        """Write a checkpoint, of finite weights only."""
        finite = torch.stack([p.detach().isfinite().all() for p in self.trained.values()]).all().item()
        self.check(self.recorder.mean_loss() if finite else float("nan"))
        state = {"images_seen": self.images_seen, "fingerprint": self.fingerprint, **self.recorder.state()}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        tensors = {
            "model": {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())},
            "ema": self.ema.weights if self.settings.ema_halflife_images > 0 else {},
            "optimizer": optimizer_tensors(self.optimizer, list(self.trained)),
        }
        if self.accelerator.is_main_process and self.workspace is not None:
            save_checkpoint(self.workspace, tensors, state)
        self.accelerator.wait_for_everyone()

    def _restore(self, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
        assert self.workspace is not None
        same_run(state["fingerprint"], self.fingerprint, self.workspace / "checkpoint")
        model = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        if model.keys() != tensors["model"].keys():
            raise SettingError(f"checkpoint: {self.workspace / 'checkpoint'} is of another network")
        with torch.no_grad():
            for name, tensor in model.items():
                tensor.copy_(tensors["model"][name])
        if tensors["ema"]:
            self.ema.load(tensors["ema"])
        load_optimizer_state(self.optimizer, list(self.trained), tensors["optimizer"])
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.images_seen = state["images_seen"]
        self.recorder.load_state(state)
