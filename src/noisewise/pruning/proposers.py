"""Proposers suggest widths; the search projects them onto the budget, measures them, and remembers (TDC, Eq. 11).

A proposer sees the context (axes, costs, legal widths, importances, budget) and the memory bank, and answers with
widths per axis. They need not be legal, nor meet the budget: projection sees to both. Register another kind by adding a
settings class to `ProposerSettings` and its proposer to `PROPOSERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field

from noisewise.noise_distribution import Timesteps
from noisewise.pruning.brief import Brief
from noisewise.pruning.importance import Importances
from noisewise.pruning.llm.settings import LlmSettings
from noisewise.pruning.memory import MemoryBank
from noisewise.pruning.settings import SearchSettings
from noisewise.pruning.solver import Solution, SolverError
from noisewise.pruning.space import Space
from noisewise.streams import stream

Proposal = Mapping[str, float]  # axis -> channels to keep; an axis left out stays whole
ATTEMPTS = 8  # proposals tried, per one asked for, before a proposer gives up finding new ones


@dataclass
class Context:
    """What a proposer may know."""

    space: Space
    importances: Importances
    group: int
    timesteps: Timesteps | None  # the group's half-open range
    names: Sequence[object]  # of its random streams, e.g. (seed, "prune", group)
    brief: Brief | None = None
    _projected: dict[tuple[float | None, ...], tuple[Solution, float]] = field(default_factory=dict)

    @property
    def widths(self) -> Mapping[str, tuple[int, ...]]:
        """Legal widths of every axis, ascending."""
        return self.space.widths

    @property
    def budget(self) -> float:
        return self.space.budget

    def project(self, proposal: Proposal) -> tuple[Solution, float]:
        """The legal widths within the budget nearest to ``proposal``, and how far it was moved; each computed once."""
        key = tuple(proposal.get(name) for name in self.widths)
        if key not in self._projected:
            self._projected[key] = self.space.project(proposal)
        return self._projected[key]


class Credited(dict[str, float]):
    """A proposal with the name of the proposer it is from, where that is another than the settings name."""

    def __init__(self, widths: Proposal, proposer: str) -> None:
        super().__init__(widths)
        self.proposer = proposer


class Proposer(Protocol):
    """Anything that suggests widths."""

    def propose(self, context: Context, bank: MemoryBank, num: int) -> list[Proposal]:
        """``num`` proposals, or fewer where no new ones are found. Must not touch the bank."""
        ...


@runtime_checkable
class Accountable(Protocol):
    """A proposer that says, after the last round, what it used."""

    def close(self, context: Context) -> dict[str, Any]: ...


class ImportanceSettings(SearchSettings):
    """The solver's own answer first, then variations of the importances it was given."""

    kind: Literal["importance"] = "importance"


class EvolutionSettings(SearchSettings):
    """Crossover and mutation of the best widths so far."""

    kind: Literal["evolution"] = "evolution"

    mutation: float = Field(default=0.15, gt=0, le=1)
    """Share of the axes that a child changes."""


class RandomSettings(SearchSettings):
    """Random widths: what a proposer must beat."""

    kind: Literal["random"] = "random"


ProposerSettings = Annotated[
    ImportanceSettings | EvolutionSettings | RandomSettings | LlmSettings, Field(discriminator="kind")
]


class ImportanceProposer:
    """Widths the solver finds for the importances and for variations of them. No random numbers until those run out.

    The first is the plain answer, the second an even cut, the third, where whole blocks may be left out, the answer
    that leaves out none. From the second round on the best in the bank lead: halfway between the best two, then from
    the worst through the best and beyond.
    """

    def propose(self, context: Context, bank: MemoryBank, num: int) -> list[Proposal]:
        return _new_ones(context, bank, num, self._ideas(context, bank))

    def _ideas(self, context: Context, bank: MemoryBank) -> Iterator[Proposal]:
        best = bank.best(len(bank))
        if len(best) >= 2:
            yield _between(best[0].widths, best[1].widths, 0.5)
            yield _between(best[0].widths, best[-1].widths, -0.5)
        solve = context.space.solve
        yield solve(context.importances).widths
        yield context.space.uniform()
        yield from _with_all_blocks(context)
        for vary in _variations(context):
            yield solve({name: vary(name, scores) for name, scores in context.importances.items()}).widths
        generator = stream(*context.names, "importance proposer", len(bank))
        start = best[0].widths if best else solve(context.importances).widths
        while True:
            yield _mutated(context, start, 0.15, generator)


def _with_all_blocks(context: Context) -> Iterator[Proposal]:
    """The solver's answer that leaves no block out, where another is allowed and this one reaches the budget."""
    space = context.space.with_all_blocks()
    if space is None:
        return
    try:
        yield space.solve(context.importances).widths
    except SolverError:
        return


