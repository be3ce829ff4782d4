"""How a server is spoken to: repeats, simpler requests, re-asks, ceilings; and what is remembered of it."""

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
