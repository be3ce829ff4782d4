"""The store: one folder per step, named by what the step depends on, so that runs resume and share.

A step's id is its name and a hash of its settings, its inputs' ids and the format its code writes. Changing a setting
therefore changes the ids of exactly the steps that depend on it. A folder counts as done once `artefact.json` lies in
it, which is written last; until then the folder is the step's workspace, and a killed step finds its checkpoints there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel

from noisewise.errors import SettingError
from noisewise.files import read_json, sha256_file, write_json

FORMAT = 1  # of what the steps write; a change that makes old artefacts unusable raises it
RECORD = "artefact.json"
FAILURE = "failure.json"
# folders for resuming, gone once the step is done
SCRATCH = ("checkpoint", "checkpoint.previous", "checkpoint.new", "snapshots")


@dataclass(frozen=True, eq=False)
class StepSpec:
    """One step: a function's name, its settings and the steps whose artefacts it reads.

    ``settings`` holds everything that decides the result, and nothing else. ``images`` and ``macs`` predict its cost.
    """

    name: str  # e.g. "finetune[2]"
    action: str  # which function does it, see steps.ACTIONS
    settings: Mapping[str, Any]
    inputs: Mapping[str, StepSpec] = field(default_factory=dict)
    num_images: int = 0  # training images it goes through
    macs: float = 0.0
    exclusive: bool = False  # must run alone: it measures time

    @cached_property
    def id(self) -> str:
        """Folder name: readable, and different where anything that matters differs."""
        identity = {
            "name": self.name,
            "action": self.action,
            "settings": plain(self.settings),
            "inputs": {role: step.id for role, step in self.inputs.items()},
            "format": FORMAT,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        slug = "".join(c if c.isalnum() or c == "-" else "-" for c in self.name).strip("-")
        return f"{slug}-{digest[:8]}"


def closure(steps: Iterable[StepSpec], but: Collection[str] = ()) -> list[StepSpec]:
    """Steps and everything they depend on, each once, inputs first; inputs of the roles ``but`` aside."""
    found: dict[str, StepSpec] = {}

    def visit(step: StepSpec) -> None:
        if step.id not in found:
            for role, source in step.inputs.items():
                if role not in but:
                    visit(source)
            found[step.id] = step

    for step in steps:
        visit(step)
    return list(found.values())


def plain(value: Any) -> Any:
    """Settings as JSON."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, context={"identity": True})
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


@dataclass(frozen=True)
class Record:
    """What is known of a finished step."""

    name: str
    id: str
    result: dict[str, Any]  # numbers later steps and the report use
    files: dict[str, dict[str, Any]]  # relative path -> {"size", "sha256"}
    seconds: float  # of the attempt that finished it
    finished: str  # UTC, ISO 8601
    provenance: dict[str, Any]

    @property
    def all_seconds(self) -> float:
        """Of all attempts, as far as is known: a training remembers what it took before it was interrupted."""
        return max(self.seconds, self.result.get("training_seconds", 0.0))


class Store:
    """Folders of steps below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, step: StepSpec) -> Path:
        return self.root / step.id

    def is_done(self, step: StepSpec) -> bool:
        return (self.folder(step) / RECORD).is_file()

    def record(self, step: StepSpec) -> Record:
        """Record of a finished step."""
        path = self.folder(step) / RECORD
        try:
            raw = read_json(path, "record")
            return Record(**{key: raw[key] for key in Record.__dataclass_fields__})
        except (SettingError, KeyError, TypeError):
            raise SettingError(
                f"{path}: is not a whole record; delete the folder {path.parent} to redo step {step.name}"
            ) from None

    def failure(self, step: StepSpec) -> str | None:
        """Why the last attempt of an unfinished step failed."""
        path = self.folder(step) / FAILURE
        return str(read_json(path, "failure")["message"]) if path.is_file() and not self.is_done(step) else None

    def check(self, step: StepSpec) -> None:
        """Compare a finished step's files with their checksums: altered or cut-short files are refused."""
        for name, known in self.record(step).files.items():
            path = self.folder(step) / name
            if not path.is_file() or path.stat().st_size != known["size"] or sha256_file(path) != known["sha256"]:
                state = "is missing" if not path.is_file() else "is not what the step wrote (checksum)"
                raise SettingError(f"{path}: {state}; delete the folder {self.folder(step)} to redo step {step.name}")

    def finish(self, step: StepSpec, result: Mapping[str, Any], seconds: float, provenance: Mapping[str, Any]) -> None:
        """Declare a step done: its files are summed up and the record written, atomically and last."""
        folder = self.folder(step)
        (folder / FAILURE).unlink(missing_ok=True)
        files = {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not _is_scratch(path.relative_to(folder))
        }
        record = Record(step.name, step.id, dict(result), files, seconds, utc_now(), dict(provenance))
        described = {
            "settings": plain(step.settings),
            "inputs": {role: source.id for role, source in step.inputs.items()},
        }
        write_json(folder / RECORD, {"format": FORMAT, **vars(record), **described})

    def fail(self, step: StepSpec, message: str) -> None:
        """Remember why an attempt failed, for `status`; nothing else depends on it."""
        write_json(self.folder(step) / FAILURE, {"message": message, "when": utc_now()})

    @contextmanager
    def lock(self, step: StepSpec, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold a step; where another process computes it, call ``waiting`` once and wait for it."""
        self.folder(step).mkdir(parents=True, exist_ok=True)
        with _open_lock(self._lock_path(step)) as file:
            if not _try_lock(file):
                if waiting is not None:
                    waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def is_running(self, step: StepSpec) -> bool:
        """Whether some process holds the step now."""
        path = self._lock_path(step)
        if not path.is_file():
            return False
        with _open_lock(path) as file:
            return not _try_lock(file)

    def _lock_path(self, step: StepSpec) -> Path:
        return self.folder(step) / ".lock"


def _is_scratch(path: Path) -> bool:
    """Checkpoints and the like may be tidied away after the step; a record does not vouch for them."""
    return any(part.startswith(".") or part in SCRATCH for part in path.parts) or path.name in (RECORD, FAILURE)


def utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _open_lock(path: Path) -> TextIO:
    return path.open("a+")


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a file's lock; another process that wants it waits."""
    with _open_lock(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def run_lock(run_folder: Path) -> Iterator[None]:
    """Hold a run's folder; a second process is told at once. The lock goes with its process, however that ends."""
    run_folder.mkdir(parents=True, exist_ok=True)
    with _open_lock(run_folder / ".lock") as file:
        if not _try_lock(file):
            file.seek(0)
            holder = file.read().strip()
            raise SettingError(
                f"{run_folder}: another process{f' ({holder})' if holder else ''} is working on this run; "
                "wait for it, or give this one another `name`"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
