"""The memory bank (TDC's M, Eq. 12): every candidate that was tried, with its measured loss.

A JSONL file, one candidate a line, written as soon as it is known: whatever stops a search, the next one goes on behind
the last whole line.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from noisewise.errors import SettingError
from noisewise.files import write_atomic


@dataclass(frozen=True)
class Record:
    """One candidate. ``loss`` is None where it was not scored; ``reason`` says why one was not accepted."""

    group: int
    round: int
    candidate: int
    proposer: str
    widths: Mapping[str, int]  # axis -> channels kept, after projection onto the budget
    cost: float | None  # fraction of the base's MACs
    loss: float | None  # mean error over the fixed draws
    loss_se: float | None  # its standard error
    moved: float | None  # how far the projection moved the proposal, in [0, 1]
    accepted: bool
    reason: str = ""


class MemoryBank:
    """Records of one group in the order they came; with a path, those of an earlier search are there again."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._records: list[Record] = _read(path) if path is not None and path.exists() else []

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Record) -> None:
        """Remember ``record``, on disk before this returns."""
        self._records.append(record)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(record), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def find(self, widths: Mapping[str, int]) -> Record | None:
        """The scored candidate with these widths."""
        return next((r for r in self._records if r.widths and r.reason != REPEATED and r.widths == dict(widths)), None)

    def best(self, num: int = 1) -> list[Record]:
        """The accepted candidates of least loss, best first; earlier ones win ties."""
        accepted = [r for r in self._records if r.accepted and r.loss is not None]
        return sorted(accepted, key=lambda r: r.loss if r.loss is not None else 0.0)[:num]

    def before(self, round_: int) -> MemoryBank:
        """What was known when a round began: without its own and later records, and without a file."""
        earlier = MemoryBank()
        earlier._records = [r for r in self._records if r.round < round_]
        return earlier

    def of_round(self, round_: int) -> list[Record]:
        return [r for r in self._records if r.round == round_]


REPEATED = "its widths were tried before"


def _read(path: Path) -> list[Record]:
    """Records of a file; a last line that a crash cut short is taken out of it, and said."""
    lines = path.read_text(errors="replace").split("\n")
    whole, rest = lines[:-1], lines[-1]  # a whole line ends with a line feed
    if rest:
        warnings.warn(
            f"{path}: the last line was only half written and is dropped; its candidate is tried again", stacklevel=4
        )
        write_atomic(path, "".join(line + "\n" for line in whole))
    return [_parse(path, number, line) for number, line in enumerate(whole, start=1)]


def _parse(path: Path, number: int, line: str) -> Record:
    names = {field.name for field in fields(Record)}
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise SettingError(f"memory bank: line {number} of {path} is not JSON ({error})") from None
    if not isinstance(values, dict) or set(values) != names:
        raise SettingError(f"memory bank: line {number} of {path} is no record; one holds {', '.join(sorted(names))}")
    return Record(**values)
