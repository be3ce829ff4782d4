"""A budget in time: widths by predicted latency, the result measured, the aim corrected by what was missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils._pytree import tree_map_only

from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.models.surgery import cut
from noisewise.pruning.importance import Importances
from noisewise.pruning.latency import LatencyModel, latency_of
from noisewise.pruning.settings import TimingSettings
from noisewise.pruning.solver import SolverError
from noisewise.pruning.space import Space
from noisewise.pruning.stopwatch import Clock, Ratio, time_ratio

if TYPE_CHECKING:
    from diffusers import ModelMixin

BudgetIn = Literal["macs", "seconds"]
Budget = float | Mapping[str, float]  # a fraction of the MACs, or {"macs": ...} or {"seconds": ...}
LARGEST_AIM = 0.999  # a share of 1 would change nothing


@dataclass(frozen=True)
class TimeInfo:
    """Latency asked for, predicted and measured, as shares of the base's on the same inputs."""

    asked: float
    achieved: float  # median over turns of the two networks
    quartiles: tuple[float, float]  # of those turns
    standard_error: float  # of the median
    num_turns: int
    predicted: float  # from the widths, before any correction
    prediction_error: float  # of such predictions: median over networks that the fit did not see
    seconds: float  # of a forward pass
    base_seconds: float
    batch_size: int
    device: str
    threads: int
    clock: Clock
    attempts: tuple[float, ...]  # measured, in their order

    def __str__(self) -> str:
        low, high = self.quartiles
        return (
            f"{self.achieved:.3f} of the time measured (quartiles {low:.3f} to {high:.3f}; {self.predicted:.3f} "
            f"predicted; asked {self.asked}): {1000 * self.seconds:.1f} of {1000 * self.base_seconds:.1f} ms "
            f"at batch {self.batch_size} on {self.device}, {self.threads} threads, {self.clock} clock"
        )


class TimeBudgetError(SettingError):
    """No measured network came near enough to the asked time; ``reached`` holds what was measured."""

    def __init__(self, message: str, reached: tuple[float, ...]) -> None:
        super().__init__(message)
        self.reached = reached


def budget_of(budget: Budget) -> tuple[float, BudgetIn]:
    """A budget and its unit; a bare number is a fraction of the MACs."""
    if not isinstance(budget, Mapping):
        return budget, "macs"
    if len(budget) != 1 or not budget.keys() <= {"macs", "seconds"}:
        raise SettingError(f"prune.budget: {dict(budget)} given; one of macs and seconds, e.g. {{'seconds': 0.7}}")
    if "seconds" in budget:
        return budget["seconds"], "seconds"
    return budget["macs"], "macs"


@dataclass(frozen=True)
class Timer:
    """A network's latency on its inputs, and that of others cut from it."""

    model: ModelMixin
    inputs: Mapping[str, Any]  # forward's keywords at the batch size that counts
    budget: float
    settings: TimingSettings
    latency: LatencyModel

    @classmethod
    def of(cls, model: ModelMixin, example_inputs: Mapping[str, Any], budget: float, settings: TimingSettings) -> Timer:
        """Measures the latency of the network's layers, unless it is known already."""
        if settings.clock == "cpu" and model.device.type != "cpu":
            raise SettingError(f"prune.timing.clock: cpu given, the model lies on {model.device}; use wall")
        inputs = batched(model, example_inputs, settings.batch_size)
        return cls(model, inputs, budget, settings, latency_of(model, inputs))

    def aim(self, open_at: Callable[[LatencyModel, float], Space], scores: Importances) -> tuple[Space, TimeInfo]:
        """A space whose most important widths take the asked time when they are measured.

        Args:
            open_at: the space of a cost form and a budget.

        Raises:
            TimeBudgetError: where none of the attempts did.
            SolverError: where no legal widths are predicted to.
        """
        target = self.budget
        reached: list[float] = []
        for _ in range(self.settings.attempts):
            space = self._opened(open_at, target, reached)
            widths = space.solve(scores).widths
            info = self.measured(space, widths, scores, reached)
            reached.append(info.achieved)
            if self.is_met(info):
                return space, info
            target = min(target * self.budget / info.achieved, LARGEST_AIM)
        raise self.missed(reached, info.standard_error)

    def measured(self, space: Space, widths: Mapping[str, int], scores: Importances, before: list[float]) -> TimeInfo:
        """The time of the network of these widths against the full one's; ``before``: what was measured already."""
        small = cut(self.model, space.kept(widths, scores)).eval()
        training = self.model.training
        self.model.eval()
        try:
            ratio = time_ratio(small, self.model, self.inputs, self.settings.tolerance / 4, self.settings.clock)
        finally:
            self.model.train(training)
        return self.info(ratio, self.latency.share(widths), (*before, ratio.median))

    def info(self, ratio: Ratio, predicted: float, attempts: tuple[float, ...]) -> TimeInfo:
        return TimeInfo(
            asked=self.budget,
            achieved=ratio.median,
            quartiles=ratio.quartiles,
            standard_error=ratio.standard_error,
            num_turns=ratio.num_turns,
            predicted=predicted,
            prediction_error=self.latency.prediction_error,
            seconds=ratio.seconds,
            base_seconds=ratio.base_seconds,
            batch_size=self.settings.batch_size,
            device=str(self.model.device),
            threads=torch.get_num_threads(),
            clock=self.settings.clock,
            attempts=attempts,
        )

    def is_met(self, info: TimeInfo) -> bool:
        return abs(info.achieved / self.budget - 1) <= self.settings.tolerance

    def missed(self, reached: list[float], standard_error: float) -> TimeBudgetError:
        said = ", ".join(f"{share:.3f}" for share in reached)
        return TimeBudgetError(
            f"prune.budget: {self.budget} of the model's time asked; measured were {said} (each ± {standard_error:.3f} "
            f"by noise), none within {self.settings.tolerance:.0%} of it. Widths may not come finer, or the machine is "
            "busy: raise prune.timing.tolerance or prune.timing.attempts, or ask for what was reached",
            tuple(reached),
        )

    def _opened(self, open_at: Callable[[LatencyModel, float], Space], target: float, reached: list[float]) -> Space:
        try:
            return open_at(self.latency, target)
        except SolverError as error:
            so_far = f"; measured so far: {', '.join(f'{share:.3f}' for share in reached)}" if reached else ""
            said = str(error).replace("the model's MACs", "the model's predicted time")
            raise SolverError(f"{said}{so_far}", error.reachable, error.proof) from None


def batched(model: ModelMixin, example_inputs: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """The same inputs for ``batch_size`` images: the first one's, repeated."""
    per_sample = describe(model).batch_arguments

    def repeat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.dim() == 0 else tensor[:1].expand(batch_size, *tensor.shape[1:]).contiguous()

    return {
        name: tree_map_only(torch.Tensor, repeat, value) if name in per_sample else value
        for name, value in example_inputs.items()
    }
