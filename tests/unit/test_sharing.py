"""Model cards, and uploads to a stand-in for the Hub: what arrives there loads again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel
from hub_server import hub
from huggingface_hub import ModelCard

from noisewise import ExpertDenoiser, NoiseSchedule, Plan
from noisewise.models.card import with_results


def network(seed: int) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def router() -> ExpertDenoiser:
    plan = Plan.from_bounds(NoiseSchedule.named("linear"), [400])
    return ExpertDenoiser([network(0), network(1)], plan).eval()


def test_a_saved_model_says_what_it_is_and_how_to_load_it(tmp_path: Path) -> None:
    DDIMPipeline(router(), DDIMScheduler()).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "unet" / "README.md")
    assert card.data.library_name == "diffusers"
    assert "noisewise" in card.data.tags
    assert "| 1 | 400 | 1000 | UNet2DModel |" in card.text
    assert "Nothing was measured" in card.text
    code = card.text.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(tmp_path))
    scope: dict[str, object] = {}
    exec(code.replace(str(tmp_path), str(tmp_path / "unet")), scope)
    assert isinstance(scope["model"], ExpertDenoiser)


def test_measured_results_travel_with_the_model(tmp_path: Path) -> None:
    router().save_pretrained(tmp_path / "one")
    readme = tmp_path / "one" / "README.md"
    for table in ("| first |", "| second |"):
        readme.write_text(with_results(readme.read_text(), table))
    text = readme.read_text()
    assert "| second |" in text
    assert "| first |" not in text
    assert "Nothing was measured" not in text
    assert "## Limits" in text
    again = ExpertDenoiser.from_pretrained(tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / "README.md").read_text() == text
    assert with_results("a card of somebody else's", "| table |") == "a card of somebody else's"


PUSH = """
import sys
from noisewise import ExpertDenoiser
from diffusers import DiffusionPipeline
folder = sys.argv[1]
model = ExpertDenoiser.from_pretrained(folder + "/unet")
print(model.push_to_hub("me/experts", commit_message="New experts", private=True))
model.save_pretrained(folder + "/again", push_to_hub=True, repo_id="us/again")
model.push_to_hub("us/parts", subfolder="unet")
DiffusionPipeline.from_pretrained(folder).push_to_hub("me/pipeline")
"""


def test_push_to_hub_works_as_for_any_diffusers_model(tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "hub"
    DDIMPipeline(router(), DDIMScheduler()).save_pretrained(source)
    with hub(root) as server:
        settings = {
            "HF_ENDPOINT": server.endpoint, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        words = [sys.executable, "-c", PUSH, str(source)]
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **settings}, timeout=900)
        assert done.returncode == 0, done.stderr
        assert server.unknown == []
        assert server.tokens == {"Bearer hf_test"}
        assert server.messages[0] == "New experts"
        assert f"{server.endpoint}/me/experts" in done.stdout

    own = router()
    for folder in ("me/experts", "us/again", "us/parts/unet", "me/pipeline/unet"):
        model = ExpertDenoiser.from_pretrained(root / folder)
        for ours, theirs in zip(model.parameters(), own.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        assert "# ExpertDenoiser" in (root / folder / "README.md").read_text()
    assert isinstance(DiffusionPipeline.from_pretrained(root / "me" / "pipeline"), DDIMPipeline)
    files = [path.suffix for path in root.rglob("*") if path.is_file()]
    assert set(files) <= {".json", ".safetensors", ".md"}
