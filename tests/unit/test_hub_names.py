"""Models by their names on the Hub: a pipeline of latents brings its autoencoder wherever its name is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from hub_server import hub

from noisewise.models.autoencoder import Autoencoder, save_latent_pipeline

USE = """
import contextlib, io, json, sys
from pathlib import Path
import numpy as np
from noisewise.cli import main
from noisewise.errors import SettingError
from noisewise.models.sources import find_source
from noisewise.workflow.builder import build_graph
from noisewise.workflow.recipe import check_recipe
from noisewise.workflow.single import images_of
from noisewise.workflow.stitching.pair import open_pair

recipe, found = json.loads(sys.argv[1]), {}

def told(**changes):
    graph = build_graph(check_recipe({**recipe, **changes}))
    return {
        "action": graph.step("autoencoder").action, "encode": graph.step("encode").id, "notes": graph.base.notes,
        "shape": list(graph.base.seen.shape), "network": dict(graph.base.network), "base": graph.step("base").id,
    }

found["named"] = told()
found["folder"] = told(model={"from": str(find_source("me/latent"))})
found["coder"] = told(autoencoder={"from": "me/coder"})
images = [images_of(Path(name), 2, None, 2, 0, 2, 0.0) for name in ("me/latent", str(find_source("me/latent")))]
found["same images"], found["images"] = bool(np.array_equal(*images)), list(images[0].shape)
with contextlib.redirect_stdout(io.StringIO()) as said:
    found["planned"] = main(["plan", "me/latent", "--num-inference-steps", "4"]), said.getvalue()
found["stitched"] = str(open_pair(Path("me/latent"), Path("me/latent")).whole)
for name, changes in (("model", {"model": {"from": "me/none"}}), ("coder", {"autoencoder": {"from": "me/none"}})):
    try:
        told(**changes)
    except SettingError as error:
        found["no " + name] = str(error)
print(json.dumps(found))
"""
RECIPE: dict[str, Any] = {
    "name": "named", "data": {"kind": "sklearn-digits", "num_train": 32, "num_test": 16},
    "model": {"from": "me/latent"}, "base": {"num_images": 0}, "plan": {"num_groups": 2},
    "prune": {"proposer": {"kind": "importance"}},
    "finetune": {"num_images": 32}, "sample": {"num_images": 8, "num_inference_steps": 4}, "compare": ["base"],
}  # fmt: skip


def publish(root: Path) -> None:
    """A pipeline of latents and, beside it, its autoencoder alone."""
    torch.manual_seed(0)
    coder: Any = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 16), latent_channels=2, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5,
    )  # fmt: skip
    network = UNet2DModel(
        sample_size=4, in_channels=2, out_channels=2, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, layers_per_block=1,
    )  # fmt: skip
    save_latent_pipeline(network, DDIMScheduler(clip_sample=False), Autoencoder(coder), root / "me" / "latent")
    (root / "me" / "latent" / "README.md").write_text("not fetched")
    coder.save_pretrained(root / "me" / "coder")


def test_a_pipeline_of_latents_by_its_name_brings_its_autoencoder(tmp_path: Path) -> None:
    publish(tmp_path / "hub")
    with hub(tmp_path / "hub") as server:
        settings = {
            "HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        words = [sys.executable, "-c", USE, json.dumps(RECIPE)]
        done = subprocess.run(
            words, capture_output=True, text=True, env={**os.environ, **settings}, timeout=900, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert server.unknown == []
    found = json.loads(done.stdout)
    assert found["named"]["action"] == "take_autoencoder"
    assert found["named"]["shape"] == [2, 4, 4]
    assert {name: value for name, value in found["named"].items() if name != "encode"} == {
        name: value for name, value in found["folder"].items() if name != "encode"
    }
    assert found["coder"]["network"] == found["named"]["network"]
    assert found["coder"]["shape"] == [2, 4, 4]
    assert found["same images"]
    assert found["images"] == [2, 1, 8, 8]
    assert found["planned"][0] == 0
    assert "4 calls" in found["planned"][1]
    fetched = Path(found["stitched"])
    assert tmp_path / "home" in fetched.parents
    assert (fetched / "vqvae" / "config.json").is_file()
    assert not (fetched / "README.md").exists()
    assert found["no model"].startswith("model: me/none does not exist as a folder, and the Hub gives no model")
    assert found["no coder"].startswith("autoencoder.from: me/none does not exist as a folder")
    assert all("hf download me/none" in found[name] and "\n" not in found[name] for name in ("no model", "no coder"))
