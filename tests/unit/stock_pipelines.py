"""diffusers' own pipelines around a tiny denoiser, and the arguments of a call."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TEXT_COMPONENTS = {
    StableDiffusionXLPipeline: ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    StableDiffusion3Pipeline: (
        "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"
    ),
}  # fmt: skip


def autoencoder() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(4,),
        latent_channels=4,
        shift_factor=0.0,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        sample_size=8,
    ).eval()


def tokenizer() -> CLIPTokenizer:
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in "abcdefgh":
        vocab |= {letter: len(vocab), f"{letter}</w>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def text_encoder() -> CLIPTextModel:
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=18,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config).eval()


def ddim(unet: Any) -> tuple[Any, dict[str, Any]]:
    return DDIMPipeline(unet=unet, scheduler=DDIMScheduler()), {}


def with_labels(unet: Any) -> tuple[Any, dict[str, Any]]:
    return ConsistencyModelPipeline(unet=unet, scheduler=DDIMScheduler()), {"class_labels": 2}


def dit(transformer: Any) -> tuple[Any, dict[str, Any]]:
    pipe = DiTPipeline(transformer=transformer, vae=autoencoder(), scheduler=DDIMScheduler(clip_sample=False))
    return pipe, {"class_labels": [2], "guidance_scale": 1.0}


def stable_diffusion(unet: Any) -> tuple[Any, dict[str, Any]]:
    pipe = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"prompt": "a bad cab", "guidance_scale": 3.0}


def stable_diffusion_xl(unet: Any) -> tuple[Any, dict[str, Any]]:
    pipe = StableDiffusionXLPipeline(
        vae=autoencoder(),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False),
        **dict.fromkeys(TEXT_COMPONENTS[StableDiffusionXLPipeline]),
    )
    return pipe, _prompt(8, 8)


def stable_diffusion_3(transformer: Any) -> tuple[Any, dict[str, Any]]:
    pipe = StableDiffusion3Pipeline(
        vae=autoencoder(),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(TEXT_COMPONENTS[StableDiffusion3Pipeline]),
    )
    return pipe, _prompt(8, 6)


def _prompt(width: int, pooled: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        "prompt_embeds": torch.randn(1, 5, width, generator=generator),
        "negative_prompt_embeds": torch.zeros(1, 5, width),
        "pooled_prompt_embeds": torch.randn(1, pooled, generator=generator),
        "negative_pooled_prompt_embeds": torch.zeros(1, pooled),
        "guidance_scale": 3.0,
    }


def images(pipe: Any, call: dict[str, Any]) -> Any:
    """[1, 8, 8, 3] in [0, 1]."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(4)
    return pipe(num_inference_steps=3, output_type="np", generator=generator, **call).images


def reload_options(pipe: Any) -> dict[str, None]:
    """Components that were left out have to be left out by name when the folder is loaded."""
    return dict.fromkeys(TEXT_COMPONENTS.get(type(pipe), ()))


def wan_transformer(seed: int) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=1, cross_attn_norm=True, rope_max_seq_len=32,
    ).eval()  # fmt: skip
