"""Whole blocks can go: costs stay exact, outputs are what a silent block leaves, lower budgets become possible."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from unet_zoo import ZOO, build

from noisewise import NoiseSchedule, Plan, ShapedUNet2DModel, count_macs, prune_to_budget
from noisewise.cli import main
from noisewise.errors import SettingError
from noisewise.models.cost import CostModel, count_parameters
from noisewise.models.networks import describe
from noisewise.models.networks.wiring import Axis, Wiring
from noisewise.models.surgery import cut
from noisewise.objectives import Objective
from noisewise.pruning.brief import Brief
from noisewise.pruning.decoders import prune_decoders
from noisewise.pruning.importance import importance
from noisewise.pruning.llm.prompt import Told, build_prompt
from noisewise.pruning.memory import MemoryBank
from noisewise.pruning.proposers import Context, EvolutionSettings, ImportanceSettings, RandomSettings
from noisewise.pruning.prune import space_of
from noisewise.pruning.search import search
from noisewise.pruning.solver import SolverError, project, solve
from noisewise.pruning.widths import legal_widths
from noisewise.workflow.settings import PruneSettings
from noisewise.workflow.store import plain


def predict(model: UNet2DModel) -> torch.Tensor:
    """The prediction for two fixed noisy images at two timesteps."""
    inputs = describe(model).example_inputs(model, batch_size=2)
    noise = torch.randn(inputs["sample"].shape, generator=torch.Generator().manual_seed(1))
    inputs |= {"sample": noise.to(model.dtype), "timestep": torch.tensor([3, 700])}
    with torch.no_grad():
        return model(**inputs).sample


def inputs_of(model: UNet2DModel) -> dict[str, Any]:
    return dict(describe(model).example_inputs(model))


def random_cuts_with_zeros(net: Wiring, number: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Whole units of a random half of the axes; of those whose block may go, nothing in one case out of two."""
    rng = random.Random(seed)
    for _ in range(number):
        kept = {}
        for name in net.prunable:
            axis = net.axes[name]
            if axis.removes and rng.random() < 0.5:
                kept[name] = torch.arange(0)
            elif rng.random() < 0.5:
                kept[name] = torch.arange(rng.randint(1, axis.num_units) * axis.unit)
        yield kept


def quiet(model: UNet2DModel, block: str) -> UNet2DModel:
    """A copy in which ``block`` adds zeros to its input."""
    model = copy.deepcopy(model)
    module: Any = model.get_submodule(block)
    last = module.conv2 if hasattr(module, "conv2") else module.to_out[0]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    return model


def test_which_blocks_may_go() -> None:
    net = describe(build("heads")).wiring(build("heads"))
    assert {net.axes[name].removes for name in net.removable} == {
        "down_blocks.0.resnets.0",  # 16 -> 16 channels; the other residual blocks outside the middle change the width
        "down_blocks.1.attentions.0",
        "mid_block.resnets.0",
        "mid_block.resnets.1",
        "mid_block.attentions.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
    }
    resampling = describe(build("attention, resnet")).wiring(build("attention, resnet"))
    assert not any("sampler" in resampling.axes[name].removes for name in resampling.removable)
    scaled = UNet2DModel(**{**ZOO["heads"], "mid_block_scale_factor": 2.0})  # (input + nothing) / 2 is not the input
    assert not any("mid" in name for name in describe(scaled).wiring(scaled).removable)


@pytest.mark.parametrize("name", ["heads", "one head", "scale_shift", "attention norm"])
def test_a_block_left_out_is_a_block_that_adds_nothing(name: str) -> None:
    model = build(name).double()  # norms over a few pixels make much of rounding
    net = describe(model).wiring(model)
    for axis in net.removable:
        small = cut(model, {axis: torch.arange(0)})
        block = net.axes[axis].removes
        assert small.config.removed_blocks == [block]
        assert not any(key.startswith(f"{block}.") for key in small.state_dict())
        torch.testing.assert_close(predict(small), predict(quiet(model, block)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ZOO)
def test_costs_are_exact_for_any_widths_and_blocks(name: str) -> None:
    model = build(name)
    inputs = describe(model).example_inputs(model, batch_size=2)
    cost = CostModel.of(model, inputs)
    for kept in random_cuts_with_zeros(cost.wiring, number=3, seed=1):
        widths = {axis: len(channels) for axis, channels in kept.items()}
        small = cut(model, kept)
        assert predict(small).isfinite().all()
        assert cost.macs(widths) == count_macs(small, inputs)
        assert cost.parameters(widths) == count_parameters(small)
        w = np.array([widths.get(axis, cost.wiring.axes[axis].width) for axis in cost.names])
        assert cost.constant + cost.linear @ w + w @ cost.bilinear @ w / 2 == cost.macs(widths)


def test_it_reloads_trains_and_is_cut_again(tmp_path: Path) -> None:
    model = build("scale_shift")
    gone = {"mid_block.resnets.1.inner": torch.arange(0), "up_blocks.0.attentions.1": torch.arange(0)}
    small = cut(model, gone | {"mid_block.resnets.0.inner": torch.arange(16)})
    DDPMPipeline(unet=small, scheduler=DDPMScheduler()).save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path).unet
    assert again.config.removed_blocks == ["mid_block.resnets.1", "up_blocks.0.attentions.1"]
    assert torch.equal(predict(again), predict(small))

    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            again.enable_gradient_checkpointing()
        again.train().zero_grad()
        again(**inputs_of(again)).sample.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in again.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))

    twice, info = prune_to_budget(again.eval(), inputs_of(again), 0.25, "magnitude", min_width=0.4, depth=True)
    assert info.removed_blocks
    assert twice.config.removed_blocks == [*again.config.removed_blocks, *info.removed_blocks]
    assert isinstance(twice, ShapedUNet2DModel)
    twice.save_pretrained(tmp_path / "twice")
    assert torch.equal(predict(ShapedUNet2DModel.from_pretrained(tmp_path / "twice")), predict(twice.eval()))


