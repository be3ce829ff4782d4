"""The direction in which each noise level would move a network: mean gradients of the loss, for ANT's gradient cost.

Shapes: n = levels, C = checkpoints, P = numbers kept of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.objectives import ImageSource, Objective
from noisewise.parametrisation import Labels, labels_at
from noisewise.planning.levels import even_levels
from noisewise.streams import stream

NUM_KEPT = 2**20


def level_gradients(
    models: torch.nn.Module | Sequence[torch.nn.Module],
    objective: Objective,
    images: ImageSource | torch.Tensor,
    class_labels: Labels = None,
    *,
    num_levels: int = 50,
    num_draws: int = 256,
    batch_size: int = 128,
    num_kept: int = NUM_KEPT,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Gradients for ``Plan.from_intervals(cost="gradient")``.

    Every level has draws of its own, so that its noise is not another's; the checkpoints see the same ones. A network
    of more than ``num_kept`` parameters is summed into that many buckets with random signs (a count sketch), which
    changes a cosine by about 1 / sqrt(num_kept).

    Args:
        models: a network, or checkpoints of one, whose cosines are averaged; left as they are.
        images: a data set, or a tensor [N, C, H, W] in [-1, 1] with its ``class_labels`` [N].
        num_levels: n, spread evenly over the schedule.
        num_draws: (image, noise) pairs per level.
        progress: called with the fraction done.

    Returns:
        [n, C P] float32; each checkpoint's part [n, P] has rows of unit length.
    """
    models = [models] if isinstance(models, torch.nn.Module) else list(models)
    if not models or len(images) == 0 or num_draws < 1:
        raise SettingError(
            f"plan.gradients: {len(models)} models, {len(images)} images, {num_draws} draws; one or more of each are "
            "needed"
        )
    levels = even_levels(objective.schedule, num_levels).tolist()
    parts = []
    for number, model in enumerate(models):
        with for_gradients(model) as parameters:
            sketch = _Sketch(sum(p.numel() for p in parameters), num_kept, seed)
            rows = []
            for i, t in enumerate(levels):
                total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
                for loss in _losses(model, objective, images, class_labels, t, num_draws, batch_size, seed):
                    for sum_, gradient in zip(
                        total, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
                    ):
                        if gradient is not None:
                            sum_ += gradient
                rows.append(_unit(sketch(total), t))
                if progress is not None:
                    progress((number * len(levels) + i + 1) / (len(models) * len(levels)))
        parts.append(torch.stack(rows))  # [n, P]
    return torch.cat(parts, 1).numpy()


def _losses(
    model: torch.nn.Module,
    objective: Objective,
    images: ImageSource | torch.Tensor,
    class_labels: Labels,
    t: float,
    num_draws: int,
    batch_size: int,
    seed: int,
) -> Iterator[torch.Tensor]:
    """Sums of the loss over batches of the level's draws."""
    device = next(model.parameters()).device
    generator = stream(seed, "level gradients", t)
    chosen = torch.empty(0, dtype=torch.int64)
    while len(chosen) < num_draws:  # without replacement while they last
        chosen = torch.cat([chosen, torch.randperm(len(images), generator=generator)])
    for indices in chosen[:num_draws].split(batch_size):
        if isinstance(images, torch.Tensor):
            x_0 = images[indices.to(images.device)].to(device)
            labels = labels_at(class_labels, indices, device)
        else:
            x_0, labels = images.batch(indices, device)
        t_of_grid = int(t) if objective.schedule.is_discrete else t
        yield objective.loss(model, objective.draw_at(x_0, generator, t_of_grid, labels)).sum()


class _Sketch:
    """Gradients of P' numbers as [P]: themselves, or signed sums over random buckets where they are too many."""

    def __init__(self, num_numbers: int, num_kept: int, seed: int) -> None:
        self.num_kept = num_kept
        self.buckets: torch.Tensor | None = None
        if num_numbers > num_kept:
            generator = stream(seed, "gradient sketch")
            self.buckets = torch.randint(num_kept, (num_numbers,), generator=generator, dtype=torch.int32)
            self.signs = torch.randint(2, (num_numbers,), generator=generator, dtype=torch.int8) * 2 - 1

    def __call__(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        flat = torch.cat([gradient.flatten().cpu() for gradient in gradients])  # [P']
        if self.buckets is None:
            return flat
        return torch.zeros(self.num_kept).index_add_(0, self.buckets, flat * self.signs)


def _unit(gradient: torch.Tensor, t: float) -> torch.Tensor:
    length = gradient.norm()
    if not (torch.isfinite(length) and length > 0):
        raise SettingError(f"plan.gradients: the gradient at t = {t:g} has length {float(length)}; it has no direction")
    return gradient / length


@contextmanager
def for_gradients(model: torch.nn.Module) -> Iterator[list[torch.nn.Parameter]]:
    """Evaluation mode with gradients for every parameter, undone at the end."""
    parameters = list(model.parameters())
    training, needed = model.training, [p.requires_grad for p in parameters]
    try:
        model.eval().requires_grad_(True)
        with torch.enable_grad():
            yield parameters
    finally:
        model.train(training)
        for parameter, flag in zip(parameters, needed, strict=True):
            parameter.requires_grad_(flag)
