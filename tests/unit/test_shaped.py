"""Cutting does what the theory says, and a shaped network is an ordinary diffusers model."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file, save_file
from unet_zoo import ZOO, build, random_cuts, settings

from noisewise import ShapedUNet2DModel
from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.models.surgery import cut, kept_widths


def predict(model: UNet2DModel) -> torch.Tensor:
    """The prediction for two fixed noisy images at two timesteps."""
    inputs = describe(model).example_inputs(model, batch_size=2)
    generator = torch.Generator().manual_seed(1)
    inputs["sample"] = torch.randn(inputs["sample"].shape, generator=generator)
    inputs["timestep"] = torch.tensor([3, 700])
    with torch.no_grad():
        return model(**inputs).sample


def without(width: int, *gone: int) -> torch.Tensor:
    return torch.tensor([i for i in range(width) if i not in gone])


def silenced(model: UNet2DModel, axis: str, gone: list[int]) -> UNet2DModel:
    """A copy of ``model`` in which nobody reads the channels ``gone`` of ``axis``."""
    model = copy.deepcopy(model)
    net = describe(model).wiring(model)
    for layer in net.layers:
        start = 0
        for part in layer.inputs:
            if part == axis and layer.kind != "norm":
                with torch.no_grad():
                    model.get_submodule(layer.path).weight[:, [start + i for i in gone]] = 0
            start += net.axes[part].width
    return model


@pytest.mark.parametrize("name", ZOO)
def test_keeping_everything_changes_nothing(name: str) -> None:
    model = build(name)
    assert torch.equal(predict(cut(model, {})), predict(model))


@pytest.mark.parametrize("name", ZOO)
def test_random_cuts_reload_bit_equal(name: str, tmp_path: Path) -> None:
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    net = describe(model).wiring(model)
    for kept in random_cuts(net, number=2, seed=1):
        small = cut(model, kept)
        assert kept_widths(small) == {
            axis: len(kept[axis]) if axis in kept else net.axes[axis].width for axis in net.prunable
        }
        small.save_pretrained(tmp_path)
        again = ShapedUNet2DModel.from_pretrained(tmp_path)
        assert predict(small).isfinite().all()
        assert torch.equal(predict(again), predict(small))
        assert not any(file.suffix not in (".json", ".safetensors") for file in tmp_path.iterdir())
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["heads", "scale_shift", "resnet"])
def test_an_inner_axis_without_whole_norm_groups(name: str) -> None:
    model = build(name)
    axis = "mid_block.resnets.0.inner"
    wiring_axis = describe(model).wiring(model).axes[axis]
    gone = [*range(wiring_axis.unit), *range(3 * wiring_axis.unit, 4 * wiring_axis.unit)]
    small = cut(model, {axis: without(wiring_axis.width, *gone)})
    assert small.mid_block.resnets[0].norm2.num_groups == model.mid_block.resnets[0].norm2.num_groups - 2
    torch.testing.assert_close(predict(small), predict(silenced(model, axis, gone)), rtol=0, atol=1e-5)


def test_a_residual_axis_without_whole_norm_groups() -> None:
    """Where the removed channels are whole groups of every norm over a concatenation too, nothing else changes."""
    torch.manual_seed(0)
    model = UNet2DModel(**settings("attention", block_out_channels=(16, 16))).eval()
    gone = [4, 5, 6, 7]  # two groups of 2 alone, one group of 4 where the last up block reads 16 + 16 channels
    small = cut(model, {"conv_in": without(16, *gone)})
    assert small.up_blocks[1].resnets[1].norm1.num_groups == 7
    torch.testing.assert_close(predict(small), predict(silenced(model, "conv_in", gone)), rtol=0, atol=1e-5)


def test_whole_heads_leave() -> None:
    model = build("heads")
    axis = "mid_block.attentions.0"
    gone = list(range(8, 16))
    small = cut(model, {axis: without(32, *gone)})
    assert (small.mid_block.attentions[0].heads, model.mid_block.attentions[0].heads) == (3, 4)
    torch.testing.assert_close(predict(small), predict(silenced(model, axis, gone)), rtol=0, atol=1e-5)
    with pytest.raises(SettingError, match="whole heads of 8"):
        cut(model, {axis: without(32, 3)})
    with pytest.raises(SettingError, match="whole heads of 8"):
        cut(model, {axis: torch.arange(4, 12)})


def test_a_single_head_keeps_its_temperature() -> None:
    model = build("one head")
    axis = "mid_block.attentions.0"
    gone = [0, 5, 30]
    silent = silenced(model, axis, gone)  # its values are not read; its queries and keys must not meet either
    with torch.no_grad():
        silent.mid_block.attentions[0].to_q.weight[gone] = 0
        silent.mid_block.attentions[0].to_q.bias[gone] = 0
    small = cut(model, {axis: without(32, *gone)})
    torch.testing.assert_close(predict(small), predict(silent), rtol=0, atol=1e-5)


def test_a_shaped_network_can_be_cut_again() -> None:
    model = build("heads")
    inner, stream = "down_blocks.0.resnets.0.inner", "conv_in"
    twice = cut(cut(model, {inner: torch.arange(8)}), {stream: torch.arange(4, 16)})
    once = cut(model, {inner: torch.arange(8), stream: torch.arange(4, 16)})
    assert twice.config.layers == once.config.layers
    assert torch.equal(predict(twice), predict(once))
    assert describe(twice).settings(twice) == describe(model).settings(model)


def test_attributes_that_blocks_keep_follow_the_layers() -> None:
    for name in ("heads", "attention, resnet", "one head"):
        model = build(name)
        for kept in random_cuts(describe(model).wiring(model), number=2):
            small = cut(model, kept)
            for block in (*small.down_blocks, *small.up_blocks, small.mid_block):
                for resnet in block.resnets:
                    assert (resnet.in_channels, resnet.out_channels) == (
                        resnet.norm1.num_channels,
                        resnet.conv2.out_channels,
                    )
                for attention in getattr(block, "attentions", ()):
                    assert attention.query_dim == attention.to_q.in_features == attention.to_out[0].out_features
                    assert attention.inner_dim == attention.to_v.out_features
                    assert attention.scale == pytest.approx((attention.inner_dim / attention.heads) ** -0.5)


def test_it_trains_moves_and_checkpoints_as_any_model() -> None:
    model = build("heads")
    small = cut(model, {"down_blocks.1.resnets.0": torch.arange(16)})
    assert not small.training
    assert cut(model.train(), {}).training
    small.train()
    inputs = describe(small).example_inputs(small, batch_size=2)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            small.enable_gradient_checkpointing()
        small.zero_grad()
        small(**inputs).sample.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in small.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))
    assert cut(small, {}).is_gradient_checkpointing
    assert small.to(torch.bfloat16).dtype == torch.bfloat16
    assert cut(small, {}).dtype == torch.bfloat16


def test_stock_pipelines_reload_it(tmp_path: Path) -> None:
    small = cut(build("heads"), {"mid_block.attentions.0": torch.arange(16)})
    DDPMPipeline(unet=small, scheduler=DDPMScheduler()).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["noisewise", "ShapedUNet2DModel"]
    assert torch.equal(predict(DiffusionPipeline.from_pretrained(tmp_path).unet), predict(small))


def test_removed_blocks_hand_their_input_on(tmp_path: Path) -> None:
    model = build("heads")
    removed = ["mid_block.attentions.0", "mid_block.resnets.1"]
    small = ShapedUNet2DModel(**describe(model).settings(model), removed_blocks=removed).eval()
    small.load_state_dict({key: value for key, value in model.state_dict().items() if key in small.state_dict()})
    quiet = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (quiet.mid_block.attentions[0].to_out[0], quiet.mid_block.resnets[1].conv2):
            layer.weight.zero_()
            layer.bias.zero_()
    assert torch.allclose(predict(small), predict(quiet), atol=1e-6)
    again = cut(small, {"conv_in": torch.arange(8)})
    again.save_pretrained(tmp_path)
    assert ShapedUNet2DModel.from_pretrained(tmp_path).config.removed_blocks == removed
    with pytest.raises(SettingError, match=r"removed_blocks\.down_blocks\.1\.resnets\.0.*width"):
        ShapedUNet2DModel(**describe(model).settings(model), removed_blocks=["down_blocks.1.resnets.0"])
    for block in ("mid_block.resnets.1", "mid_block.attentions.0"):  # (input + nothing) / 2 is not the input
        with pytest.raises(SettingError, match=rf"removed_blocks\.{block}: this block divides its input .* by 2"):
            ShapedUNet2DModel(**{**ZOO["heads"], "mid_block_scale_factor": 2.0}, removed_blocks=[block])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"layers": {"mid_block.resnets.0.conv1": [32, 24]}}, r"layers\.mid_block\.resnets\.0\..*neighbours have"),
        ({"layers": {"conv_in": [3, 0]}}, r"layers\.conv_in: \[3, 0\]"),
        ({"layers": {"conv_inn": [3, 16]}}, r"layers\.conv_inn: the network has no such module"),
        ({"layers": {"conv_norm_out": [3, 16]}}, r"layers\.conv_norm_out: a GroupNorm is there"),
        ({"norm_groups": {"conv_norm_out": 5}}, r"norm_groups\.conv_norm_out: 5 groups do not divide its 16"),
        ({"heads": {"mid_block.attentions.0": 5}}, r"heads\.mid_block\.attentions\.0: 5 heads do not divide its 32"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ShapedUNet2DModel(**ZOO["heads"], **shape)


def test_weights_are_checked_against_the_configuration(tmp_path: Path) -> None:
    cut(build("plain"), {}).save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:8].clone()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=r"conv_in\.weight"):
        ShapedUNet2DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"nonsense": torch.arange(2)}, r"kept\.nonsense"),
        ({"time": torch.arange(2)}, "fixed"),
        ({"conv_in": torch.tensor([], dtype=torch.int64)}, "0 indices"),
        ({"conv_in": torch.tensor([1, 1])}, "2 indices"),
        ({"conv_in": torch.tensor([16])}, "1 to 16"),
    ],
)
def test_impossible_cuts_are_refused(kept: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        cut(build("plain"), kept)


def test_projected_shortcuts_where_the_widths_ask_for_none(tmp_path: Path) -> None:
    model = build("resnet")
    paths = ["down_blocks.0.downsamplers.0", "up_blocks.0.upsamplers.0", "down_blocks.0.resnets.0"]
    shaped = ShapedUNet2DModel(**describe(model).settings(model), shortcuts=paths).eval()
    extra = dict.fromkeys(f"{path}.conv_shortcut.{name}" for path in paths for name in ("weight", "bias"))
    assert shaped.state_dict().keys() == model.state_dict().keys() | extra.keys()

    # a shortcut is a stream of its own: cutting what nobody reads changes nothing
    axis = "down_blocks.0.downsamplers.0"
    unread = silenced(shaped, axis, [0, 1, 2, 3])  # whole groups of every norm
    small = cut(unread, {axis: without(16, 0, 1, 2, 3)})
    assert kept_widths(small)[axis] == 12
    torch.testing.assert_close(predict(small), predict(unread), rtol=0, atol=1e-5)
    small.save_pretrained(tmp_path)
    again = ShapedUNet2DModel.from_pretrained(tmp_path)
    assert again.config.shortcuts == paths
    assert torch.equal(predict(again), predict(small))

    with pytest.raises(SettingError, match=r"shortcuts\.mid_block: a UNetMidBlock2D is there"):
        ShapedUNet2DModel(**describe(model).settings(model), shortcuts=["mid_block"])
    with pytest.raises(SettingError, match=r"has a shortcut convolution already"):
        ShapedUNet2DModel(**describe(model).settings(model), shortcuts=["up_blocks.0.resnets.0"])
