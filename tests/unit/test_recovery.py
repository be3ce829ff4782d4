"""Recovery by least squares: against explicit solutions, networks whose lost channels were spare, and bad input."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from noisewise import NoiseSchedule, ShapedUNet2DModel, prune_to_budget
from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.models.surgery import cut
from noisewise.objectives import Objective
from noisewise.pruning.memory import MemoryBank
from noisewise.pruning.proposers import RandomSettings
from noisewise.pruning.reconstruction import Equations, reconstruct
from noisewise.pruning.recovery import recover
from noisewise.pruning.search import search
from noisewise.workflow.recipe import load_recipe
from noisewise.workflow.store import plain

INNER = "down_blocks.0.resnets.0.inner"
HEADS = "mid_block.attentions.0"
EXACT = 1e-10  # ridge


def small_unet(**settings: Any) -> UNet2DModel:
    torch.manual_seed(0)
    shape = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    model = UNet2DModel(**{**shape, **settings}).eval()
    with torch.no_grad():
        model.conv_out.weight.mul_(20)  # an untrained network answers with next to nothing
    return model


@pytest.fixture(scope="module")
def objective() -> Objective:
    return Objective(NoiseSchedule.named("linear", 100))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def fitted(layer: nn.Module, inputs: torch.Tensor, answers: torch.Tensor, ridge: float = EXACT) -> None:
    equations = Equations(layer)
    with torch.no_grad():
        for x, y in zip(inputs.split(3), answers.split(3), strict=True):
            equations.add(x, y)
        equations.solve(ridge, "layer")


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_that_of_lstsq(bias: bool) -> None:
    torch.manual_seed(0)
    layer, inputs, answers = nn.Linear(5, 3, bias=bias), torch.randn(8, 6, 5), torch.randn(8, 6, 3) + 2
    fitted(layer, inputs, answers)
    rows = inputs.reshape(-1, 5).double().numpy()
    rows = np.hstack([rows, np.ones((len(rows), 1))]) if bias else rows
    expected, *_ = np.linalg.lstsq(rows, answers.reshape(-1, 3).double().numpy())
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected[:5].T, atol=1e-6)
    if bias:
        np.testing.assert_allclose(layer.bias.detach().numpy(), expected[5], atol=1e-6)


@pytest.mark.parametrize("settings", [{"padding": 1}, {"stride": 2, "padding": 0}, {"padding": 2, "dilation": 2}])
def test_a_convolution_is_that_of_lstsq_on_its_patches(settings: dict[str, int]) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(2, 3, 3, **settings), torch.randn(7, 2, 9, 9)
    answers = torch.randn_like(layer(inputs))
    patches = nn.functional.unfold(inputs, 3, **settings).transpose(1, 2).reshape(-1, 18).double()
    rows = np.hstack([patches.numpy(), np.ones((len(patches), 1))])
    expected, *_ = np.linalg.lstsq(rows, answers.flatten(2).transpose(1, 2).reshape(-1, 3).double().numpy())
    fitted(layer, inputs, answers)
    np.testing.assert_allclose(layer.weight.detach().flatten(1).numpy(), expected[:18].T, atol=1e-6)
    np.testing.assert_allclose(layer.bias.detach().numpy(), expected[18], atol=1e-6)


def test_the_ridge_pulls_towards_the_weights_that_were_there_and_not_the_bias() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(4, 2), torch.randn(9, 20, 4)
    before = layer.weight.detach().clone()
    fitted(layer, inputs, torch.randn(9, 20, 2) + 5, ridge=1e9)
    torch.testing.assert_close(layer.weight.detach(), before, atol=1e-6, rtol=0)
    assert (layer.bias > 4).all()


def test_inputs_of_nothing_leave_the_weights_and_numbers_that_are_none_are_refused() -> None:
    layer, zeros = nn.Linear(4, 2, bias=False), torch.zeros(3, 5, 4)
    before = layer.weight.detach().clone()
    fitted(layer, zeros, torch.ones(3, 5, 2))
    assert torch.equal(layer.weight, before)
    with pytest.raises(SettingError, match=r"prune\.recovery: layer meets numbers that are not finite"):
        fitted(layer, zeros + float("nan"), torch.ones(3, 5, 2))


def with_spares(model: UNet2DModel) -> dict[str, torch.Tensor]:
    """Make the second half of one residual block's inside, and the second head of an attention, copies of the first."""
    resnet, attention = model.down_blocks[0].resnets[0], model.mid_block.attentions[0]
    writers = [resnet.conv1, resnet.time_emb_proj, resnet.norm2, attention.to_q, attention.to_k, attention.to_v]
    with torch.no_grad():
        for layer in writers:
            for tensor in (layer.weight, layer.bias):
                half = len(tensor) // 2
                tensor[half:] = tensor[:half]
    return {INNER: torch.arange(4), HEADS: torch.arange(8)}


