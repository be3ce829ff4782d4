"""The command for studies: grids of arms and seeds over shared steps, one page each."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from noisewise.cli.recipes import RUNS, Overrides, ProgressStyle
from noisewise.errors import SettingError

if TYPE_CHECKING:
    from noisewise.workflow.store import Store
    from noisewise.workflow.study.cells import Layout

LIST = "list"


def study(
    name: str = LIST,
    /,
    *,
    recipe: Path | None = None,
    seeds: int = 1,
    set_: Overrides = (),
    runs: Path = RUNS,
    jobs: int = 1,
    effect: float | None = None,
    resamples: int | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    progress: ProgressStyle = "auto",
) -> None:
    """Run one of the papers' comparisons, with seeds and intervals, and write its page. The same command resumes.

    Steps that arms and seeds share are done once. The predicted cost and what the metric can tell come first.

    Args:
        name: the study; "list" (the default) names all of them.
        recipe: the recipe (YAML) that the arms vary.
        seeds: training seeds, recipe.seed and up; from 3 on an interval knows of training's luck.
        set_: change a setting in all arms, e.g. --set sample.num_images=500; may be given many times.
        runs: folder of all runs; steps are shared with them. The study lies in studies/NAME/RECIPE there.
        jobs: independent steps done at once, 1 or more, each in a process of its own.
        effect: difference of Fréchet distances that you would call one; a warning says if the metric cannot tell it.
        resamples: of the bootstrap, 20 or more; by default 500, fewer where features are many.
        dry_run: list the cells, what is cached and what the rest costs, with or without the data; write nothing.
        progress: bars on a terminal and plain lines elsewhere (auto), or always the one named.
    """
    if name.lower() == LIST:
        _list()
        return
    from noisewise.workflow.study.registry import find_study

    find_study(name)
    if recipe is None:
        raise SettingError(f"study {name}: --recipe is missing; it needs {find_study(name).needs}")
    if jobs < 1:
        raise SettingError(f"--jobs: {jobs} given; 1 or more are possible")
    if resamples is not None and resamples < 20:
        raise SettingError(f"--resamples: {resamples} given; 20 or more are possible")
    if effect is not None and effect <= 0:
        raise SettingError(f"--effect: {effect} given; a difference above 0 is possible")
    from noisewise.workflow.machine import num_processes
    from noisewise.workflow.study.run import cells_table, open_study, run_study

    if num_processes() > 1:
        raise SettingError("study: not under a launcher of several processes; --jobs N shares the steps among N")
    layout, store = open_study(name, recipe, set_, seeds, runs, resamples, dry_run=dry_run)
    if dry_run:
        print(cells_table(layout, store))
        _announce(layout, store, jobs, effect)
        return
    from noisewise.workflow.progress import open_sink
    from noisewise.workflow.study.run import measure_noise

    with open_sink(progress) as sink:
        measure_noise(layout, store, sink)
    if progress != "json":
        _announce(layout, store, jobs, effect)
    with open_sink(progress) as sink:
        outcome = run_study(layout, store, runs, sink, jobs)
    from noisewise.report.study_page import write_study

    page = outcome.folder / "study.html"
    if outcome.changed or not page.is_file():
        page = write_study(outcome.folder)
    if progress != "json":
        from noisewise.report.study_words import spoken

        print()
        print(spoken(outcome.folder))
        print(page)


def _list() -> None:
    """Every study in one line, and what it needs."""
    from noisewise.workflow.study.registry import STUDIES

    width = max(map(len, STUDIES))
    for found in STUDIES.values():
        print(f"{found.name.ljust(width)}  {found.question} Needs {found.needs}.")
    print(
        textwrap.dedent("""
        noisewise study NAME --recipe recipes/digits.yaml --seeds 3 --dry-run""").strip()
    )


def _announce(layout: Layout, store: Store, jobs: int, effect: float | None) -> None:
    from noisewise.workflow.study.run import resolving, summary

    for note in dict.fromkeys(note for cell in layout.cells for note in cell.graph.base.notes):
        print(f"note: {note}")
    print(summary(layout, store, jobs))
    print("\n".join(resolving(layout, store, effect)), flush=True)
