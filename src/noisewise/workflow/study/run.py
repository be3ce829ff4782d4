"""A whole study: what it will cost, whether its metric can tell, the steps, and the folder of results."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from noisewise.errors import SettingError
from noisewise.files import disk_errors, write_atomic, write_json
from noisewise.workflow.executor import Runner, default_threads, run_parallel, run_serial, run_step
from noisewise.workflow.measure import GRID
from noisewise.workflow.predict import in_words, predicted_seconds, si
from noisewise.workflow.progress import Sink
from noisewise.workflow.run import (
    check_proposers,
    check_smallest_budget,
    lasting,
    results_before,
    store_of,
    write_if_new,
)
from noisewise.workflow.store import StepSpec, Store, closure, run_lock
from noisewise.workflow.study.cells import Layout
from noisewise.workflow.study.collect import collect, csv_of_cells
from noisewise.workflow.study.collect_sampled import noise
from noisewise.workflow.study.layout import lay_out
from noisewise.workflow.study.registry import find_study
from noisewise.workflow.study.sampled import SampledLayout
from noisewise.workflow.study.timing import WAITING
from noisewise.workflow.yaml_file import read_mapping

STUDIES = "studies"
DESCRIPTION, RESULTS, CELLS = "study.json", "results.json", "cells"


@dataclass(frozen=True)
class StudyOutcome:
    """A finished study's folder. ``changed`` is false where everything was there already."""

    folder: Path
    changed: bool


def open_study(
    name: str,
    recipe: Path,
    overrides: Sequence[str],
    num_seeds: int,
    runs: Path,
    num_resamples: int | None = None,
    dry_run: bool = False,
) -> tuple[Layout, Store]:
    """A study's steps, and where they lie.

    Args:
        overrides: ``a.b=value`` each, for all arms.
        dry_run: nothing will be done: no folder is made, and data that is missing is only noted.
    """
    from noisewise.workflow.recipe import apply_overrides

    if runs.exists() and not runs.is_dir():
        raise SettingError(f"--runs {runs}: is a file; the folder of all runs is needed")
    study = find_study(name)
    raw = apply_overrides(read_mapping(recipe), overrides)
    store = store_of(runs)
    used = None if dry_run and not runs.is_dir() else store
    return lay_out(study, raw, num_seeds, used, num_resamples, data_required=not dry_run), store


def folder_of_study(layout: Layout, runs: Path) -> Path:
    """One folder per study and recipe."""
    return runs / STUDIES / layout.study.name / layout.recipe.name


def summary(layout: Layout, store: Store, num_jobs: int) -> str:
    """One line: cells, steps, how much is done, and what the rest costs."""
    steps = [step for step in layout.steps if not store.is_done(step)]
    arms, seeds = len(layout.arms), len(layout.seeds)
    line = (
        f"{layout.study.name} on {layout.recipe.name}: {arms} arms x {seeds} seed{'s' if seeds > 1 else ''} = "
        f"{arms * seeds} cells, {len(layout.steps)} steps, {len(layout.steps) - len(steps)} cached"
    )
    if not steps:
        return line
    images, macs = sum(step.num_images for step in steps), sum(step.macs for step in steps)
    line += f"; to do: {images:,} training images, {si(macs)}MACs"
    seconds = predicted_seconds(layout.cells[0].graph, steps, num_jobs)
    return line if seconds is None else f"{line}, about {in_words(seconds)} on this machine (by a short probe)"


def cells_table(layout: Layout, store: Store) -> str:
    """For `--dry-run`: what each cell needs, and what of that is its own, since it comes first."""
    lines = [("cell", "seed", "steps", "cached", "to do: images", "MACs")]
    counted: set[str] = set()
    for cell in layout.cells:
        steps = closure(layout.ends_of(cell))
        new = [step for step in steps if not store.is_done(step) and step.id not in counted]
        counted |= {step.id for step in new}
        images, macs = sum(step.num_images for step in new), sum(step.macs for step in new)
        done = sum(store.is_done(step) for step in steps)
        lines.append((cell.arm.label, str(cell.seed), str(len(steps)), str(done), f"{images:,}", si(macs).strip()))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = []
    for label, *numbers in lines:
        right = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        aligned.append("  ".join([label.ljust(widths[0]), *right]))
    return "\n".join([*aligned, "Steps that cells share are counted at the first of them."])


