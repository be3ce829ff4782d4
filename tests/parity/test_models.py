"""The declared axes against Torch-Pruning's dependency graph, and shaped networks against diffusers' own classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import nn

from noisewise.models.networks import describe
from noisewise.models.networks.wiring import Wiring
from noisewise.models.surgery import cut

Member = tuple[str, str, frozenset[int]]  # a module, whether it reads, writes or normalises the channels, and which

NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
    },
    "attention, one head": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
    },
    "residual resampling": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": None,
    },
    "two layers a block": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": None,
    },
}


def build(name: str) -> UNet2DModel:
    torch.manual_seed(0)
    defaults = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}
    return UNet2DModel(**{**defaults, **NETWORKS[name]}).eval()


def declared(net: Wiring, axis: str) -> set[Member]:
    """Every module that cutting ``axis`` touches, with the channels it loses there."""
    members: set[Member] = set()
    for layer in net.layers:
        for role, parts in (("in", layer.inputs), ("out", layer.outputs)):
            start, channels = 0, set()
            for part in parts:
                width = net.axes[part].width
                channels |= set(range(start, start + width)) if part == axis else set()
                start += width
            if channels:
                members.add((layer.path, "norm" if layer.kind == "norm" else role, frozenset(channels)))
    return members


@pytest.mark.parametrize("name", NETWORKS)
def test_axes_are_torch_prunings_groups(name: str) -> None:
    import torch_pruning as tp

    model = build(name)
    network = describe(model)
    net = network.wiring(model)
    paths = {module: path for path, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(
        model, example_inputs=network.example_inputs(model), output_transform=lambda output: output.sample
    )

    def traced(root: str, width: int) -> set[Member]:
        module = model.get_submodule(root)
        prune = tp.prune_conv_out_channels if isinstance(module, nn.Conv2d) else tp.prune_linear_out_channels
        members: set[Member] = set()
        for dependency, channels in graph.get_pruning_group(module, prune, list(range(width))):
            target = dependency.target.module
            if isinstance(target, nn.GroupNorm):
                role = "norm"
            elif isinstance(target, nn.Conv2d | nn.Linear):
                role = "out" if graph.is_out_channel_pruning_fn(dependency.handler) else "in"
            else:
                continue
            members.add((paths[target], role, frozenset(channels)))
        return members

    for axis in net.prunable:
        root = next(layer.path for layer in net.layers if layer.outputs == (axis,) and layer.kind != "norm")
        assert traced(root, net.axes[axis].width) == declared(net, axis), axis


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_that_keeps_everything_is_the_diffusers_model(name: str) -> None:
    model = build(name)
    whole = cut(model, {})
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 900])
    assert torch.equal(whole(x, t).sample, model(x, t).sample)

    images = []
    for unet in (model, whole):
        pipe = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
        pipe.set_progress_bar_config(disable=True)
        images.append(pipe(generator=torch.Generator().manual_seed(2), num_inference_steps=3, output_type="np").images)
    assert (images[0] == images[1]).all()
