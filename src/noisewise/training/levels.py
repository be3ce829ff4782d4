"""Which noise levels a training draws: all, one group's, or several groups' together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch

from noisewise.errors import SettingError
from noisewise.noise_distribution import Timesteps
from noisewise.objectives import Draw, Objective

NUM_BINS = 20
FINE_BINS = 1000

GroupDraws = Literal["host", "uniform", "balanced"]


@dataclass(frozen=True)
class Levels:
    """Which noise levels a training draws.

    Attributes:
        timesteps: the only ones, half-open; None means all.
        ranges: of the groups that are trained together, from data to noise.
        group_draws: "host": by the objective's distribution, whatever the ranges; "uniform": each image's range first,
            all alike, then the host's distribution within; "balanced": the same, weighted so that the expected loss
            is the host's.
    """

    timesteps: Timesteps | None = None
    ranges: tuple[Timesteps, ...] | None = None
    group_draws: GroupDraws = "host"

    def check(self, objective: Objective) -> None:
        if self.group_draws not in get_args(GroupDraws):
            raise SettingError(f"group_draws: {self.group_draws!r} is not one of {', '.join(get_args(GroupDraws))}")
        if self.ranges is not None and (self.timesteps is not None or not self.ranges):
            what = "together with timesteps" if self.ranges else "without any range in them"
            raise SettingError(f"ranges: given {what}")
        if self.ranges is None and self.group_draws != "host":
            raise SettingError(f"group_draws: {self.group_draws} needs the ranges to draw from")
        for timesteps in self.ranges or [self.timesteps]:
            objective.check_timesteps(timesteps)

    def draw(
        self, objective: Objective, x_0: torch.Tensor, generator: torch.Generator, labels: Any, share: float
    ) -> Draw:
        """A batch; ``share`` of it from all noise levels where only some are trained."""
        if self.group_draws != "host":
            balanced = self.group_draws == "balanced"
            return objective.draw(x_0, generator, class_labels=labels, ranges=self.ranges, balanced=balanced)
        share = 0.0 if self.timesteps is None else share
        return objective.draw(x_0, generator, self.timesteps, labels, all_timesteps_share=share)

    def bin_edges(self, objective: Objective, share: float) -> list[float]:
        """Of the training's loss."""
        return _edges(objective, None if share > 0 else self.timesteps, self.ranges)

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint depends on, as JSON."""
        ranges = None if self.ranges is None else [list(timesteps) for timesteps in self.ranges]
        draws = None if self.group_draws == "host" else self.group_draws
        timesteps = None if self.timesteps is None else list(self.timesteps)
        return {"timesteps": timesteps, "ranges": ranges, "group_draws": draws}


def _edges(objective: Objective, timesteps: Timesteps | None, ranges: Sequence[Timesteps] | None) -> list[float]:
    """Edges of about ``NUM_BINS`` bins over the trained noise levels, equal in t, flow time or log sigma.

    With adjoining ``ranges`` no bin belongs to two of them, so that each group's loss can be told.
    """
    if ranges is None or any(stop != start for (_, stop), (start, _) in pairwise(ranges)):
        return objective.bin_edges(timesteps, NUM_BINS)
    fine = objective.bin_edges((ranges[0][0], ranges[-1][1]), FINE_BINS)
    edges = [ranges[0][0]]
    for start, stop in ranges:
        share = (bisect_right(fine, stop) - bisect_right(fine, start)) / (len(fine) - 1)
        edges += objective.bin_edges((start, stop), max(1, round(NUM_BINS * share)))[1:]
    return edges
