"""A recipe's `plan`: which noise levels form a group, and what each group's denoiser may cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PlanMethod = Literal["snr", "equal-width", "intervals", "optimal-denoiser", "given"]
OPTIMAL = ("alpha", "eta", "reference", "cut", "num_draws", "num_levels", "seed")
OWNERS: dict[str, tuple[str, ...]] = {  # settings that only these methods look at
    "path": ("given",),
    "bounds": ("given",),
    "interval_cost": ("intervals",),
    "gradients_of": ("intervals",),
    **dict.fromkeys(("alpha", "eta", "reference", "cut"), ("optimal-denoiser",)),
    **dict.fromkeys(("num_draws", "num_levels", "seed"), ("optimal-denoiser", "intervals")),
}
OF_GRADIENTS = ("gradients_of", "num_draws", "num_levels", "seed")  # among method intervals' settings
COSTS = ("min_cost", "big_model_at", "cost_schedule", "average_cost", "snr_range", "clip_db")


class Section(BaseModel):
    """A part of a recipe: frozen, and every key known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def other_method(plan: Mapping[str, Any], method: str) -> dict[str, Any]:
    """A plan's settings under another method: what belongs to single methods goes, cost limits and groups stay."""
    if plan.get("method", "snr") == method:
        return dict(plan)
    return {name: value for name, value in plan.items() if name not in OWNERS} | {"method": method}


class PlanSettings(Section):
    """Which timesteps form a group, and what each group's denoiser may cost."""

    method: PlanMethod = "snr"
    """snr: equal bins of cost (TDC); equal-width: equal ranges of t; intervals: alike within (`interval_cost`);
    optimal-denoiser: where this data set's own optimal denoiser changes; given: a saved plan, or `bounds`."""
    path: Path | None = None
    """A plan.json, which says everything; with method `given`."""
    bounds: tuple[float, ...] | None = Field(default=None, min_length=1)
    """Inner bounds of the groups, rising, in timesteps, sigmas or flow times; with method `given`, instead of path."""
    num_groups: int | None = Field(default=None, ge=1, le=1000)
    """Groups; bins that no timestep falls into stay empty and are reported. Default: 4; 3 with intervals and
    optimal-denoiser."""
    min_cost: float | None = Field(default=None, gt=0, le=1)
    """Smallest cost limit, as a fraction of the base's MACs. Default: 0.5 with snr and equal-width, else 1."""
    big_model_at: Literal["noise", "data"] = "noise"
    """Which end gets the large model: noise (the TDC paper) or data (what most later work measures)."""
    cost_schedule: Literal["snr", "constant", "increasing", "decreasing"] = "snr"
    """How the cost limits run over the groups; the last two in t."""
    average_cost: float | None = Field(default=None, gt=0, le=1)
    """Make the timestep-weighted mean cost limit equal this fraction, so that cost schedules compare fairly."""
    snr_range: Literal["all", "visited"] = "all"
    """Take the SNR's range over all timesteps, or over those that sampling visits."""
    clip_db: float | tuple[float, float] | None = None
    """Lowest and highest SNR told apart, in decibels, or c for -c to c; default: nothing is clipped."""
    interval_cost: Literal["timestep", "snr", "gradient"] = "timestep"
    """Method intervals: what a group's members should have in common with its middle."""
    gradients_of: tuple[Path, ...] | None = Field(default=None, min_length=1)
    """Trained networks (folders) whose gradients `interval_cost: gradient` compares; default: `model.from`."""
    alpha: float = Field(default=0.9, gt=0, le=1)
    """Method optimal-denoiser: the least mean similarity to the reference within the outer groups."""
    eta: float = Field(default=2 / 255, gt=0)
    """Pixels of two denoisers' noise that differ by at most this count as the same; 2/255 is one 8-bit level."""
    reference: Literal["end", "mean"] = "end"
    """What the noisy end is compared with: the denoiser at the last level, or the data's mean at the same level."""
    cut: Literal["threshold", "dynamic-programming"] | None = None
    """threshold: t1 and t2 by alpha (three groups); dynamic-programming: the most similar groups, of any number.
    Default: threshold for three groups, else dynamic-programming."""
    num_draws: int | None = Field(default=None, ge=2)
    """(image, noise) pairs of method optimal-denoiser, or per level for gradients. Default: as many as settle the
    bounds on CIFAR-10; 256 for gradients."""
    num_levels: int | None = Field(default=None, ge=3)
    """Noise levels that optimal-denoiser or gradients look at; default: 50."""
    seed: int = Field(default=0, ge=0)
    """Seed of those draws."""

    @model_validator(mode="after")
    def _settings_have_their_method(self) -> PlanSettings:
        given = [name for name in sorted(self.model_fields_set) if not self.is_default(name)]
        for name in given:
            methods = OWNERS.get(name)
            if methods is not None and self.method not in methods:
                raise ValueError(f"{name} belongs to method `{methods[0]}`; method `{self.method}` would ignore it")
            if self.method == "intervals" and self.interval_cost != "gradient" and name in OF_GRADIENTS:
                raise ValueError(f"{name} belongs to interval_cost `gradient`; `{self.interval_cost}` would ignore it")
        if self.method == "given":
            if (self.path is None) == (self.bounds is None):
                raise ValueError("method `given` needs either path, a saved plan, or bounds, and not both")
            ignores = given if self.path is not None else ["num_groups"]
            if ignored := sorted(set(given).intersection(ignores) - {"method", "path"}):
                raise ValueError(f"method `given` would ignore {', '.join(ignored)}")
        if self.cut == "threshold" and self.groups != 3:
            raise ValueError(f"cut: threshold makes 3 groups, num_groups is {self.groups}; use dynamic-programming")
        if self.resolved_cut == "dynamic-programming" and not self.is_default("alpha"):
            raise ValueError("alpha belongs to cut `threshold`; dynamic-programming would ignore it")
        return self

    def is_default(self, name: str) -> bool:
        return bool(getattr(self, name) == type(self).model_fields[name].default)

    @property
    def groups(self) -> int:
        """The number of groups, its default resolved; a plan from a file has its own."""
        if self.num_groups is not None:
            return self.num_groups
        if self.bounds is not None:
            return len(self.bounds) + 1
        return 3 if self.method in ("intervals", "optimal-denoiser") else 4

    @property
    def least_cost(self) -> float:
        """``min_cost``, its default resolved."""
        if self.min_cost is not None:
            return self.min_cost
        return 0.5 if self.method in ("snr", "equal-width") else 1.0

    @property
    def resolved_cut(self) -> str:
        """How method optimal-denoiser cuts."""
        return self.cut or ("threshold" if self.groups == 3 else "dynamic-programming")

    @property
    def looks_at_data(self) -> bool:
        """Whether the plan cannot be made from the schedule alone."""
        return self.method == "optimal-denoiser" or (self.method == "intervals" and self.interval_cost == "gradient")

    def to_costs(self) -> dict[str, Any]:
        """The settings of the cost limits, which every method but `given` takes."""
        return {"min_cost": self.least_cost, **{name: getattr(self, name) for name in COSTS if name != "min_cost"}}