def measure_noise(layout: Layout, store: Store, sink: Sink) -> None:
    """Real against real, before anything is spent on training; of a study that samples."""
    if not isinstance(layout, SampledLayout):
        return
    with disk_errors(store.root):
        for step in closure([layout.floor]):
            run_step(step, _runner(layout, store, sink, 1))


def resolving(layout: Layout, store: Store, effect: float | None = None) -> list[str]:
    """What the metric can tell at this number of images and seeds; the last line starts with "warning" if too little.

    Args:
        effect: the difference of Fréchet distances that should be told from none; None: what the paper claims, as a
            share of the reference arm's distance once that is known.
    """
    if not isinstance(layout, SampledLayout) or not store.is_done(layout.floor):
        return []
    found, claimed = noise(layout, store), layout.study.paper.effect
    floor, least = found["floor"], found["resolution"]
    seeds = f"{len(layout.seeds)} seed{'s' if len(layout.seeds) > 1 else ''}"
    lines = [
        f"metric: real against real {floor['mean']:.4g} ± {floor['deviation']:.2g} at n = {floor['n']}; with {seeds} "
        f"unpaired sets of such images differ by up to {least:.2g} by chance (95 %)"
    ]
    evaluate = layout.cell(layout.reference, layout.seeds[0]).row.evaluate
    if effect is None and claimed is not None and store.is_done(evaluate):
        effect = claimed * store.record(evaluate).result["frechet"]["value"]
    if effect is not None and effect < least:
        lines.append(
            f"warning: an effect of {effect:.2g} is below the metric's noise: raise sample.num_images or --seeds, "
            'or expect "no difference shown"'
        )
    elif effect is None and claimed is not None:
        lines.append(
            f"the paper claims {claimed:.1%} of its reference's distance, which shows here only if that of "
            f"{layout.reference.label} is above {least / claimed:.3g}"
        )
    return lines


def run_study(layout: Layout, store: Store, runs: Path, sink: Sink, num_jobs: int = 1) -> StudyOutcome:
    """Do what is missing and gather the results."""
    folder = folder_of_study(layout, runs)
    for cell in layout.cells:
        if cell.seed == layout.seeds[0]:
            check_smallest_budget(cell.graph, store)
    check_proposers(layout.steps, store)
    with run_lock(folder), disk_errors(folder):
        write_if_new(folder / DESCRIPTION, json.dumps(layout.describe(), indent=1) + "\n")
        started = time.perf_counter()
        before = {step.id for step in layout.steps if store.is_done(step)}
        if num_jobs > 1:
            run_parallel(layout.steps, store, sink, folder / DESCRIPTION, num_jobs)
        else:
            run_serial(layout.steps, _runner(layout, store, sink, num_jobs))
        ran = [step for step in layout.steps if step.id not in before]
        return StudyOutcome(folder, _gather(layout, store, folder, ran, time.perf_counter() - started, num_jobs))


def _runner(layout: Layout, store: Store, sink: Sink, num_jobs: int) -> Runner:
    return Runner(store, sink, layout.recipe.data, default_threads(num_jobs), layout.titles)


def _gather(
    layout: Layout, store: Store, folder: Path, ran: Sequence[StepSpec], wall: float, num_jobs: int
) -> bool:  # fmt: skip
    """Write the study's own files; whether anything is new."""
    old = results_before(folder / RESULTS)
    spent = dict((old or {}).get("commands", {}))
    if ran:  # what processes did between steps: starting, laying out, waiting for each other
        busy = sum(store.record(step).seconds for step in ran)
        spent[WAITING] = spent.get(WAITING, 0.0) + max(0.0, wall * num_jobs - busy)
    results = {**collect(layout, store, spent), "commands": spent}
    if old is not None and lasting(old) == lasting(results):
        return False
    if isinstance(layout, SampledLayout):
        _keep_grids(layout, store, folder / "samples")
    for name, lines in {CELLS: results["cells"], **results["lists"]}.items():
        write_atomic(folder / f"{name}.csv", csv_of_cells(lines))
    write_json(folder / RESULTS, results)
    return True


def _keep_grids(layout: SampledLayout, store: Store, folder: Path) -> None:
    """The first seed's images of every arm, and real ones."""
    folder.mkdir(exist_ok=True)
    grids = {cell.arm.key: cell.row.sample for cell in layout.cells if cell.seed == layout.seeds[0]}
    for name, step in {"real": layout.reference_step, **grids}.items():
        store.check(step)
        write_atomic(folder / f"{name}.png", (store.folder(step) / GRID).read_bytes())
