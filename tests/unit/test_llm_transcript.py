"""The record of a search: replayed without a network to the same result, resumed without asking again, damaged."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from llm_search import small_search
from llm_server import Request, serving

from noisewise.errors import SettingError
from noisewise.pruning.llm import client
from noisewise.pruning.llm import proposer as proposer_module
from noisewise.pruning.llm.check import check_ready
from noisewise.pruning.llm.settings import LlmSettings
from noisewise.pruning.llm.transcript import TRANSCRIPT, read
from noisewise.pruning.search import BANK, search

SMALL = {
    "rounds": 3, "candidates": 2, "num_score_images": 8, "attempts": 2, "max_retries": 1, "alignment": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposer_module, "_known_dialects", {})


@pytest.fixture(scope="module")
def setup() -> dict[str, Any]:
    return small_search()


def troubled(request: Request) -> None:
    """Something of everything, then good advice."""
    if request.index == 0:
        request.error(400, "response_format is not supported")
    elif request.index == 1:
        request.error(503, "loading")
    elif request.index == 2:
        request.say("Let me think.")
    else:
        request.advise()


def live(base_url: str, **more: Any) -> LlmSettings:
    return LlmSettings(base_url=base_url, model="the-model", retry_seconds=0.01, **{**SMALL, **more})


@pytest.fixture(scope="module")
def recorded(setup: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished search's folder and result."""
    folder = tmp_path_factory.mktemp("recorded")
    with serving(troubled) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return folder, search(**setup, settings=live(server.base_url), workspace=folder)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a replay asked a server")

    monkeypatch.setattr(proposer_module, "ask", refuse)
    monkeypatch.setattr(client, "require_openai", refuse)
    monkeypatch.setattr(proposer_module, "require_openai", refuse)


