"""Least squares, layer by layer: weights with which a pruned network answers as the full one did.

A layer whose inputs changed, by channels or blocks that are gone, gets new weights: the ones that come nearest to what
the full network's layer answers on the kept output channels,

    W, b = argmin  sum_n |W x_n + b - y_n|^2 + lambda |W - W_cut|^2        lambda = ridge * mean_n x_n^2 * N

with y_n the full layer's answer, x_n the small layer's input once the layers before it are repaired, so that a layer
also makes up for what they could not, and W_cut the weights that cutting left. Closed form, from normal equations
summed up in float64; a convolution is a linear layer on its patches.

Shapes: B = images, N = rows (images times positions), C = channels, F = inputs of one output value (channels times
kernel area, and one for the bias), O = output channels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.models.networks.wiring import Layer, Wiring
from noisewise.models.surgery import concatenated
from noisewise.objectives import Draw, Objective

RIDGE = 1e-3
CHUNK = 2**23  # numbers of one block of patches: 64 MiB in float64


@torch.no_grad()
def reconstruct(
    full: nn.Module,
    small: nn.Module,
    kept: Mapping[str, torch.Tensor],
    objective: Objective,
    draws: Sequence[Draw],
    *,
    ridge: float = RIDGE,
    repaired_inputs: bool = True,
) -> int:
    """Fit every convolution and linear layer of ``small`` whose input changed to ``full``'s answers, in place.

    Both networks run once per layer and draw, as far as that layer; memory holds (inputs x kernel area)^2 numbers of
    float64 of one layer at a time.

    Args:
        kept: as of `recover`.
        draws: noised images that both networks are asked about.
        ridge: pull towards the weights that cutting left, relative to the mean square of the layer's inputs.
        repaired_inputs: fit each layer to its input in the network repaired so far; else to the full network's input.

    Returns:
        How many layers were fitted.
    """
    net = describe(full).wiring(full)
    channels = {name: torch.arange(axis.width) for name, axis in net.axes.items()}
    channels |= {name: indices.cpu() for name, indices in kept.items()}
    there = dict(small.named_modules())
    behind = {
        layer.path: layer
        for layer in net.layers
        if layer.kind in ("conv", "linear") and layer.path in there and not set(net.prunable).isdisjoint(layer.inputs)
    }
    with evaluating(full, small):
        return sum(
            _fit(full, small, net, behind[path], channels, objective, draws, ridge, repaired_inputs)
            for path in _calling_order(small, behind, objective, draws[0])
        )


def _fit(
    full: nn.Module,
    small: nn.Module,
    net: Wiring,
    layer: Layer,
    channels: Mapping[str, torch.Tensor],
    objective: Objective,
    draws: Sequence[Draw],
    ridge: float,
    repaired_inputs: bool,
) -> bool:
    """Replace one layer's weight and bias by those of least squares; whether there was anything to make up for."""
    module: Any = small.get_submodule(layer.path)
    reads = concatenated(net, layer.inputs, channels).to(module.weight.device)
    writes = concatenated(net, layer.outputs, channels).to(module.weight.device)
    scale = _rescaled(full.get_submodule(layer.path), module, reads, writes)
    dim = 1 if isinstance(module, nn.Conv2d) else -1  # of the channels
    equations, changed = Equations(module), False
    for draw in draws:
        whole, answers = _passing(full, layer.path, objective, draw)
        inputs, _ = _passing(small, layer.path, objective, draw)
        changed = changed or not torch.equal(inputs, whole)  # False for other shapes too
        equations.add(
            inputs if repaired_inputs else whole.index_select(dim, reads), answers.index_select(dim, writes) * scale
        )
    if changed:
        equations.solve(ridge, layer.path)
    return changed


