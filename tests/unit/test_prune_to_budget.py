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

from noisewise import NoiseSchedule, Plan, ShapedUNet2DModel, count_macs, prune_to_budget
from noisewise.errors import SettingError
from noisewise.models.cost import layer_macs
from noisewise.models.networks import describe
from noisewise.objectives import Objective
from noisewise.pruning.decoders import prune_decoders
from noisewise.pruning.importance import importance
from noisewise.pruning.prune import space_of
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


def test_what_is_kept_stays_whole_and_counts(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    keep = ("conv_in", "down_blocks", "mid_block")
    small, info = prune_to_budget(model, inputs, 0.7, "magnitude", keep=keep)
    assert 0.98 * 0.7 <= info.achieved <= 0.7
    cut_axes = {name for name, width in info.widths.items() if width < info.full_widths[name]}
    assert cut_axes
    assert all(name.startswith("up_blocks.") for name in cut_axes)
    assert info.widths.keys() == info.full_widths.keys()
    for path in keep:
        before, after = model.get_submodule(path).state_dict(), small.get_submodule(path).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    encoder = sum(
        macs for path, macs in layer_macs(model, inputs).items() if path.startswith((*keep, "time_embedding"))
    )
    with pytest.raises(SolverError, match=r"nearest costs that can be reached") as refused:
        prune_to_budget(model, inputs, 0.9 * encoder / info.base_macs, "magnitude", keep=keep)
    below, above = refused.value.reachable
    assert below is None
    assert above is not None
    assert encoder < above < 0.7 * info.base_macs


def test_an_even_cut_beside_kept_axes_costs_the_budget(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    space = space_of(model, inputs, 0.7, keep=("down_blocks",))
    even = space.uniform()
    assert all(even[name] == legal[-1] for name, legal in space.widths.items() if name.startswith("down_blocks."))
    widths = {name: width for name, width in even.items() if not name.startswith("down_blocks.")}
    assert {round(width / space.widths[name][-1], 6) for name, width in widths.items()} == {round(space.share, 6)}
    assert space.macs(even) == pytest.approx(0.7 * space.base_macs, rel=1e-6)
    assert space_of(model, inputs, 0.49).share == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (("encoder",), r"prune\.keep: the network has no axis in encoder"),
        (("conv_in", "down_blocks", "mid_block", "up_blocks"), r"prune\.keep: nothing is left to cut"),
    ],
)
def test_a_keep_that_makes_no_sense(
    model: UNet2DModel, inputs: dict[str, Any], keep: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        prune_to_budget(model, inputs, 0.7, "magnitude", keep=keep)


@pytest.mark.parametrize("share_bottleneck", [True, False])
def test_decoders_pruned_to_their_groups_budgets(
    model: UNet2DModel, inputs: dict[str, Any], share_bottleneck: bool
) -> None:
    schedule = NoiseSchedule.named("linear", 100)
    plan = Plan.equal_width(schedule, 3)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    several, infos = prune_decoders(
        model,
        plan,
        inputs,
        "taylor",
        budgets=(1, 0.8, 0.6),
        share_bottleneck=share_bottleneck,
        objective=Objective(schedule),
        images=images,
        timestep_stride=20,
    )
    whole = count_macs(model, inputs)
    costs = [count_macs(expert, inputs) / whole for expert in several.experts]
    assert costs[0] == 1
    assert 0.98 * 0.8 <= costs[1] <= 0.8
    assert 0.98 * 0.6 <= costs[2] <= 0.6
    assert infos[0] is None
    assert [info.achieved for info in infos[1:]] == costs[1:]
    assert ("mid_block" in several.config.shared_modules) == share_bottleneck
    for path in several.config.shared_modules:
        assert several.experts[2].get_submodule(path) is several.experts[0].get_submodule(path)
    assert torch.equal(several.experts[0].conv_in.weight, model.conv_in.weight)
    assert several.experts[0].conv_in is not model.conv_in
    t = torch.tensor([0, 50, 99])
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert several(x, t).sample.isfinite().all()
    with pytest.raises(SettingError, match="budgets: 2 given, the plan has 3"):
        prune_decoders(model, plan, inputs, "magnitude", budgets=(1, 0.8))
