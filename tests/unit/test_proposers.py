"""Proposers: as many different candidates as asked for, the same ones for the same seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from noisewise.models.networks.wiring import Axis, Wiring
from noisewise.pruning.memory import MemoryBank, Record
from noisewise.pruning.proposers import (
    PROPOSERS,
    Context,
    EvolutionSettings,
    ImportanceSettings,
    ProposerSettings,
    RandomSettings,
    build_proposer,
)
from noisewise.pruning.space import open_space

SETTINGS = (ImportanceSettings(), EvolutionSettings(), RandomSettings())


class Form:
    """Five axes in a chain, each coupled with the next."""

    constant = 100.0
    linear = np.array([3.0, 5.0, 2.0, 4.0, 3.0])
    bilinear = np.diag([9.0, 9.0, 4.0, 4.0], 1) + np.diag([9.0, 9.0, 4.0, 4.0], -1)


def context(seed: int = 0, budget: float = 0.6) -> Context:
    kinds = ("residual", "inner", "attention", "inner", "residual")
    axes = {f"a{i}": Axis(f"a{i}", 16, 2, kind, "") for i, kind in enumerate(kinds)}  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(7)
    scores = {name: torch.rand(16, generator=generator, dtype=torch.float64) for name in axes}
    space = open_space(Wiring(axes, ()), Form(), budget, alignment=1)
    return Context(space, scores, group=2, timesteps=(0, 10), names=(seed, "prune", 2))


def remember(bank: MemoryBank, where: Context, proposals: list[Mapping[str, float]], round_: int) -> None:
    for candidate, proposal in enumerate(proposals):
        solution, moved = where.project(proposal)
        loss = sum(width * (i + 1) for i, width in enumerate(solution.widths.values())) / 100
        bank.add(Record(2, round_, candidate, "test", solution.widths, 0.6, loss, 0.0, moved, True))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.kind)
def test_every_candidate_is_new_over_many_rounds(settings: ImportanceSettings) -> None:
    where, bank, proposer = context(), MemoryBank(), build_proposer(settings)
    for round_ in range(4):
        proposals = proposer.propose(where, bank, 5)
        assert len(proposals) == 5
        remember(bank, where, proposals, round_)
    widths = [tuple(record.widths.values()) for record in bank.records]
    assert len(set(widths)) == 20


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.kind)
def test_same_seed_and_bank_same_proposals(settings: ImportanceSettings) -> None:
    bank = MemoryBank()
    remember(bank, context(), build_proposer(RandomSettings()).propose(context(), bank, 3), 0)
    first = build_proposer(settings).propose(context(), bank, 6)
    assert first == build_proposer(settings).propose(context(), bank, 6)
    if settings.kind == "random":
        assert first != build_proposer(settings).propose(context(seed=1), bank, 6)


def test_importance_starts_with_the_solvers_own_answer_and_an_even_cut() -> None:
    where = context()
    first, second, *_ = build_proposer(ImportanceSettings()).propose(where, MemoryBank(), 4)
    assert first == where.space.solve(where.importances).widths
    assert second == dict.fromkeys(where.widths, pytest.approx(16 * 0.6**0.5))


def test_evolution_finds_better_than_random_with_the_same_number_of_tries() -> None:
    """Loss = distance from hidden widths: a search that learns from the bank gets nearer."""
    means = {}
    for settings in (EvolutionSettings(), RandomSettings()):
        losses = []
        for seed in range(6):
            where, bank, proposer = context(seed), MemoryBank(), build_proposer(settings)
            hidden, _ = where.project({"a0": 4, "a1": 16, "a2": 6, "a3": 10, "a4": 16})
            for round_ in range(6):
                for i, proposal in enumerate(proposer.propose(where, bank, 4)):
                    widths = where.project(proposal)[0].widths
                    loss = sum((widths[name] - hidden.widths[name]) ** 2 for name in widths) / 100
                    bank.add(Record(2, round_, i, settings.kind, widths, 0.6, loss, 0.0, 0.0, True))
            losses.append(bank.best()[0].loss)
        means[settings.kind] = np.mean(losses)
    assert means["evolution"] < 0.8 * means["random"]


def test_fewer_proposals_where_the_space_is_exhausted() -> None:
    axes = {"a": Axis("a", 4, 2, "inner", ""), "b": Axis("b", 4, 2, "inner", "")}
    form = Form()
    form.constant, form.linear, form.bilinear = 0.0, np.array([1.0, 1.0]), np.zeros((2, 2))  # type: ignore[misc]
    scores = {name: torch.ones(4, dtype=torch.float64) for name in axes}
    space = open_space(Wiring(axes, ()), form, 0.75)  # only (4, 2) and (2, 4) cost 6 of 8
    for settings in SETTINGS:
        proposals = build_proposer(settings).propose(Context(space, scores, 0, None, (0,)), MemoryBank(), 4)
        assert len(proposals) == 2


def test_settings_pick_the_proposer_and_refuse_what_they_do_not_know() -> None:
    adapter = TypeAdapter[object](ProposerSettings)
    parsed = adapter.validate_python({"kind": "evolution", "rounds": 2})
    assert isinstance(parsed, EvolutionSettings)
    assert (parsed.rounds, parsed.candidates, parsed.alignment) == (2, 4, "auto")
    assert (ImportanceSettings().rounds, ImportanceSettings().candidates) == (3, 4)
    for wrong in ({"kind": "magic"}, {"kind": "random", "rounds": 0}, {"kind": "random", "mutation": 0.1}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
    assert set(PROPOSERS) == {settings.kind for settings in SETTINGS} | {"llm"}
