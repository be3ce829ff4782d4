"""DiT through the whole of method A: plan, prune, a few steps of training, experts, the stock pipeline, from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, DiTPipeline, DiTTransformer2DModel
from diffusers.models.attention_processor import Attention
from network_zoo import dit, predict, random_inputs

from noisewise import ExpertDenoiser, NoiseSchedule, Plan, ShapedDiTTransformer2DModel, count_macs, prune_to_budget
from noisewise.data.images import Images
from noisewise.errors import SettingError
from noisewise.models.cost import CostModel, count_parameters
from noisewise.models.networks import describe
from noisewise.objectives import Objective
from noisewise.pruning.solver import SolverError
from noisewise.pruning.space import open_space
from noisewise.sampling.sampler import sample_images
from noisewise.training.loop import train
from noisewise.training.settings import TrainSettings

NUM_CLASSES = 1000  # the stock pipeline takes label 1000 for none


@pytest.fixture(scope="module")
def model() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return dit(num_embeds_ada_norm=NUM_CLASSES, num_layers=3).eval()


def latents(num: int = 16) -> Images:
    rng = np.random.default_rng(0)
    return Images.from_pixels(rng.integers(0, 256, (num, 4, 8, 8), dtype=np.uint8), rng.integers(0, 1000, num))


def objective() -> Objective:
    return Objective(NoiseSchedule.named("linear", 1000), variance="learned_range")


@pytest.mark.parametrize(("budget", "depth"), [(0.8, False), (0.41, True)])
def test_a_budget_is_met_by_heads_feed_forwards_and_depth(
    model: DiTTransformer2DModel, budget: float, depth: bool, tmp_path: Path
) -> None:
    inputs = dict(describe(model).example_inputs(model))
    min_width = 0.75 if depth else "auto"  # 0.41 is then out of reach without leaving blocks out
    small, info = prune_to_budget(model, inputs, budget, "magnitude", min_width=min_width, depth=depth)
    assert isinstance(small, ShapedDiTTransformer2DModel)
    assert 0.98 * budget <= count_macs(small, inputs) / count_macs(model, inputs) == info.achieved <= budget
    assert count_parameters(small) == info.parameters
    assert list(info.removed_blocks) == small.config.removed_blocks
    assert bool(info.removed_blocks) == depth
    for block in small.transformer_blocks:
        assert block.norm1.linear.out_features == 6 * 16  # the stream and its modulation stay whole
        if isinstance(block.attn1, Attention):
            assert block.attn1.to_q.out_features == 8 * block.attn1.heads
    small.save_pretrained(tmp_path)
    again = ShapedDiTTransformer2DModel.from_pretrained(tmp_path)
    assert torch.equal(predict(again), predict(small))
    smaller, _ = prune_to_budget(again, inputs, 0.9, "magnitude", alignment=1, depth=depth)
    assert count_parameters(smaller) < count_parameters(small)


def test_what_modulation_and_embeddings_cost_is_the_least(model: DiTTransformer2DModel) -> None:
    inputs = dict(describe(model).example_inputs(model))
    with pytest.raises(SolverError, match="every axis at its smallest") as refused:
        prune_to_budget(model, inputs, 0.01, "magnitude", depth=True)
    cost = CostModel.of(model, inputs)
    assert refused.value.reachable == (None, cost.macs(dict.fromkeys(cost.names, 0)))


def test_experts_run_in_the_stock_pipeline_and_come_back(model: DiTTransformer2DModel, tmp_path: Path) -> None:
    schedule = NoiseSchedule.named("linear", 1000)
    plan = Plan.from_snr(schedule, num_groups=2, min_cost=0.5)
    inputs, experts = dict(describe(model).example_inputs(model)), []
    for group in plan.groups:
        budget, timesteps = min(group.cost_limit, 0.9), (group.t_start, group.t_stop)
        small, _ = prune_to_budget(
            model, inputs, budget, "taylor", objective=objective(), images=latents(), timesteps=timesteps,
            timestep_stride=200, depth=True,
        )  # fmt: skip
        before = predict(small)
        settings = TrainSettings(num_images=32, batch_size=8, learning_rate=1e-3)
        result = train(small, objective(), latents(), settings, seed=0, timesteps=timesteps)
        experts.append(result.model.eval())
        assert not torch.equal(predict(experts[-1]), before)

    router = ExpertDenoiser(experts, plan)
    rows = random_inputs(model, batch_size=2)  # timesteps 3 and 700 lie in different groups
    answer = router(**rows).sample
    for i in range(2):
        one = {name: value[i : i + 1] for name, value in rows.items()}
        expert = experts[plan.group_of(int(one["timestep"]))]
        torch.testing.assert_close(answer[i : i + 1], expert(**one).sample)

    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, layers_per_block=1)
    pipe = DiTPipeline(router, vae, DDIMScheduler())
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is DiTPipeline
    assert type(again.transformer) is ExpertDenoiser
    assert np.array_equal(images(again), images(pipe))
    assert images(pipe).shape == (2, 8, 8, 3)


def images(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    found: np.ndarray = pipe([3, 7], num_inference_steps=3, generator=generator, output_type="np").images
    return found


def test_training_is_the_same_twice_and_checkpointed(model: DiTTransformer2DModel) -> None:
    """diffusers' own label dropout would draw from the global generator."""
    results = []
    for checkpointing in (False, False, True):
        small, _ = prune_to_budget(model, dict(describe(model).example_inputs(model)), 0.5, "magnitude", depth=True)
        if checkpointing:
            small.enable_gradient_checkpointing()
        torch.manual_seed(len(results))
        result = train(small, objective(), latents(), TrainSettings(num_images=16, batch_size=8), seed=0)
        results.append(predict(result.model.eval()))
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_a_feed_forward_of_another_kind_is_refused() -> None:
    other = dit(activation_fn="geglu-approximate")
    with pytest.raises(SettingError, match=r"model\.transformer_blocks\.0\.ff: a FeedForward of this kind"):
        describe(other).wiring(other)


