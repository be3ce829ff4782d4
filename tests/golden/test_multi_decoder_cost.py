"""MACs and parameters of the multi-decoder networks of arXiv:2312.09181, against the published counts."""

from __future__ import annotations

import pytest
import torch

from noisewise import MultiDecoderUNet2DModel, NoiseSchedule, Plan, ShapedUNet2DModel, count_macs
from noisewise.models.cost import count_parameters, layer_macs
from noisewise.models.networks import describe
from noisewise.models.paper_multi_decoder import PAPER_MULTI_DECODER_NETWORKS

PLAN = Plan.equal_width(NoiseSchedule.named("linear"), num_groups=3)


def built(name: str) -> tuple[ShapedUNet2DModel, MultiDecoderUNet2DModel]:
    network = PAPER_MULTI_DECODER_NETWORKS[name]
    with torch.device("meta"):
        one = ShapedUNet2DModel(**network.settings)
        several = MultiDecoderUNet2DModel.build(
            PLAN, network.decoders, share_bottleneck=network.share_bottleneck, **network.settings
        )
    return one, several


def macs(model: torch.nn.Module) -> int:
    return count_macs(model, describe(model).example_inputs(model))


def macs_outside_attention(model: torch.nn.Module) -> int:
    counts = layer_macs(model, describe(model).example_inputs(model))
    return sum(value for path, value in counts.items() if ".attentions." not in path)


def test_the_edm_sized_network_costs_what_is_published() -> None:
    one, several = built("multistage-edm-cifar10")
    assert macs(one) == pytest.approx(21.19e9, rel=5e-4)
    assert [macs(expert) for expert in several.experts] == pytest.approx([35.75e9, 21.19e9, 7.73e9], rel=1e-3)
    # 128 more sinusoidal features than EDM's, each read by 512 channels of the time embedding
    assert count_parameters(one) - 128 * 512 == pytest.approx(55.7e6, rel=1e-3)
    assert several.resident_parameters() - 128 * 512 == pytest.approx(128.8e6, rel=5e-4)


@pytest.mark.parametrize(("name", "published"), [("multistage-vp-cifar10", 17.65e9), ("multistage-latent", 88.39e9)])
def test_the_other_published_counts_leave_attention_out(name: str, published: float) -> None:
    one, several = built(name)
    assert macs_outside_attention(one) == pytest.approx(published, rel=1e-3)
    assert macs(one) > 1.04 * published
    costs = [macs(expert) for expert in several.experts]
    assert costs == sorted(costs, reverse=True)  # the biggest nearest the data
    if name == "multistage-vp-cifar10":
        assert costs[1] == macs(one)


def test_separate_bottlenecks_cost_memory_and_no_macs() -> None:
    network = PAPER_MULTI_DECODER_NETWORKS["multistage-edm-cifar10"]
    _, several = built("multistage-edm-cifar10")
    with torch.device("meta"):
        shared = MultiDecoderUNet2DModel.build(PLAN, network.decoders, share_bottleneck=True, **network.settings)
    assert [macs(a) for a in shared.experts] == [macs(b) for b in several.experts]
    bottleneck = count_parameters(several.experts[0].mid_block)
    assert several.resident_parameters() - shared.resident_parameters() == 2 * bottleneck
