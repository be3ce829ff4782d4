"""A whole run: lay out the steps, say what they cost, do them, gather everything in the run's folder."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisewise.errors import SettingError
from noisewise.files import disk_errors, read_json, write_atomic, write_json
from noisewise.pruning.llm.transcript import TRANSCRIPT
from noisewise.workflow.builder import build_graph
from noisewise.workflow.decoders import KEY
from noisewise.workflow.executor import Runner, default_threads, follow, run_parallel, run_serial, run_step
from noisewise.workflow.graph import Graph
from noisewise.workflow.measure import GRID, scheduler_of
from noisewise.workflow.networks import check_budget
from noisewise.workflow.plans import FOLDER as PLANS
from noisewise.workflow.plans import Say
from noisewise.workflow.progress import Sink
from noisewise.workflow.recipe import Recipe, load_recipe
from noisewise.workflow.results import all_metrics, collect
from noisewise.workflow.store import StepSpec, Store, closure, run_lock

STORE = "store"
RECIPE, RESULTS, PLAN, METRICS, PIPELINE = "recipe.yaml", "results.json", "plan.json", "metrics.jsonl", "pipeline"


@dataclass(frozen=True)
class Outcome:
    """A finished run. ``changed`` is false where everything was there already."""

    folder: Path
    changed: bool


def store_of(runs: Path) -> Store:
    return Store(runs / STORE)


def folder_of(recipe: Recipe, runs: Path) -> Path:
    if recipe.name == STORE:
        raise SettingError(f"name: {STORE!r} given; the folder of that name holds the steps, choose another")
    if runs.exists() and not runs.is_dir():
        raise SettingError(f"--runs {runs}: is a file; the folder of all runs is needed")
    return runs / recipe.name


def open_graph(recipe: Recipe, runs: Path, data_required: bool = True, say: Say | None = None) -> tuple[Graph, Store]:
    """The steps of a recipe, and where they lie. A recipe or data that cannot be used leaves nothing behind.

    Args:
        say: told what a plan that looks at the data will cost, before it is made.
    """
    store = store_of(runs)
    folder_of(recipe, runs)
    new = [place for place in (runs, store.root, store.root / "data", store.root / PLANS) if not place.exists()]
    try:
        return build_graph(recipe, store, data_required, say), store
    except SettingError:
        for folder in reversed(new):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def run_recipe(graph: Graph, store: Store, runs: Path, sink: Sink, num_jobs: int = 1) -> Outcome:
    """Do what is missing and gather the results.

    Args:
        runs: folder of all runs; the store lies in it.
        num_jobs: worker processes; 1 works in this one.
    """
    recipe = graph.recipe
    folder = folder_of(recipe, runs)
    check_smallest_budget(graph, store)
    check_proposers(graph.steps, store)
    with run_lock(folder), disk_errors(folder):
        write_if_new(folder / RECIPE, recipe.to_yaml())
        write_if_new(folder / PLAN, json.dumps(graph.plan.to_dict(), indent=1) + "\n")
        cached = {step.name: store.is_done(step) for step in graph.steps}
        if num_jobs > 1:
            run_parallel(graph.steps, store, sink, folder / RECIPE, num_jobs)
        else:
            run_serial(graph.steps, Runner(store, sink, recipe.data, default_threads(1)))
        return Outcome(folder, gather(graph, store, folder, cached))


def follow_recipe(graph: Graph, store: Store) -> None:
    """What a process of rank above 0 does while the first one runs the recipe."""
    follow(graph.steps, Runner(store, lambda event: None, graph.recipe.data, default_threads(1)))


def check_smallest_budget(graph: Graph, store: Store) -> None:
    """Before the long work: can the smallest network, and the smallest decoder, be cut at all?"""
    pending = [step for step in graph.steps if step.action in ("prune", "decoders") and not store.is_done(step)]
    limits = [(s.settings["budget"], s.settings["names"][-1]) for s in pending if s.settings.get("budget")]
    if limits and graph.recipe.prune.budget_in == "macs":  # what takes how long is measured on the trained base
        budget, group = min(limits)
        check_budget(graph.base.network, budget, graph.recipe.prune, group)
    if any(step.action == "decoders" for step in pending):
        budget, group = min((graph.plan.groups[group].cost_limit, group) for group in graph.base.trained_groups)
        if budget < 1:
            share = graph.recipe.multi_decoder.share_bottleneck
            check_budget(graph.base.network, budget, graph.recipe.prune, group, share)


def check_proposers(steps: Iterable[StepSpec], store: Store) -> None:
    """Before the long work: could the proposers of these steps work? A search that has begun may end without."""
    pending = [step for step in steps if step.action == "prune" and not store.is_done(step)]
    begun = any((store.folder(step) / TRANSCRIPT).exists() for step in pending)
    for proposer in dict.fromkeys(step.settings["prune"].proposer for step in pending):
        try:
            proposer.check_ready()
        except SettingError as error:
            if not begun:
                raise
            warnings.warn(f"{error}; what its transcript does not hold comes from the default proposer", stacklevel=2)


def run_only(graph: Graph, store: Store, names: Sequence[str], sink: Sink) -> bool:
    """Do single steps, for clusters; whether there was anything to do. Takes no run's lock, only the steps'."""
    runner = Runner(store, sink, graph.recipe.data, default_threads(1))
    steps = [graph.step(name) for name in names]
    check_proposers(steps, store)
    with disk_errors(store.root):
        ran = [run_step(step, runner) for step in steps]
    return any(ran)


def gather(graph: Graph, store: Store, folder: Path, cached: dict[str, bool]) -> bool:
    """Write the run's own files from the steps' artefacts; whether anything is new."""
    results = collect(graph, store, cached)
    before = results_before(folder / RESULTS)
    if before is not None and lasting(before) == lasting(results) and (folder / PIPELINE).is_dir():
        return False
    lines = "".join(json.dumps(line) + "\n" for line in all_metrics(graph, store))
    write_atomic(folder / METRICS, lines)
    transcripts = [store.folder(step) / TRANSCRIPT for step in graph.steps if step.action == "prune"]
    if exchanged := "".join(path.read_text(encoding="utf-8") for path in transcripts if path.is_file()):
        write_atomic(folder / TRANSCRIPT, exchanged)
    (folder / "samples").mkdir(exist_ok=True)
    grids = [("real", graph.reference), *((row.id, row.sample) for row in graph.rows)]
    if graph.reconstruction is not None:
        grids.append(("reconstructions", graph.reconstruction))
    for name, step in grids:
        store.check(step)
        write_atomic(folder / "samples" / f"{name}.png", (store.folder(step) / GRID).read_bytes())
    own = next(row for row in graph.rows if row.id == graph.recipe.method)
    if before is None or before.get("model") != own.model.id or not (folder / PIPELINE).is_dir():
        write_pipeline(own.model, own.sample, store, folder / PIPELINE, graph.base.network.get("from"))
    write_json(folder / RESULTS, results)
    return True


def results_before(path: Path) -> dict[str, Any] | None:
    """What an earlier command wrote at ``path``; None where that is nothing whole."""
    if not path.is_file():
        return None
    try:
        results = read_json(path, "results")
    except SettingError:
        return None  # damaged; it is written anew
    return results if isinstance(results, dict) else None


def lasting(results: dict[str, Any]) -> Any:
    """What stays the same when the same command is given again."""
    changing = ("created", "command", "timing", "commands")
    return json.loads(json.dumps({key: value for key, value in results.items() if key not in changing}))


def write_pipeline(model: StepSpec, sample: StepSpec, store: Store, folder: Path, source: str | None = None) -> None:
    """The method's network and sampler as a stock pipeline, whole or not at all.

    A network from a pipeline in ``source`` takes its place there: the same pipeline class and other components.
    """
    from noisewise.models.autoencoder import load_autoencoder, save_latent_pipeline
    from noisewise.models.loading import load_denoiser, save_pipeline
    from noisewise.models.sources import has_more_than_denoiser, save_in_place_of
    from noisewise.workflow.latent_steps import AUTOENCODER
    from noisewise.workflow.steps import without_places

    store.check(model)
    denoiser, _ = load_denoiser(store.folder(model) / "model")
    decoder = sample.inputs.get("autoencoder")
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    if source is not None and has_more_than_denoiser(Path(source)):
        save_in_place_of(without_places(denoiser), Path(source), beside)
    elif decoder is None:
        save_pipeline(without_places(denoiser), scheduler_of(sample.settings), beside)
    else:
        store.check(decoder)
        autoencoder = load_autoencoder(store.folder(decoder) / AUTOENCODER)
        without_places(autoencoder.model)
        save_latent_pipeline(without_places(denoiser), scheduler_of(sample.settings), autoencoder, beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def write_if_new(path: Path, text: str) -> None:
    """Leave a file alone that says the same already."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)