def test_the_published_configuration_counts_as_published() -> None:
    """DiT-XL/2 at 256 x 256 (arXiv:2212.09748, Table 1 and 4): 675M parameters, 118.64 Gflops (MACs), 28 blocks."""
    with torch.device("meta"):
        large = DiTTransformer2DModel(out_channels=8, num_embeds_ada_norm=1000)
    inputs = describe(large).example_inputs(large)
    cost = CostModel.of(large, inputs)
    embedding = count_parameters(large.transformer_blocks[0].norm1.emb)  # diffusers gives every block one of its own
    positions = large.pos_embed.pos_embed.numel()  # and does not count what it computes
    assert count_parameters(large) == 749_826_464
    assert count_parameters(large) - 27 * embedding + positions == 675_129_632
    assert cost.macs({}) == 118_666_838_016
    assert abs(cost.macs({}) - 27 * 1_622_016 - 118.64e9) < 0.02e9  # 27 embeddings fewer
    assert CostModel.of(large, inputs, attention=False).macs({}) == 114_438_979_584
    kinds = [axis.kind for axis in cost.wiring.axes.values()]
    assert (kinds.count("attention"), kinds.count("inner"), kinds.count("fixed")) == (28, 28, 1)
    assert {(axis.width, axis.unit) for axis in cost.wiring.axes.values() if axis.kind == "attention"} == {(1152, 72)}
    assert {axis.width for axis in cost.wiring.axes.values() if axis.kind == "inner"} == {4608}

    space = open_space(cost.wiring, cost, 0.5, depth=True)
    scores = {name: torch.linspace(1, i + 2, cost.wiring.axes[name].width) for i, name in enumerate(cost.names)}
    solution = space.solve(scores)
    assert 0.98 * 0.5 <= cost.macs(solution.widths) / cost.macs({}) <= 0.5
    assert solution.macs == cost.macs(solution.widths)
    assert 0 in solution.widths.values()


def test_a_compiled_network_is_sampled_as_it_is() -> None:
    model, labels = dit().eval(), torch.tensor([0, 1])  # a DiT wants a timestep per sample
    images = [
        sample_images(each, DDIMScheduler(), 2, num_inference_steps=2, class_labels=labels)
        for each in (model, torch.compile(model, backend="eager"))
    ]
    assert torch.equal(*images)
