"""A process that does the steps named on its standard input and reports as JSON lines: `run_parallel`'s other end.

python -m noisewise.workflow.worker RECIPE STORE NUM_JOBS
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from noisewise.errors import SettingError, TrainingError
from noisewise.workflow.executor import Runner, default_threads, run_step
from noisewise.workflow.progress import Event, JsonLines
from noisewise.workflow.store import Store


def main(recipe_path: Path, store_root: Path, num_jobs: int) -> int:
    """Do steps until standard input closes; a parent that dies, however, closes it, and this process goes too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too and decides
    sink = JsonLines(sys.stdout)
    sys.stdout = sys.stderr  # a stray print must not end up among the events
    names = _listen()
    warnings.showwarning = _show_warning

    from noisewise.workflow.builder import build_graph
    from noisewise.workflow.recipe import load_recipe

    store = Store(store_root)
    recipe = load_recipe(recipe_path)
    graph = build_graph(recipe, store)
    runner = Runner(store, sink, recipe.data, default_threads(num_jobs))
    while True:
        name = names.get()
        try:
            if not run_step(graph.step(name), runner):
                sink(Event(name, "finished"))  # another process did it meanwhile
        except (SettingError, TrainingError) as error:
            sink(Event(name, "failed", f"{type(error).__name__}: {error}"))
            return 1
        except Exception as error:
            import traceback

            traceback.print_exc()
            sink(Event(name, "failed", f"step {name}: {type(error).__name__}: {error}"))
            return 1


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, DeprecationWarning | FutureWarning | PendingDeprecationWarning):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _listen() -> queue.Queue[str]:
    """Step names from standard input; its end ends this process even in the middle of a step."""
    names: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            names.put(line.strip())
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return names


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