def test_channels_that_copied_others_are_recovered_exactly(objective: Objective, images: torch.Tensor) -> None:
    model = small_unet()
    kept = with_spares(model)
    small = cut(model, kept)
    draws = objective.fixed_draws(images, 48, (0,), batch_size=20)
    probe = {"sample": torch.randn(4, 1, 8, 8), "timestep": torch.tensor([1, 20, 50, 99])}
    with torch.no_grad():
        expected, before = model(**probe).sample, small.eval()(**probe).sample
        num_layers = reconstruct(model, small, kept, objective, draws, ridge=EXACT)
        after = small(**probe).sample
    assert (before - expected).abs().max() > 1e-2
    torch.testing.assert_close(after, expected, atol=2e-5, rtol=1e-4)
    assert num_layers > 2


def test_layers_in_front_of_every_cut_keep_their_bits(objective: Objective, images: torch.Tensor) -> None:
    model = small_unet()
    kept = {"up_blocks.1.resnets.0.inner": torch.arange(4)}
    small = cut(model, kept)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    draws = objective.fixed_draws(images, 16, (0,))
    reconstruct(model, small, kept, objective, draws)
    changed = {name for name, tensor in small.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith(("up_blocks.1.", "conv_out.")) for name in changed)
    assert not any(".time_emb_proj." in name or "norm" in name for name in changed)


def test_queries_keep_their_temperature(objective: Objective, images: torch.Tensor) -> None:
    """With one head cutting rescales the queries, so their targets are rescaled alike: nothing else is left to fit."""
    model = small_unet(attention_head_dim=16)
    kept = {HEADS: torch.arange(9)}
    small = cut(model, kept)
    attention = small.mid_block.attentions[0]
    before = attention.to_q.weight.detach().clone()
    draws = objective.fixed_draws(images, 16, (0,))
    reconstruct(model, small, kept, objective, draws)
    torch.testing.assert_close(attention.to_q.weight.detach(), before, atol=1e-5, rtol=0)
    assert not torch.equal(attention.to_out[0].weight, cut(model, kept).mid_block.attentions[0].to_out[0].weight)


def test_answers_come_nearer_and_repeat_bit_for_bit(objective: Objective, images: torch.Tensor) -> None:
    model = small_unet()
    residual = ("down_blocks.1.resnets.0", "up_blocks.0.resnets.0")
    kept = {"conv_in": torch.tensor([0, 1, 4, 5]), **{name: torch.arange(8) for name in residual}}
    draws = objective.fixed_draws(images, 48, (0,))
    x, t = torch.randn(8, 1, 8, 8), torch.arange(8) * 12

    def distance(small: torch.nn.Module) -> float:
        with torch.no_grad():
            return float((small.eval()(x, t).sample - model(x, t).sample).square().mean())

    plain_cut, first, second, side_by_side = (cut(model, kept).train() for _ in range(4))
    for small in (first, second):
        reconstruct(model, small, kept, objective, draws)
        assert small.training
    reconstruct(model, side_by_side, kept, objective, draws, repaired_inputs=False)
    assert distance(first) < 0.6 * distance(plain_cut)
    assert distance(first) < distance(side_by_side) < 0.8 * distance(plain_cut)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_blocks_that_were_left_out_are_made_up_for(objective: Objective, images: torch.Tensor) -> None:
    model = small_unet()
    axis = next(axis for axis in describe(model).wiring(model).axes.values() if axis.removes)
    kept = {axis.name: torch.arange(0)}
    small = cut(model, kept)
    assert axis.removes in small.config.removed_blocks
    found = recover(model, small, kept, objective=objective, images=images, num_images=32, names=(0,))
    assert found.num_layers > 0
    assert found.loss_after != found.loss_before


def test_pruning_with_recovery_says_what_it_gained(objective: Objective, images: torch.Tensor, tmp_path: Path) -> None:
    model = small_unet()
    inputs = describe(model).example_inputs(model)
    settings: dict[str, Any] = {"objective": objective, "images": images, "timesteps": (40, 80)}
    plainly, without = prune_to_budget(model, inputs, 0.6, "magnitude", **settings)
    small, info = prune_to_budget(
        model, inputs, 0.6, "magnitude", recovery="least-squares", num_recovery_images=32, **settings
    )
    again, _ = prune_to_budget(
        model, inputs, 0.6, "magnitude", recovery="least-squares", num_recovery_images=32, **settings
    )
    assert without.recovery is None
    assert info.recovery is not None
    assert (info.widths, info.macs) == (without.widths, without.macs)
    assert info.recovery.num_images == 32
    assert info.recovery.applied == (info.recovery.loss_after < info.recovery.loss_before)
    assert info.to_dict()["recovery"]["kind"] == "least-squares"
    assert all(torch.equal(p, again.state_dict()[name]) for name, p in small.state_dict().items())
    assert any(not torch.equal(p, plainly.state_dict()[name]) for name, p in small.state_dict().items())
    small.save_pretrained(tmp_path)
    reloaded = ShapedUNet2DModel.from_pretrained(tmp_path)
    assert torch.equal(reloaded.conv_out.weight, small.conv_out.weight)


