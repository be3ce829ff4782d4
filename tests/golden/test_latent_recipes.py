"""The latent recipes: the papers' networks on the latents of a VQ autoencoder of factor 4."""

from __future__ import annotations

from pathlib import Path

import pytest
from latent_folders import vq_f4

from noisewise.workflow.builder import build_graph
from noisewise.workflow.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def test_latent_ffhq_is_the_papers_network_on_64x64_latents(tmp_path: Path) -> None:
    given = [f"autoencoder.from={vq_f4(tmp_path)}"]
    graph = build_graph(load_recipe(RECIPES / "latent-ffhq.yaml", given), data_required=False)
    assert graph.base.seen.shape == (3, 64, 64)
    assert graph.data.shape == (3, 256, 256)
    assert graph.base.parameters == 274_056_163
    assert graph.base.macs / 1e9 == pytest.approx(101.2, rel=1e-3)
    assert graph.base.calls == 200
    base = graph.step("base")
    assert base.num_images / base.settings["train"].batch_size == 250_000
    tuned = [step for step in graph.steps if step.name.startswith("finetune")]
    assert all(step.num_images / step.settings["train"].batch_size == 30_000 for step in tuned)
    assert graph.step("autoencoder").settings["scaling_factor"] == 1.0


def test_multi_stage_latent_learns_latents(tmp_path: Path) -> None:
    given = [f"autoencoder.from={vq_f4(tmp_path)}"]
    graph = build_graph(load_recipe(RECIPES / "paper" / "multistage-latent.yaml", given), data_required=False)
    assert graph.base.seen.shape == (3, 64, 64)
    assert "latents" in graph.step("joint").inputs
    assert graph.base.latents is not None
    assert graph.base.latents.decode_macs > graph.base.latents.encode_macs > graph.base.macs
