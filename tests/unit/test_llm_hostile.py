"""A server that does everything wrong: the search ends within its calls, and the record says what happened."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from llm_server import Request, Server, serving

from noisewise import NoiseSchedule
from noisewise.models.networks import describe
from noisewise.objectives import Objective
from noisewise.pruning.llm import proposer as proposer_module
from noisewise.pruning.llm.settings import LlmSettings
from noisewise.pruning.llm.transcript import TRANSCRIPT, Exchange, read
from noisewise.pruning.search import SearchResult, search


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposer_module, "_known_dialects", {})


@pytest.fixture(scope="module")
def setup() -> dict[str, Any]:
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


def silence(request: Request) -> None:
    request.release.wait(20)


def drip(request: Request) -> None:
    """A byte now and then, so that no pause is ever long."""
    request.handler.send_response(200)
    request.handler.send_header("Content-Length", "100000")
    request.handler.end_headers()
    while not request.release.wait(0.1):
        request.handler.wfile.write(b" ")
        request.handler.wfile.flush()


def drop(request: Request) -> None:
    request.handler.connection.close()


def drop_in_the_middle(request: Request) -> None:
    request.handler.send_response(200)
    request.handler.send_header("Content-Length", "1000")
    request.handler.end_headers()
    request.handler.wfile.write(b'{"choices": [')
    request.handler.wfile.flush()
    request.handler.connection.shutdown(2)


def html(request: Request) -> None:
    request.raw(b"<html><body>Welcome to the web page</body></html>", headers={"Content-Type": "text/html"})


def half_a_json(request: Request) -> None:
    request.say(json.dumps({"candidates": request.candidates()})[:40], finish_reason="length")


def unknown_widths(request: Request) -> None:
    request.say(json.dumps({"candidates": [dict.fromkeys(c, 7) for c in request.candidates()]}))


def numbers_as_strings(request: Request) -> None:
    found = [{name: str(value) for name, value in c.items()} for c in request.candidates()]
    request.say(json.dumps({"candidates": found}))


def booleans(request: Request) -> None:
    request.say(json.dumps({"candidates": [dict.fromkeys(c, True) for c in request.candidates()]}))


HOSTILE: dict[str, tuple[Callable[[Request], None], dict[str, Any], str]] = {
    "silence": (silence, {"timeout_seconds": 0.3}, "no whole answer within 0.3 s"),
    "a drip": (drip, {"timeout_seconds": 0.5}, "no whole answer within 0.5 s"),
    "dropped": (drop, {}, "no connection"),
    "dropped in the middle": (drop_in_the_middle, {}, "Error"),
    "500": (lambda r: r.error(500, "out of memory"), {}, "HTTP 500: out of memory"),
    "429 for ever": (lambda r: r.error(429, "slow down"), {}, "HTTP 429: slow down"),
    "quota": (lambda r: r.error(429, "You exceeded", code="insufficient_quota"), {}, "HTTP 429: You exceeded"),
    "400 for everything": (lambda r: r.error(400, "bad request"), {}, "HTTP 400: bad request"),
    "401": (lambda r: r.error(401, "wrong key sk-secret"), {}, "HTTP 401"),
    "no such model": (lambda r: r.error(404, "model not found"), {}, "HTTP 404: model not found"),
    "prompt too long": (lambda r: r.error(400, "x", code="context_length_exceeded"), {}, "HTTP 400: x"),
    "HTML": (html, {}, "not the JSON of a chat completion; it begins '<html>"),
    "nothing": (lambda r: r.raw(b""), {}, "not the JSON of a chat completion"),
    "a number": (lambda r: r.raw(b"17"), {}, "not the JSON of a chat completion"),
    "no choices": (lambda r: r.raw(b'{"choices": []}'), {}, "not the JSON of a chat completion"),
    "half a JSON": (half_a_json, {}, "it was cut off"),
    "wrong shape": (lambda r: r.say('{"answer": [1, 2]}'), {}, 'it should have one key "candidates" with a list'),
    "a list": (lambda r: r.say("[[1, 2], [3]]"), {}, "it holds no JSON object"),
    "candidates of numbers": (lambda r: r.say('{"candidates": [1, 2]}'), {}, "1 is no object"),
    "unknown parts": (lambda r: r.say('{"candidates": [{"b1": 3}, {}]}'), {}, 'there is no part "b1"'),
    "unknown widths": (unknown_widths, {}, "a1: 7 is not one of the numbers"),
    "numbers as strings": (numbers_as_strings, {}, '" is not one of the numbers'),
    "booleans": (booleans, {}, "true is not one of the numbers"),
    "not a number": (lambda r: r.say('{"candidates": [NaN, Infinity]}'), {}, "NaN is no object"),
    "a million characters": (lambda r: r.say("why not " * 125_000), {}, "it holds no JSON object"),
    "a million braces": (lambda r: r.say('{"a":' * 200_000), {}, "it holds no JSON object"),
    "thousands of digits": (lambda r: r.say('{"candidates": [' + "9" * 9000 + "]}"), {}, "it holds no JSON object"),
    "a refusal": (lambda r: r.say("I cannot help with that."), {}, "it begins: I cannot help with that."),
    "a refusal apart": (lambda r: r.say(None, refusal="No."), {}, "it begins: No."),
    "half a character": (lambda r: r.say("\ud83d broken"), {}, "it begins: ? broken"),
    "an empty reply": (lambda r: r.say(""), {}, "it holds no JSON object"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_server_costs_its_calls_and_no_more(name: str, setup: dict[str, Any], tmp_path: Path) -> None:
    behaviour, more, said = HOSTILE[name]
    with serving(behaviour) as server:
        result, exchanges, warned = run(setup, settings(server, **{"rounds": 1, **more}), tmp_path)
    assert len(server.requests) == len(exchanges) <= 5  # two replies, asked for twice each, or one in all simpler forms
    assert exchanges
    assert any(said in f"{e.error} {e.problem}" for e in exchanges), [(e.error, e.problem) for e in exchanges]
    assert all(e.decision for e in exchanges)
    assert result.proposed == {"importance": 2}
    assert result.account["requests"] == len(exchanges)
    (warning,) = warned
    assert "group 1 round 0: the language model gave 0 of 2 candidates, the default proposer 2 (" in warning
    assert len(json.dumps([e.model_dump() for e in exchanges])) < 1_000_000


@pytest.mark.parametrize("name", ["dropped", "401", "no such model", "quota", "prompt too long"])
def test_a_server_that_is_gone_or_refuses_is_not_asked_in_the_next_round(
    name: str, setup: dict[str, Any], tmp_path: Path
) -> None:
    behaviour, more, _ = HOSTILE[name]
    with serving(behaviour) as server:
        result, exchanges, _ = run(setup, settings(server, **more), tmp_path)
    assert {e.round for e in exchanges} == {0}
    assert result.account["stopped"]
    assert len(exchanges) == (2 if name == "dropped" else 1)


def test_429_then_success(setup: dict[str, Any], tmp_path: Path) -> None:
    def busy(request: Request) -> None:
        if request.index == 0:
            request.error(429, "slow down", headers={"Retry-After": "0.02"})
        else:
            request.advise()

    with serving(busy) as server:
        result, exchanges, warned = run(setup, settings(server), tmp_path)
    assert [(e.round, e.attempt, e.status, e.decision) for e in exchanges[:2]] == [
        (0, 0, 429, "repeated"),
        (0, 0, 200, "read"),
    ]
    assert exchanges[0].retry_after == 0.02
    assert result.proposed == {"llm": 4}
    assert not warned


def refusing(words: str) -> Callable[[Request], None]:
    """Refuses every request that has the parameter ``words`` names, with the reason in words as servers give it."""

    def behave(request: Request) -> None:
        if words in json.dumps({name: value for name, value in request.body.items() if name != "messages"}):
            request.error(400, f"Unsupported parameter: '{words}' is not supported with this model")
        else:
            request.advise()

    return behave


@pytest.mark.parametrize(
    ("words", "after"),
    [
        ("json_schema", {"rung": "json_object"}),
        ("response_format", {"rung": "text"}),
        ("max_tokens", {"token_parameter": "max_completion_tokens"}),
        ("temperature", {"left_out": ("temperature",)}),
        ("seed", {"left_out": ("seed",)}),
    ],
)
def test_parameters_that_are_refused_are_left_out_for_the_rest_of_the_run(
    words: str, after: dict[str, Any], setup: dict[str, Any], tmp_path: Path
) -> None:
    with serving(refusing(words)) as server:
        result, exchanges, _ = run(setup, settings(server), tmp_path / "a")
        assert result.proposed == {"llm": 4}
        refused = [e.status == 400 for e in exchanges]
        assert refused == sorted(refused, reverse=True)  # only at the start
        assert {name: getattr(exchanges[-1], name) for name in after} == after
        assert "from now on" in exchanges[0].decision
        _, second, _ = run({**setup, "group": 2}, settings(server), tmp_path / "b")
    assert not any(e.status == 400 for e in second)  # the next group knows


def test_parameters_refused_without_a_reason_go_one_after_the_other(setup: dict[str, Any], tmp_path: Path) -> None:
    def picky(request: Request) -> None:
        plain = set(request.body) == {"model", "messages", "max_tokens"}
        request.advise() if plain else request.error(422, "validation failed")

    with serving(picky) as server:
        result, exchanges, _ = run(setup, settings(server), tmp_path)
    assert [e.status for e in exchanges] == [422] * 4 + [200, 200]
    assert result.proposed == {"llm": 4}


def test_a_schema_that_is_taken_and_ignored_goes_down_the_ladder(setup: dict[str, Any], tmp_path: Path) -> None:
    def chatty(request: Request) -> None:
        text = json.dumps({"candidates": request.candidates()})
        request.say(f"<think>{{maybe}} this?</think>Sure! Here it is:\n```json\n{text}\n```\nGood luck!")

    with serving(chatty) as server:
        result, exchanges, warned = run(setup, settings(server, rounds=3), tmp_path)
        bodies = [request.body for request in server.requests]
    assert [e.rung for e in exchanges] == ["json_schema", "json_object", "text"]
    assert [body.get("response_format", {}).get("type") for body in bodies] == ["json_schema", "json_object", None]
    assert bodies[0]["response_format"]["json_schema"]["strict"] is True
    assert result.proposed == {"llm": 6}
    assert not warned


def test_the_model_is_told_what_was_wrong_and_only_asked_for_what_is_missing(
    setup: dict[str, Any], tmp_path: Path
) -> None:
    def half_right(request: Request) -> None:
        found = request.candidates()
        if request.index == 0:
            found[1]["a2"] = 5
        request.say(json.dumps({"candidates": found}))

    with serving(half_right) as server:
        result, exchanges, _ = run(setup, settings(server, rounds=1), tmp_path)
        second = server.requests[1].prompt
    assert "candidate 2: a2: 5 is not one of the numbers" in exchanges[0].problem
    assert f"Your last reply could not be used: {exchanges[0].problem}" in second
    assert "Give 1 new candidate," in second
    assert "Taken in this round already" in second
    assert [len(e.candidates) for e in exchanges] == [1, 1]
    assert result.proposed == {"llm": 2}


def test_the_same_candidate_again_is_refused_and_not_scored(setup: dict[str, Any], tmp_path: Path) -> None:
    def stubborn(request: Request) -> None:
        menus = request.schema["properties"]["candidates"]["items"]["properties"]
        same = {name: menu["enum"][0] for name, menu in menus.items()}
        request.say(json.dumps({"candidates": [same, same]}))

    with serving(stubborn) as server:
        result, exchanges, warned = run(setup, settings(server), tmp_path)
    assert result.proposed == {"llm": 1, "importance": 3}
    assert "is the same as a candidate before" in exchanges[0].problem
    assert "gave 1 of 2 candidates" in warned[0]
    assert "gave 0 of 2 candidates" in warned[1]


@pytest.mark.parametrize(
    ("ceiling", "most"),
    [
        ({"max_requests": 3}, 3),
        ({"max_total_tokens": 6_000}, 5),  # 1100 a request
        ({"max_cost": 0.005, "prompt_price": 1.0, "reply_price": 1.0}, 4),
    ],
)
def test_ceilings_hold(ceiling: dict[str, Any], most: int, setup: dict[str, Any], tmp_path: Path) -> None:
    with serving(lambda request: request.say("no")) as server:
        given = settings(server, **{"attempts": 3, "rounds": 3, "max_reply_tokens": 1000, **ceiling})
        result, exchanges, warned = run(setup, given, tmp_path)
    assert 2 <= len(server.requests) == len(exchanges) <= most
    assert next(iter(ceiling)) in result.account["stopped"]
    tokens = result.account["prompt_tokens"] + result.account["reply_tokens"]
    assert tokens <= ceiling.get("max_total_tokens", tokens)
    assert (result.account["cost"] or 0) <= ceiling.get("max_cost", 1)
    assert any(next(iter(ceiling)) in line for line in warned)


def test_tokens_are_estimated_where_a_server_does_not_count_them(setup: dict[str, Any], tmp_path: Path) -> None:
    def uncounted(request: Request) -> None:
        request.say(json.dumps({"candidates": request.candidates()}), usage=False)

    with serving(uncounted) as server:
        _, exchanges, _ = run(setup, settings(server), tmp_path)
    assert all(e.tokens_estimated and e.prompt_tokens > 500 and e.reply_tokens > 20 for e in exchanges)