def _variations(context: Context) -> list[Callable[[str, torch.Tensor], torch.Tensor]]:
    """Other readings of the same scores: tempered, blended with an even cut, one kind of axis or one end weighted."""

    def tempered(exponent: float) -> Callable[[str, torch.Tensor], torch.Tensor]:
        return lambda name, scores: scores**exponent

    def blended(share: float) -> Callable[[str, torch.Tensor], torch.Tensor]:
        means = {name: scores.mean() for name, scores in context.importances.items()}
        overall = torch.stack(list(means.values())).mean()
        return lambda name, scores: (1 - share) * scores + share * overall

    def weighted(kind: str, factor: float) -> Callable[[str, torch.Tensor], torch.Tensor]:
        return lambda name, scores: scores * (factor if context.space.wiring.axes[name].kind == kind else 1.0)

    return [
        tempered(0.5),
        blended(0.5),
        weighted("residual", 3.0),
        weighted("inner", 3.0),
        tempered(0.25),
        weighted("attention", 3.0),
        blended(0.9),
        tempered(1.5),
        weighted("residual", 1 / 3),
        weighted("inner", 1 / 3),
    ]


class EvolutionProposer:
    """A seeded evolutionary search: the solver's answer, an even cut and their mutants, then children of the best."""

    def __init__(self, mutation: float) -> None:
        self.mutation = mutation

    def propose(self, context: Context, bank: MemoryBank, num: int) -> list[Proposal]:
        return _new_ones(context, bank, num, self._ideas(context, bank, num))

    def _ideas(self, context: Context, bank: MemoryBank, num: int) -> Iterator[Proposal]:
        generator = stream(*context.names, "evolution proposer", len(bank))
        parents: list[Proposal] = [record.widths for record in bank.best(max(num, 2))]
        if len(parents) < 2:
            firsts = [
                context.space.solve(context.importances).widths,
                context.project(context.space.uniform())[0].widths,
            ]
            yield from firsts
            parents += firsts
        while True:
            mother, father = (parents[_integer(len(parents), generator)] for _ in range(2))
            from_mother = torch.rand(len(context.widths), generator=generator) < 0.5
            child = {
                name: float((mother if hers else father)[name])
                for name, hers in zip(context.widths, from_mother.tolist(), strict=True)
            }
            yield _mutated(context, child, self.mutation, generator)


class RandomProposer:
    """Every axis at a random legal width, before projection."""

    def propose(self, context: Context, bank: MemoryBank, num: int) -> list[Proposal]:
        return _new_ones(context, bank, num, self._ideas(context, bank))

    def _ideas(self, context: Context, bank: MemoryBank) -> Iterator[Proposal]:
        generator = stream(*context.names, "random proposer", len(bank))
        while True:
            yield {name: legal[_integer(len(legal), generator)] for name, legal in context.widths.items()}


def _language_model(settings: LlmSettings) -> Proposer:
    from noisewise.pruning.llm.proposer import LlmProposer

    return LlmProposer(settings)


PROPOSERS: dict[str, Callable[[Any], Proposer]] = {
    "importance": lambda settings: ImportanceProposer(),
    "evolution": lambda settings: EvolutionProposer(settings.mutation),
    "random": lambda settings: RandomProposer(),
    "llm": _language_model,
}


def build_proposer(settings: Any) -> Proposer:
    """The proposer that ``settings`` (one of `ProposerSettings`) describe."""
    return PROPOSERS[settings.kind](settings)


def _new_ones(context: Context, bank: MemoryBank, num: int, ideas: Iterable[Proposal]) -> list[Proposal]:
    """The first ``num`` ideas whose projections differ from each other and from all in the bank."""
    found: dict[tuple[int, ...], Proposal] = {}
    for attempt, idea in enumerate(ideas, start=1):
        widths = context.project(idea)[0].widths
        key = tuple(widths[name] for name in context.widths)
        if key not in found and bank.find(widths) is None:
            found[key] = idea
        if len(found) == num or attempt == ATTEMPTS * num:
            break
    return list(found.values())


def _between(first: Proposal, second: Proposal, share: float) -> dict[str, float]:
    """``first`` moved by ``share`` of the way to ``second``; a negative share moves it away."""
    return {name: first[name] + share * (second[name] - first[name]) for name in first}


def _mutated(context: Context, widths: Proposal, share: float, generator: torch.Generator) -> dict[str, float]:
    """About a ``share`` of the axes, at least two, moved by up to a third of their legal widths."""
    names = list(context.widths)
    mutant = {name: float(widths[name]) for name in names}
    for index in torch.randperm(len(names), generator=generator)[: max(round(share * len(names)), 2)].tolist():
        legal = context.widths[names[index]]
        reach = max(len(legal) // 3, 1)
        level = min(range(len(legal)), key=lambda i: abs(legal[i] - mutant[names[index]]))
        level += _integer(2 * reach + 1, generator) - reach
        mutant[names[index]] = float(legal[min(max(level, 0), len(legal) - 1)])
    return mutant


def _integer(stop: int, generator: torch.Generator) -> int:
    return int(torch.randint(stop, (), generator=generator))
