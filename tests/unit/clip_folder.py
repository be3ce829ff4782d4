"""A tiny CLIP model with random weights and a real tokenizer, as transformers writes it; images with captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from text_zoo import LENGTH, LETTERS, tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def clip_model() -> CLIPModel:
    torch.manual_seed(0)
    words = {"vocab_size": 2 + 2 * len(LETTERS), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**SMALL, **words, "max_position_embeddings": LENGTH}
    vision = {**SMALL, "image_size": 16, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()


def processor() -> CLIPProcessor:
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer())


def save_clip(folder: Path) -> Path:
    clip_model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def save_photos(folder: Path, num: int = 24) -> Path:
    """Noisy images of one colour, each with the colour's name for its caption."""
    folder.mkdir()
    noise, rows = np.random.default_rng(0), ["file_name,text"]
    for i in range(num):
        pixels = noise.integers(0, 60, (16, 16, 3), dtype=np.uint8)
        pixels[..., i % 3] += 180
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{('red', 'green', 'blue')[i % 3]}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder
