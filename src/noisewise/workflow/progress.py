"""What a running step says, and three ways to show it: bars on a terminal, plain lines, JSON lines for a parent."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any, Literal, Protocol

EventKind = Literal["started", "update", "note", "finished", "failed"]
ProgressStyle = Literal["auto", "bars", "lines", "json"]


@dataclass(frozen=True)
class Event:
    """Something that happened in a step. ``done`` of ``total`` units, e.g. images; ``text`` says more."""

    step: str
    kind: EventKind
    text: str = ""
    done: int = 0
    total: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Event:
        return cls(**json.loads(line))


class Sink(Protocol):
    """Where events go."""

    def __call__(self, event: Event) -> None: ...


class Lines:
    """One line when a step starts, ends or says something, and now and then how far it is."""

    def __init__(self, file: IO[str] | None = None, seconds_between: float = 10.0) -> None:
        self.file = file or sys.stdout
        self.seconds_between = seconds_between
        self.last: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind == "started":
            self.last[event.step] = now
        if event.kind == "update":
            if now - self.last.get(event.step, 0.0) < self.seconds_between:
                return
            self.last[event.step] = now
        print(self._line(event), file=self.file, flush=True)

    def _line(self, event: Event) -> str:
        word = {"started": "started", "finished": "done", "failed": "failed"}.get(event.kind, "")
        count = f"{event.done:,} of {event.total:,}" if event.kind == "update" and event.total else ""
        return f"{event.step}: {', '.join(part for part in (word, count, event.text) if part)}"


class JsonLines:
    """One JSON object per event, for a process that reads this one's output."""

    def __init__(self, file: IO[str] | None = None, seconds_between: float = 0.5) -> None:
        self.file = file or sys.stdout
        self.seconds_between = seconds_between
        self.last = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind == "update" and now - self.last < self.seconds_between:
            return
        self.last = now
        print(event.to_json(), file=self.file, flush=True)


class Bars:
    """A rich progress bar per running step; a finished one becomes a line."""

    def __init__(self, progress: Any) -> None:
        self.progress = progress
        self.tasks: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        if event.kind == "note":
            self.progress.console.print(f"{event.step}: {event.text}", highlight=False, markup=False)
            return
        if event.kind in ("finished", "failed"):
            task = self.tasks.pop(event.step, None)
            if task is not None:
                self.progress.remove_task(task)
            word = "done" if event.kind == "finished" else "failed"
            self.progress.console.print(f"{event.step}: {word}, {event.text}", highlight=False, markup=False)
            return
        if event.step not in self.tasks:
            self.tasks[event.step] = self.progress.add_task(event.step, total=None, text="")
        total = event.total or None
        self.progress.update(self.tasks[event.step], completed=event.done, total=total, text=event.text)


@contextmanager
def open_sink(style: ProgressStyle = "auto") -> Iterator[Sink]:
    """A sink of the given style; `auto` means bars on a terminal and plain lines elsewhere."""
    if style == "auto":
        style = "bars" if sys.stdout.isatty() else "lines"
    if style == "json":
        yield JsonLines()
        return
    if style == "lines":
        yield Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns) as progress:
        yield Bars(progress)
