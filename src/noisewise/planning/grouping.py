"""Groups of noise levels that cover a schedule once, and which of them a timestep belongs to.

``Grouping.group_of`` is the one definition of the boundary: trainer, pruner, router and evaluator all ask it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.planning.groups import Group
from noisewise.schedule import Coordinate, NoiseSchedule


@dataclass(frozen=True)
class Grouping:
    """Groups from data to noise, which cover the schedule's range once.

    Attributes:
        schedule: whose coordinate the bounds are in.
        groups: [N], index 0 nearest the data; some may be empty.
    """

    schedule: NoiseSchedule
    groups: tuple[Group, ...]

    # looked up at every call of a router: plain lists for numbers, tensors per device for batches
    _starts: list[float] = field(init=False, repr=False, compare=False, default_factory=list)
    _indices: list[int] = field(init=False, repr=False, compare=False, default_factory=list)
    _scalars: list[torch.Tensor] = field(init=False, repr=False, compare=False, default_factory=list)
    _tensors: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        _check_groups(self.schedule, self.groups)
        filled = [group for group in self.groups if not group.is_empty]
        self._starts.extend(group.t_start for group in filled[1:])
        self._indices.extend(group.index for group in filled)
        self._scalars.extend(torch.tensor(index, device="cpu") for index in self._indices)

    # ---- which group

    @overload
    def group_of(self, t: float) -> int: ...
    @overload
    def group_of(self, t: torch.Tensor) -> torch.Tensor: ...
    @overload
    def group_of(self, t: np.ndarray) -> np.ndarray: ...
    def group_of(self, t: float | torch.Tensor | np.ndarray) -> int | torch.Tensor | np.ndarray:
        """Index of the group that coordinate ``t`` belongs to; the outermost groups reach to infinity.

        Args:
            t: timestep (whole or not), sigma or flow time: a number, a tensor or an array.

        Returns:
            An int for a number; for a tensor or an array int64 of its shape, on its device. Never an empty group.
        """
        if type(t) is int or type(t) is float:
            return self._indices[bisect_right(self._starts, t)]
        if isinstance(t, torch.Tensor):
            return self._groups_of_tensor(t)
        if isinstance(t, np.ndarray):
            return np.asarray(self._indices)[np.searchsorted(self._starts, t, side="right")]
        if isinstance(t, int | float | np.number):
            return self.group_of(float(t))
        raise SettingError(f"timestep: {type(t).__name__} is not a number, a tensor or an array")

    def _groups_of_tensor(self, t: torch.Tensor) -> torch.Tensor:
        if t.ndim == 0 and t.device.type == "cpu":
            return self._scalars[bisect_right(self._starts, t.item())].clone()  # cheaper than making a tensor
        if t.device not in self._tensors:
            wide = torch.float32 if t.device.type == "mps" else torch.float64
            starts = torch.tensor(self._starts, dtype=wide, device=t.device)
            self._tensors[t.device] = starts, torch.tensor(self._indices, device=t.device)
        starts, indices = self._tensors[t.device]
        return indices[torch.bucketize(t.to(starts.dtype), starts, right=True)]

    @overload
    def group_of_model_timestep(self, timestep: float) -> int: ...
    @overload
    def group_of_model_timestep(self, timestep: torch.Tensor) -> torch.Tensor: ...
    @overload
    def group_of_model_timestep(self, timestep: np.ndarray) -> np.ndarray: ...
    def group_of_model_timestep(self, timestep: Any) -> Any:
        """``group_of`` for what a network receives as ``timestep``: c_noise under EDM, T x flow time, the timestep."""
        if self.schedule.model_timestep in ("timestep", "sigma"):
            return self.group_of(timestep)
        if isinstance(timestep, torch.Tensor):  # a half-precision exponential would move the boundary
            timestep = timestep.to(torch.float32 if timestep.device.type == "mps" else torch.float64)
        return self.group_of(self.schedule.to_coordinate(timestep))

    # ---- what they are in

    @property
    def coordinate(self) -> Coordinate:
        """What bounds are in: "timestep", "sigma" or "flow-time"."""
        return self.schedule.coordinate

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return self.schedule.num_train_timesteps

    @property
    def average_cost(self) -> float:
        """Mean cost limit over timesteps, as a fraction of the base's MACs."""
        return sum(g.cost_limit * g.num_timesteps for g in self.groups) / self.num_train_timesteps

    def check_schedule(self, schedule: NoiseSchedule | Any) -> None:
        """Raise where a model's schedule (or diffusers scheduler) does not count noise levels as this plan does."""
        if not isinstance(schedule, NoiseSchedule):
            schedule = NoiseSchedule.from_scheduler(schedule)
        self.schedule.check_same(schedule, "plan.schedule")


def _check_groups(schedule: NoiseSchedule, groups: Sequence[Group]) -> None:
    """Groups cover the schedule's span once, in order, and their limits are fractions."""
    start, stop = schedule.span
    if not groups or all(group.is_empty for group in groups):
        raise SettingError("plan.groups: no group has any noise level")
    bounds = [start, *(group.t_stop for group in groups)]
    for i, group in enumerate(groups):
        if group.index != i or group.t_start != bounds[i] or group.t_stop < group.t_start:
            raise SettingError(
                f"plan.groups.{i}: {group.t_start} to {group.t_stop} is not a range from {bounds[i]}, the end before it"
            )
        if not 0 < group.cost_limit <= 1:
            raise SettingError(f"plan.groups.{i}.cost_limit: {group.cost_limit} is not above 0 and at most 1")
    if bounds[-1] != stop or sum(group.num_timesteps for group in groups) != schedule.num_train_timesteps:
        raise SettingError(f"plan.groups: they end at {bounds[-1]}, the schedule at {stop}")
