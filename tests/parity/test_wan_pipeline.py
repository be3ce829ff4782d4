"""A pair of experts in diffusers' own WanPipeline: exported, loaded and run; and wherever a model's folder is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    DDIMScheduler,
    DiTTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
)
from stock_pipelines import wan_transformer
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from noisewise import ExpertDenoiser, NoiseSchedule, Plan
from noisewise.cli import main
from noisewise.errors import SettingError
from noisewise.files import write_json
from noisewise.models.loading import load_denoiser
from noisewise.models.pairs import save_pair
from noisewise.workflow.single import images_of

WORDS = ["<pad>", "</s>", "<unk>", "▁a", "▁cat"]
TEXT_LENGTH = 4


def pipeline(**components: Any) -> WanPipeline:
    """A whole pipeline with one transformer."""
    torch.manual_seed(3)
    text = UMT5Config(
        vocab_size=len(WORDS), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )  # fmt: skip
    coder = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return WanPipeline(
        tokenizer=T5TokenizerFast(vocab=[(word, -float(i)) for i, word in enumerate(WORDS)], extra_ids=0),
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=coder.eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=wan_transformer(0),
        **components,
    )


@torch.no_grad()
def text(pipe: WanPipeline, prompt: str) -> torch.Tensor:
    """[1, 4, 8]: as the pipeline computes it, but for ftfy, which it needs to clean a prompt."""
    tokens = pipe.tokenizer(prompt, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    hidden: torch.Tensor = pipe.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return hidden * tokens.attention_mask[:, :, None]


def video(pipe: WanPipeline) -> torch.Tensor:
    """[1, 1, 3, 16, 16] after two steps, guided."""
    pipe.set_progress_bar_config(disable=True)
    frames: torch.Tensor = pipe(
        prompt_embeds=text(pipe, "a cat"), negative_prompt_embeds=text(pipe, ""), height=16, width=16, num_frames=1,
        num_inference_steps=2, guidance_scale=3.0, output_type="pt", generator=torch.Generator().manual_seed(4),
    ).frames  # fmt: skip
    return frames


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder with two experts that change between its two steps."""
    folder = tmp_path_factory.mktemp("wan")
    pipe = pipeline()
    pipe.save_pretrained(folder / "one")
    pipe.scheduler.set_timesteps(2)
    schedule = NoiseSchedule.from_scheduler(pipe.scheduler)
    late = schedule.to_coordinate(float(pipe.scheduler.timesteps[0]) - 1)
    experts = ExpertDenoiser([wan_transformer(2), wan_transformer(1)], Plan.from_bounds(schedule, [late]))
    save_pair(experts, folder / "one", folder / "two")
    return folder / "two"


def test_diffusers_pipeline_runs_each_expert_where_the_plan_says(exported: Path) -> None:
    pipe = WanPipeline.from_pretrained(exported)
    called: list[str] = []
    for name in ("transformer", "transformer_2"):
        getattr(pipe, name).register_forward_hook(lambda *_, name=name: called.append(name))
    frames = video(pipe)
    assert called == ["transformer"] * 2 + ["transformer_2"] * 2  # each step with and without the prompt
    assert frames.shape == (1, 1, 3, 16, 16)
    assert frames.isfinite().all()
    assert frames.std() > 0

    by_hand = pipeline(transformer_2=wan_transformer(2), boundary_ratio=pipe.config.boundary_ratio)
    by_hand.register_modules(transformer=wan_transformer(1))
    assert torch.equal(video(by_hand), frames)


def test_the_pipeline_takes_the_router_in_place_of_its_transformer(exported: Path) -> None:
    expected = video(WanPipeline.from_pretrained(exported))
    model, scheduler = load_denoiser(exported)
    assert isinstance(model, ExpertDenoiser)
    assert not model.training
    pipe = pipeline()
    pipe.register_modules(transformer=model, scheduler=scheduler)
    torch.testing.assert_close(video(pipe), expected, rtol=0, atol=1e-6)
    half, _ = load_denoiser(exported, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for name, parameter in half.named_parameters() if "proj_out" in name} == {torch.bfloat16}


def test_commands_say_what_they_do_not_do_with_videos(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["sample", str(exported), "--out", str(tmp_path / "out")], "makes videos, which its pipeline samples"),
        (["prune", str(exported), "--budget", "0.7", "--out", str(tmp_path / "out")], "consists of experts"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error, error
        assert error.count("\n") == 1


def test_a_pair_of_image_networks_is_sampled_as_any_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    experts = [
        DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=1, num_layers=1, sample_size=8, patch_size=2,
            norm_num_groups=1, num_embeds_ada_norm=3,
        ).eval()
        for _ in range(2)
    ]  # fmt: skip
    for name, expert in zip(("transformer_2", "transformer"), experts, strict=True):
        expert.save_pretrained(tmp_path / "pair" / name)
    DDIMScheduler().save_pretrained(tmp_path / "pair" / "scheduler")
    index = {
        "_class_name": "WanPipeline", "scheduler": ["diffusers", "DDIMScheduler"], "boundary_ratio": 0.5,
        "transformer": ["diffusers", "DiTTransformer2DModel"], "transformer_2": ["diffusers", "DiTTransformer2DModel"],
    }  # fmt: skip
    write_json(tmp_path / "pair" / "model_index.json", index)
    drawn = images_of(tmp_path / "pair", 3, None, 2, 0, 3, 0.0)
    assert drawn.shape == (3, 1, 8, 8)
    router = ExpertDenoiser(experts, Plan.from_bounds(NoiseSchedule.from_scheduler(DDIMScheduler()), [500]))
    router.save_pretrained(tmp_path / "router" / "transformer")
    DDIMScheduler().save_pretrained(tmp_path / "router" / "scheduler")
    index |= {
        "_class_name": "DiTPipeline",
        "transformer": ["noisewise", "ExpertDenoiser"],
        "transformer_2": [None, None],
    }
    write_json(tmp_path / "router" / "model_index.json", index)
    assert (images_of(tmp_path / "router", 3, None, 2, 0, 3, 0.0) == drawn).all()

    index |= {"transformer_2": ["diffusers", "DiTTransformer2DModel"], "boundary_ratio": None}
    write_json(tmp_path / "pair" / "model_index.json", index)
    with pytest.raises(SettingError, match="has no boundary_ratio"):
        load_denoiser(tmp_path / "pair")
