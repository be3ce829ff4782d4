"""What a run will cost before it starts: images, MACs, and a measured guess of the time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from noisewise.workflow.graph import Graph
from noisewise.workflow.store import StepSpec, Store

PROBE_MACS = 150e9  # a probe step that costs more than this would take too long
PROBE_BATCH = 64
WORTH_PROBING = 50e9  # MACs; less is over before a probe would be
PER_STEP_SECONDS = 1.0  # loading, saving, features: small beside training


def to_do(graph: Graph, store: Store) -> list[StepSpec]:
    return [step for step in graph.steps if not store.is_done(step)]


def summary(graph: Graph, store: Store, num_jobs: int) -> str:
    """One line: how much is done, and what is left."""
    steps = to_do(graph, store)
    line = f"{graph.recipe.name}: {len(graph.steps)} steps, {len(graph.steps) - len(steps)} done"
    if not steps:
        return line
    images, macs = sum(step.num_images for step in steps), sum(step.macs for step in steps)
    line += f"; to do: {images:,} training images, {si(macs)}MACs"
    seconds = predicted_seconds(graph, steps, num_jobs)
    return line if seconds is None else f"{line}, about {in_words(seconds)} on this machine (by a short probe)"


def si(value: float) -> str:
    """A number with its prefix: 1.2e12 is "1.2 T"."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:  # which is shown as 1
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def in_words(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for size, word in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {word}"
    return f"{seconds:.0f} s"


def predicted_seconds(graph: Graph, steps: Sequence[StepSpec], num_jobs: int) -> float | None:
    """Time of the steps by the base's measured speed; None where a probe itself would take long."""
    macs = sum(step.macs for step in steps)
    if macs < WORTH_PROBING or "config" not in graph.base.network:
        return None
    speed = _probe(graph)
    if speed is None:
        return None
    # a chain of steps cannot be shared: base, then the longest of the rest
    return max(macs / speed / num_jobs, _longest_chain(steps) / speed) + PER_STEP_SECONDS * len(steps) / num_jobs


def _longest_chain(steps: Sequence[StepSpec]) -> float:
    open_steps = {step.id for step in steps}
    longest: dict[str, float] = {}
    for step in steps:
        before = max((longest.get(source.id, 0.0) for source in step.inputs.values()), default=0.0)
        longest[step.id] = before + (step.macs if step.id in open_steps else 0.0)
    return max(longest.values(), default=0.0)


def _probe(graph: Graph) -> float | None:
    """MACs per second of a training step of the base, counted as predictions count them."""
    import torch

    from noisewise.evaluation.cost import TRAINING_FACTOR
    from noisewise.models.networks import describe
    from noisewise.workflow.executor import default_threads
    from noisewise.workflow.machine import device
    from noisewise.workflow.networks import new_unet2d

    per_image = TRAINING_FACTOR * graph.base.macs
    batch = min(PROBE_BATCH, int(PROBE_MACS / per_image))
    if batch < 1:
        return None
    model: Any = new_unet2d(graph.base.network["config"], ("probe",)).to(device())
    inputs = describe(model).example_inputs(model, batch)
    threads = torch.get_num_threads()
    torch.set_num_threads(graph.recipe.base.num_threads or default_threads(1))
    try:
        started = 0.0
        for turn in range(3):
            if turn == 1:  # the first step is slower
                started = time.perf_counter()
            model(**inputs).sample.square().mean().backward()
        seconds = (time.perf_counter() - started) / 2
    finally:
        torch.set_num_threads(threads)
    return batch * per_image / seconds
