"""Tiny pipelines that are told text, of the real classes with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH, POOLED = 8, 6
LENGTH = 12  # tokens
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tokenizer(length: int = LENGTH) -> CLIPTokenizer:
    """A token per letter, one more where it ends a word."""
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in LETTERS:
        vocab |= {letter: len(vocab), f"{letter}</w>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def text_encoder(kind: Any = CLIPTextModel, seed: int = 2, width: int = WIDTH) -> Any:
    torch.manual_seed(seed)
    return kind(
        CLIPTextConfig(
            vocab_size=2 + 2 * len(LETTERS),
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            projection_dim=POOLED,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()


def autoencoder(channels: int = 3) -> AutoencoderKL:
    """Halves images."""
    torch.manual_seed(1)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
        scaling_factor=0.9,
    ).eval()


def denoiser(**changed: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(**{**settings, **changed}).eval()


def scheduler(**changed: Any) -> DDIMScheduler:
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return DDIMScheduler(**{**settings, "clip_sample": False, "set_alpha_to_one": False, **changed})


def stable_diffusion(**changed: Any) -> StableDiffusionPipeline:
    parts = {
        "vae": autoencoder(),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "unet": denoiser(),
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return StableDiffusionPipeline(**{**parts, **changed})


def stable_diffusion_xl(**changed: Any) -> StableDiffusionXLPipeline:
    size = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    unet = denoiser(cross_attention_dim=2 * WIDTH, projection_class_embeddings_input_dim=POOLED + 24, **size)
    parts = {
        "vae": autoencoder(),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "text_encoder_2": text_encoder(CLIPTextModelWithProjection, seed=3),
        "tokenizer_2": tokenizer(),
        "unet": unet,
        "scheduler": scheduler(),
        "add_watermarker": False,
    }
    return StableDiffusionXLPipeline(**{**parts, **changed})


def saved(pipe: Any, folder: Path) -> Path:
    pipe.save_pretrained(folder)
    return folder
