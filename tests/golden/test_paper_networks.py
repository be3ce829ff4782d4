"""Parameters and MACs of the networks in the TDC paper's tables (arXiv:2312.13307)."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel

from noisewise.models.cost import count_macs, count_parameters
from noisewise.models.networks import describe
from noisewise.models.paper import PAPER_NETWORKS


@pytest.mark.parametrize(
    ("name", "parameters", "papers_flops", "macs"),
    [
        ("iddpm-cifar10", 52_545_926, 8.137e9, 8.387e9),
        ("iddpm-imagenet64", 121.06e6, 39.35e9, 39.74e9),
        ("ddpm-cifar10", 35.75e6, 6.054e9, 6.222e9),
        ("ldm-ffhq", 274.06e6, 96.02e9, 101.2e9),
    ],
)
def test_the_papers_networks(name: str, parameters: float, papers_flops: float, macs: float) -> None:
    with torch.device("meta"):
        model = UNet2DModel(**PAPER_NETWORKS[name])
    inputs = describe(model).example_inputs(model)

    # the golden values are rounded to 4 digits, the first to none
    assert count_parameters(model) == pytest.approx(parameters, rel=0 if isinstance(parameters, int) else 2e-4)
    assert count_macs(model, inputs, attention=False) == pytest.approx(papers_flops, rel=2e-4)
    assert count_macs(model, inputs) == pytest.approx(macs, rel=2e-4)


def test_iddpm_has_four_heads() -> None:
    with torch.device("meta"):
        model = UNet2DModel(**PAPER_NETWORKS["iddpm-cifar10"])
    assert {spec.heads for spec in describe(model).wiring(model).attentions} == {4}


def test_iddpm_with_the_middle_norm_of_its_own_code() -> None:
    """diffusers leaves out the norm of the middle attention under scale_shift: 2 x 256 parameters."""
    with torch.device("meta"):
        model = UNet2DModel(**PAPER_NETWORKS["iddpm-cifar10"], attn_norm_num_groups=32)
    assert count_parameters(model) == 52_545_926 + 2 * 256
