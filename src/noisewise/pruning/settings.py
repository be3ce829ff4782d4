"""What every proposer's settings share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


class SearchSettings(BaseModel):
    """Rounds, candidates and how they are measured; each proposer adds its own `kind` and settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    hints: ClassVar[tuple[Literal["taylor", "magnitude"], ...]] = ()  # importances it wants besides the search's own

    rounds: int = Field(default=3, ge=1)
    """Rounds of proposals; each sees the losses of those before."""

    candidates: int = Field(default=4, ge=1)
    """Proposals per round."""

    alignment: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Widths come in multiples of so many channels; "auto" takes up to 16, less for narrow axes and tight budgets."""

    min_width: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    """Share of its channels that every axis keeps at least; "auto" is half of the square root of the budget."""

    num_score_images: int = Field(default=512, ge=2)
    """Images, noised once and for all, on which every candidate's loss is measured."""

    def check_ready(self) -> None:
        """Refuse, before any long work, what this proposer could not work with."""
