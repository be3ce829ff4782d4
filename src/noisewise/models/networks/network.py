"""What the tool knows of one architecture, as plain functions; router, pruner, counter and trainer ask it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from noisewise.models.networks.wiring import Wiring


class ExampleInputs(Protocol):
    """``example_inputs(model, batch_size=1)``: the keywords of one forward pass, on the model's device and dtype."""

    def __call__(self, model: ModelMixin, batch_size: int = 1) -> dict[str, Any]: ...


class Reshape(Protocol):
    """``reshaped(model, shape)``: the same architecture on the meta device with the sizes ``shape`` gives."""

    def __call__(self, model: ModelMixin, shape: dict[str, Any]) -> ModelMixin: ...


@dataclass(frozen=True)
class Network:
    """One architecture.

    Attributes:
        name: what messages call it.
        wiring: the axes and layers of a model of this architecture, read from its modules.
        example_inputs: inputs of the right shapes.
        reshaped: an empty model of other sizes, for a pruner to fill.
        batch_arguments: forward's arguments that have one entry per sample.
        pipeline_attributes: configuration keys that pipelines read; a router of several models repeats them.
    """

    name: str
    wiring: Callable[[ModelMixin], Wiring]
    example_inputs: ExampleInputs
    reshaped: Reshape
    batch_arguments: tuple[str, ...]
    pipeline_attributes: tuple[str, ...]
