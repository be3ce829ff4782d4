"""How much each channel matters: a score per channel of every axis, computed once and used for many budgets.

A channel's score covers every weight that goes with it: its slice of each layer that writes its axis, of each that
reads it (at its place in a concatenation), both halves of a `scale_shift` projection, and its norm's scale and shift.

    random       uniform in [0, 1)
    magnitude    L2 norm of the weights, divided by the axis's mean (axes of larger weights do not matter more)
    taylor       | sum w dL/dw |, the first-order change of the loss when the channel goes
    diff-pruning sum | w dL/dw |, with the timesteps whose loss is small left out (arXiv:2305.10924, Eq. 8)

The gradients of the last two are summed over a group's own timesteps, so each group gets its own scores. They are in
units of the loss and thus comparable between axes as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.models.networks.wiring import Layer, Wiring
from noisewise.noise_distribution import Timesteps
from noisewise.objectives import ImageSource, Objective
from noisewise.parametrisation import Labels, labels_at
from noisewise.planning.gradients import for_gradients
from noisewise.streams import stream

ImportanceKind = Literal["taylor", "magnitude", "random", "diff-pruning"]
Importances = Mapping[str, torch.Tensor]  # axis -> [width] float64, not negative
NEEDS_GRADIENTS = ("taylor", "diff-pruning")
MOST_TIMESTEPS = 50  # the default stride visits at most this many of a group's noise levels


def importance(
    model: torch.nn.Module,
    kind: ImportanceKind = "taylor",
    *,
    objective: Objective | None = None,
    images: ImageSource | torch.Tensor | None = None,
    class_labels: Labels = None,
    timesteps: Timesteps | None = None,
    timestep_stride: int | None = None,
    batch_size: int = 64,
    threshold: float = 0.05,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Score every channel of every axis that may be cut.

    Args:
        objective: the training loss; needed, with ``images``, by taylor and diff-pruning.
        images: a data set, or a tensor [N, C, H, W] in [-1, 1] with its ``class_labels`` [N].
        timesteps: the group's half-open range; all noise levels where None.
        timestep_stride: visit one timestep (in continuous time, one point of the schedule's grid) in so many; by
            default as few as visit at most 50.
        batch_size: images per visited timestep.
        threshold: diff-pruning stops at the first timestep whose loss is below this fraction of the largest so far.

    Returns:
        Axis name -> [width] float64, finite and not negative.
    """
    wiring = describe(model).wiring(model)
    if kind == "random":
        return {
            name: torch.rand(wiring.axes[name].width, generator=stream(seed, "importance", name), dtype=torch.float64)
            for name in wiring.prunable
        }
    if kind == "magnitude":
        weights = {name: p.detach() for name, p in model.named_parameters() if not name.endswith(".bias")}
        norms = {name: s.sqrt() for name, s in channel_sums(wiring, weights, torch.square).items()}
        return {name: norm / norm.mean().clamp(min=1e-30) for name, norm in norms.items()}
    if kind not in NEEDS_GRADIENTS:
        raise SettingError(f"prune.importance: {kind!r} is not one of {', '.join(get_args(ImportanceKind))}")
    if objective is None or images is None:
        raise SettingError(
            f"prune.importance: {kind} needs the training objective and images (objective=..., images=...); "
            "magnitude and random do not"
        )
    stride = timestep_stride or -(-len(objective.levels(timesteps)) // MOST_TIMESTEPS)
    if stride < 1:
        raise SettingError(f"prune.timestep_stride: {stride} is not a number of timesteps of at least 1")
    batches = _Batches(images, class_labels, batch_size, seed)
    stop_below = threshold if kind == "diff-pruning" else 0.0
    gradients = accumulated_gradients(model, objective, batches, objective.levels(timesteps, stride), stop_below)
    products = {name: p.detach() * gradients[name] for name, p in model.named_parameters() if name in gradients}
    for name, product in products.items():
        if not bool(torch.isfinite(product).all()):
            raise SettingError(f"prune.importance: {kind} met a gradient that is not finite, at {name}")
    if kind == "taylor":
        return {name: s.abs() for name, s in channel_sums(wiring, products, lambda x: x).items()}
    return channel_sums(wiring, products, torch.abs)


class _Batches:
    """Images for each timestep, drawn by streams of their own."""

    def __init__(self, images: ImageSource | torch.Tensor, class_labels: Labels, batch_size: int, seed: int) -> None:
        if len(images) == 0:
            raise SettingError("prune.importance: there are no images to score channels on")
        self.images, self.class_labels, self.batch_size, self.seed = images, class_labels, batch_size, seed

    def at(self, t: float, device: torch.device) -> tuple[torch.Tensor, Labels, torch.Generator]:
        """x_0 [B, C, H, W], labels [B], and the generator of their noise."""
        generator = stream(self.seed, "importance", t)
        indices = torch.randperm(len(self.images), generator=generator)[: self.batch_size]
        if isinstance(self.images, torch.Tensor):
            return self.images[indices].to(device), labels_at(self.class_labels, indices, device), generator
        x_0, labels = self.images.batch(indices, device)
        return x_0, labels, generator


def accumulated_gradients(
    model: torch.nn.Module, objective: Objective, batches: Any, timesteps: Sequence[float], stop_below: float
) -> dict[str, torch.Tensor]:
    """Sum over timesteps, in order, of the gradient of the mean loss: parameter name -> its shape, float32.

    Stops before the first timestep whose loss falls below ``stop_below`` times the largest loss so far. The model's own
    gradients, mode and ``requires_grad`` stay as they were.
    """
    device = next(model.parameters()).device
    largest = 0.0
    with for_gradients(model):
        parameters = dict(model.named_parameters())
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
        for t in timesteps:
            x_0, labels, generator = batches.at(t, device)
            loss = objective.loss(model, objective.draw_at(x_0, generator, t, labels)).mean()
            value = float(loss.detach())
            largest = max(largest, value)
            if value < stop_below * largest:
                break
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient
    return total


def channel_sums(
    wiring: Wiring, tensors: Mapping[str, torch.Tensor], score: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Sum of ``score(entry)`` over all the entries tied to each channel: axis -> [width] float64.

    Args:
        tensors: parameter name -> a tensor of its shape; parameters left out count nothing.
    """
    sums = {name: torch.zeros(axis.width, dtype=torch.float64) for name, axis in wiring.axes.items()}
    for layer in wiring.layers:
        for suffix in ("weight", "bias"):
            tensor = tensors.get(f"{layer.path}.{suffix}")
            if tensor is None:
                continue
            scored = score(tensor.float()).cpu().double()
            for parts, dim in _directions(layer, suffix):
                per_channel = scored.sum([d for d in range(scored.dim()) if d != dim]) if scored.dim() > 1 else scored
                offset = 0
                for name in parts:
                    width = wiring.axes[name].width
                    sums[name] += per_channel[offset : offset + width]
                    offset += width
    return {name: sums[name] for name in wiring.prunable}


def _directions(layer: Layer, suffix: str) -> list[tuple[tuple[str, ...], int]]:
    """The axes along each channel dimension of a layer's parameter, with that dimension's number."""
    if suffix == "bias" or layer.kind in ("norm", "layer-norm"):
        return [(layer.outputs, 0)]
    if layer.kind == "embedding":  # [entries, channels]
        return [(layer.outputs, 1)]
    return [(layer.outputs, 0), (layer.inputs, 1)]
