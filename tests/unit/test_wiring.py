"""The declared axes describe every weight of every kind of network."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel, VQModel
from torch import nn
from unet_zoo import ZOO, build, settings

from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.models.networks.wiring import norm_groups_after


@pytest.mark.parametrize("name", ZOO)
def test_layers_are_all_there_and_as_wide_as_their_axes(name: str) -> None:
    model = build(name)
    net = describe(model).wiring(model)
    with_weights = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.Embedding)
    }
    assert {layer.path for layer in net.layers} == set(with_weights)
    for layer in net.layers:
        module = with_weights[layer.path]
        if layer.kind == "norm":
            assert layer.inputs == layer.outputs
            assert net.width(layer.inputs, {}) == module.num_channels
        else:
            assert net.width(layer.outputs, {}) == module.weight.shape[1 if layer.kind == "embedding" else 0]
            if layer.kind != "embedding":
                assert net.width(layer.inputs, {}) == module.weight.shape[1]


@pytest.mark.parametrize("name", ZOO)
def test_units_are_whole_groups_of_every_norm_of_the_axis_alone(name: str) -> None:
    model = build(name)
    net = describe(model).wiring(model)
    assert net.prunable
    for axis in net.axes.values():
        assert axis.width % axis.unit == 0
    for layer in net.layers:
        if layer.kind == "norm" and len(layer.inputs) == 1:
            norm = model.get_submodule(layer.path)
            assert net.axes[layer.inputs[0]].unit % (norm.num_channels // norm.num_groups) == 0
    for attention in net.attentions:
        axis = net.axes[attention.axis]
        assert axis.unit == (axis.width // attention.heads if attention.heads > 1 else 1)


def written_by(model: UNet2DModel, path: str) -> tuple[str, ...]:
    return next(layer.outputs for layer in describe(model).wiring(model).layers if layer.path == path)


def test_residual_axes_start_where_channels_are_written_anew() -> None:
    model = build("heads")
    first = written_by(model, "conv_in")
    assert written_by(model, "down_blocks.0.resnets.0.conv2") == first  # no shortcut: adds to its input
    down = written_by(model, "down_blocks.0.downsamplers.0.conv")
    assert down != first
    wide = written_by(model, "down_blocks.1.resnets.0.conv_shortcut")
    assert wide != down
    assert written_by(model, "down_blocks.1.resnets.0.conv2") == wide
    assert written_by(model, "down_blocks.1.attentions.0.to_out.0") == wide
    assert written_by(model, "mid_block.resnets.1.conv2") == wide


def test_a_residual_block_that_resamples_keeps_the_axis() -> None:
    model = build("resnet")
    assert written_by(model, "mid_block.resnets.0.conv2") == ("conv_in",)


def test_up_blocks_read_skips_last_in_first_out() -> None:
    model = build("one head")
    reads = {layer.path: layer.inputs for layer in describe(model).wiring(model).layers}
    assert reads["up_blocks.0.resnets.0.conv1"] == ("down_blocks.1.resnets.0", "down_blocks.1.resnets.0")
    assert reads["up_blocks.0.resnets.2.conv1"] == ("up_blocks.0.resnets.1", "down_blocks.0.downsamplers.0")
    assert reads["up_blocks.1.resnets.2.conv1"] == ("up_blocks.1.resnets.1", "conv_in")


def test_scale_shift_writes_the_inner_axis_twice() -> None:
    path = "down_blocks.0.resnets.0"
    assert written_by(build("scale_shift"), f"{path}.time_emb_proj") == (f"{path}.inner",) * 2
    assert written_by(build("heads"), f"{path}.time_emb_proj") == (f"{path}.inner",)


def test_time_and_image_channels_are_fixed() -> None:
    net = describe(model := build("classes")).wiring(model)
    fixed = {name for name, axis in net.axes.items() if axis.kind == "fixed"}
    assert fixed == {"time_features", "time_hidden", "time", "image_in", "image_out"}
    assert fixed.isdisjoint(net.prunable)


@pytest.mark.parametrize(
    ("groups", "width", "new_width", "expected"),
    [
        (32, 128, 128, 32),
        (32, 128, 64, 16),  # whole groups left
        (32, 128, 4, 1),
        (8, 64, 60, 6),  # groups of 10 are closer to 8 than the groups of 12 of 5
        (8, 48, 44, 4),  # 11 channels a group: 22 and 44 are further from 6, 4 (11 groups) are not allowed
        (8, 64, 61, 1),  # a prime
        (1, 16, 12, 1),
    ],
)
def test_norm_groups_after(groups: int, width: int, new_width: int, expected: int) -> None:
    assert norm_groups_after(groups, width, new_width) == expected


@pytest.mark.parametrize("name", ZOO)
def test_example_inputs_run(name: str) -> None:
    model = build(name)
    inputs = describe(model).example_inputs(model, batch_size=2)
    assert inputs.keys() <= set(describe(model).batch_arguments)
    with torch.no_grad():
        output = model(**inputs).sample
    assert output.shape[0] == 2
    assert output.shape[2:] == inputs["sample"].shape[2:]
    assert output.isfinite().all()


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(SettingError, match=r"VQModel is not a network.*UNet2DModel"):
        describe(VQModel(block_out_channels=(8,), norm_num_groups=4))
    skip = settings(
        "plain",
        down_block_types=("SkipDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "SkipUpBlock2D"),
        block_out_channels=(128, 128),
    )
    model = UNet2DModel(**skip)
    with pytest.raises(SettingError, match=r"down_blocks\.0.*SkipDownBlock2D.*DownBlock2D, AttnDownBlock2D"):
        describe(model).wiring(model)
    model = UNet2DModel(**settings("plain", sample_size=None))
    with pytest.raises(SettingError, match="sample_size"):
        describe(model).example_inputs(model)
