"""A process that does the steps named on its standard input (ids) and reports as JSON lines: `run_parallel`'s end.

python -m noisewise.workflow.worker WORK STORE NUM_JOBS
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisewise.errors import SettingError, TrainingError
from noisewise.workflow.executor import Runner, default_threads, run_step
from noisewise.workflow.progress import Event, JsonLines
from noisewise.workflow.store import StepSpec, Store


def main(work_path: Path, store_root: Path, num_jobs: int) -> int:
    """Do steps until standard input closes; a parent that dies, however, closes it, and this process goes too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too and decides
    sink = JsonLines(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what a print or a library says must not end up among the events
    sys.stdout = sys.stderr
    ids = _listen()
    warnings.showwarning = _show_warning

    from noisewise.workflow.work import load_work

    store = Store(store_root)
    work = load_work(work_path, store)
    steps = {step.id: step for step in work.steps}
    runner = Runner(store, sink, work.data, default_threads(num_jobs), work.titles)
    while True:
        step = _known(steps, ids.get(), work_path)
        title = runner.title(step)
        try:
            if not run_step(step, runner):
                sink(Event(title, "finished"))  # another process did it meanwhile
        except (SettingError, TrainingError) as error:
            sink(Event(title, "failed", f"{type(error).__name__}: {error}"))
            return 1
        except Exception as error:
            import traceback

            traceback.print_exc()
            sink(Event(title, "failed", f"step {title}: {type(error).__name__}: {error}"))
            return 1


def _known(steps: Mapping[str, StepSpec], step_id: str, work_path: Path) -> StepSpec:
    if step_id not in steps:
        raise RuntimeError(f"{work_path}: gives no step {step_id} in this process; were settings or data changed?")
    return steps[step_id]


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, DeprecationWarning | FutureWarning | PendingDeprecationWarning):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _listen() -> queue.Queue[str]:
    """Steps' ids from standard input; its end ends this process even in the middle of a step."""
    ids: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            ids.put(line.strip())
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return ids


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
