"""A plan: which noise levels form a group, what each group's denoiser may cost, and which group a timestep belongs to.

``Plan.group_of`` is the one definition of the boundary: trainer, pruner, router and evaluator all ask it.
How plans are made is in ``planning/make.py``, on the arithmetic of ``planning/groups.py``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.files import read_json, write_json
from noisewise.planning.groups import BigModelAt, CostSchedule, Group, SnrRange
from noisewise.planning.make import PlanSettings, difficulty_curves, make_groups
from noisewise.planning.routes import Route, RouteTable
from noisewise.schedule import Coordinate, NoiseSchedule

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """Groups from data to noise, which cover the schedule's range once; made by one of the constructors below.

    Attributes:
        schedule: whose coordinate the bounds are in.
        groups: [N], index 0 nearest the data; some may be empty.
        settings: what made the plan, plain values.
        notes: what a user should know: empty groups, clipped SNR, moved limits.
    """

    schedule: NoiseSchedule
    groups: tuple[Group, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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

    # ---- constructors

    @classmethod
    def from_snr(
        cls,
        schedule: NoiseSchedule,
        num_groups: int = 10,
        min_cost: float = 0.5,
        big_model_at: BigModelAt = "noise",
        *,
        cost_schedule: CostSchedule = "snr",
        average_cost: float | None = None,
        snr_range: SnrRange = "all",
        visited: Sequence[float] | np.ndarray | None = None,
        clip_db: float | tuple[float, float] | None = None,
    ) -> Plan:
        """Groups are N equal bins of the cost that a noise level deserves by its SNR (TDC, Eq. 2 to 5).

        Args:
            schedule: the base model's noise schedule.
            num_groups: N, at least 1; 10 in the paper. Bins that no timestep falls into become empty groups.
            min_cost: the smallest cost, as a fraction of the base model's MACs, in (0, 1]; k in the paper, 0.5 there.
            big_model_at: "noise" (the paper's direction: low SNR is hard) or "data" (what most later work measures).
            cost_schedule: how the groups' limits are set (the groups stay the same). "snr": the upper edge of the
                group's bin. "constant": for all the timestep-weighted mean of those. "increasing", "decreasing": the
                most of a cost that goes linearly in t (log sigma, flow time) between ``min_cost`` and 1.
            average_cost: the timestep-weighted mean limit wanted, in (0, 1]: limits are moved to match it (see notes),
                so that plans can be compared at the same cost.
            snr_range: difficulty is scaled over the SNR of "all" timesteps or of the "visited" ones; levels beyond
                count as the nearest one within.
            visited: coordinates that sampling visits, e.g. ``schedule.visited(scheduler, num_inference_steps)``.
            clip_db: lowest and highest SNR told apart, or c for -c .. c. By default nothing but infinite SNR is
                clipped, to the nearest finite one.
        """
        settings = PlanSettings(
            "snr", num_groups, min_cost, big_model_at, cost_schedule, average_cost, snr_range, clip_db
        )
        return cls(schedule, *make_groups(schedule, settings, visited))

    @classmethod
    def equal_width(
        cls,
        schedule: NoiseSchedule,
        num_groups: int = 10,
        min_cost: float = 0.5,
        big_model_at: BigModelAt = "noise",
        *,
        cost_schedule: CostSchedule = "snr",
        average_cost: float | None = None,
        snr_range: SnrRange = "all",
        visited: Sequence[float] | np.ndarray | None = None,
        clip_db: float | tuple[float, float] | None = None,
    ) -> Plan:
        """Groups of equal width in t (log sigma, flow time), to compare with; settings as in ``from_snr``.

        A group's limit is the largest cost that one of its noise levels deserves.
        """
        settings = PlanSettings(
            "equal-width", num_groups, min_cost, big_model_at, cost_schedule, average_cost, snr_range, clip_db
        )
        return cls(schedule, *make_groups(schedule, settings, visited))

    @classmethod
    def single(cls, schedule: NoiseSchedule) -> Plan:
        """One group for all noise levels at the base's cost."""
        start, stop = schedule.span
        group = Group(0, start, stop, 1.0, schedule.num_train_timesteps)
        return cls(schedule, (group,), {"method": "single", "num_groups": 1}, [])

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

    # ---- what it says

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

    def routes(
        self, scheduler: Any, num_inference_steps: int, costs: Sequence[float | None] | None = None, **options: Any
    ) -> RouteTable:
        """Which group serves each call that ``scheduler`` makes, at what cost.

        Args:
            scheduler: a diffusers scheduler; left as it is.
            num_inference_steps: what its ``set_timesteps`` is given.
            costs: [N] cost of a call of each group's expert, in any unit; by default the groups' cost limits.
            options: further arguments of ``set_timesteps``.
        """
        costs = [group.cost_limit for group in self.groups] if costs is None else costs
        if len(costs) != len(self.groups):
            raise SettingError(f"plan.routes: {len(costs)} costs for {len(self.groups)} groups")
        visited = self.schedule.visited(scheduler, num_inference_steps, **options).tolist()
        routes = []
        for step, t in enumerate(visited):
            group = self.group_of(t)
            cost = costs[group]
            if cost is None:
                raise SettingError(f"plan.routes: group {group} serves t = {t:g} but has no cost")
            routes.append(Route(step, t, group, float(cost)))
        return RouteTable(tuple(routes))

    def difficulty(self) -> dict[str, list[float]]:
        """Per point of the schedule's grid, for a plot: t, snr_db (finite), cost it deserves, cost_limit; fractions."""
        return difficulty_curves(self.schedule, self.groups, self.settings)

    def table(self) -> str:
        """Text: a line for each group, the average cost and the notes."""
        grid = self.schedule.grid()
        snr_db, t = self.difficulty()["snr_db"], self.coordinate
        lines = [f"{'group':>5}  {t:>21}  {'number':>6}  {'SNR [dB]':>16}  {'cost limit':>10}"]
        first = 0
        for group in self.groups:
            last = first + group.num_timesteps - 1
            snr = f"{snr_db[first]:.1f} .. {snr_db[last]:.1f}" if group.num_timesteps else "-"
            bounds = "empty" if group.is_empty else f"{group.t_start:.6g} .. {group.t_stop:.6g}"
            lines.append(
                f"{group.index:>5}  {bounds:>21}  {group.num_timesteps:>6}  {snr:>16}  {group.cost_limit:>10.3f}"
            )
            first = last + 1
        lines.append(f"{len(grid)} {t}s, average cost limit {self.average_cost:.4f} of the base's MACs")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    # ---- JSON

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` gives an equal plan."""
        return {
            "format": FORMAT,
            "coordinate": self.coordinate,
            "num_train_timesteps": self.num_train_timesteps,
            "schedule": self.schedule.to_dict(),
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "groups": [
                {"t_start": g.t_start, "t_stop": g.t_stop, "cost_limit": g.cost_limit, "num_timesteps": g.num_timesteps}
                for g in self.groups
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The plan that ``to_dict`` described; checked, since routing depends on it."""
        try:
            if values["format"] != FORMAT:
                raise SettingError(f"plan.format: {values['format']} is not {FORMAT}")
            groups = tuple(Group(index, **group) for index, group in enumerate(values["groups"]))
            schedule = NoiseSchedule.from_dict(values["schedule"])
            if (values["coordinate"], values["num_train_timesteps"]) != (
                schedule.coordinate,
                schedule.num_train_timesteps,
            ):
                raise SettingError("plan.num_train_timesteps: the plan and the schedule in it disagree")
            return cls(schedule, groups, dict(values["settings"]), list(values["notes"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise SettingError(f"plan: not the description of a plan ({error!r})") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what ``save`` wrote."""
        return cls.from_dict(read_json(Path(path), "plan"))


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
