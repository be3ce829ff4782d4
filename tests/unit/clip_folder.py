"""A tiny CLIP model with random weights and a real tokenizer, as a folder that transformers wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from stock_pipelines import tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MAX_TOKENS = 12


def clip_model() -> CLIPModel:
    torch.manual_seed(0)
    words = {"vocab_size": 18, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**SMALL, **words, "max_position_embeddings": MAX_TOKENS}
    vision = {**SMALL, "image_size": 16, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()


def processor() -> CLIPProcessor:
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer())


def save_clip(folder: Path) -> Path:
    clip_model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
