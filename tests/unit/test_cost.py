"""MACs: by hand for each kind of layer, and exact as a function of the widths."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn
from unet_zoo import ZOO, build, random_cuts

from noisewise.errors import SettingError
from noisewise.models.cost import CostModel, count_macs, count_parameters, layer_macs
from noisewise.models.experts import ExpertDenoiser
from noisewise.models.networks import describe
from noisewise.models.surgery import cut
from noisewise.planning.plan import Plan
from noisewise.schedule import NoiseSchedule


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 8, 8), 2 * 64 * 3 * 8 * 9),
        (nn.Conv2d(4, 6, 1), (1, 4, 5, 7), 35 * 4 * 6),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), (1, 4, 8, 8), 16 * 4 * 4 * 9),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), (1, 4, 8, 8), 64 * 8 * 9),
        (nn.Linear(5, 7), (3, 5), 3 * 5 * 7),
        (nn.Linear(5, 7, bias=False), (2, 4, 5), 2 * 4 * 5 * 7),
        (nn.GroupNorm(2, 4), (1, 4, 8, 8), 0),
        (nn.SiLU(), (1, 4), 0),
    ],
)
def test_layers_by_hand(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert count_macs(layer, {"input": torch.zeros(shape)}) == macs
    assert count_macs(layer, {"input": torch.zeros(shape)}, attention=False) == macs


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("own_processor", [False, True])
def test_attention_by_hand(heads: int, own_processor: bool) -> None:
    channels, inner, positions = 16, 8, 25
    attention = Attention(channels, heads=heads, dim_head=inner // heads, bias=True, residual_connection=True)
    if own_processor:
        attention.set_processor(AttnProcessor())  # two matrix products instead of one fused call
    inputs = {"hidden_states": torch.zeros(2, channels, 5, 5)}
    projections = 2 * positions * 4 * channels * inner
    products = 2 * 2 * positions**2 * inner  # q·k and weights·v, for two samples
    assert count_macs(attention, inputs) == projections + products
    assert count_macs(attention, inputs, attention=False) == projections
    assert layer_macs(attention, inputs)[""] == products


def test_counting_leaves_the_model_alone() -> None:
    model = build("heads").train()
    calls: list[int] = []
    model.conv_in.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    inputs = describe(model).example_inputs(model)
    count_macs(model, inputs)

    assert model.training
    assert not calls
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert inputs["sample"].device.type == "cpu"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_cost_goes_with_the_batch() -> None:
    model = build("heads")
    one, three = (count_macs(model, describe(model).example_inputs(model, batch_size=b)) for b in (1, 3))
    assert three == 3 * one


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(4, 4)
    assert count_parameters(nn.Sequential(layer, layer)) == 20


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("name", ZOO)
def test_cost_model_is_exact_for_any_widths(name: str, attention: bool) -> None:
    model = build(name)
    inputs = describe(model).example_inputs(model, batch_size=2)
    cost = CostModel.of(model, inputs, attention=attention)
    assert cost.macs({}) == count_macs(model, inputs, attention=attention)
    assert cost.parameters({}) == count_parameters(model)

    for kept in random_cuts(cost.wiring, number=3):
        widths = {axis: len(channels) for axis, channels in kept.items()}
        small = cut(model, kept)
        assert cost.macs(widths) == count_macs(small, inputs, attention=attention)
        assert cost.parameters(widths) == count_parameters(small)
        w = np.array([widths.get(axis, cost.wiring.axes[axis].width) for axis in cost.names])
        assert cost.constant + cost.linear @ w + w @ cost.bilinear @ w / 2 == cost.macs(widths)
    assert (cost.bilinear == cost.bilinear.T).all()


def test_unknown_axes_are_refused() -> None:
    model = build("plain")
    cost = CostModel.of(model, describe(model).example_inputs(model))
    with pytest.raises(SettingError, match=r"widths\.nonsense"):
        cost.macs({"nonsense": 3})


def test_experts_are_counted_by_their_timestep() -> None:
    model = build("plain")
    small = cut(model, {"mid_block.resnets.0.inner": torch.arange(8)})
    plan = Plan.from_snr(NoiseSchedule.from_scheduler(DDPMScheduler()), num_groups=2)
    router = ExpertDenoiser([small, model], plan)
    inputs = describe(model).example_inputs(model)
    for group, expert in zip(plan.groups, (small, model), strict=True):
        assert count_macs(router, {**inputs, "timestep": int(group.t_start)}) == count_macs(expert, inputs)
    with pytest.raises(SettingError, match="timestep"):
        count_macs(router, inputs)
