"""Budgets in time with real clocks: what is measured and how, and what recipes say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from unet_zoo import two_levels

from noisewise import prune_to_budget
from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.models.surgery import cut
from noisewise.pruning.latency import cache_folder
from noisewise.pruning.latency_samples import measure
from noisewise.pruning.settings import TimingSettings
from noisewise.pruning.stopwatch import time_layers, time_pass, time_ratio
from noisewise.pruning.time_budget import batched
from noisewise.workflow.builder import build_graph
from noisewise.workflow.recipe import load_recipe
from noisewise.workflow.store import plain

INPUTS = 4  # images


@pytest.fixture(scope="module")
def model() -> UNet2DModel:
    return two_levels()


@pytest.fixture(scope="module")
def inputs(model: UNet2DModel) -> dict[str, Any]:
    return dict(describe(model).example_inputs(model, INPUTS))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


RECIPE = """
name: timed
data: {kind: sklearn-digits}
model: {block_out_channels: [8, 16], norm_num_groups: 4}
base: {num_images: 64}
finetune: {num_images: 64}
sample: {num_images: 8}
"""


def test_a_recipes_limits_may_be_of_time(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    without = load_recipe(path, [])
    timed = load_recipe(path, ["prune.budget_in=seconds", "prune.timing.batch_size=8"])
    assert {"budget_in", "timing"}.isdisjoint(plain(without.prune))
    assert plain(timed.prune)["timing"]["batch_size"] == 8
    assert (without.prune.asked(0.7), timed.prune.asked(0.7)) == (0.7, {"seconds": 0.7})
    llm = "prune.proposer={kind: llm, base_url: 'http://127.0.0.1:9/v1', model: m}"
    decoders = ["method=multi-decoder", "multi_decoder.start=base"]
    for overrides, message in (
        (["prune.timing.batch_size=8"], r"timing belongs to budget_in `seconds`"),
        (["prune.budget_in=seconds", llm], r"a language model is told of MACs"),
        (["prune.budget_in=seconds", *decoders], r"prune\.budget_in: seconds given; a multi-decoder's"),
        (["prune.budget_in=hours"], r"prune\.budget_in"),
    ):
        with pytest.raises(SettingError, match=message):
            load_recipe(path, overrides)


def test_pruning_steps_that_measure_time_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    for overrides, alone in (([], False), (["prune.budget_in=seconds"], True)):
        steps = [step for step in build_graph(load_recipe(path, overrides)).steps if step.action == "prune"]
        timed = [step for step in steps if step.settings["budget"] is not None]
        assert timed
        assert all(step.exclusive == alone for step in timed)
        assert not any(step.exclusive for step in steps if step.settings["budget"] is None)


def test_inputs_are_repeated_to_the_batch_size(model: UNet2DModel) -> None:
    example: dict[str, Any] = {"sample": torch.rand(2, 1, 6, 6), "timestep": torch.tensor(5), "return_dict": True}
    found = batched(model, example, 5)
    assert found["sample"].shape == (5, 1, 6, 6)
    assert torch.equal(found["sample"][4], example["sample"][0])
    assert found["timestep"].dim() == 0
    assert found["return_dict"] is True
    assert batched(model, {**example, "timestep": torch.tensor([3, 4])}, 5)["timestep"].tolist() == [3] * 5


def test_layers_times_are_their_own_and_add_up(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    attention = "mid_block.attentions.0"
    paths = [attention, f"{attention}.to_q", f"{attention}.to_out.0", "conv_in"]
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    times = time_layers(model, inputs, paths, repeats=2)
    assert times.own.keys() == set(paths)
    assert all(seconds > 0 for seconds in times.own.values())
    assert times.rest > 0
    assert times.total == pytest.approx(sum(times.own.values()) + times.rest)
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert time_pass(model, inputs) > 0


def test_two_networks_take_turns(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    order: list[str] = []
    other = cut(model, {"conv_in": torch.arange(4)}).eval()
    handles = [
        each.register_forward_pre_hook(lambda module, args, name=name: order.append(name))
        for each, name in ((model, "base"), (other, "small"))
    ]
    ratio = time_ratio(other, model, inputs, accuracy=1e9)
    for handle in handles:
        handle.remove()
    assert ratio.num_turns == 7
    assert order == ["small", "base"] * 8
    low, high = ratio.quartiles
    assert 0 < low <= ratio.median <= high
    assert ratio.seconds > 0
    assert time_ratio(other, model, inputs, accuracy=0.0, clock="cpu").num_turns == 41


def test_the_real_thing_end_to_end() -> None:
    """Real clocks: what comes out is measured, however busy the machine is; whether it is near is not asked here."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "add_attention": False}
    model = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, block_out_channels=(32,), layers_per_block=1, **blocks
    )
    inputs = describe(model).example_inputs(model)
    samples, areas = measure(model, inputs, 3)
    assert [bool(sample.widths) for sample in samples] == [False, True, True]
    assert all(seconds >= 0 for sample in samples for seconds in sample.times.own.values())
    assert areas["conv_norm_out"] == 16 * 16
    wide = TimingSettings(batch_size=8, tolerance=0.49, attempts=20, clock="cpu")
    small, info = prune_to_budget(model, inputs, {"seconds": 0.8}, "magnitude", timing=wide)
    assert info.time is not None
    assert info.time.num_turns >= 7
    assert info.time.base_seconds > 0
    assert (info.time.batch_size, info.time.clock) == (8, "cpu")
    assert small(**inputs).sample.shape == inputs["sample"].shape
    assert list(cache_folder().iterdir())
