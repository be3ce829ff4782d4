"""Run steps: one after the other in this process, or several at once in worker processes. Same steps, same results."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from noisewise.errors import SettingError, TrainingError
from noisewise.files import disk_errors
from noisewise.workflow.machine import available_cores
from noisewise.workflow.progress import Event, Sink
from noisewise.workflow.provenance import provenance
from noisewise.workflow.store import SCRATCH, StepSpec, Store
from noisewise.workflow.texts import ROLE, told

if TYPE_CHECKING:
    from noisewise.data.images import Dataset
    from noisewise.data.latents import LatentDataset
    from noisewise.data.texts import Texts


TRAININGS = ("train", "train_autoencoder")  # actions that several processes do together
FOLLOW_SECONDS = 0.2  # between two looks at a step that another process computes


class StepError(RuntimeError):
    """A step that failed for a reason of its own; the message is what to show."""


@dataclass(frozen=True, eq=False)
class Runner:
    """What steps need besides their settings: the store, whom to tell, the images, and how many threads to use."""

    store: Store
    sink: Sink
    data_settings: Any
    threads: int
    titles: Mapping[str, str] = field(default_factory=dict)  # of steps, by id, where names are not enough
    _latents: dict[str, LatentDataset] = field(default_factory=dict)  # by the step that encoded them
    _texts: dict[str, tuple[Texts, Texts]] = field(default_factory=dict)  # the same

    def title(self, step: StepSpec) -> str:
        """What events call a step."""
        return self.titles.get(step.id, step.name)

    @cached_property
    def dataset(self) -> Dataset:
        from noisewise.data.load import load_data

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, when the graph was made
            return load_data(self.data_settings, cache=self.store.root / "data")

    def latents(self, encode: StepSpec) -> LatentDataset:
        """What an encoding step made, which must be of these images and of its own autoencoder."""
        from noisewise.data.latent_files import load_latents

        if encode.id not in self._latents:
            autoencoder = self.store.record(encode.inputs["autoencoder"]).result["fingerprint"]
            self._latents[encode.id] = load_latents(self.store.folder(encode), self.dataset, autoencoder)
        return self._latents[encode.id]

    def texts(self, encode: StepSpec) -> tuple[Texts, Texts]:
        """The captions of both splits that a step encoded, which must be those of these images."""
        from noisewise.data.text_files import load_texts

        if encode.id not in self._texts:
            encoder = self.store.record(encode).result["fingerprint"]
            self._texts[encode.id] = load_texts(self.store.folder(encode), self.dataset, encoder)
        return self._texts[encode.id]


@dataclass(frozen=True)
class Job:
    """A step under way: where it may write, what it reads, and whom it tells."""

    step: StepSpec
    runner: Runner

    @property
    def store(self) -> Store:
        return self.runner.store

    @property
    def workspace(self) -> Path:
        return self.store.folder(self.step)

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.step.settings

    def input(self, role: str) -> Path:
        """Folder of an input's artefact."""
        return self.store.folder(self.step.inputs[role])

    def result_of(self, role: str) -> dict[str, Any]:
        """Numbers of an input's record."""
        return self.store.record(self.step.inputs[role]).result

    def dataset(self) -> Dataset:
        """The images, which must be those the step was planned for."""
        dataset = self.runner.dataset
        if dataset.fingerprint != self.settings["data"]:
            raise SettingError("data: the images changed while the run was under way; give the same command again")
        return dataset

    def learned(self) -> Dataset | LatentDataset:
        """What networks learn: the images, or their latents; with the captions they are told."""
        images, inputs = self.dataset(), self.step.inputs
        found = self.runner.latents(inputs["latents"]) if "latents" in inputs else images
        return told(found, inputs[ROLE], self.runner) if ROLE in inputs else found

    def update(self, done: int, total: int, text: str = "") -> None:
        self.runner.sink(Event(self.runner.title(self.step), "update", text, done, total))

    def note(self, text: str) -> None:
        self.runner.sink(Event(self.runner.title(self.step), "note", text))


