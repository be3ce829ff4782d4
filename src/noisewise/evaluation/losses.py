"""How well a denoiser does at each noise level: the plain noise error on held-out images, by timestep and by group.

Every model sees the same (image, noise, timestep) triples, so that a difference between two is theirs and not luck's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.noise_distribution import Timesteps
from noisewise.objectives import ImageSource, Objective
from noisewise.planning.plan import Plan


@dataclass(frozen=True)
class RangeLoss:
    """Mean noise error over coordinates ``t_start <= t < t_stop``: whole timesteps, sigma or flow time."""

    t_start: float
    t_stop: float
    mean: float
    standard_error: float  # of the mean, over (image, noise, timestep) triples
    num_draws: int
    t_centre: float  # in log sigma where the coordinate is sigma


@dataclass(frozen=True)
class TimestepLosses:
    """A denoiser's loss in equal bins of t, flow time or log sigma and, with a plan, in each group (None: empty)."""

    bins: tuple[RangeLoss, ...]
    groups: tuple[RangeLoss | None, ...] = ()

    @property
    def mean(self) -> float:
        """Over all timesteps, flow times or log sigmas alike."""
        whole = all(isinstance(part.t_start, int) for part in self.bins)  # bins of whole timesteps may differ by one
        sizes = [part.t_stop - part.t_start if whole else 1 for part in self.bins]
        return float(np.average([part.mean for part in self.bins], weights=sizes))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"mean": self.mean}


def loss_per_timestep(
    model: Callable[..., Any],
    objective: Objective,
    images: ImageSource | torch.Tensor,
    *,
    plan: Plan | None = None,
    num_bins: int = 20,
    num_images: int = 512,
    num_images_per_bin: int = 128,
    seed: int = 0,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
) -> TimestepLosses:
    """Error of the predicted noise, unweighted, whatever the model was trained with.

    Args:
        model: a denoiser on ``device``; an expert router is asked like any other. Its mode is restored.
        images: held-out images.
        num_images: drawn per group; a group's noise levels are covered evenly, however few they are.
        num_images_per_bin: drawn per bin.
    """
    total = objective.num_train_timesteps
    if not 1 <= num_bins <= total:
        raise SettingError(f"evaluate.num_bins: {num_bins} is not between 1 and the {total} timesteps")
    if plan is not None and plan.schedule.kind != objective.schedule.kind:
        raise SettingError(f"plan: it is made for {plan.schedule.kind}, the objective for {objective.schedule.kind}")
    if plan is not None and plan.num_train_timesteps != total:
        raise SettingError(f"plan: it has {plan.num_train_timesteps} timesteps, the objective {total}")
    edges = objective.bin_edges(None, num_bins)
    settings = (images, seed, batch_size, device)
    with _eval_mode(model):
        bins = tuple(
            range_loss(model, objective, (start, stop), num_images_per_bin, *settings)
            for start, stop in pairwise(edges)
        )
        groups: Sequence[RangeLoss | None] = [
            None
            if group.is_empty
            else range_loss(model, objective, (group.t_start, group.t_stop), num_images, *settings)
            for group in (plan.groups if plan is not None else ())
        ]
    return TimestepLosses(bins, tuple(groups))


def range_loss(
    model: Callable[..., Any],
    objective: Objective,
    timesteps: Timesteps,
    num_images: int,
    images: ImageSource | torch.Tensor,
    seed: int = 0,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
) -> RangeLoss:
    """Mean noise error over one range of noise levels, on draws that depend on the seed and the range alone."""
    timesteps = objective.check_timesteps(timesteps)
    names = (seed, "evaluate", "loss", *timesteps)
    draws = objective.fixed_draws(images, num_images, names, timesteps, batch_size=batch_size, device=device)
    with torch.no_grad():
        errors = torch.cat([objective.error(model, draw).double().cpu() for draw in draws])  # [num_images]
    standard_error = float(errors.std() / len(errors) ** 0.5) if len(errors) > 1 else float("nan")
    centre = objective.centre(timesteps)
    return RangeLoss(*timesteps, float(errors.mean()), standard_error, len(errors), centre)


class _eval_mode:  # noqa: N801, used as a function
    """Dropout off inside, the model's mode as before outside."""

    def __init__(self, model: Any) -> None:
        self.model = model if isinstance(model, torch.nn.Module) else None

    def __enter__(self) -> None:
        if self.model is not None:
            self.modes = [(module, module.training) for module in self.model.modules()]
            self.model.eval()

    def __exit__(self, *_: object) -> None:
        if self.model is not None:
            for module, training in self.modes:
                module.training = training
