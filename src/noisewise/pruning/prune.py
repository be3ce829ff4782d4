"""One model, one budget: choose widths, cut, and check what came out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch

from noisewise.errors import SettingError
from noisewise.models.cost import CostModel, count_macs, count_parameters
from noisewise.models.networks import describe
from noisewise.models.surgery import cut
from noisewise.objectives import ImageSource, Objective
from noisewise.pruning.importance import ImportanceKind, Importances
from noisewise.pruning.importance import importance as score_channels
from noisewise.pruning.recovery import RecoveryInfo, RecoveryKind, Repair, repair_by
from noisewise.pruning.settings import TimingSettings
from noisewise.pruning.solver import check_budget
from noisewise.pruning.space import Space, open_space
from noisewise.pruning.time_budget import Budget, BudgetIn, TimeInfo, Timer, budget_of
from noisewise.pruning.widths import Alignment, MinWidth

if TYPE_CHECKING:
    from diffusers import ModelMixin


@dataclass(frozen=True)
class PruneInfo:
    """What was asked of a pruning and what came out. Costs are fractions of the model it was cut from."""

    asked: float
    achieved: float  # MACs counted, or time measured
    macs: int
    base_macs: int
    parameters: int
    base_parameters: int
    widths: Mapping[str, int]  # channels kept, every axis that may be cut
    full_widths: Mapping[str, int]
    alignment: int  # the largest alignment of any axis
    alignments: Mapping[str, int]  # of each axis
    min_width: float  # the least share of its channels that every axis had to keep
    importance: str  # kind, or "given"
    importance_kept: float  # share of all importance that the kept channels hold
    removed_blocks: tuple[str, ...]  # module paths of the blocks that this pruning left out
    seconds: float  # importances aside
    recovery: RecoveryInfo | None = None  # None: not asked for
    budget_in: BudgetIn = "macs"
    time: TimeInfo | None = None  # of a budget in seconds

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def prune_to_budget(
    model: ModelMixin,
    example_inputs: Mapping[str, Any],
    budget: Budget,
    importance: ImportanceKind | Importances = "taylor",
    *,
    objective: Objective | None = None,
    images: ImageSource | torch.Tensor | None = None,
    class_labels: torch.Tensor | None = None,
    timesteps: tuple[float, float] | None = None,
    timestep_stride: int | None = None,
    alignment: Alignment = "auto",
    min_width: MinWidth = "auto",
    keep: Sequence[str] = (),
    depth: bool = False,
    tolerance: float = 0.02,
    timing: TimingSettings | None = None,
    recovery: RecoveryKind = "none",
    num_recovery_images: int = 256,
    seed: int = 0,
) -> tuple[ModelMixin, PruneInfo]:
    """Cut ``model`` down to ``budget`` of its MACs or its time, keeping as much importance as fits.

    Args:
        model: any network `noisewise.models.networks.describe` knows; it stays as it is.
        example_inputs: forward's keywords; MACs are counted for them, and the result is run on them.
        budget: MACs to keep, as a fraction in (0, 1), or ``{"seconds": fraction}`` of the time a forward pass takes on
            the device where the model lies. Latencies are measured once per network and machine, and kept: see
            `latency`.
        importance: which channels matter (see `noisewise.pruning.importance`), or scores by axis, e.g. computed once
            for many budgets.
        objective, images, class_labels, timesteps, timestep_stride: what the scores of taylor and diff-pruning are
            computed on; timesteps is the half-open range of a group.
        alignment: widths come in multiples of so many channels; "auto" takes up to 16, less for narrow axes and where
            the budget could not be met otherwise.
        min_width: share of its channels that every axis keeps at least; "auto" is half of the square root of the budget
            (what an even cut would leave), less where the budget could not be met otherwise. Sums of importances know
            nothing of bottlenecks; this bound keeps the solver from making one.
        keep: module paths, e.g. "down_blocks", in which no channel is cut; they count towards the budget all the same.
        depth: whole blocks that only add to their input (attentions, residual blocks without a shortcut convolution)
            may be left out; ``min_width`` holds for those that stay.
        tolerance: the cost reached lies within [1 - tolerance, 1] of the budget.
        timing: batch size, tolerance and attempts of a budget in seconds; None: their defaults.
        recovery: "least-squares" then fits the layers behind a cut to the full network's answers, on so many
            images at the noise levels of ``timesteps``; it needs ``objective`` and ``images``. See `recovery.recover`.
        seed: of random importances and of the noise of taylor, diff-pruning and recovery.

    Returns:
        The smaller network, its channels in their original order, with the weights they had or, after recovery, new
        ones; and what was reached.

    Raises:
        SolverError: where no legal widths cost that; it carries the nearest costs that can be reached.
        TimeBudgetError: where no measured network took the time that was asked; it carries what was reached.
    """
    share, unit = budget_of(budget)
    check_budget(share, tolerance)
    kind = importance if isinstance(importance, str) else "given"
    looking: dict[str, Any] = {
        "objective": objective,
        "images": images,
        "class_labels": class_labels,
        "timesteps": timesteps,
    }
    repair = repair_by(recovery, num_recovery_images, names=(seed, "prune"), **looking)
    scores = resolve_importance(model, importance, **looking, timestep_stride=timestep_stride, seed=seed)
    started = time.perf_counter()
    limits: dict[str, Any] = {
        "tolerance": tolerance,
        "alignment": alignment,
        "min_width": min_width,
        "keep": keep,
        "depth": depth,
    }
    time_info = None
    if unit == "seconds":
        timer = Timer.of(model, example_inputs, share, timing or TimingSettings())
        space, time_info = timer.aim(lambda cost, target: open_space(cost.wiring, cost, target, **limits), scores)
    else:
        space = space_of(model, example_inputs, share, **limits)
    widths = space.solve(scores).widths
    return cut_to_widths(
        model, example_inputs, space, widths, scores, kind=kind, started=started, repair=repair, time_info=time_info
    )


def resolve_importance(model: ModelMixin, importance: ImportanceKind | Importances, **settings: Any) -> Importances:
    """Scores as given, or computed where a kind is named."""
    if isinstance(importance, Mapping):
        return importance
    if importance not in get_args(ImportanceKind):
        raise SettingError(f"prune.importance: {importance!r} is not one of {', '.join(get_args(ImportanceKind))}")
    return score_channels(model, importance, **settings)


def space_of(model: ModelMixin, example_inputs: Mapping[str, Any], budget: float, **settings: Any) -> Space:
    """The widths that ``model`` may be given at ``budget``; settings as `space.open_space`'s."""
    cost = CostModel.of(model, example_inputs)
    return open_space(cost.wiring, cost, budget, **settings)


