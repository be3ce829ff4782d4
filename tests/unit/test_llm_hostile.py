"""A server that does everything wrong: the search ends within its calls, and the record says what happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llm_search import run, settings, small_search
from llm_server import Request, serving

from noisewise.pruning.llm import proposer as proposer_module


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposer_module, "_known_dialects", {})


@pytest.fixture(scope="module")
def setup() -> dict[str, Any]:
    return small_search()


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
