"""Worker processes: what libraries print does no harm, and an idle one that dies is replaced."""

from __future__ import annotations

import queue
import sys
from pathlib import Path
from typing import Any

import pytest

from noisewise.workflow.executor import StepError, _handle, _Worker
from noisewise.workflow.progress import Event
from noisewise.workflow.store import StepSpec, Store

STEP = StepSpec("step", "none", {})
SAYS = 'import os, sys, json; os.write(1, b\'a library says so\\n\'); print(\'{"step": "a", "kind": "note"}\')'
NOISY = """
import os, sys
from pathlib import Path
from noisewise.workflow import steps, work, worker
from noisewise.workflow.store import StepSpec
def says(job):
    os.write(1, b"a library says ")  # no end of line: it would swallow the next event
    print("so does a print", flush=True)
    return {}
steps.ACTIONS["none"] = says
work.load_work = lambda path, store: work.Work((StepSpec("step", "none", {}),), None)
sys.exit(worker.main(Path(sys.argv[1]), Path(sys.argv[2]), 1))
"""


def test_what_is_no_event_is_passed_over(capfd: pytest.CaptureFixture[str]) -> None:
    events: queue.Queue[Any] = queue.Queue()
    worker = _Worker([sys.executable, "-c", SAYS], events)
    assert events.get(timeout=60)[1] == Event("a", "note")
    assert events.get(timeout=60)[1] is None  # its end
    worker.stop()
    assert "a library says so" in capfd.readouterr().err


def test_a_workers_output_is_events_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    events: queue.Queue[Any] = queue.Queue()
    worker = _Worker([sys.executable, "-c", NOISY, "work", str(tmp_path)], events)
    worker.start(STEP)
    assert [events.get(timeout=300)[1].kind for _ in range(2)] == ["started", "finished"]
    worker.stop()
    assert Store(tmp_path).is_done(STEP)
    assert "a library says so does a print" in capfd.readouterr().err


def test_a_worker_that_died_is_no_worker() -> None:
    events: queue.Queue[Any] = queue.Queue()
    worker = _Worker([sys.executable, "-c", "import sys; sys.exit(3)"], events)
    worker.process.wait()
    assert not worker.is_alive
    worker.start(STEP)  # as if it had died between the look and the order
    with pytest.raises(StepError, match="step step: its process ended with code 3"):
        _handle(worker, events.get(timeout=60)[1], lambda event: None)
    worker.stop()
