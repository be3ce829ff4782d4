"""A small network to search widths for through a language model, and what every such search has to keep."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from llm_server import Server

from noisewise import NoiseSchedule
from noisewise.models.networks import describe
from noisewise.objectives import Objective
from noisewise.pruning.llm.settings import LlmSettings
from noisewise.pruning.llm.transcript import TRANSCRIPT, Exchange, read
from noisewise.pruning.search import SearchResult, search


@cache
def small_search() -> dict[str, Any]:
    """Arguments of `search`, the settings aside."""
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16,),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    return {
        "model": model,
        "example_inputs": describe(model).example_inputs(model),
        "budget": 0.6,
        "objective": Objective(NoiseSchedule.named("linear", 100)),
        "images": torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1,
        "timesteps": (20, 60),
        "timestep_stride": 20,
        "importance": "magnitude",
        "group": 1,
    }


def settings(server: Server, **more: Any) -> LlmSettings:
    small = {"rounds": 2, "candidates": 2, "num_score_images": 8, "attempts": 2, "max_retries": 1, "max_requests": 12}
    quick = {"retry_seconds": 0.01, "timeout_seconds": 20.0, "alignment": 1}
    return LlmSettings(base_url=server.base_url, model="the-model", **{**small, **quick, **more})


def run(setup: dict[str, Any], settings: LlmSettings, folder: Path) -> tuple[SearchResult, list[Exchange], list[str]]:
    """A whole search, its exchanges, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = search(**setup, settings=settings, workspace=folder)
    (section,) = read(folder / TRANSCRIPT)
    assert section.is_whole
    assert len(section.exchanges) <= settings.max_requests
    records = result.bank.records
    assert len(records) == settings.rounds * settings.candidates
    assert all(0.98 * 0.6 <= record.cost <= 0.6 for record in records if record.cost is not None)
    assert len({json.dumps(dict(r.widths)) for r in records}) == len(records)
    assert 0.98 * 0.6 <= result.info.achieved <= 0.6
    return result, list(section.exchanges), [str(warning.message) for warning in caught]
