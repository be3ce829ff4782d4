"""A recipe on an existing transformer: a DiT pipeline's folder in, the same pipeline with experts out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, DiTPipeline, DiTTransformer2DModel

from noisewise import ExpertDenoiser
from noisewise.models.cost import count_macs
from noisewise.workflow.recipe import check_recipe
from noisewise.workflow.run import open_graph, run_recipe


def dit_pipeline(folder: Path) -> Path:
    """A tiny pipeline for 8x8 grey images of ten classes, with random weights."""
    torch.manual_seed(0)
    coder = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2, sample_size=4,
        num_embeds_ada_norm=10, patch_size=2,
    )  # fmt: skip
    DiTPipeline(transformer=network, vae=coder, scheduler=DDIMScheduler()).save_pretrained(folder)
    return folder


def test_a_dit_folder_becomes_the_same_pipeline_with_experts(tmp_path: Path) -> None:
    recipe = check_recipe(
        {
            "name": "dit",
            "data": {"kind": "sklearn-digits", "num_train": 64, "num_test": 30, "conditional": True},
            "conditioning": {"dropout": 0.1},
            "model": {"from": str(dit_pipeline(tmp_path / "dit"))},
            "base": {"num_images": 0},
            "plan": {"num_groups": 2, "min_cost": 0.6},
            "prune": {"importance": "magnitude", "proposer": {"kind": "importance", "rounds": 1, "candidates": 1}},
            "finetune": {"num_images": 64, "batch_size": 32, "num_threads": 1},
            "sample": {"num_images": 10, "num_inference_steps": 3, "guidance_scale": 2.0},
            "evaluate": {"num_loss_images": 8, "num_timing_images": 2},
            "compare": ["base"],
        }
    )
    graph, store = open_graph(recipe, tmp_path / "runs")
    folder = run_recipe(graph, store, tmp_path / "runs", lambda event: None).folder
    rows = {row["id"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}
    assert rows["tdc"]["macs_per_image"] < rows["base"]["macs_per_image"]

    pipe = DiffusionPipeline.from_pretrained(folder / "pipeline")
    assert isinstance(pipe, DiTPipeline)
    assert isinstance(pipe.transformer, ExpertDenoiser)
    inputs = {
        "hidden_states": torch.zeros(1, 4, 4, 4),
        "timestep": torch.tensor([1]),
        "class_labels": torch.tensor([3]),
    }
    costs = [count_macs(expert, inputs) for expert in pipe.transformer.experts]
    for cost, group in zip(costs, graph.plan.groups, strict=True):
        assert 0.98 * group.cost_limit <= cost / max(costs) <= 1.0
    images = pipe(class_labels=[3, 7], guidance_scale=1.0, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 8, 1)
    assert np.isfinite(images).all()
