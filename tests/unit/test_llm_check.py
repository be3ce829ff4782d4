"""Before any training: a server that cannot be asked is said in one line; and the key is never repeated anywhere."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from llm_server import Request, serving
from pydantic import TypeAdapter, ValidationError

from noisewise.cli import main
from noisewise.errors import SettingError
from noisewise.models.loading import save_pipeline
from noisewise.pruning.llm import client
from noisewise.pruning.llm import proposer as proposer_module
from noisewise.pruning.llm.check import check_ready
from noisewise.pruning.llm.settings import LlmSettings
from noisewise.pruning.llm.transcript import TRANSCRIPT
from noisewise.pruning.proposers import ProposerSettings
from noisewise.workflow.run import check_proposers
from noisewise.workflow.settings import PruneSettings
from noisewise.workflow.store import StepSpec, Store

KEY = "sk-do-not-tell-anyone-0123456789"
VARIABLE = "NOISEWISE_TEST_KEY"
RECIPE = """\
name: tiny
data: {{kind: sklearn-digits, num_train: 64, num_test: 32}}
model: {{kind: unet2d, block_out_channels: [8, 16], norm_num_groups: 4, attention_head_dim: 8}}
base: {{num_images: 64, batch_size: 32, num_threads: 1}}
plan: {{num_groups: 2}}
prune: {{importance: magnitude, timestep_stride: 200, num_threads: 1, proposer: {{
  kind: llm, base_url: "{base_url}", model: the-model, api_key_env: NOISEWISE_TEST_KEY, rounds: 2, candidates: 1,
  num_score_images: 16, attempts: 2, max_retries: 1, retry_seconds: 0.01}}}}
