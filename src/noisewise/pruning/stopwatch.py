"""How long forward passes take: layer by layer within one pass, and one network against another.

On a GPU time is read from events in its own queue. On a CPU there are two clocks: the wall's, and the processor time of
the calling thread, which is the same on an idle machine and is not disturbed where other programs want the cores too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Clock = Literal["wall", "cpu"]
FEWEST_TURNS, MOST_TURNS = 7, 41


@dataclass(frozen=True)
class PassTimes:
    """Seconds of one forward pass: ``own`` of each module without those timed within it, ``rest`` of all others."""

    own: Mapping[str, float]  # path -> seconds
    rest: float

    @property
    def total(self) -> float:
        return sum(self.own.values()) + self.rest


@dataclass(frozen=True)
class Ratio:
    """Time of one network as a share of another's: median over turns, quartiles, and the median's standard error."""

    median: float
    quartiles: tuple[float, float]
    standard_error: float
    seconds: float  # median time of the one
    base_seconds: float  # and of the other
    num_turns: int


def inference(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    with torch.no_grad():
        model(**inputs)


def time_layers(model: nn.Module, inputs: Mapping[str, Any], paths: Sequence[str], repeats: int = 1) -> PassTimes:
    """Median over ``repeats`` passes, after one to warm up, of the own time of the modules at ``paths``.

    On a CPU this is processor time.
    """
    passes = []
    with _stamps(model, paths) as stamps:
        for _ in range(repeats + 1):
            stamps.clear()
            start = _stamp(model, "cpu")
            inference(model, inputs)
            stop = _stamp(model, "cpu")
            _settle(model)
            passes.append(_own_times(stamps, _between(start, stop)))
    return median_times(passes[1:])


def median_times(passes: Sequence[PassTimes]) -> PassTimes:
    """The median of each part."""
    own = {path: statistics.median(each.own[path] for each in passes) for path in passes[0].own}
    return PassTimes(own, statistics.median(each.rest for each in passes))


def time_pass(model: nn.Module, inputs: Mapping[str, Any], clock: Clock = "wall") -> float:
    """Seconds of one forward pass, to its end on the device."""
    start = _stamp(model, clock)
    inference(model, inputs)
    stop = _stamp(model, clock)
    _settle(model)
    return _between(start, stop)


def time_ratio(
    model: nn.Module, base: nn.Module, inputs: Mapping[str, Any], accuracy: float, clock: Clock = "wall"
) -> Ratio:
    """Time of ``model`` as a share of ``base``'s, the two taking turns so that a drift of the machine's speed cancels.

    Turns go on until the standard error of the median is at most ``accuracy``, 41 of them at most.
    """
    pairs: list[tuple[float, float]] = []
    ratios: list[float] = []
    error = 0.0
    for turn in range(MOST_TURNS + 1):
        pair = time_pass(model, inputs, clock), time_pass(base, inputs, clock)
        if turn == 0:
            continue  # kernels are set up
        pairs.append(pair)
        ratios.append(pair[0] / pair[1])
        if turn >= FEWEST_TURNS:
            lower, _, upper = statistics.quantiles(ratios, n=4)
            error = 0.93 * (upper - lower) / len(ratios) ** 0.5  # of a median, where values are normally distributed
            if error <= accuracy:
                break
    seconds, base_seconds = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Ratio(statistics.median(ratios), (lower, upper), error, seconds, base_seconds, len(ratios))


def _own_times(stamps: Sequence[tuple[str, Any, Any]], total: float) -> PassTimes:
    """Times of modules, those of timed modules within them taken out."""
    whole: dict[str, float] = {}
    for path, start, stop in stamps:
        whole[path] = whole.get(path, 0.0) + _between(start, stop)
    own = dict(whole)
    rest = total
    for path, seconds in whole.items():
        around = max((other for other in whole if path.startswith(f"{other}.")), key=len, default=None)
        if around is None:
            rest -= seconds
        else:
            own[around] -= seconds
    return PassTimes(own, rest)


@contextmanager
def _stamps(model: nn.Module, paths: Sequence[str]) -> Iterator[list[tuple[str, Any, Any]]]:
    """A list that fills with (path, start, stop) of every call of the modules at ``paths``."""
    found: list[tuple[str, Any, Any]] = []
    started: dict[str, Any] = {}
    handles = []
    for path in paths:
        module = model.get_submodule(path)

        def before(module: nn.Module, args: Any, path: str = path) -> None:
            started[path] = _stamp(module, "cpu")

        def after(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
            found.append((path, started.pop(path), _stamp(module, "cpu")))

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _device(module: nn.Module) -> str:
    parameter = next(module.parameters(), None)
    return "cpu" if parameter is None else parameter.device.type


def _stamp(module: nn.Module, clock: Clock) -> Any:
    """A moment: an event in the GPU's queue, or the clock's reading once the device has nothing left to do."""
    kind = _device(module)
    if kind == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
    _settle(module)
    return time.thread_time() if clock == "cpu" and kind == "cpu" else time.perf_counter()


def _settle(module: nn.Module) -> None:
    kind = _device(module)
    if kind == "cuda":
        torch.cuda.synchronize()
    elif kind == "mps":
        torch.mps.synchronize()


def _between(start: Any, stop: Any) -> float:
    """Seconds from one moment to another."""
    return float(stop - start) if isinstance(start, float) else start.elapsed_time(stop) / 1000
