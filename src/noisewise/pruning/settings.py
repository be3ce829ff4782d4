"""What every proposer's settings share."""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer


class SearchSettings(BaseModel):
    """Rounds, candidates and how they are measured; each proposer adds its own `kind` and settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    hints: ClassVar[tuple[Literal["taylor", "magnitude"], ...]] = ()  # importances it wants besides the search's own
    beside_identity: ClassVar[Set[str]] = frozenset()  # settings that say nothing of what a search finds

    rounds: int = Field(default=3, ge=1)
    """Rounds of proposals; each sees the losses of those before."""

    candidates: int = Field(default=4, ge=1)
    """Proposals per round."""

    alignment: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Widths come in multiples of so many channels; "auto" takes up to 16, less for narrow axes and tight budgets."""

    min_width: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    """Share of its channels that every axis keeps at least; "auto" is half of the square root of the budget."""

    depth: bool = False
    """Whether whole residual blocks and attentions may be left out too, where they only add to their input."""

    num_score_images: int = Field(default=512, ge=2)
    """Images, noised once and for all, on which every candidate's loss is measured."""

    @model_serializer(mode="wrap")
    def _identity(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        """What names a step of the store: without depth, as before there was any."""
        values = handler(self)
        if (info.context or {}).get("identity"):
            beside = self.beside_identity if self.depth else {*self.beside_identity, "depth"}
            return {name: value for name, value in values.items() if name not in beside}
        return values

    def check_ready(self) -> None:
        """Refuse, before any long work, what this proposer could not work with."""


class TimingSettings(BaseModel):
    """How the latency of a budget in time is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    batch_size: int = Field(default=64, ge=1)
    """Images of the forward passes that are timed."""

    tolerance: float = Field(default=0.05, gt=0, lt=0.5)
    """How far the measured time may lie from the budget, on either side, as a fraction of it."""

    attempts: int = Field(default=4, ge=1, le=20)
    """Networks that are cut and measured; each aims off by as much as the one before it missed."""

    clock: Literal["wall", "cpu"] = "wall"
    """What the result is measured by: time that passes or, on a CPU that others use too, the processor's."""
