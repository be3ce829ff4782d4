"""Folders of autoencoders without weights, for plans."""

from __future__ import annotations

import json
from pathlib import Path


def vq_f4(folder: Path) -> Path:
    """The configuration of LDM's VQ autoencoder of factor 4 (8,192 codes of 3 numbers), as diffusers writes it."""
    config = {
        "_class_name": "VQModel",
        "block_out_channels": [128, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 2,
        "latent_channels": 3,
        "num_vq_embeddings": 8192,
        "vq_embed_dim": 3,
        "norm_num_groups": 32,
        "sample_size": 256,
        "scaling_factor": 0.18215,
    }
    path = folder / "vq-f4"
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path