def test_pruning_leaves_blocks_out_and_recovers(objective: Objective, images: torch.Tensor) -> None:
    model = small_unet()
    inputs = describe(model).example_inputs(model)
    settings: dict[str, Any] = {"depth": True, "objective": objective, "images": images}
    plainly, without = prune_to_budget(model, inputs, 0.3, "magnitude", **settings)
    small, info = prune_to_budget(
        model, inputs, 0.3, "magnitude", recovery="least-squares", num_recovery_images=32, **settings
    )
    assert info.removed_blocks
    assert (info.widths, info.removed_blocks, info.macs) == (without.widths, without.removed_blocks, without.macs)
    assert small.config.removed_blocks == plainly.config.removed_blocks == list(info.removed_blocks)
    assert info.recovery is not None
    assert info.recovery.applied
    assert info.recovery.loss_after < info.recovery.loss_before
    state = small.state_dict()
    assert state.keys() == plainly.state_dict().keys()
    assert any(not torch.equal(tensor, state[name]) for name, tensor in plainly.state_dict().items())


def test_a_recovery_that_does_not_help_is_said_and_not_kept(objective: Objective, images: torch.Tensor) -> None:
    """A network whose cut channels were harmful: answering as it did would be worse."""
    model = small_unet()
    kept = {"up_blocks.1.resnets.1.inner": torch.arange(4)}
    with torch.no_grad():
        for parameter in model.conv_out.parameters():
            parameter.zero_()
        small = cut(model, kept)
        model.conv_out.weight.fill_(1.0)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    with pytest.warns(UserWarning, match=r"prune\.recovery: on held-out draws the loss went from .* stay as they were"):
        found = recover(model, small, kept, objective=objective, images=images, num_images=32, names=(0,))
    assert not found.applied
    assert found.loss_after >= found.loss_before
    assert "not kept" in str(found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


def test_a_search_scores_as_cut_and_repairs_the_best(objective: Objective, images: torch.Tensor) -> None:
    model = small_unet()
    inputs = describe(model).example_inputs(model)
    settings = RandomSettings(rounds=1, candidates=2, num_score_images=16)
    looking: dict[str, Any] = {"objective": objective, "images": images, "importance": "magnitude"}
    found = search(model, inputs, 0.6, settings, recovery="least-squares", num_recovery_images=32, **looking)
    without = search(model, inputs, 0.6, settings, **looking)
    losses = [[record.loss for record in result.bank.records] for result in (found, without)]
    assert losses[0] == losses[1]
    assert isinstance(found.bank, MemoryBank)
    assert found.info.recovery is not None
    assert without.info.recovery is None
    assert found.info.widths == without.info.widths == dict(found.best.widths)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recovery": "lstsq"}, r"prune\.recovery: 'lstsq' is not one of none, least-squares"),
        ({"recovery": "least-squares"}, r"prune\.recovery: least-squares needs the training objective and images"),
        ({"recovery": "least-squares", "num_recovery_images": 1}, r"prune\.num_recovery_images: 1 given; 2 or more"),
    ],
)
def test_what_recovery_cannot_work_with(settings: dict[str, Any], message: str) -> None:
    model = small_unet()
    with pytest.raises(SettingError, match=message):
        prune_to_budget(model, describe(model).example_inputs(model), 0.6, "magnitude", **settings)


def test_one_image_is_not_enough(objective: Objective, images: torch.Tensor) -> None:
    model = small_unet()
    kept = {INNER: torch.arange(4)}
    with pytest.raises(SettingError, match=r"prune\.recovery: 1 images given"):
        recover(model, cut(model, kept), kept, objective=objective, images=images[:1], num_images=4, names=(0,))


RECIPE = """
name: recovered
data: {kind: sklearn-digits}
model: {block_out_channels: [8, 16], norm_num_groups: 4}
base: {num_images: 64}
finetune: {num_images: 64}
sample: {num_images: 8}
"""


def test_steps_keep_their_names_where_nothing_is_recovered(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    without, given = load_recipe(path, []), load_recipe(path, ["prune.recovery=least-squares"])
    assert {"recovery", "num_recovery_images"}.isdisjoint(plain(without.prune))
    assert plain(given.prune)["recovery"] == "least-squares"
    assert without.prune.model_dump(mode="json")["recovery"] == "none"
    with pytest.raises(SettingError, match=r"num_recovery_images belongs to recovery `least-squares`"):
        load_recipe(path, ["prune.num_recovery_images=64"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_recipe(path, ["prune.recovery=least-squares", "prune.num_recovery_images=64"])