@pytest.mark.parametrize("kept", [{"conv_in": torch.arange(0)}, {"down_blocks.1.resnets.0.inner": torch.arange(0)}])
def test_what_does_not_add_to_its_input_keeps_a_channel(kept: dict[str, torch.Tensor]) -> None:
    with pytest.raises(SettingError, match="0 indices given, 1 to"):
        cut(build("heads"), kept)


def test_zero_is_one_more_legal_width_whatever_the_least() -> None:
    block, stream = Axis("block", 32, 4, "inner", "a test", "some.block"), Axis("stream", 32, 4, "residual", "a test")
    assert legal_widths(block, 1, 0.5, depth=True) == (0, 16, 20, 24, 28, 32)
    assert legal_widths(block, 1, 0.5) == (16, 20, 24, 28, 32)
    assert legal_widths(stream, 1, 0.5, depth=True) == (16, 20, 24, 28, 32)


@examples(max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from([0.08, 0.2, 0.4, 0.6, 0.8]))
def test_the_solver_agrees_with_enumeration(seed: int, budget: float) -> None:
    model = build("plain")
    space = space_of(model, inputs_of(model), 0.5, alignment=8, min_width=0.5, depth=True)
    names = random.Random(seed).sample(sorted(space.widths), 5)
    widths = {name: legal if name in names else legal[-1:] for name, legal in space.widths.items()}
    widths |= {name: widths[name] for name in names}
    scores = importance(model, "random", seed=seed)
    values = {name: [float(scores[name][:width].sum()) for width in legal] for name, legal in widths.items()}
    best = None
    for choice in itertools.product(*widths.values()):
        chosen = dict(zip(widths, choice, strict=True))
        if 0.98 * budget * space.base_macs <= space.macs(chosen) <= budget * space.base_macs:
            value = sum(values[name][widths[name].index(width)] for name, width in chosen.items())
            best = value if best is None else max(best, value)
    if best is None:
        with pytest.raises(SolverError):
            solve(space.cost, widths, values, budget)
        return
    found = solve(space.cost, widths, values, budget)
    assert found.value == pytest.approx(best)
    assert values[names[0]][0] == 0 or widths[names[0]][0] > 0


def test_below_what_widths_reach_a_budget_needs_depth() -> None:
    model = build("one head")
    inputs = inputs_of(model)
    with pytest.raises(SolverError, match=r"nearest costs.*leaving whole blocks out would meet it.*--depth") as refused:
        prune_to_budget(model, inputs, 0.2, "magnitude", min_width=0.5)
    assert refused.value.reachable[0] is None
    assert refused.value.reachable[1] > 0.2 * count_macs(model, inputs)
    small, info = prune_to_budget(model, inputs, 0.2, "magnitude", min_width=0.5, depth=True)
    assert 0.98 * 0.2 <= info.achieved <= 0.2
    assert count_macs(small, inputs) == info.macs < refused.value.reachable[1]
    assert count_parameters(small) == info.parameters
    assert list(info.removed_blocks) == small.config.removed_blocks != []
    for name, width in info.widths.items():
        assert width >= 0.5 * info.full_widths[name] or width == 0

    with pytest.raises(SolverError) as refused:  # nor does depth help here
        prune_to_budget(model, inputs, 0.001, "magnitude")
    assert "whole blocks" not in str(refused.value)
    with pytest.raises(SolverError) as refused:
        prune_to_budget(model, inputs, 0.001, "magnitude", depth=True)
    assert "whole blocks" not in str(refused.value)


def test_without_depth_nothing_is_left_out() -> None:
    model = build("heads")
    _, info = prune_to_budget(model, inputs_of(model), 0.3, "magnitude")
    assert info.removed_blocks == ()
    assert min(info.widths.values()) > 0