finetune: {{num_images: 32, batch_size: 32, num_threads: 1}}
sample: {{num_images: 8, num_inference_steps: 3, num_threads: 1}}
evaluate: {{num_loss_images: 8, num_timing_images: 1}}
compare: []
"""


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposer_module, "_known_dialects", {})


def refusal(base_url: str, **more: Any) -> str:
    with pytest.raises(SettingError) as error:
        check_ready(LlmSettings(base_url=base_url, model="gamma", retry_seconds=0.01, max_retries=1, **more))
    assert "\n" not in str(error.value)
    return str(error.value)


def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def test_a_base_url_that_answers_nothing() -> None:
    address = unused_address()
    assert f"prune.proposer.base_url: {address} does not answer (no connection: " in refusal(address)


def test_a_server_that_keeps_silent_is_asked_once() -> None:
    with serving(lambda request: request.release.wait(20)) as server:  # type: ignore[arg-type, return-value]
        assert "does not answer (no whole answer within 0.3 s)" in refusal(server.base_url, timeout_seconds=0.3)
        assert len(server.requests) == 1


def test_an_unknown_model_is_told_with_those_there_are() -> None:
    with serving(lambda request: request.error(404, "The model `gamma` does not exist")) as server:
        said = refusal(server.base_url)
    assert "prune.proposer.model: the server does not know 'gamma'" in said
    assert said.endswith("it has alpha, beta")


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (lambda r: r.error(401, "who are you"), "wants a key (HTTP 401); name the variable that holds it"),
        (lambda r: r.raw(b"<html>"), "is no OpenAI-compatible server"),
        (lambda r: r.error(404, "no route"), "is no OpenAI-compatible server (HTTP 404: no route)"),
        (lambda r: r.error(503, "loading model"), "does not serve 'gamma' now (HTTP 503: loading model)"),
    ],
)
def test_other_reasons(behaviour: Callable[[Request], None], said: str) -> None:
    with serving(behaviour) as server:
        assert said in refusal(server.base_url)


def test_a_server_that_is_ready_is_asked_one_short_question() -> None:
    def picky(request: Request) -> None:
        if "max_tokens" in request.body:
            request.error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        else:
            request.say("ready")

    with serving(picky) as server:
        check_ready(LlmSettings(base_url=server.base_url, model="gamma"))
        assert [request.body.get("max_completion_tokens") for request in server.requests] == [None, 16]


def test_a_missing_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with serving(lambda request: request.say("ready")) as server:
        assert f"the environment variable {VARIABLE} is not set" in refusal(server.base_url, api_key_env=VARIABLE)
        with pytest.raises(SettingError, match="is not set"):
            proposer_module.LlmProposer(LlmSettings(base_url=server.base_url, model="m", api_key_env=VARIABLE))
        assert not server.requests


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert "pip install 'noisewise[llm]'" in refusal("http://127.0.0.1:9/v1")


def test_a_key_goes_to_its_server_and_no_other_key_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-another-server")
    with serving(lambda request: request.say("ready")) as server:
        check_ready(LlmSettings(base_url=server.base_url, model="m", api_key_env=VARIABLE))
        check_ready(LlmSettings(base_url=server.base_url, model="m"))
        assert f"Bearer {KEY}" in server.headers[0]
        assert "sk-for-another-server" not in "".join(server.headers)


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key_env": KEY},
        {"api_key_env": "gsk_aBcDeF0123456789"},
        {"base_url": "http://user:hunter2-secret@host/v1"},
        {"base_url": "https://host/v1?key=hunter2-secret"},
        {"base_url": "hunter2-secret"},
        {"api_key": KEY},
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_repeated(
    settings: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(base_url="http://127.0.0.1:9/v1"))
    words = [word for name, value in settings.items() for word in ("--set", f"prune.proposer.{name}={value}")]
    assert main(["run", str(recipe), "--runs", str(tmp_path / "runs"), *words]) == 2
    said = "".join(capsys.readouterr())
    assert f"prune.proposer.{next(iter(settings))}: " in said
    assert not any(secret in said for secret in (KEY, "hunter2-secret", "gsk_aBc"))
    assert not (tmp_path / "runs").exists()


def test_settings_refuse_what_they_cannot_use() -> None:
    adapter = TypeAdapter[object](ProposerSettings)
    right = {"kind": "llm", "base_url": "http://127.0.0.1:8080/v1", "model": "m"}
    assert isinstance(adapter.validate_python(right), LlmSettings)
    assert (LlmSettings(replay="x").rounds, LlmSettings(replay="x").candidates) == (5, 3)  # type: ignore[arg-type]
    wrong = ({"base_url": None}, {"model": None}, {"max_cost": 1.0}, {"temperature": 3}, {"base_url": "ftp://x"})
    for change in wrong:
        with pytest.raises(ValidationError):
            adapter.validate_python({**right, **change})


def test_a_run_is_refused_before_its_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    recipe, runs = tmp_path / "r.yaml", tmp_path / "runs"
    recipe.write_text(RECIPE.format(base_url=unused_address()))
    assert main(["run", str(recipe), "--runs", str(runs)]) == 2
    assert "does not answer" in capsys.readouterr().err
    assert not list(runs.rglob("artefact.json"))
    assert not list(runs.rglob("checkpoint"))


def test_a_search_that_has_begun_may_end_without_its_server(tmp_path: Path) -> None:
    proposer = LlmSettings(base_url=unused_address(), model="m", max_retries=0)
    step = StepSpec("prune[0]", "prune", {"prune": PruneSettings(proposer=proposer)})
    store = Store(tmp_path)
    with pytest.raises(SettingError, match="does not answer"):
        check_proposers([step], store)
    store.folder(step).mkdir()
    (store.folder(step) / TRANSCRIPT).touch()
    with pytest.warns(UserWarning, match="does not answer .* comes from the default proposer"):
        check_proposers([step], store)


def test_moving_a_server_redoes_nothing() -> None:
    def step(**more: Any) -> str:
        settings = LlmSettings(**{"base_url": "http://a/v1", "model": "m", **more})
        return StepSpec("prune[0]", "prune", {"prune": PruneSettings(proposer=settings)}).id

    assert step() == step(base_url="http://b/v1", api_key_env="KEY", timeout_seconds=9, retry_seconds=9)
    assert len({step(), step(model="n"), step(temperature=0), step(seed=1), step(candidates=4)}) == 5


def everything_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_run_with_a_server_that_repeats_its_key_and_its_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recwarn: Any
) -> None:
    """The key is in no file and no message, whatever the server does; the run's transcript replays it whole."""

    def telltale(request: Request) -> None:
        key = request.handler.headers["Authorization"].removeprefix("Bearer ")
        if request.index == 0:
            request.say("ready")  # the check
        elif request.index % 4 == 1:
            request.error(429, f"{key} is too busy", code=key, headers={"Retry-After": "0"})
        elif request.index % 4 == 2:
            request.say(f"Your key is {key}, and my advice is none.")
        elif request.index % 4 == 3:
            request.raw(f"<html>{key}</html>".encode())
        else:
            request.error(401, f"Incorrect API key provided: {key}")

    monkeypatch.setenv(VARIABLE, KEY)
    recipe, runs = tmp_path / "r.yaml", tmp_path / "runs"
    with serving(telltale) as server:
        recipe.write_text(RECIPE.format(base_url=server.base_url))
        assert main(["run", str(recipe), "--runs", str(runs)]) == 0
        assert all(KEY in headers for headers in server.headers)
        assert len(server.requests) >= 5
        monkeypatch.setenv(VARIABLE, f"{KEY}-wrong")
        server.behaviour = lambda request: request.error(401, f"Incorrect API key provided: {KEY}-wrong")
        other = ["--set", "name=other", "--set", "prune.proposer.rounds=1"]
        assert main(["run", str(recipe), "--runs", str(runs), *other]) == 2
    monkeypatch.delenv(VARIABLE)
    again = ["--set", "name=again", "--set", f"prune.proposer.replay={runs / 'tiny' / TRANSCRIPT}"]
    assert main(["run", str(recipe), "--runs", str(runs), *again]) == 0  # the server is gone by now
    first, second = (json.loads((runs / name / "results.json").read_text()) for name in ("tiny", "again"))
    assert (first["memory_bank"], first["proposals"]) == (second["memory_bank"], second["proposals"])
    said = "".join(capfd.readouterr())
    assert "the server refuses the key in NOISEWISE_TEST_KEY (HTTP 401)" in said
    written = everything_below(tmp_path)
    assert b"[key]" in written  # where the server repeated it
    assert KEY.encode() not in written
    assert KEY not in said
    assert not any(KEY in str(warning.message) for warning in recwarn)
    text = (runs / "tiny" / TRANSCRIPT).read_text()
    assert text.count('"kind": "search"') == text.count('"kind": "end"') >= 1
    assert '"proposals"' in (runs / "tiny" / "results.json").read_text()
    assert "the default one the rest" in (runs / "tiny" / "results.json").read_text()