def default_threads(num_jobs: int) -> int:
    """Threads of a step whose settings name none: OMP_NUM_THREADS, or the cores at hand shared by the jobs."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else max(1, available_cores() // num_jobs)


def run_step(step: StepSpec, runner: Runner) -> bool:
    """Do one step unless it is done; its inputs must be.

    Returns:
        Whether there was anything to do.
    """
    store, sink, title = runner.store, runner.sink, runner.title(step)
    if store.is_done(step):
        return False
    for source in step.inputs.values():
        if not store.is_done(source):
            raise SettingError(f"step {step.name} needs {source.name}, which is not done; run that step first")
    waiting = Event(title, "note", "another process computes this step; waiting for it")
    with store.lock(step, lambda: sink(waiting)):
        if store.is_done(step):
            return False
        sink(Event(title, "started"))
        started = time.perf_counter()
        try:
            result = _compute(Job(step, runner))
        except KeyboardInterrupt:
            raise
        except Exception as error:
            _remember_failure(store, step, error)
            raise
        seconds = time.perf_counter() - started
        store.finish(step, result, round(seconds, 3), {**provenance(), "threads": threads_of(step) or runner.threads})
        for scratch in SCRATCH:  # the artefact has what they were for
            shutil.rmtree(store.folder(step) / scratch, ignore_errors=True)
        sink(Event(title, "finished", f"{seconds:.1f} s"))
    return True


def _compute(job: Job) -> dict[str, Any]:
    import torch

    from noisewise.workflow.steps import ACTIONS

    for source in job.step.inputs.values():
        job.store.check(source)
    torch.set_num_threads(threads_of(job.step) or job.runner.threads)
    with disk_errors(job.workspace):
        return ACTIONS[job.step.action](job)


def follow(steps: Sequence[StepSpec], runner: Runner) -> None:
    """What every process but the first does with the steps: take part in each training, wait for all others.

    The first process computes, saves and reports; the order of steps is the same in all of them.
    """
    store = runner.store
    for step in steps:
        trained = False
        while not store.is_done(step):
            if step.action in TRAININGS and not trained and all(map(store.is_done, step.inputs.values())):
                _compute(Job(step, runner))
                trained = True
            else:
                time.sleep(FOLLOW_SECONDS)


def threads_of(step: StepSpec) -> int | None:
    """Threads named in a step's settings, e.g. `finetune.num_threads`."""
    sections = [section for section in step.settings.values() if isinstance(section, BaseModel | Mapping)]
    named = [dict(section).get("num_threads") for section in sections]
    return next((threads for threads in named if threads is not None), None)


def _remember_failure(store: Store, step: StepSpec, error: Exception) -> None:
    try:
        store.fail(step, f"{type(error).__name__}: {error}".splitlines()[0])
    except (OSError, SettingError):
        return  # a full disk is reported by the error itself


def run_serial(steps: Sequence[StepSpec], runner: Runner) -> None:
    """Run steps, given inputs first, in this process."""
    for step in steps:
        run_step(step, runner)


class _Worker:
    """A process that does the steps it is told, until its standard input closes: with this process, however it ends."""

    def __init__(self, command: Sequence[str], events: queue.Queue[tuple[_Worker, Event | None]]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self.step: StepSpec | None = None
        self._events = events
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                self._events.put((self, Event.from_json(line)))
            except (ValueError, TypeError):
                sys.stderr.write(line)  # said by a library before the worker could turn it away
        self._events.put((self, None))

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def start(self, step: StepSpec) -> None:
        assert self.process.stdin is not None
        self.step = step
        with suppress(BrokenPipeError):  # it died while it was idle; `_handle` is told so
            self.process.stdin.write(step.id + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # an idle worker ends by this, a busy one by the signal
        self.process.terminate()
        self.process.wait()


def run_parallel(steps: Sequence[StepSpec], store: Store, sink: Sink, work: Path, num_jobs: int) -> None:
    """Run steps in up to ``num_jobs`` worker processes, each as soon as its inputs are done.

    Args:
        steps: inputs first.
        work: a resolved recipe, or a study's description, from which a worker builds the same steps (`load_work`).
    """
    command = [sys.executable, "-m", "noisewise.workflow.worker", str(work), str(store.root), str(num_jobs)]
    events: queue.Queue[tuple[_Worker, Event | None]] = queue.Queue()
    waiting = [step for step in steps if not store.is_done(step)]
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.step for worker in workers):
            for step in _ready(waiting, store, workers, num_jobs):
                idle = next((worker for worker in workers if worker.step is None and worker.is_alive), None)
                if idle is None:
                    idle = _Worker(command, events)
                    workers.append(idle)
                waiting.remove(step)
                idle.start(step)
            worker, event = events.get()
            _handle(worker, event, sink)
    finally:
        for worker in workers:
            worker.stop()


def _ready(waiting: Sequence[StepSpec], store: Store, workers: Sequence[_Worker], num_jobs: int) -> list[StepSpec]:
    """Steps that can start now; one that measures time starts when nothing else runs, and alone."""
    running = [worker.step for worker in workers if worker.step is not None]
    if any(step.exclusive for step in running):
        return []
    able = [step for step in waiting if all(store.is_done(source) for source in step.inputs.values())]
    shared = [step for step in able if not step.exclusive][: num_jobs - len(running)]
    return shared if shared or running else able[:1]


def _handle(worker: _Worker, event: Event | None, sink: Sink) -> None:
    """Pass an event on; a worker that failed or died ends the run."""
    if event is None:
        if worker.step is not None:
            code = worker.process.wait()
            raise StepError(f"step {worker.step.name}: its process ended with code {code}; see its messages above")
        return
    if event.kind == "finished":
        worker.step = None
        if not event.text:  # another process had done it meanwhile
            return
    sink(event)
    if event.kind == "failed":
        kind, _, message = event.text.partition(": ")
        error: dict[str, type[Exception]] = {"SettingError": SettingError, "TrainingError": TrainingError}
        raise error.get(kind, StepError)(message if kind in error else event.text)