def test_an_even_cut_leaves_no_block_out() -> None:
    model = build("heads")
    for budget in (0.7, 0.5, 0.3):
        space = space_of(model, inputs_of(model), budget, depth=True)
        assert any(legal[0] == 0 for legal in space.widths.values())
        even, _ = space.project(space.uniform())
        assert min(even.widths.values()) > 0
        shallow = space.with_all_blocks()
        assert shallow is not None
        assert {name: legal for name, legal in space.widths.items() if legal[0] > 0}.items() <= shallow.widths.items()
        assert shallow.with_all_blocks() is None


def test_leaving_out_counts_as_many_levels_as_the_least_width_has() -> None:
    cost: Any = SimpleNamespace(constant=4.0, linear=np.array([1.0]), bilinear=np.zeros((1, 1)))
    legal = {"a": (0, 16, 20, 24, 28, 32)}
    _, moved = project(cost, legal, {"a": 20.0}, 20 / 36)  # 16 fits, one of 8 steps below 20
    assert moved == pytest.approx(1 / 8)
    _, moved = project(cost, legal, {"a": 16.0}, 4 / 36)  # 0 alone fits, 4 steps below 16
    assert moved == pytest.approx(4 / 8)


def test_what_is_kept_whole_is_not_left_out() -> None:
    model = build("heads")
    _, info = prune_to_budget(model, inputs_of(model), 0.5, "magnitude", keep=("mid_block",), depth=True)
    assert not any(block.startswith("mid_block") for block in info.removed_blocks)
    assert info.widths["mid_block.attentions.0"] == info.full_widths["mid_block.attentions.0"]


@pytest.mark.parametrize(
    ("kind", "budget"), [(ImportanceSettings, 0.4), (EvolutionSettings, 0.2), (RandomSettings, 0.4)]
)
def test_a_search_may_leave_blocks_out(kind: Any, budget: float) -> None:
    model = build("classes")
    objective = Objective(NoiseSchedule.named("linear", 100))
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = kind(rounds=1, candidates=4, num_score_images=4, depth=True, alignment=8, min_width=0.5)
    found = search(
        model, inputs_of(model), budget, settings, objective=objective, images=images, importance="magnitude",
        class_labels=torch.arange(8),
    )  # fmt: skip
    assert found.info.removed_blocks == tuple(found.model.config.removed_blocks)
    assert any(0 in record.widths.values() for record in found.bank.records)
    if kind is ImportanceSettings:  # one of the first candidates keeps all blocks
        assert any(min(record.widths.values()) > 0 for record in found.bank.records)


def test_decoders_may_lose_blocks() -> None:
    model = build("heads")
    plan = Plan.equal_width(NoiseSchedule.named("linear", 100), 2)
    several, infos = prune_decoders(
        model, plan, inputs_of(model), "random", budgets=(1, 0.85), alignment=1, min_width=0.8, depth=True
    )
    assert infos[1].removed_blocks
    assert all(block.startswith("up_blocks.") for block in infos[1].removed_blocks)
    assert several(torch.randn(2, 3, 8, 8), torch.tensor([10, 90])).sample.isfinite().all()


def test_steps_without_depth_are_named_as_before_there_was_any() -> None:
    for kind in ("importance", "evolution", "random"):
        without, with_depth = (PruneSettings(proposer={"kind": kind, "depth": depth}) for depth in (False, True))
        assert "depth" not in plain(without)["proposer"]
        assert plain(with_depth)["proposer"] == {**plain(without)["proposer"], "depth": True}
        assert without.model_dump()["proposer"]["depth"] is False


def test_a_language_model_is_told_what_0_means() -> None:
    model = build("heads")
    prompts = []
    for depth in (False, True):
        space = space_of(model, inputs_of(model), 0.5, depth=depth)
        scores = importance(model, "magnitude")
        brief = Brief({"magnitude": scores}, (10.0, -10.0), {}, None)
        context = Context(space, scores, 0, (0, 100), (0, "test"), brief)
        prompts.append(build_prompt(context, MemoryBank(), Told(), 2, 10_000))
    without, with_depth = prompts
    assert "Value 0 leaves the whole block out" not in without.text
    assert "Value 0 leaves the whole block out" in with_depth.text
    menus = {slot.place: slot.menu for slot in with_depth.slots}
    assert menus["inside of mid_block.attentions.0, at 1/2 resolution"][0] == 0
    assert min(menu[0] for slot in without.slots if (menu := slot.menu)) > 0


def test_the_command_says_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("classes").save_pretrained(tmp_path / "model")
    command = ["prune", str(tmp_path / "model"), "--budget", "0.1", "--depth", "--out", str(tmp_path / "small")]
    assert main(command) == 0
    info = json.loads((tmp_path / "small" / "pruning.json").read_text())
    assert info["removed_blocks"]
    assert f"left out: {', '.join(info['removed_blocks'])}\n" in capsys.readouterr().out
    again = ShapedUNet2DModel.from_pretrained(tmp_path / "small")
    assert again.config.removed_blocks == info["removed_blocks"]
