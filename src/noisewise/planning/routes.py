"""Which group's denoiser serves each call of a sampler, at what cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Route:
    """Call ``step`` (from 0) of the network at coordinate ``t``, by ``group``, for ``cost``."""

    step: int
    t: float
    group: int
    cost: float


@dataclass(frozen=True)
class RouteTable:
    """The calls that make one image (or one batch of them), in order."""

    steps: tuple[Route, ...]

    @property
    def total(self) -> float:
        """Cost of an image: the sum over calls, in the unit the costs were given in."""
        return sum(route.cost for route in self.steps)

    @property
    def mean(self) -> float:
        """Cost of a call."""
        return self.total / len(self.steps)

    @property
    def calls(self) -> dict[int, int]:
        """Calls each visited group serves, from data to noise."""
        return dict(sorted(Counter(route.group for route in self.steps).items()))

    def to_list(self) -> list[dict[str, Any]]:
        """Plain values for JSON."""
        return [{"step": r.step, "t": r.t, "group": r.group, "cost": r.cost} for r in self.steps]

    def table(self) -> str:
        """Text: consecutive calls of one group in a line, and the sum."""
        runs: list[list[Route]] = []
        for route in self.steps:
            if runs and runs[-1][-1].group == route.group:
                runs[-1].append(route)
            else:
                runs.append([route])
        lines = [f"{'steps':>11}  {'t':>19}  {'group':>5}  {'cost each':>10}  {'cost':>10}"]
        for run in runs:
            first, last = run[0], run[-1]
            steps = f"{first.step}" if len(run) == 1 else f"{first.step}-{last.step}"
            times = f"{first.t:g}" if len(run) == 1 else f"{first.t:g} .. {last.t:g}"
            cost = sum(route.cost for route in run)
            lines.append(f"{steps:>11}  {times:>19}  {first.group:>5}  {first.cost:>10.4g}  {cost:>10.4g}")
        lines.append(f"{len(self.steps)} calls, {self.total:.4g} in all, {self.mean:.4g} each on average")
        return "\n".join(lines)
