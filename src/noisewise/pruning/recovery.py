"""Recovery: what the kept channels can say for those that were cut, found on a few hundred images without training.

Sequential least squares on the group's own noised images (see `reconstruction`), measured on others.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, get_args

import torch
from torch import nn

from noisewise.errors import SettingError
from noisewise.noise_distribution import Timesteps
from noisewise.objectives import Draw, ImageSource, Objective
from noisewise.pruning.reconstruction import evaluating, reconstruct
from noisewise.streams import stream

RecoveryKind = Literal["none", "least-squares"]


@dataclass(frozen=True)
class RecoveryInfo:
    """What recovery made of the loss right after pruning, on draws of images it did not look at."""

    kind: RecoveryKind
    num_images: int
    num_layers: int  # that got new weights
    loss_before: float
    loss_after: float
    loss_difference_se: float  # standard error of after - before, the draws being the same
    applied: bool  # False: the loss did not fall, and the weights that cutting left were kept
    seconds: float

    def __str__(self) -> str:
        kept = "" if self.applied else "; not kept"
        return (
            f"loss right after pruning {self.loss_before:.5f} -> {self.loss_after:.5f} "
            f"(difference ± {self.loss_difference_se:.5f}) on {self.num_images} held-out draws{kept}; "
            f"{self.num_layers} layers, {self.seconds:.1f} s"
        )


def check_recovery(kind: str, num_images: int) -> None:
    """Refuse a kind that does not exist, or too few images to fit anything."""
    if kind not in get_args(RecoveryKind):
        raise SettingError(f"prune.recovery: {kind!r} is not one of {', '.join(get_args(RecoveryKind))}")
    if num_images < 2:
        raise SettingError(f"prune.num_recovery_images: {num_images} given; 2 or more are needed")


class Repair(Protocol):
    """``repair(full, small, kept)`` changes the weights of ``small`` in place and says what came of it."""

    def __call__(self, full: nn.Module, small: nn.Module, kept: Mapping[str, torch.Tensor]) -> RecoveryInfo: ...


def repair_by(
    kind: RecoveryKind,
    num_images: int,
    *,
    objective: Objective | None,
    images: ImageSource | torch.Tensor | None,
    **looking: Any,
) -> Repair | None:
    """`recover` with everything but the networks; None for kind "none"."""
    check_recovery(kind, num_images)
    if kind == "none":
        return None
    if objective is None or images is None:
        raise SettingError(
            f"prune.recovery: {kind} needs the training objective and images (objective=..., images=...); none does not"
        )
    return partial(recover, objective=objective, images=images, num_images=num_images, **looking)


def recover(
    full: nn.Module,
    small: nn.Module,
    kept: Mapping[str, torch.Tensor],
    *,
    objective: Objective,
    images: ImageSource | torch.Tensor,
    class_labels: torch.Tensor | None = None,
    timesteps: Timesteps | None = None,
    num_images: int = 256,
    names: Sequence[object] = (0, "prune"),
) -> RecoveryInfo:
    """Give ``small``, cut from ``full``, new weights by `reconstruct`, in place, if its loss falls by it.

    The loss is measured on images, noise and timesteps that the fit does not see: up to ``num_images`` images, at most
    a quarter of all, are set aside for it. If the loss does not fall there, the weights stay and a warning says so.

    Args:
        kept: indices of the channels that stayed, by name of the axis; an axis that is missing stayed whole.
        images: a data set, or a tensor [N, C, H, W] in [-1, 1] with its ``class_labels`` [N].
        timesteps: the group's half-open range; all where None.
        names: of the random streams.
    """
    check_recovery("least-squares", num_images)
    started = time.perf_counter()
    device = next(small.parameters()).device
    fit, held_out = _split(images, class_labels, num_images, (*names, "recovery"))
    draws = objective.fixed_draws(fit, num_images, (*names, "recovery"), timesteps, device=device)
    checks = objective.fixed_draws(held_out, num_images, (*names, "recovery check"), timesteps, device=device)
    before = _errors(small, objective, checks)  # [num_images]
    cut_weights = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    num_layers = reconstruct(full, small, kept, objective, draws)
    after = _errors(small, objective, checks)  # [num_images]
    applied = bool(after.mean() < before.mean())
    if not applied:
        small.load_state_dict(cut_weights)
        warnings.warn(
            f"prune.recovery: on held-out draws the loss went from {before.mean():.5f} to {after.mean():.5f}, "
            "so the weights stay as they were cut; more prune.num_recovery_images may help",
            stacklevel=3,
        )
    return RecoveryInfo(
        kind="least-squares",
        num_images=num_images,
        num_layers=num_layers,
        loss_before=float(before.mean()),
        loss_after=float(after.mean()),
        loss_difference_se=float((after - before).std() / math.sqrt(len(after))),
        applied=applied,
        seconds=time.perf_counter() - started,
    )


def _errors(model: nn.Module, objective: Objective, draws: Sequence[Draw]) -> torch.Tensor:
    """Error of every image of the draws: [N] float64."""
    with torch.no_grad(), evaluating(model):
        return torch.cat([objective.error(model, draw).cpu().double() for draw in draws])


@dataclass(frozen=True)
class _Some:
    """Some images of a data set or a tensor, by index."""

    images: ImageSource | torch.Tensor
    class_labels: torch.Tensor | None
    order: torch.Tensor  # [N]

    def __len__(self) -> int:
        return len(self.order)

    def batch(self, indices: torch.Tensor, device: Any) -> tuple[torch.Tensor, Any]:
        chosen = self.order[indices]
        if not isinstance(self.images, torch.Tensor):
            return self.images.batch(chosen, device)
        labels = self.class_labels
        x_0 = self.images[chosen.to(self.images.device)].to(device)  # [B, C, H, W]
        return x_0, None if labels is None else labels[chosen.to(labels.device)].to(device)


def _split(
    images: ImageSource | torch.Tensor, class_labels: torch.Tensor | None, num_images: int, names: Sequence[object]
) -> tuple[_Some, _Some]:
    """Images to fit, and others to measure on."""
    if len(images) < 2:
        raise SettingError(f"prune.recovery: {len(images)} images given; some to fit and others to measure are needed")
    order = torch.randperm(len(images), generator=stream(*names, "split"))
    held_out = min(num_images, max(len(images) // 4, 1))
    return _Some(images, class_labels, order[held_out:]), _Some(images, class_labels, order[:held_out])
