"""The real Stable Diffusion 1.5, without weights: what it costs is known, and every axis of it is found."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from noisewise.errors import SettingError
from noisewise.models.cost import CostModel
from noisewise.models.networks import describe
from noisewise.models.surgery import cut


def test_stable_diffusion_1_5() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    cost = CostModel.of(unet, describe(unet).example_inputs(unet))
    assert cost.parameters({}) == 859_520_964  # the published checkpoint's
    assert cost.macs({}) == 401_636_720_640
    axes = cost.wiring.axes
    heads = [spec.heads for spec in cost.wiring.attentions]
    assert (len(cost.names), len(heads), set(heads)) == (107, 32, {8})
    kinds = [axes[name].kind for name in cost.names]
    assert (kinds.count("residual"), kinds.count("inner"), kinds.count("attention")) == (37, 38, 32)

    half = {name: axes[name].num_units // 2 * axes[name].unit for name in cost.names if axes[name].num_units > 1}
    assert 0.24 < cost.parameters(half) / 859_520_964 < 0.35
    assert 0.2 < cost.macs(half) / 401_636_720_640 < 0.35

    small = cut(unet, {name: torch.arange(width) for name, width in half.items()})
    assert {parameter.device.type for parameter in small.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in small.parameters()) == cost.parameters(half)
    spec = cost.wiring.attentions[0]
    with pytest.raises(SettingError, match=rf"kept\.{spec.axis}: this attention keeps or loses whole heads of 40"):
        cut(unet, {spec.axis: torch.arange(1, 41)})