def cut_to_widths(
    model: ModelMixin,
    example_inputs: Mapping[str, Any],
    space: Space,
    widths: Mapping[str, int],
    scores: Importances,
    *,
    kind: str = "given",
    started: float | None = None,
    repair: Repair | None = None,
    time_info: TimeInfo | None = None,
) -> tuple[ModelMixin, PruneInfo]:
    """Cut ``model`` to legal ``widths``, keeping each axis's most important channels, and check the result.

    ``repair`` changes the smaller network's weights in place. The cost reached is counted anew on the network itself,
    and a forward pass has to give finite numbers of the shape that the full network gives. A space of a budget in time
    comes with what was measured.
    """
    started = time.perf_counter() if started is None else started
    kept = space.kept(widths, scores)
    if not kept:
        raise SettingError("prune.budget: nothing would change: every axis keeps its full width")
    small = cut(model, kept)
    macs, base_macs = count_macs(small, example_inputs), count_macs(model, example_inputs)
    check_cost(macs, base_macs, None if time_info else space.budget, space.tolerance)
    recovery = None if repair is None else repair(model, small, kept)
    _check_forward(small, example_inputs, describe(model).output_shape(model, example_inputs))
    full = {name: space.wiring.axes[name].width for name in space.widths}
    total = sum(float(scores[name].sum()) for name in full)
    kept_total = sum(float(scores[name][kept[name]].sum() if name in kept else scores[name].sum()) for name in full)
    info = PruneInfo(
        asked=time_info.asked if time_info else space.budget,
        achieved=time_info.achieved if time_info else macs / base_macs,
        macs=macs,
        base_macs=base_macs,
        parameters=count_parameters(small),
        base_parameters=count_parameters(model),
        widths={name: int(widths[name]) for name in full},
        full_widths=full,
        alignment=max(space.alignments.values()),
        alignments=dict(space.alignments),
        min_width=space.min_width,
        importance=kind,
        importance_kept=kept_total / total if total > 0 else 1.0,
        removed_blocks=space.wiring.removed_blocks(widths),
        seconds=time.perf_counter() - started,
        recovery=recovery,
        budget_in="seconds" if time_info else "macs",
        time=time_info,
    )
    return small, info


def check_cost(macs: int, base_macs: int, budget: float | None, tolerance: float) -> None:
    """Achieved against asked, if MACs were; what the cost model promised has to hold for the network itself."""
    achieved = macs / base_macs
    if macs >= base_macs:
        raise RuntimeError(f"pruning changed nothing: {macs} MACs before and after")
    if budget is not None and not (1 - tolerance) * budget - 1e-9 <= achieved <= budget + 1e-9:
        raise RuntimeError(
            f"pruning reached {achieved:.4f} of the MACs, outside [{(1 - tolerance) * budget:.4f}, {budget:.4f}]: "
            "the cost model disagrees with the network; please report this with the model's config.json"
        )


def _check_forward(small: ModelMixin, example_inputs: Mapping[str, Any], shape: torch.Size) -> None:
    training = small.training
    with torch.no_grad():
        output = small.eval()(**example_inputs)
    small.train(training)
    answer = output[0] if isinstance(output, tuple) else output.sample
    if answer.shape != shape:
        raise RuntimeError(f"the pruned network answers with shape {tuple(answer.shape)}, not {tuple(shape)}")
    if not bool(torch.isfinite(answer).all()):
        raise SettingError("prune: the pruned network's answer is not finite; are the model's own weights finite?")
