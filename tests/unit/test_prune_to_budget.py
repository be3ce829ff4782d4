"""Pruning real networks to a budget: met within tolerance, or refused with the nearest costs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from noisewise import NoiseSchedule, ShapedUNet2DModel, count_macs, prune_to_budget
from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.objectives import Objective
from noisewise.pruning.importance import importance
from noisewise.pruning.solver import SolverError


def small_unet(**settings: Any) -> UNet2DModel:
    torch.manual_seed(0)
    shape = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**{**shape, **settings})


@pytest.fixture(scope="module")
def model() -> UNet2DModel:
    return small_unet()


@pytest.fixture(scope="module")
def inputs(model: UNet2DModel) -> dict[str, Any]:
    return dict(describe(model).example_inputs(model))


@pytest.mark.parametrize("budget", [0.95, 0.8, 0.65, 0.5, 0.3])
def test_cost_is_met_and_counted_on_the_network_itself(
    model: UNet2DModel, inputs: dict[str, Any], budget: float
) -> None:
    before = {name: p.clone() for name, p in model.state_dict().items()}
    small, info = prune_to_budget(model, inputs, budget, "magnitude")
    assert isinstance(small, ShapedUNet2DModel)
    assert 0.98 * budget <= info.achieved <= budget
    assert info.asked == budget
    assert info.macs == count_macs(small, inputs)
    assert info.base_macs == count_macs(model, inputs)
    assert info.achieved == info.macs / info.base_macs
    assert info.parameters == sum(p.numel() for p in small.parameters()) < info.base_parameters
    assert all(0 < info.widths[name] <= full for name, full in info.full_widths.items())
    assert 0 < info.importance_kept < 1
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_automatic_alignment_holds_in_every_axis(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    _, info = prune_to_budget(model, inputs, 0.6, "magnitude")
    for name, width in info.widths.items():
        assert width % info.alignments[name] == 0 or width == info.full_widths[name]
        assert width >= info.min_width * info.full_widths[name] - 1e-9
    assert info.alignment == max(info.alignments.values()) == 8


def test_an_integer_alignment_is_kept_or_the_budget_refused(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    _, info = prune_to_budget(model, inputs, 0.5, "magnitude", alignment=8)
    assert all(width % 8 == 0 for width in info.widths.values())
    with pytest.raises(
        SolverError, match=r"prune\.budget: no legal widths.*nearest costs that can be reached"
    ) as refused:
        prune_to_budget(model, inputs, 0.3, "magnitude", alignment=16, min_width=0.0)
    below, above = refused.value.reachable
    assert below is None
    assert above is not None
    # the proof holds: with every axis at its smallest aligned width the network costs just that
    axes = describe(model).wiring(model).axes
    halves = {name: torch.arange(16) for name in info.widths if axes[name].width == 32}
    from noisewise.models.surgery import cut

    assert count_macs(cut(model, halves), inputs) == above


def test_scores_are_computed_once_for_many_budgets_and_pick_the_channels(
    model: UNet2DModel, inputs: dict[str, Any]
) -> None:
    scores = importance(model, "random", seed=3)
    name = "down_blocks.1.resnets.0.inner"
    for budget in (0.8, 0.4):
        small, info = prune_to_budget(model, inputs, budget, scores)
        kept = info.widths[name]
        units = scores[name].reshape(-1, 4).sum(1)
        best = sorted(units.argsort(descending=True)[: kept // 4].tolist())
        channels = [4 * unit + i for unit in best for i in range(4)]
        bias = small.down_blocks[1].resnets[0].conv1.bias
        assert torch.equal(bias, model.down_blocks[1].resnets[0].conv1.bias[channels])
        assert info.importance == "given"


def test_taylor_over_a_groups_timesteps(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    objective = Objective(NoiseSchedule.named("linear", 100))
    images = torch.rand(8, 1, 8, 8) * 2 - 1
    for kind in ("taylor", "diff-pruning"):
        _, info = prune_to_budget(
            model, inputs, 0.7, kind, objective=objective, images=images, timesteps=(10, 40), timestep_stride=10
        )
        assert 0.98 * 0.7 <= info.achieved <= 0.7
        assert info.importance == kind


def test_a_pruned_network_can_be_saved_reloaded_and_pruned_again(
    model: UNet2DModel, inputs: dict[str, Any], tmp_path: Path
) -> None:
    small, _ = prune_to_budget(model, inputs, 0.7, "magnitude")
    small.save_pretrained(tmp_path)
    again = ShapedUNet2DModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).sample, small.eval()(**inputs).sample)
    smaller, info = prune_to_budget(again, inputs, 0.8, "magnitude")
    assert 0.98 * 0.8 <= count_macs(smaller, inputs) / count_macs(again, inputs) <= 0.8
    assert info.base_macs == count_macs(small, inputs)


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.0, 1.5])
def test_budgets_that_are_none_are_refused(model: UNet2DModel, inputs: dict[str, Any], budget: float) -> None:
    with pytest.raises(SettingError, match=r"^prune\.budget: "):
        prune_to_budget(model, inputs, budget, "magnitude")


def test_a_budget_below_the_smallest_network_is_refused_with_its_cost(
    model: UNet2DModel, inputs: dict[str, Any]
) -> None:
    with pytest.raises(SolverError, match="every axis at its smallest") as refused:
        prune_to_budget(model, inputs, 0.001, "magnitude")
    assert refused.value.reachable[0] is None


def test_a_budget_that_only_the_full_network_meets_is_refused(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    with pytest.raises(SolverError, match=r"1\.0000"):
        prune_to_budget(model, inputs, 0.9999, "magnitude", tolerance=0.0001)


def test_clear_refusals(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    for settings, named in (
        ({"importance": "taylor"}, r"prune\.importance: taylor needs"),
        ({"importance": "most"}, r"prune\.importance: 'most' is not one of"),
        ({"importance": {}}, r"prune\.importance: no scores for axis conv_in"),
        ({"importance": "magnitude", "alignment": 0}, r"prune\.alignment"),
        ({"importance": "magnitude", "min_width": 1.0}, r"prune\.min_width"),
        ({"importance": "magnitude", "tolerance": 0.0}, r"prune\.tolerance"),
    ):
        with pytest.raises(SettingError, match=named):
            prune_to_budget(model, inputs, 0.5, **settings)


def test_weights_that_are_not_finite_are_noticed(inputs: dict[str, Any]) -> None:
    broken = small_unet()
    with torch.no_grad():
        broken.conv_out.bias.fill_(float("nan"))
    with pytest.raises(SettingError, match="not finite"):
        prune_to_budget(broken, inputs, 0.5, "random")


def test_a_sample_of_random_configurations_meets_its_budgets() -> None:
    """The full table is in docs/pruning-budgets.md; the benchmark's smallest configurations stand for it here."""
    benchmark = _benchmark()
    results = []
    for number in range(3):
        results += benchmark.try_budgets(number, benchmark.random_settings(seed=1, number=number, widest=32))
    assert len(results) == 15
    assert sum(result.met for result in results) >= 14
    assert all(result.proof for result in results if not result.met)
    assert "| 0.65 |" in benchmark.table(results)


def _benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "pruning_budgets.py"
    spec = importlib.util.spec_from_file_location("pruning_budgets", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
