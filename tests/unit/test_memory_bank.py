"""The memory bank's file: every record comes back, and a crash costs at most the last line."""

from __future__ import annotations

from pathlib import Path

import pytest

from noisewise.errors import SettingError
from noisewise.pruning.memory import REPEATED, MemoryBank, Record


def record(candidate: int, loss: float | None, round_: int = 0, width: int = 8) -> Record:
    accepted = loss is not None
    widths = {"a": width, "b": candidate}
    return Record(0, round_, candidate, "random", widths, 0.5, loss, 0.01, 0.1, accepted, "" if accepted else "bad")


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    bank = MemoryBank(tmp_path / "run" / "bank.jsonl")
    for candidate, loss in enumerate([0.3, None, 0.1, 0.2]):
        bank.add(record(candidate, loss))
    again = MemoryBank(bank.path)
    assert again.records == bank.records
    assert [r.candidate for r in again.best(2)] == [2, 3]
    assert len((tmp_path / "run" / "bank.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("cut", [1, 20])
def test_a_half_written_last_line_is_dropped_and_said(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "bank.jsonl"
    bank = MemoryBank(path)
    bank.add(record(0, 0.3))
    bank.add(record(1, 0.2))
    path.write_text(path.read_text()[:-cut])
    with pytest.warns(UserWarning, match="half written"):
        again = MemoryBank(path)
    assert again.records == bank.records[:1]
    again.add(record(1, 0.2))
    assert MemoryBank(path).records == bank.records


@pytest.mark.parametrize("line", ["{not json", '{"group": 0}', "[1, 2]"])
def test_a_broken_line_elsewhere_is_an_error_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bank.jsonl"
    bank = MemoryBank(path)
    bank.add(record(0, 0.3))
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(SettingError, match="line 2"):
        MemoryBank(path)


def test_what_was_known_when_a_round_began() -> None:
    bank = MemoryBank()
    bank.add(record(0, 0.3, round_=0))
    bank.add(record(1, 0.2, round_=1))
    assert [r.round for r in bank.before(1).records] == [0]
    assert bank.find({"a": 8, "b": 1}) == bank.records[1]
    assert bank.before(1).find({"a": 8, "b": 1}) is None


def test_a_repeat_never_stands_for_a_measurement() -> None:
    bank = MemoryBank()
    bank.add(Record(0, 0, 0, "random", {"a": 8}, 0.5, None, None, 0.0, False, REPEATED))
    assert bank.find({"a": 8}) is None
    assert bank.best() == []
