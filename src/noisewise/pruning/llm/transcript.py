"""The record of a search's exchanges with a language model: a JSONL file, written as it goes, that can be replayed.

The first line of a search says whose it is, the last one that it is whole; between them stands a line per request. A
file may hold several searches, one after the other, such as those of all groups of a run.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from noisewise.errors import SettingError
from noisewise.files import write_atomic
from noisewise.pruning.llm.ladder import Rung

TRANSCRIPT = "transcript.jsonl"
FORMAT = 1


class Tried(BaseModel):
    """A candidate after projection; ``problem`` says why it was not taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: dict[str, int]
    moved: float  # how far the projection moved it, in [0, 1]
    problem: str


class Exchange(BaseModel):
    """One request and what came of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int
    attempt: int  # which reply of the round was asked for
    prompt_sha256: str
    model: str | None
    rung: Rung
    token_parameter: str
    left_out: tuple[str, ...]
    reply: str | None  # raw, cut after client.LONGEST_REPLY characters
    error: str
    status: int | None
    fault: str
    retry_after: float | None
    finish_reason: str
    served_model: str
    prompt_tokens: int  # by the server's count, or estimated
    reply_tokens: int
    tokens_estimated: bool
    seconds: float
    parsed: dict[str, Any] | None  # the JSON object found in the reply
    candidates: tuple[Tried, ...]
    problem: str  # what the model is told is wrong; empty where nothing is
    decision: str  # what was done about it


@dataclass(frozen=True)
class Section:
    """One search of a file."""

    line: int  # of its header, from 1
    header: Mapping[str, Any]
    exchanges: tuple[Exchange, ...]
    is_whole: bool
    last_line: int


class Transcript:
    """A search's own transcript; what it holds already, or what a replayed one holds, is not asked again."""

    def __init__(self, path: Path | None, header: Mapping[str, Any], replay: Path | None = None) -> None:
        self.path = path
        self.header = json.loads(json.dumps(dict(header)))
        own = [] if path is None or not path.exists() else read(path, mend=True)
        if own and own[0].header != self.header:
            raise SettingError(f"transcript: {path} is of another search ({difference(own[0].header, self.header)})")
        self.exchanges: list[Exchange] = [*own[0].exchanges] if own else []
        self.replay = None if replay is None else choose(replay, self.header)
        self._is_closed = bool(own) and own[0].is_whole
        if not own:
            self._write({"kind": "search", "format": FORMAT, **self.header})

    def known(self, round_: int, index: int) -> Exchange | None:
        """The ``index``-th exchange of a round, if it has been; one from the replayed transcript is copied."""
        own = [exchange for exchange in self.exchanges if exchange.round == round_]
        if index < len(own):
            return own[index]
        if self.replay is None:
            return None
        theirs = [exchange for exchange in self.replay.exchanges if exchange.round == round_]
        return theirs[index] if index < len(theirs) else None

    def add(self, exchange: Exchange, index: int) -> None:
        """Keep an exchange, on disk before this returns; one that is there already stays as it is."""
        if index < sum(other.round == exchange.round for other in self.exchanges):
            return
        self.exchanges.append(exchange)
        self._write({"kind": "exchange", **exchange.model_dump(mode="json")})

    def close(self, account: Mapping[str, Any]) -> None:
        """Declare the search whole."""
        if not self._is_closed:
            self._write({"kind": "end", **account})
            self._is_closed = True

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read(path: Path, mend: bool = False) -> list[Section]:
    """The searches in a file.

    Args:
        mend: take a last line that is cut short out of the file, as a search does with its own.

    Raises:
        SettingError: with the number of the first line that cannot be used.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise SettingError(f"transcript: {path} cannot be read ({error.strerror})") from None
    whole, rest = lines[:-1], lines[-1]  # a whole line ends with a line feed
    if rest and not mend:
        raise SettingError(f"transcript: line {len(lines)} of {path} is cut short")
    if rest:
        warnings.warn(f"{path}: the last line was only half written and is dropped", stacklevel=3)
        write_atomic(path, "".join(line + "\n" for line in whole))
    sections: list[Section] = []
    for number, text in enumerate(whole, start=1):
        _take(path, number, _parsed(path, number, text), sections)
    return sections


def _take(path: Path, number: int, line: dict[str, Any], sections: list[Section]) -> None:
    """Put one line where it belongs."""
    kind = line.pop("kind", None)
    if kind == "search" and line.pop("format", None) == FORMAT:
        sections.append(Section(number, line, (), False, number))
        return
    if not sections or sections[-1].is_whole or kind not in ("exchange", "end"):
        raise SettingError(f"transcript: line {number} of {path} is no line of a transcript, or out of place")
    last = sections[-1]
    if kind == "end":
        sections[-1] = Section(last.line, last.header, last.exchanges, True, number)
        return
    try:
        exchange = Exchange.model_validate(line)
    except ValidationError as error:
        name = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise SettingError(f"transcript: line {number} of {path} is no whole exchange ({name})") from None
    sections[-1] = Section(last.line, last.header, (*last.exchanges, exchange), False, number)


def _parsed(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict):
        raise SettingError(f"transcript: line {number} of {path} is no JSON object")
    return line


def choose(path: Path, header: Mapping[str, Any]) -> Section:
    """The whole search of a file that ``header`` describes.

    Raises:
        SettingError: where there is none, or it is not whole.
    """
    sections = read(path)
    if not sections:
        raise SettingError(f"transcript: {path} is empty")
    found = next((section for section in sections if section.header == header), None)
    if found is None:
        reasons = {section.line: difference(section.header, header) for section in sections}
        line = min(reasons, key=lambda number: len(reasons[number]))  # the one that differs least
        raise SettingError(
            f"transcript: {path} has no search of this model and group; that of line {line}: {reasons[line]}"
        )
    if not found.is_whole:
        raise SettingError(
            f"transcript: {path} is cut short: its search ends at line {found.last_line}, without the closing line"
        )
    return found


def recorded_settings(path: Path) -> dict[str, Any]:
    """The settings that a transcript's first search was made with, those of the connection aside."""
    sections = read(path)
    settings = sections[0].header.get("settings") if sections else None
    return dict(settings) if isinstance(settings, dict) else {}


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What tells two searches apart, in words."""
    flat = [_flat(header) for header in (theirs, ours)]
    names = [name for name in {**flat[0], **flat[1]} if flat[0].get(name) != flat[1].get(name)]
    return "; ".join(f"{name} {_short(flat[0].get(name))} there, {_short(flat[1].get(name))} here" for name in names)


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    settings = header.get("settings")
    rest = {name: value for name, value in header.items() if name != "settings"}
    return {**rest, **(settings if isinstance(settings, dict) else {})}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
