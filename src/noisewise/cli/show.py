"""What commands print: the list of steps and the table of results, for terminals and for files."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noisewise.workflow.graph import Graph
    from noisewise.workflow.run import StepState


def steps(graph: Graph, states: Sequence[StepState]) -> None:
    """One line per step, then their number by state."""
    from noisewise.workflow.predict import si

    head = ("step", "state", "images", "MACs", "parameters", "seconds")
    lines = [head]
    for found in states:
        step = found.step
        lines.append(
            (
                step.name,
                "cached" if found.state == "done" else found.state,
                f"{step.num_images:,}" if step.num_images else "-",
                si(step.macs).strip() if step.macs else "-",
                f"{found.parameters:,}" if found.parameters else "-",
                f"{found.seconds:.1f}" if found.seconds is not None else "-",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    for found in states:
        if found.message:
            print(f"{found.step.name} failed: {found.message}")
    counts = Counter("cached" if found.state == "done" else found.state for found in states)
    print(f"{graph.recipe.name}: {', '.join(f'{number} {state}' for state, number in counts.items())}")


def results(run_folder: Path) -> None:
    """The comparison and the verdict of a finished run."""
    import shutil

    from noisewise.report import load_results
    from noisewise.report.tables import rich_table, summary_table

    found = load_results(run_folder)
    width = max(80, shutil.get_terminal_size((110, 24)).columns)
    print()
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        console.print(rich_table(found, width=width))
    else:
        print(summary_table(found, ascii=not _speaks_unicode(), width=width))
    if found.verdict:
        print(found.verdict if _speaks_unicode() else found.verdict.encode("ascii", "replace").decode())


def _speaks_unicode() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()