class Equations:
    """Normal equations of the change that a layer's weights need: gram [F, F] and moment [F, O], in float64."""

    def __init__(self, module: Any) -> None:
        self.module = module
        device = module.weight.device
        self.device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        bias = [] if module.bias is None else [module.bias[:, None]]
        self.weights = torch.cat([module.weight.flatten(1), *bias], 1).to(self.device, torch.float64)  # [O, F]
        num_out, num_in = self.weights.shape
        self.gram = torch.zeros(num_in, num_in, device=self.device, dtype=torch.float64)
        self.moment = torch.zeros(num_in, num_out, device=self.device, dtype=torch.float64)

    def add(self, inputs: torch.Tensor, answers: torch.Tensor) -> None:
        """Inputs of the layer [B, C, H, W] or [..., C], and what it should answer to them."""
        area = math.prod(self.module.kernel_size) if isinstance(self.module, nn.Conv2d) else 1
        size = max(1, CHUNK // max(inputs[0].numel() * area, 1))
        for x, y in zip(inputs.split(size), answers.split(size), strict=True):
            rows = self._rows(x.to(self.device, torch.float64))  # [N, F]
            y = y.to(self.device, torch.float64)
            y = y.flatten(2).transpose(1, 2) if isinstance(self.module, nn.Conv2d) else y
            missing = y.reshape(len(rows), -1) - rows @ self.weights.T  # [N, O]
            self.gram += rows.T @ rows
            self.moment += rows.T @ missing

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.module, nn.Conv2d):
            conv = self.module
            assert not isinstance(conv.padding, str)
            x = functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # [B, F, positions]
            x = x.transpose(1, 2)
        rows = x.reshape(-1, x.shape[-1])  # [N, F]
        return rows if self.module.bias is None else functional.pad(rows, (0, 1), value=1.0)

    def solve(self, ridge: float, path: str) -> None:
        """Write the weights of least squares into the module; the bias is not pulled anywhere."""
        weight, bias = self.module.weight, self.module.bias
        if not bool(torch.isfinite(self.gram).all() and torch.isfinite(self.moment).all()):
            raise SettingError(f"prune.recovery: {path} meets numbers that are not finite; are the weights finite?")
        penalised = slice(None) if bias is None else slice(None, -1)
        diagonal = self.gram.diagonal()
        mean_square = diagonal[penalised].mean()
        diagonal[penalised] += ridge * mean_square + torch.finfo(torch.float64).tiny
        change = torch.cholesky_solve(self.moment, torch.linalg.cholesky(self.gram)).T  # [O, F]
        fitted = self.weights + change
        weight.copy_(fitted[:, penalised].reshape(weight.shape))
        if bias is not None:
            bias.copy_(fitted[:, -1])


def _rescaled(full: Any, cut: Any, reads: torch.Tensor, writes: torch.Tensor) -> float:
    """The factor by which cutting multiplied a layer's weights (queries keep their attention's temperature)."""
    before = full.weight.index_select(0, writes).index_select(1, reads).double()
    return float((before * cut.weight).sum() / before.square().sum().clamp(min=1e-300)) or 1.0


class _ReachedError(Exception):
    """Ends a forward pass at the layer it was made for."""


def _passing(model: nn.Module, path: str, objective: Objective, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into a layer and what comes out of it; the rest of the forward pass is left out."""
    found: list[torch.Tensor] = []

    def stop(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found.extend((args[0], output))
        raise _ReachedError

    handle = model.get_submodule(path).register_forward_hook(stop)
    try:
        objective.error(model, draw)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return found[0], found[1]


def _calling_order(small: nn.Module, paths: Collection[str], objective: Objective, draw: Draw) -> list[str]:
    """The layers in the order a forward pass calls them."""
    called: list[str] = []
    handles = [
        small.get_submodule(path).register_forward_pre_hook(lambda module, args, path=path: called.append(path))
        for path in paths
    ]
    try:
        objective.error(small, draw)
    finally:
        for handle in handles:
            handle.remove()
    if len(called) != len(paths):
        raise SettingError("prune.recovery: a forward pass has to call every layer once, and this network's does not")
    return called


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Dropout off inside, the models' modes as before outside."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)
