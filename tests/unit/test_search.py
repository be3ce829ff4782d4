"""The search: R rounds of C candidates on paired draws, remembered, resumed, the best one returned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from noisewise import NoiseSchedule, count_macs
from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.objectives import Objective
from noisewise.pruning import search as search_module
from noisewise.pruning.importance import importance
from noisewise.pruning.memory import REPEATED, MemoryBank
from noisewise.pruning.proposers import Context, EvolutionSettings, ImportanceSettings, Proposal, RandomSettings
from noisewise.pruning.search import BANK, mean_error, search


@pytest.fixture(scope="module")
def setup() -> dict[str, Any]:
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    return {
        "model": model,
        "example_inputs": describe(model).example_inputs(model),
        "budget": 0.6,
        "objective": Objective(NoiseSchedule.named("linear", 100)),
        "images": torch.rand(24, 1, 8, 8) * 2 - 1,
        "timesteps": (20, 60),
        "importance": importance(model, "magnitude"),
        "group": 1,
    }


SMALL = {"rounds": 2, "candidates": 3, "num_score_images": 24}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Losses of the candidates that were really scored."""
    losses: list[float] = []

    def counted(*args: Any) -> tuple[float, float]:
        result = mean_error(*args)
        losses.append(result[0])
        return result

    monkeypatch.setattr(search_module, "mean_error", counted)
    return losses


@pytest.mark.parametrize("settings", [ImportanceSettings(**SMALL), EvolutionSettings(**SMALL), RandomSettings(**SMALL)])
def test_every_candidate_meets_the_budget_and_the_best_is_returned(
    setup: dict[str, Any], settings: Any, scored: list[float], tmp_path: Path
) -> None:
    lines: list[str] = []
    result = search(**setup, settings=settings, workspace=tmp_path, log=lines.append)
    records = result.bank.records
    assert [(r.round, r.candidate) for r in records] == [(r, c) for r in range(2) for c in range(3)]
    assert len(scored) == len(lines) == 6
    assert all(r.accepted and r.cost is not None and 0.98 * 0.6 <= r.cost <= 0.6 for r in records)
    assert len({json.dumps(dict(r.widths)) for r in records}) == 6
    assert result.best.loss == min(scored)
    assert result.info.widths == result.best.widths
    assert count_macs(result.model, setup["example_inputs"]) == result.info.macs
    assert result.info.achieved == pytest.approx(result.best.cost)
    draws = setup["objective"].fixed_draws(setup["images"], 24, (0, "prune", 1, "score"), (20, 60))
    assert mean_error(result.model, setup["objective"], draws)[0] == pytest.approx(result.best.loss, rel=1e-6)
    keys = "group round candidate proposer widths cost loss loss_se moved accepted reason"
    assert " ".join(json.loads((tmp_path / BANK).read_text().splitlines()[0])) == keys


@pytest.mark.parametrize("settings", [ImportanceSettings(**SMALL), EvolutionSettings(**SMALL), RandomSettings(**SMALL)])
@pytest.mark.parametrize("survived", [0, 2, 4])
def test_a_stopped_search_goes_on_without_scoring_again(
    setup: dict[str, Any], settings: Any, survived: int, scored: list[float], tmp_path: Path
) -> None:
    whole = search(**setup, settings=settings, workspace=tmp_path)
    path = tmp_path / BANK
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:survived]))
    scored.clear()
    resumed = search(**setup, settings=settings, workspace=tmp_path)
    assert len(scored) == 6 - survived
    assert resumed.bank.records == whole.bank.records
    state = whole.model.state_dict()
    assert all(torch.equal(p, state[name]) for name, p in resumed.model.state_dict().items())


class Stubborn:
    """Proposes the same, and then nonsense, whatever it is told."""

    def propose(self, context: Context, bank: MemoryBank, num: int) -> list[Proposal]:
        some: Mapping[str, Any] = {"conv_in": 8}
        return [some, dict(some), {"nowhere": 3}, {"conv_in": float("nan")}, {"conv_in": "wide"}][:num]  # type: ignore[dict-item]


def test_no_candidate_is_scored_twice_and_nonsense_is_remembered_with_its_reason(
    setup: dict[str, Any], scored: list[float], tmp_path: Path
) -> None:
    settings = RandomSettings(rounds=2, candidates=5, num_score_images=24)
    result = search(**setup, settings=settings, proposer=Stubborn(), workspace=tmp_path)
    assert len(scored) == 1
    reasons = [record.reason for record in result.bank.records[:5]]
    assert reasons[:2] == ["", REPEATED]
    assert "no axis nowhere" in reasons[2]
    assert "conv_in is no number" in reasons[3]
    assert "conv_in is no number" in reasons[4]
    assert [r.accepted for r in result.bank.records] == [True] + [False] * 9
    scored.clear()
    again = search(**setup, settings=settings, proposer=Stubborn(), workspace=tmp_path)
    assert not scored
    assert again.best == result.best


def test_candidates_whose_loss_is_not_finite_are_not_accepted(setup: dict[str, Any]) -> None:
    broken = type(setup["model"]).from_config(setup["model"].config)
    with torch.no_grad():
        broken.conv_out.bias.fill_(float("nan"))
    with pytest.raises(SettingError, match=r"none of 6 candidates.*not finite"):
        search(**{**setup, "model": broken}, settings=RandomSettings(**SMALL))


def test_a_bank_of_another_budget_group_or_network_is_refused(setup: dict[str, Any], tmp_path: Path) -> None:
    settings = RandomSettings(rounds=1, candidates=1, num_score_images=8)
    search(**setup, settings=settings, workspace=tmp_path)
    with pytest.raises(SettingError, match=r"not within the budget 0.8"):
        search(**{**setup, "budget": 0.8}, settings=settings, workspace=tmp_path)
    with pytest.raises(SettingError, match="another network or group"):
        search(**{**setup, "group": 2}, settings=settings, workspace=tmp_path)