def test_an_answer_is_read_whatever_its_form() -> None:
    parts = (
        b'{"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}], "model": "/x/y.gguf"}'
    )
    answer = client._read(200, parts)
    assert (answer.reply, answer.served_model, answer.prompt_tokens) == ("ab", "y.gguf", None)
    usage = b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": -1, "completion_tokens": "9"}}'
    assert (client._read(200, usage).prompt_tokens, client._read(200, usage).reply_tokens) == (None, None)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    model = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **sizes, **blocks)
    save_pipeline(model, DDPMScheduler(), tmp_path / "p")
    return tmp_path / "p"


def test_prune_asks_and_replays(pipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    recipe = tmp_path / "r.yaml"
    words = ["prune", str(pipe), "--budget", "0.7", "--recipe", str(recipe), "--proposer", "llm"]

    def helpful(request: Request) -> None:
        request.say("ready") if request.body.get("max_tokens") == 16 else request.advise()

    with serving(helpful) as server:
        recipe.write_text(RECIPE.format(base_url="http://127.0.0.1:9/v1"))
        options = ["--base-url", server.base_url, "--model-name", "mine", "--set", "prune.proposer.rounds=3"]
        assert main([*words, "--out", str(tmp_path / "a"), *options]) == 0
        assert {request.body["model"] for request in server.requests} == {"mine"}
    assert {"transcript.jsonl", "memory_bank.jsonl", "pruning.json"} <= {f.name for f in (tmp_path / "a").iterdir()}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    monkeypatch.delenv(VARIABLE)
    # what the recipe leaves out is taken from the transcript
    recipe.write_text(RECIPE.format(base_url="http://127.0.0.1:9/v1").replace("rounds: 2, ", ""))
    transcript = tmp_path / "a" / TRANSCRIPT
    assert main([*words, "--out", str(tmp_path / "b"), "--replay", str(transcript)]) == 0
    assert (tmp_path / "b" / "memory_bank.jsonl").read_bytes() == (tmp_path / "a" / "memory_bank.jsonl").read_bytes()
    assert (tmp_path / "b" / TRANSCRIPT).read_bytes() == transcript.read_bytes()
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "c"), "--replay", str(transcript), "--seed", "1"]) == 2
    assert "seed 0 there, 1 here" in capsys.readouterr().err
    for wrong, said in (
        (["--base-url", "http://x/v1"], "--base-url: belongs to --proposer llm"),
        (["--proposer", "llm"], "--proposer: it measures candidates on images; name a recipe"),
    ):
        assert main(["prune", str(pipe), "--budget", "0.7", "--out", str(tmp_path / "d"), *wrong]) == 2
        assert said in capsys.readouterr().err


def test_help_does_not_load_the_client() -> None:
    code = "import sys, noisewise.pruning.proposers; print('openai' in sys.modules, 'jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.split()[0] == "False"
