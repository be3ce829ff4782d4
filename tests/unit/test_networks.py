"""Every architecture beyond `UNet2DModel`: its axes are its modules', and a cut is the full network without them."""

from __future__ import annotations

import copy
import inspect
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from network_zoo import NETWORKS, build, condition_unet, predict, random_inputs
from torch import nn
from unet_zoo import random_cuts

import noisewise
from noisewise.errors import SettingError
from noisewise.models.cost import CostModel, count_macs, count_parameters
from noisewise.models.networks import NAMES, describe, network_of_class
from noisewise.models.networks.wiring import Wiring
from noisewise.models.surgery import cut, kept_widths


@pytest.mark.parametrize("name", NAMES)
def test_descriptions_say_what_forward_takes(name: str) -> None:
    network = network_of_class(name)
    assert network.arguments == tuple(inspect.signature(network.kind.forward).parameters)[1:]
    assert {network.image, "timestep"} <= set(network.batch_arguments) <= set(network.arguments)
    known = inspect.signature(network.kind.__init__).parameters
    assert set(network.pipeline_attributes) | set(network.class_settings) <= set(known)
    assert getattr(noisewise, network.shaped.__name__) is network.shaped
    assert network.shaped.__module__ == "noisewise"


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_read_and_write_what_their_weights_say(name: str) -> None:
    model = build(name)
    net = describe(model).wiring(model)
    with_weights = {
        path: module
        for path, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    assert {layer.path for layer in net.layers} <= set(with_weights)
    for layer in net.layers:
        module = with_weights[layer.path]
        if layer.kind in ("conv", "linear"):
            assert tuple(module.weight.shape[:2]) == (net.width(layer.outputs, {}), net.width(layer.inputs, {}))
        if layer.kind == "layer-norm":
            assert tuple(module.weight.shape) == (net.width(layer.inputs, {}),)
        if layer.kind == "norm":
            assert module.num_channels == net.width(layer.inputs, {})
    for attention in net.attentions:
        assert net.axes[attention.axis].unit * attention.heads in (net.axes[attention.axis].width, attention.heads)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_uncut_shaped_network_is_the_original_to_the_bit(name: str, tmp_path: Path) -> None:
    model = build(name)
    whole = cut(model, {})
    assert type(whole) is describe(model).shaped
    assert torch.equal(predict(whole), predict(model))
    whole.save_pretrained(tmp_path)
    assert torch.equal(predict(type(whole).from_pretrained(tmp_path)), predict(model))


@pytest.mark.parametrize("name", NETWORKS)
def test_random_cuts_cost_what_was_promised_and_reload(name: str, tmp_path: Path) -> None:
    model = build(name)
    inputs = random_inputs(model)
    cost = CostModel.of(model, inputs)
    assert (cost.macs({}), cost.parameters({})) == (count_macs(model, inputs), count_parameters(model))
    for kept in random_cuts(cost.wiring, number=1, seed=1):
        small = cut(model, kept)
        widths = {axis: len(channels) for axis, channels in kept.items()}
        assert kept_widths(small) == {axis: cost.wiring.axes[axis].width for axis in cost.names} | widths
        assert cost.macs(widths) == count_macs(small, inputs)
        assert cost.parameters(widths) == count_parameters(small)
        small.save_pretrained(tmp_path)
        assert predict(small).isfinite().all()
        assert torch.equal(predict(type(small).from_pretrained(tmp_path)), predict(small))


def silence(model: Any, net: Wiring, axis: str, gone: set[int]) -> None:
    """Nobody reads the channels ``gone`` of ``axis`` any more."""
    for layer in net.layers:
        start = 0
        for part in layer.inputs:
            if part == axis and layer.kind in ("conv", "linear"):
                with torch.no_grad():
                    model.get_submodule(layer.path).weight[:, [start + i for i in gone]] = 0
            start += net.axes[part].width


def units(net: Wiring, axis: str, chosen: list[int]) -> set[int]:
    unit = net.axes[axis].unit
    return {u * unit + i for u in chosen for i in range(unit)}


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_and_insides_leave_without_a_trace(name: str) -> None:
    model = build(name)
    net = describe(model).wiring(model)
    masked, kept, rng = copy.deepcopy(model), {}, random.Random(3)
    single = {attention.axis for attention in net.attentions if attention.heads == 1}
    for axis in net.prunable:
        if net.axes[axis].kind in ("attention", "inner") and axis not in single and net.axes[axis].num_units > 1:
            number = net.axes[axis].num_units
            gone = units(net, axis, rng.sample(range(number), rng.randint(1, number - 1)))
            silence(masked, net, axis, gone)
            kept[axis] = torch.tensor([i for i in range(net.axes[axis].width) if i not in gone])
    small = cut(model, kept)
    assert count_parameters(small) < count_parameters(model)
    torch.testing.assert_close(predict(small), predict(masked), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_left_out_add_nothing(name: str, tmp_path: Path) -> None:
    model = build(name)
    net = describe(model).wiring(model)
    masked = copy.deepcopy(model)
    for axis in net.removable:
        width = net.axes[axis].width
        silence(masked, net, axis, set(range(width)))
        for layer in net.layers:
            if axis in layer.inputs and layer.kind in ("conv", "linear"):
                bias = masked.get_submodule(layer.path).bias
                if bias is not None:
                    bias.data.zero_()
    small = cut(model, {axis: torch.arange(0) for axis in net.removable})
    assert len(small.config.removed_blocks) == len(net.removable) > 0
    torch.testing.assert_close(predict(small), predict(masked), rtol=0, atol=1e-5)
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path)
    assert torch.equal(predict(again), predict(small))
    widths = dict.fromkeys(net.removable, 0)
    cost = CostModel.of(model, random_inputs(model))
    assert (cost.macs(widths), cost.parameters(widths)) == (
        count_macs(small, random_inputs(model)), count_parameters(small)
    )  # fmt: skip


class _NormOverKept(nn.Module):
    """A LayerNorm whose mean and variance are those of some channels; the others come out as 0."""

    def __init__(self, norm: nn.LayerNorm, kept: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        some = x[..., self.kept]
        scale, shift = self.norm.weight[self.kept], self.norm.bias[self.kept]
        out = torch.zeros_like(x)
        out[..., self.kept] = nn.functional.layer_norm(some, (len(self.kept),), scale, shift, self.norm.eps)
        return out


@pytest.mark.parametrize("name", ["sd 1", "sd 2"])
def test_the_stream_of_a_transformer_is_normed_over_what_is_left(name: str) -> None:
    model = build(name)
    net = describe(model).wiring(model)
    axis = "down_blocks.0.attentions.0.stream"
    kept = torch.tensor([0, 2, 3, 7])
    masked = copy.deepcopy(model)
    silence(masked, net, axis, set(range(8)) - set(kept.tolist()))
    for layer in net.layers:
        if layer.kind == "layer-norm" and layer.inputs == (axis,):
            masked.set_submodule(layer.path, _NormOverKept(masked.get_submodule(layer.path), kept))
    small = cut(model, {axis: kept})
    torch.testing.assert_close(predict(small), predict(masked), rtol=0, atol=1e-5)
    block = small.down_blocks[0].attentions[0]
    assert (block.inner_dim, block.in_channels, block.transformer_blocks[0].dim) == (4, 8, 4)


def test_gates_and_values_leave_together() -> None:
    model = build("sd 1")
    net = describe(model).wiring(model)
    path = "mid_block.attentions.0.transformer_blocks.0.ff"
    (layer,) = [layer for layer in net.layers if layer.path == f"{path}.net.0.proj"]
    assert layer.outputs == (f"{path}.inner",) * 2
    small = cut(model, {f"{path}.inner": torch.tensor([1, 5])})
    before, after = model.get_submodule(layer.path).weight, small.get_submodule(layer.path).weight
    assert torch.equal(after, before[[1, 5, 64 + 1, 64 + 5]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_type": "gated"}, r"attention_type: noisewise knows default, this network has 'gated'"),
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"addition_embed_type": "text", "addition_embed_type_num_heads": 2}, "addition_embed_type.*text_time"),
        (
            {
                "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
                "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            },
            r"down_blocks\.0: a SimpleCrossAttnDownBlock2D.*CrossAttnDownBlock2D",
        ),
    ],
)
def test_networks_outside_are_refused_by_what_is_unsupported(settings: dict[str, Any], message: str) -> None:
    model = condition_unet(**settings)
    with pytest.raises(SettingError, match=message):
        describe(model).wiring(model)


def test_a_class_that_is_not_known_is_named_with_those_that_are() -> None:
    with pytest.raises(SettingError, match=r"Linear is not a network noisewise knows.*UNet2DConditionModel"):
        describe(nn.Linear(1, 1))