@dataclass(frozen=True)
class StepState:
    """One line of `status` and of `--dry-run`."""

    step: StepSpec
    state: str  # done, running, failed, to run
    seconds: float | None = None
    parameters: int | None = None
    message: str = ""


def states(graph: Graph, store: Store) -> list[StepState]:
    """Where every step stands."""
    found = []
    for step in graph.steps:
        if store.is_done(step):
            record = store.record(step)
            parameters = record.result.get("parameters")
            found.append(StepState(step, "done", record.all_seconds, parameters))
        elif store.is_running(step):
            found.append(StepState(step, "running"))
        elif failure := store.failure(step):
            found.append(StepState(step, "failed", message=failure))
        else:
            found.append(StepState(step, "to run", parameters=_predicted_parameters(graph, step)))
    return found


def _predicted_parameters(graph: Graph, step: StepSpec) -> int | None:
    """Of networks shaped as the base; a pruned one's are known once it is cut."""
    if step.action not in ("train", "take", "untrained"):
        return None
    decoders, network = graph.base.decoders, step.settings.get("network", {})
    if decoders is not None and KEY in network:
        return decoders.parameters[network["group"]] if "group" in network else decoders.resident
    is_pruned = any(source.action in ("prune", "decoders") for source in closure([step]))
    return None if is_pruned else graph.base.parameters


def open_run(folder: Path) -> tuple[Graph, Store]:
    """The graph and store of a run's folder."""
    if not (folder / RECIPE).is_file():
        raise SettingError(f"{folder}: is no run's folder (it has no {RECIPE})")
    recipe = load_recipe(folder / RECIPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_graph(recipe, folder.parent)
