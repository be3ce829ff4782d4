"""R rounds of C candidates: propose, project onto the budget, cut, score, remember (TDC, Algorithm 1 and Eq. 9)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from noisewise.errors import SettingError
from noisewise.files import read_json, write_json
from noisewise.models.surgery import cut
from noisewise.noise_distribution import Timesteps
from noisewise.objectives import Draw, ImageSource, Objective
from noisewise.pruning.brief import Brief, identity_of, snr_range
from noisewise.pruning.importance import ImportanceKind, Importances
from noisewise.pruning.memory import REPEATED, MemoryBank, Record
from noisewise.pruning.proposers import Accountable, Context, Credited, Proposal, Proposer, build_proposer
from noisewise.pruning.prune import PruneInfo, cut_to_widths, resolve_importance, space_of
from noisewise.pruning.recovery import RecoveryKind, repair_by
from noisewise.pruning.settings import TimingSettings
from noisewise.pruning.solver import check_budget
from noisewise.pruning.space import Space, open_space
from noisewise.pruning.time_budget import Budget, TimeInfo, Timer, budget_of

if TYPE_CHECKING:
    from diffusers import ModelMixin

BANK = "memory_bank.jsonl"
AIM = "time_budget.json"


@dataclass(frozen=True)
class SearchResult:
    """The best accepted candidate, cut from the base, and all that was tried."""

    model: ModelMixin
    info: PruneInfo
    best: Record
    bank: MemoryBank
    account: Mapping[str, Any]  # what the proposer used, where it says: requests, tokens, cost

    @property
    def proposed(self) -> dict[str, int]:
        """Candidates by the proposer they are from."""
        return dict(Counter(record.proposer for record in self.bank.records))


def search(
    model: ModelMixin,
    example_inputs: Mapping[str, Any],
    budget: Budget,
    settings: Any,
    *,
    objective: Objective,
    images: ImageSource | torch.Tensor,
    class_labels: torch.Tensor | None = None,
    timesteps: Timesteps | None = None,
    group: int = 0,
    importance: ImportanceKind | Importances = "taylor",
    timestep_stride: int | None = None,
    tolerance: float = 0.02,
    timing: TimingSettings | None = None,
    recovery: RecoveryKind = "none",
    num_recovery_images: int = 256,
    workspace: Path | None = None,
    seed: int = 0,
    proposer: Proposer | None = None,
    log: Callable[[str], None] | None = None,
) -> SearchResult:
    """Find widths within ``budget`` whose network, before any fine-tuning, has the least loss on the group's timesteps.

    All candidates are scored on the same images, noise and timesteps, so that two differ by their widths and not by
    luck. With a workspace the memory bank lies there, and a search that was stopped goes on without scoring again.

    A budget in seconds is aimed at with the solver's own answer first; all candidates then have the predicted time that
    one had, and the best whose measured time is as asked is taken.

    Candidates are scored as they are cut; ``recovery`` repairs the best of them alone. On a network of 40 layers one
    recovery takes as long as scoring some 20 candidates.

    Args:
        settings: one of `proposers.ProposerSettings`.
        images: training images, a data set or a tensor [N, C, H, W] in [-1, 1] with ``class_labels`` [N].
        timesteps: the group's half-open range; all where None.
        proposer: instead of the one that ``settings.kind`` names.
        log: takes one line per candidate.

    The other arguments are those of `prune.prune_to_budget`.
    """
    names = (seed, "prune", group)
    proposer = proposer or build_proposer(settings)
    share, unit = budget_of(budget)
    check_budget(share, tolerance)
    limits: dict[str, Any] = {
        "tolerance": tolerance,
        "alignment": settings.alignment,
        "min_width": settings.min_width,
        "depth": settings.depth,
    }
    bank = MemoryBank(None if workspace is None else workspace / BANK)
    looking: dict[str, Any] = {
        "objective": objective,
        "images": images,
        "class_labels": class_labels,
        "timesteps": timesteps,
    }
    repair = repair_by(recovery, num_recovery_images, names=names, **looking)
    looking |= {"timestep_stride": timestep_stride, "seed": seed}
    scores = resolve_importance(model, importance, **looking)
    kind = importance if isinstance(importance, str) else "given"
    timer = None
    if unit == "seconds":
        timer = Timer.of(model, example_inputs, share, timing or TimingSettings())
        space = _aimed(timer, scores, limits, workspace)
    else:
        space = space_of(model, example_inputs, share, **limits)
    context = Context(space, scores, group, timesteps, names)
    if settings.hints:
        others = {hint: resolve_importance(model, hint, **looking) for hint in settings.hints if hint != kind}
        hints = {hint: others.get(hint, scores) for hint in settings.hints}
        identity = identity_of(
            model, group=group, timesteps=timesteps, budget=budget, tolerance=tolerance, importance=kind,
            timestep_stride=timestep_stride, num_images=len(images), seed=seed,
        )  # fmt: skip
        context.brief = Brief(hints, snr_range(objective, timesteps), identity, workspace)
    _check_bank(bank, context)
    device = next(model.parameters()).device
    draws = objective.fixed_draws(
        images, settings.num_score_images, (*names, "score"), timesteps, class_labels, device=device
    )
    trial = _Trial(model, context, bank, objective, draws, settings.kind, log or (lambda line: None))
    for round_ in range(settings.rounds):
        done = len(bank.of_round(round_))
        if done >= settings.candidates:
            continue
        proposals = proposer.propose(context, bank.before(round_), settings.candidates)
        for candidate, proposal in list(enumerate(proposals[: settings.candidates]))[done:]:
            trial.run(round_, candidate, proposal)

    account = proposer.close(context) if isinstance(proposer, Accountable) else {}
    best = bank.best()
    if not best:
        reasons = "; ".join(sorted({record.reason for record in bank.records}))
        raise SettingError(f"prune.proposer: none of {len(bank)} candidates could be accepted ({reasons})")
    chosen, time_info = (best[0], None) if timer is None else _in_time(timer, context, bank)
    small, info = cut_to_widths(
        model, example_inputs, space, chosen.widths, scores, kind=kind, repair=repair, time_info=time_info
    )
    return SearchResult(small, info, chosen, bank, account)


def _aimed(timer: Timer, scores: Importances, limits: Mapping[str, Any], workspace: Path | None) -> Space:
    """The space of a budget in time; one that a stopped search aimed at before is there again."""
    path = None if workspace is None else workspace / AIM
    if path is not None and path.exists():
        return open_space(timer.latency.wiring, timer.latency, read_json(path, "aim")["target"], **limits)
    space, info = timer.aim(lambda cost, target: open_space(cost.wiring, cost, target, **limits), scores)
    if path is not None:
        write_json(path, {"target": space.budget, **asdict(info)})
    return space


def _in_time(timer: Timer, context: Context, bank: MemoryBank) -> tuple[Record, TimeInfo]:
    """The best candidate whose measured time is as asked, of the few that may be measured."""
    reached: list[float] = []
    for record in bank.best(timer.settings.attempts):
        info = timer.measured(context.space, record.widths, context.importances, reached)
        if timer.is_met(info):
            return record, info
        reached.append(info.achieved)
    raise timer.missed(reached, info.standard_error)


@dataclass(frozen=True)
class _Trial:
    """Tries one proposal after the other and writes each into the bank."""

    model: ModelMixin
    context: Context
    bank: MemoryBank
    objective: Objective
    draws: Sequence[Draw]
    kind: str
    log: Callable[[str], None]

    def run(self, round_: int, candidate: int, proposal: Proposal) -> None:
        record = self._tried(round_, candidate, proposal)
        self.bank.add(record)
        said = f"loss {record.loss:.5f} ± {record.loss_se:.5f}" if record.accepted else record.reason
        cost = "" if record.cost is None else f", cost {record.cost:.4f}"
        self.log(f"group {record.group} round {round_} candidate {candidate}: {said}{cost}")

    def _tried(self, round_: int, candidate: int, proposal: Proposal) -> Record:
        proposer = proposal.proposer if isinstance(proposal, Credited) else self.kind

        def record(widths: Mapping[str, int], reason: str, **values: Any) -> Record:
            blank = {"cost": None, "loss": None, "loss_se": None, "moved": None, **values}
            return Record(
                self.context.group,
                round_,
                candidate,
                proposer,
                dict(widths),
                **blank,
                accepted=not reason,
                reason=reason,
            )

        reason = unusable(proposal, self.context)
        if reason:
            return record({}, reason)
        solution, moved = self.context.project(proposal)
        known = {"cost": solution.macs / self.context.space.base_macs, "moved": moved}
        if self.bank.find(solution.widths) is not None:
            return record(solution.widths, REPEATED, **known)
        small = cut(self.model, self.context.space.kept(solution.widths, self.context.importances))
        loss, loss_se = mean_error(small, self.objective, self.draws)
        if not math.isfinite(loss):
            return record(solution.widths, "its loss is not finite", **known)
        return record(solution.widths, "", **known, loss=loss, loss_se=loss_se)


def mean_error(model: torch.nn.Module, objective: Objective, draws: Sequence[Draw]) -> tuple[float, float]:
    """Mean error over all images of ``draws`` and its standard error; the model's mode is restored."""
    training = model.training
    with torch.no_grad():
        errors = torch.cat([objective.error(model.eval(), draw).cpu().double() for draw in draws])  # [N]
    model.train(training)
    return float(errors.mean()), float(errors.std() / math.sqrt(len(errors)))


def unusable(proposal: Proposal, context: Context) -> str:
    """Why a proposal cannot even be projected; empty where it can."""
    if not isinstance(proposal, Mapping):
        return "it is no mapping of axes to widths"
    unknown = [str(name) for name in proposal if name not in context.widths]
    if unknown:
        return f"the network has no axis {', '.join(unknown)}"
    for name, width in proposal.items():
        if isinstance(width, bool) or not isinstance(width, int | float) or not math.isfinite(width):
            return f"the width of {name} is no number"
    return ""


def _check_bank(bank: MemoryBank, context: Context) -> None:
    """Refuse a bank of another network, group or budget: its losses would mean nothing here."""
    for record in bank.records:
        if record.group != context.group or (record.widths and set(record.widths) != set(context.widths)):
            raise SettingError(f"memory bank: {bank.path} holds widths of another network or group")
        if record.cost is not None and not (
            (1 - context.space.tolerance) * context.budget - 1e-9 <= record.cost <= context.budget + 1e-9
        ):
            raise SettingError(
                f"memory bank: {bank.path} holds candidates at cost {record.cost:.4f}, not within the "
                f"budget {context.budget}"
            )
