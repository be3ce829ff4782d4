"""Networks cut at random from the one at hand, and how long their parts take: what a latency model is fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from noisewise.models.networks import describe
from noisewise.models.networks.wiring import Wiring
from noisewise.models.surgery import cut
from noisewise.pruning.stopwatch import PassTimes, inference, median_times, time_layers
from noisewise.pruning.widths import alignments, network_widths
from noisewise.streams import stream

if TYPE_CHECKING:
    from diffusers import ModelMixin

REPEATS = 3  # passes of each network
LEAST_SHARE = 0.2  # of an axis


@dataclass(frozen=True)
class Sample:
    """Widths of a network and how long its parts take."""

    widths: Mapping[str, int]
    times: PassTimes


def measure(
    model: ModelMixin, inputs: Mapping[str, Any], number: int, *, seed: int = 0
) -> tuple[list[Sample], dict[str, int]]:
    """Times of the network itself and of ``number`` - 1 others cut from it at random.

    The network itself takes a turn beside each of the others, whose times are scaled to its usual pace.

    Returns:
        The samples, and the activations that one channel of each norm reads, by its path.
    """
    net = describe(model).wiring(model)
    timed = [layer.path for layer in net.layers if layer.kind != "embedding"] + [a.path for a in net.attentions]
    training = model.training
    model.eval()
    whole, others = [], []
    try:
        areas = _areas(model, inputs, net)
        for i in range(1, number):
            widths = _random_widths(net, stream(seed, "latency", i))
            small = cut(model, {name: torch.arange(width) for name, width in widths.items()}).eval()
            whole.append(time_layers(model, inputs, timed))
            others.append((widths, time_layers(small, inputs, timed, REPEATS)))
    finally:
        model.train(training)
    usual = median_times(whole)
    scaled = [
        Sample(widths, _scaled(times, usual.total / beside.total))
        for (widths, times), beside in zip(others, whole, strict=True)
    ]
    return [Sample({}, usual), *scaled], areas


def _areas(model: ModelMixin, inputs: Mapping[str, Any], net: Wiring) -> dict[str, int]:
    found: dict[str, int] = {}
    handles = []
    for layer in net.layers:
        if layer.kind in ("norm", "layer-norm"):
            width = max(net.width(layer.inputs, {}), 1)

            def note(module: Any, args: Any, output: torch.Tensor, path: str = layer.path, width: int = width) -> None:
                found[path] = output.numel() // width

            handles.append(model.get_submodule(layer.path).register_forward_hook(note))
    try:
        inference(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _random_widths(net: Wiring, generator: torch.Generator) -> dict[str, int]:
    """A legal width of every axis, each as likely as another."""
    legal = network_widths(net, alignments(net, "auto"), LEAST_SHARE)
    return {name: widths[int(torch.randint(len(widths), (), generator=generator))] for name, widths in legal.items()}


def _scaled(times: PassTimes, factor: float) -> PassTimes:
    return PassTimes({path: seconds * factor for path, seconds in times.own.items()}, times.rest * factor)
