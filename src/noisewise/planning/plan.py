"""A plan: which noise levels form a group, and what each group's denoiser may cost.

Which group a timestep belongs to is said in ``planning/grouping.py``, where ranges may be cut and what a group may cost
in ``planning/make.py`` and ``planning/costs.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from noisewise.errors import SettingError
from noisewise.files import read_json, write_json
from noisewise.planning.clusters import ALPHA, NUM_DRAWS, ClusterCut, Reference
from noisewise.planning.costs import CostOptions, CostSettings
from noisewise.planning.grouping import Grouping
from noisewise.planning.groups import BigModelAt, Group
from noisewise.planning.intervals import IntervalCost
from noisewise.planning.make import (
    difficulty_curves,
    empty_notes,
    equal_cut,
    given_cut,
    interval_cut,
    make_groups,
    moved_cut,
    snr_cut,
)
from noisewise.planning.routes import Route, RouteTable
from noisewise.schedule import NoiseSchedule

if TYPE_CHECKING:
    import torch

    from noisewise.data.images import Dataset, Images
    from noisewise.data.latents import LatentDataset, Latents
    from noisewise.optimal.similarity import Similarity

FORMAT = 1


@dataclass(frozen=True)
class Plan(Grouping):
    """Groups with what they may cost; made by one of the constructors below.

    Attributes:
        settings: what made the plan, plain values.
        notes: what a user should know: empty groups, clipped SNR, moved limits.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    # ---- constructors: where the range is cut; what a group may cost is ``CostSettings``'s and means the same for all

    @classmethod
    def from_snr(
        cls,
        schedule: NoiseSchedule,
        num_groups: int = 10,
        min_cost: float = 0.5,
        big_model_at: BigModelAt = "noise",
        **costs: Unpack[CostOptions],
    ) -> Plan:
        """Groups are N equal bins of the cost that a noise level deserves by its SNR (TDC, Eq. 2 to 5).

        Args:
            schedule: the base model's noise schedule.
            num_groups: N, at least 1; 10 in the paper. Bins that no timestep falls into become empty groups.
            min_cost, big_model_at, costs: see ``CostSettings``. Here difficulty decides the bounds, too, so that
                ``snr_range``, ``visited`` and ``clip_db`` move them.
        """
        settings = CostSettings(min_cost, big_model_at, **costs)
        cut = snr_cut(num_groups, big_model_at)
        return cls(schedule, *make_groups(schedule, cut, settings, {"method": "snr", "num_groups": num_groups}))

    @classmethod
    def equal_width(
        cls,
        schedule: NoiseSchedule,
        num_groups: int = 10,
        min_cost: float = 0.5,
        big_model_at: BigModelAt = "noise",
        **costs: Unpack[CostOptions],
    ) -> Plan:
        """Groups of equal width in t (log sigma, flow time), to compare with; costs as in ``CostSettings``."""
        settings = CostSettings(min_cost, big_model_at, **costs)
        how = {"method": "equal-width", "num_groups": num_groups}
        return cls(schedule, *make_groups(schedule, equal_cut(schedule, num_groups), settings, how))

    @classmethod
    def from_bounds(
        cls,
        schedule: NoiseSchedule,
        bounds: Sequence[float],
        min_cost: float = 1.0,
        big_model_at: BigModelAt = "noise",
        **costs: Unpack[CostOptions],
    ) -> Plan:
        """Groups between inner bounds [N - 1] given as coordinates, rising; costs as in ``CostSettings``."""
        settings = CostSettings(min_cost, big_model_at, **costs)
        cut = given_cut(schedule, bounds)
        how = {"method": "given", "num_groups": len(bounds) + 1, "bounds": [float(b) for b in bounds]}
        return cls(schedule, *make_groups(schedule, cut, settings, how))

    @classmethod
    def from_intervals(
        cls,
        schedule: NoiseSchedule,
        cost: IntervalCost = "timestep",
        num_groups: int = 3,
        *,
        gradients: Any = None,
        min_cost: float = 1.0,
        big_model_at: BigModelAt = "noise",
        **costs: Unpack[CostOptions],
    ) -> Plan:
        """Groups are the intervals of least cost by ANT's exact dynamic programme (arXiv:2306.00354).

        Args:
            schedule: the base model's noise schedule.
            cost: what a group's levels should share with its middle one: "timestep" (t; log sigma, flow time), "snr"
                (log SNR) or "gradient" (the direction of the loss's gradient).
            num_groups: k; every group has between a half and one and a half times an equal share of the levels.
            gradients: for "gradient": [n, ...], one for each of n levels spread evenly over the schedule as
                ``planning.gradients.level_gradients`` makes them from a model and data.
            min_cost, big_model_at, costs: see ``CostSettings``; by default every group may cost what the base costs.
        """
        settings = CostSettings(min_cost, big_model_at, **costs)
        cut, num_levels = interval_cut(schedule, cost, num_groups, gradients)
        how = {"method": "intervals", "num_groups": num_groups, "interval_cost": cost, "num_levels": num_levels}
        return cls(schedule, *make_groups(schedule, cut, settings, how))

    @classmethod
    def from_optimal_denoiser(
        cls,
        schedule: NoiseSchedule,
        images: Images | Latents | Dataset | LatentDataset | torch.Tensor | Similarity,
        num_groups: int = 3,
        *,
        cut: ClusterCut | None = None,
        alpha: float = ALPHA,
        reference: Reference = "end",
        eta: float = 2 / 255,
        num_draws: int = NUM_DRAWS,
        num_levels: int | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        progress: Callable[[float], None] | None = None,
        min_cost: float = 1.0,
        big_model_at: BigModelAt = "noise",
        **costs: Unpack[CostOptions],
    ) -> Plan:
        """Groups of noise levels at which the optimal denoiser of these images is alike (arXiv:2312.09181, Sec. 4).

        Args:
            schedule: the base model's noise schedule.
            images: what the network will be trained on: a data set's training half, or a tensor [N, C, H, W] in
                [-1, 1]; the plan remembers their name, fingerprint and shape. Or similarities that were measured before
                on this schedule, with which ``eta``, ``num_draws`` and ``num_levels`` are settled.
            num_groups: k.
            cut: "threshold" (three groups by t1 and t2; the default for three) or "dynamic-programming" (the most
                similar groups of any number; the default for others).
            alpha: of "threshold": the least mean similarity to the reference within the two outer groups.
            reference: of "threshold": what the noisy end is compared with: "end" (the denoiser at the last level) or
                "mean" (the one that answers with the data's mean, at the same level).
            eta: numbers of two denoisers' noise that differ by at most this count as the same.
            num_draws: (image, noise) pairs.
            num_levels: noise levels, spread evenly; by default 50, or all where the schedule has fewer.
            seed: of the draws and of the bootstrap.
            device: where to compute; found by default.
            progress: called with the fraction done.
            min_cost, big_model_at, costs: see ``CostSettings``; by default every group may cost what the base costs.
        """
        from noisewise.optimal.similarity import Similarity
        from noisewise.planning.cluster_cut import ClusterSettings, cluster_cut, describe_data, measure

        settings = CostSettings(min_cost, big_model_at, **costs)
        choice = ClusterSettings(num_groups, cut, alpha, reference, seed)
        data = {}
        if not isinstance(images, Similarity):
            data = {"data": describe_data(images)}
            images = measure(schedule, images, num_draws, num_levels, eta, seed, device, progress)
        where, how, found = cluster_cut(schedule, images, choice)
        groups, resolved, notes = make_groups(schedule, where, settings, how | data)
        return cls(schedule, groups, resolved, [*found, *notes])

    @classmethod
    def single(cls, schedule: NoiseSchedule) -> Plan:
        """One group for all noise levels at the base's cost."""
        start, stop = schedule.span
        group = Group(0, start, stop, 1.0, schedule.num_train_timesteps)
        return cls(schedule, (group,), {"method": "single", "num_groups": 1}, [])

    def to(self, schedule: NoiseSchedule | Any) -> Plan:
        """The same groups by noise level on another schedule (or diffusers scheduler's); cost limits stay.

        A group begins at the SNR it began at before: on whole timesteps at the first one that has as much noise. Groups
        beyond the new schedule's noise levels become empty, which the notes say.
        """
        if not isinstance(schedule, NoiseSchedule):
            schedule = NoiseSchedule.from_scheduler(schedule)
        cut = moved_cut(self.groups, self.schedule, schedule)
        groups = tuple(
            Group(group.index, cut.bounds[i], cut.bounds[i + 1], group.cost_limit, int(cut.sizes[i]))
            for i, group in enumerate(self.groups)
        )
        source = self.settings.get("moved_from", self.schedule.to_dict())
        note = f"moved from {self.schedule.kind} ({self.coordinate}) to {schedule.kind} by noise level"
        return Plan(schedule, groups, self.settings | {"moved_from": source}, [*self.notes, note, *empty_notes(groups)])

    # ---- what it says

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

    def check_data(self, shape: Sequence[int]) -> None:
        """Raise where images of ``shape`` [C, H, W] are of another size than the data set that the plan came from."""
        data = self.settings.get("data")
        if data is not None and list(shape) != list(data["shape"]):
            made, given = ("x".join(map(str, size)) for size in (data["shape"], shape))
            raise SettingError(
                f"plan: made from {data['name']}, images of {made} (channels, height, width); these are {given}; "
                "make the plan again from these images"
            )

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