def test_the_record_says_what_happened(recorded: tuple[Path, Any]) -> None:
    folder, result = recorded
    lines = [json.loads(line) for line in (folder / TRANSCRIPT).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["search", *["exchange"] * 6, "end"]
    header, exchanges = lines[0], lines[1:-1]
    assert (header["group"], header["timesteps"], header["budget"], header["settings"]["rounds"]) == (
        1,
        [20, 60],
        0.6,
        3,
    )
    assert [e["status"] for e in exchanges] == [400, 503, 200, 200, 200, 200]
    assert [e["round"] for e in exchanges] == [0, 0, 0, 0, 1, 2]
    good = exchanges[3]
    assert json.loads(good["reply"]) == good["parsed"]
    assert len(good["prompt_sha256"]) == 64
    assert (good["model"], good["prompt_tokens"], good["reply_tokens"]) == ("the-model", 1000, 100)
    tried = [candidate for e in exchanges for candidate in e["candidates"]]
    banked = [json.loads(line) for line in (folder / BANK).read_text().splitlines()]
    assert [c["widths"] for c in tried] == [r["widths"] for r in banked]
    assert [c["moved"] for c in tried] == [r["moved"] for r in banked]
    assert max(c["moved"] for c in tried) > 0
    assert {key: lines[-1][key] for key in ("requests", "failed_requests", "unusable_replies")} == {
        "requests": 6,
        "failed_requests": 2,
        "unusable_replies": 1,
    }
    assert result.account["requests"] == 6


@pytest.mark.usefixtures("no_network")
def test_a_replay_comes_to_the_same_result_without_a_network(
    recorded: tuple[Path, Any], setup: dict[str, Any], tmp_path: Path
) -> None:
    folder, whole = recorded
    settings = LlmSettings(replay=folder / TRANSCRIPT, **SMALL)
    check_ready(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = search(**setup, settings=settings, workspace=tmp_path)
    assert again.bank.records == whole.bank.records
    assert again.info.widths == whole.info.widths
    assert again.account == whole.account
    assert (tmp_path / TRANSCRIPT).read_bytes() == (folder / TRANSCRIPT).read_bytes()
    state = whole.model.state_dict()
    assert all(torch.equal(p, state[name]) for name, p in again.model.state_dict().items())


@pytest.mark.parametrize("num_lines", range(1, 8))
@pytest.mark.parametrize("num_records", [0, 3])
def test_a_stopped_search_asks_only_for_what_it_does_not_have(
    num_lines: int, num_records: int, recorded: tuple[Path, Any], setup: dict[str, Any], tmp_path: Path
) -> None:
    folder, whole = recorded
    keep(folder / TRANSCRIPT, tmp_path / TRANSCRIPT, num_lines)
    if num_lines >= 6:  # what was measured had been proposed
        keep(folder / BANK, tmp_path / BANK, num_records)
    known = num_lines - 1
    with serving(troubled) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server.num_before = known
        resumed = search(**setup, settings=live(server.base_url), workspace=tmp_path)
    assert len(server.requests) == 6 - known
    assert resumed.bank.records == whole.bank.records
    (section,) = read(tmp_path / TRANSCRIPT)
    assert section.is_whole
    assert len(section.exchanges) == 6


def keep(source: Path, target: Path, num_lines: int) -> None:
    target.write_text("".join(f"{line}\n" for line in source.read_text().splitlines()[:num_lines]))


def test_a_line_cut_short_by_a_crash_is_dropped_and_asked_again(
    recorded: tuple[Path, Any], setup: dict[str, Any], tmp_path: Path
) -> None:
    folder, whole = recorded
    (tmp_path / TRANSCRIPT).write_text((folder / TRANSCRIPT).read_text()[:-1000])
    with serving(troubled) as server:
        server.num_before = 5
        with pytest.warns(UserWarning, match="only half written"):
            resumed = search(**setup, settings=live(server.base_url), workspace=tmp_path)
    assert len(server.requests) == 1
    assert resumed.bank.records == whole.bank.records


def refused(setup: dict[str, Any], path: Path, **settings: Any) -> str:
    with pytest.raises(SettingError) as error:
        search(**setup, settings=LlmSettings(replay=path, **{**SMALL, **settings}))
    return str(error.value)


def test_a_transcript_of_another_search_is_refused(recorded: tuple[Path, Any], setup: dict[str, Any]) -> None:
    path = recorded[0] / TRANSCRIPT
    other = type(setup["model"]).from_config(setup["model"].config)
    assert "no search of this model and group; that of line 1: group 1 there, 2 here" in refused(
        {**setup, "group": 2}, path
    )
    assert "model_sha256" in refused({**setup, "model": other}, path)
    assert "budget 0.6 there, 0.7 here" in refused({**setup, "budget": 0.7}, path)
    assert "timesteps [20, 60] there, [20, 61] here" in refused({**setup, "timesteps": (20, 61)}, path)
    assert "candidates 2 there, 3 here" in refused(setup, path, candidates=3)


def test_what_is_cut_short_says_at_which_line(
    recorded: tuple[Path, Any], setup: dict[str, Any], tmp_path: Path
) -> None:
    text = (recorded[0] / TRANSCRIPT).read_text()
    cut = tmp_path / "cut.jsonl"
    for length, line in ((len(text) - 5, 8), (len(text.splitlines(keepends=True)[0]) + 50, 2)):
        cut.write_text(text[:length])
        said = refused(setup, cut)
        assert f"line {line} of {cut} is cut short" in said
        with pytest.raises(SettingError, match=f"line {line} "):
            check_ready(LlmSettings(replay=cut))
    keep(recorded[0] / TRANSCRIPT, cut, 6)
    assert "ends at line 6, without the closing line" in refused(setup, cut)
    with pytest.raises(SettingError, match="ends at line 6, without the closing line"):
        check_ready(LlmSettings(replay=cut))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [], "is empty"),
        (lambda lines: [lines[0], "{}", *lines[2:]], "line 2 of"),
        (lambda lines: [lines[0], "not JSON", *lines[2:]], "line 2 of"),
        (lambda lines: lines[1:], "line 1 of"),
        (lambda lines: [*lines, lines[1]], "line 9 of"),
        (
            lambda lines: [lines[0], lines[1].replace('"round": 0', '"round": "x"'), *lines[2:]],
            "no whole exchange (round)",
        ),
        (lambda lines: [lines[0].replace('"format": 1', '"format": 2'), *lines[1:]], "line 1 of"),
    ],
)
def test_damage_is_named(
    damage: Any, said: str, recorded: tuple[Path, Any], setup: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "damaged.jsonl"
    lines = (recorded[0] / TRANSCRIPT).read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in damage(lines)))
    assert said in refused(setup, path)


def test_a_missing_transcript(setup: dict[str, Any], tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refused(setup, tmp_path / "absent.jsonl")
    with pytest.raises(SettingError, match="cannot be read"):
        check_ready(LlmSettings(replay=tmp_path / "absent.jsonl"))


@pytest.mark.usefixtures("no_network")
def test_a_file_of_several_searches_gives_each_its_own(
    recorded: tuple[Path, Any], setup: dict[str, Any], tmp_path: Path
) -> None:
    text = (recorded[0] / TRANSCRIPT).read_text()
    other = text.replace('"group": 1', '"group": 0')
    (tmp_path / "all.jsonl").write_text(other + text)
    replayed = search(**setup, settings=LlmSettings(replay=tmp_path / "all.jsonl", **SMALL))
    assert replayed.bank.records == recorded[1].bank.records


@pytest.mark.usefixtures("no_network")
def test_losses_that_changed_are_said(recorded: tuple[Path, Any], setup: dict[str, Any], tmp_path: Path) -> None:
    """Another machine measures otherwise in the last digits; the replies are the same."""
    path = tmp_path / "drifted.jsonl"
    lines = (recorded[0] / TRANSCRIPT).read_text().splitlines()
    lines[5] = lines[5].replace(json.loads(lines[5])["prompt_sha256"], "0" * 64)
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.warns(UserWarning, match="the prompt of round 1 was another"):
        replayed = search(**setup, settings=LlmSettings(replay=path, **SMALL))
    assert replayed.info.widths == recorded[1].info.widths
