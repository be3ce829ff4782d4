"""Commands around a recipe and its run: init, plan, run, report, status."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from noisewise.errors import SettingError
from noisewise.sampling.kinds import SchedulerKind

if TYPE_CHECKING:
    from noisewise.workflow.graph import Graph
    from noisewise.workflow.single import Planned
    from noisewise.workflow.store import Store

Overrides = Annotated[tuple[str, ...], Parameter(name="--set", negative="", consume_multiple=False, show_default=False)]
Sampler = SchedulerKind
PlanMethod = Literal["snr", "equal-width", "intervals", "optimal-denoiser"]
ProgressStyle = Literal["auto", "bars", "lines", "json"]
RUNS = Path("runs")
PLOTS = (".svg", ".png", ".pdf")


def step_error() -> type[Exception]:
    """The error of a failed step, if any step can have run; the module is heavy."""
    module = sys.modules.get("noisewise.workflow.executor")
    return module.StepError if module is not None else SettingError


def init(path: Annotated[Path, Parameter(allow_leading_hyphen=True)] = Path("recipe.yaml"), /) -> None:
    """Write a recipe to start from, with every setting, its default and what it means.

    Args:
        path: file to write; "-" prints it. An existing file is left alone.
    """
    from noisewise.files import check_target, write_atomic
    from noisewise.workflow.template import template

    text = template()
    if str(path) == "-":
        print(text, end="")
        return
    if path.exists():
        raise SettingError(f"{path}: exists already; name another file")
    check_target(path, "init")
    write_atomic(path, text)
    print(f"{path}: a recipe for scikit-learn's digits; `noisewise run {path}` runs it")


def plan(
    source: Path,
    /,
    *,
    set_: Overrides = (),
    method: PlanMethod | None = None,
    sampler: Sampler | None = None,
    num_inference_steps: int | None = None,
    plot: Path | None = None,
    save: Path | None = None,
    runs: Path = RUNS,
) -> None:
    """Groups, cost limits, route table and predicted cost of a recipe or of an existing model. Trains nothing.

    A plan that looks at the data is kept in the store of the runs, where `noisewise run` finds it again.

    Args:
        source: a recipe (YAML), or the folder of a diffusers pipeline, or its name on the Hub.
        set_: change a setting, e.g. --set plan.num_groups=8; may be given many times.
        method: how to cut the noise range; a recipe's settings of another method are left out. optimal-denoiser looks
            at the data.
        sampler: sampler of a model's route table, by default as in sample; a recipe names its own.
        num_inference_steps: sampling steps of a model's route table, 1 or more, by default 50; a recipe names its own.
        plot: file for a picture (.svg, .png, .pdf) of SNR, cost limits and groups, or of the similarities behind them.
        save: file for the plan as JSON.
        runs: folder of all runs, whose store keeps plans that look at the data.
    """
    from noisewise.files import check_target, write_atomic

    if plot is not None and plot.suffix not in PLOTS:
        raise SettingError(f"--plot {plot}: a picture's name ends in {', '.join(PLOTS)}")
    for option, path in (("--plot", plot), ("--save", save)):
        if path is not None:
            check_target(path, option)
    if _names_model(source):
        from noisewise.workflow.single import plan_model

        changes = set_ if method is None else (*set_, f"plan.method={method}")
        steps = 50 if num_inference_steps is None else num_inference_steps
        planned = plan_model(source, changes, sampler, steps)
    else:
        for name, given in (("scheduler", sampler), ("num_inference_steps", num_inference_steps)):
            if given is not None and source.exists():
                raise SettingError(
                    f"{source}: a recipe names its own sampler; change it by --set sample.{name}={given}"
                )
        planned = _plan_of_recipe(source, set_, method, runs)
    _print_plan(planned)
    if plot is not None:
        from noisewise.report.figures import plan_figure

        picture = io.BytesIO()
        plan_figure(planned.plan).savefig(picture, format=plot.suffix[1:])
        write_atomic(plot, picture.getvalue())
        print(plot)
    if save is not None:
        planned.plan.save(save)
        print(save)


def _names_model(source: Path) -> bool:
    """Whether this is a model's folder or name on the Hub, rather than a recipe's file, be it there or missing."""
    from noisewise.models.sources import HUB_NAME

    if source.exists() or source.suffix in (".yaml", ".yml") or source.parent.exists():
        return source.is_dir()
    return HUB_NAME.fullmatch(str(source)) is not None


def _print_plan(planned: Planned) -> None:
    """Groups, routes, and the cost of an image."""
    from noisewise.workflow.conditioning import guided_routes
    from noisewise.workflow.predict import si

    made, macs = planned.plan, planned.macs
    shares = None if planned.costs is None else [None if cost is None else cost / macs for cost in planned.costs]
    routes = guided_routes(made.routes(planned.scheduler, planned.num_inference_steps, shares), planned.guidance)
    for note in planned.notes:
        print(f"note: {note}")
    print(made.table())
    print()
    print(routes.table())
    print()
    calls = sum(planned.guidance.calls_at(step.t) for step in routes.steps)
    print(f"base: {planned.parameters:,} parameters, {si(macs)}MACs a call, {si(macs * calls)}MACs an image")
    if planned.costs is None:
        who = "experts, at their cost limits"
    else:
        known = [f"group {group} {si(cost)}MACs" for group, cost in enumerate(planned.costs) if cost is not None]
        print(f"multi-decoder, encoder and decoder of each group: {', '.join(known)} a call")
        who = f"multi-decoder, {planned.resident:,} parameters in all"
    print(f"{who}: {si(macs * routes.total)}MACs an image, {routes.total / calls:.4f} of the base's")


def _plan_of_recipe(source: Path, overrides: tuple[str, ...], method: PlanMethod | None, runs: Path) -> Planned:
    from noisewise.sampling.guidance import Guidance
    from noisewise.workflow.builder import build_graph
    from noisewise.workflow.predict import si
    from noisewise.workflow.recipe import load_recipe
    from noisewise.workflow.run import open_graph
    from noisewise.workflow.single import Planned

    recipe = load_recipe(source, overrides, method)
    if recipe.plan.looks_at_data:
        graph, _ = open_graph(recipe, runs, data_required=False, say=_say)
    else:
        graph = build_graph(recipe, data_required=False)
    images, macs = sum(step.num_images for step in graph.steps), sum(step.macs for step in graph.steps)
    print(f"{graph.recipe.name}: a run is {len(graph.steps)} steps, {images:,} training images, {si(macs)}MACs")
    base, decoders = graph.base, graph.base.decoders if recipe.method == "multi-decoder" else None
    costs, resident = (None, 0) if decoders is None else (decoders.macs, decoders.resident)
    steps = graph.recipe.sample.num_inference_steps
    guidance = Guidance.of(recipe.sample.guidance_scale, graph.plan)
    notes = [note for note in base.notes if note not in graph.plan.notes]
    return Planned(graph.plan, base.macs, base.parameters, base.scheduler, steps, costs, resident, guidance, notes)


def _say(line: str) -> None:
    print(line, flush=True)


def run(
    recipe: Path,
    /,
    *,
    set_: Overrides = (),
    runs: Path = RUNS,
    jobs: int = 1,
    only: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=False, show_default=False)] = (),
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    progress: ProgressStyle = "auto",
) -> None:
    """Do everything a recipe says and write the report. The same command resumes; what is done is not done again.

    On several GPUs: `accelerate launch -m noisewise run RECIPE`; every training then shares its batches among them.

    Args:
        recipe: a recipe (YAML); `noisewise init` writes one with every setting explained.
        set_: change a setting, e.g. --set finetune.num_images=50_000; may be given many times.
        runs: folder of all runs; steps are shared between them.
        jobs: independent steps done at once, 1 or more, each in a process of its own.
        only: do this step alone, e.g. --only "finetune[2]"; its inputs must be done. For clusters.
        dry_run: list the steps, what is cached and what the rest costs; write nothing.
        progress: bars on a terminal and plain lines elsewhere (auto), or always the one named.
    """
    from noisewise.cli import show
    from noisewise.workflow.builder import build_graph
    from noisewise.workflow.machine import num_processes, process_rank
    from noisewise.workflow.progress import open_sink
    from noisewise.workflow.recipe import load_recipe
    from noisewise.workflow.run import (
        check_smallest_budget,
        folder_of,
        follow_recipe,
        open_graph,
        run_only,
        run_recipe,
        states,
        store_of,
    )

    if jobs < 1:
        raise SettingError(f"--jobs: {jobs} given; 1 or more are possible")
    if num_processes() > 1 and (jobs > 1 or only):
        raise SettingError(f"--jobs, --only: not under a launcher, whose {num_processes()} processes share every step")
    settings = load_recipe(recipe, set_)
    if dry_run:
        folder_of(settings, runs)
        store = store_of(runs)
        graph = build_graph(settings, store if runs.is_dir() else None, False, _say)
        check_smallest_budget(graph, store)
        show.steps(graph, states(graph, store))
        _announce(graph, store, jobs)
        return
    graph, store = open_graph(settings, runs, say=None if progress == "json" or process_rank() > 0 else _say)
    if process_rank() > 0:
        follow_recipe(graph, store)
        return
    if only:
        with open_sink(progress) as sink:
            if not run_only(graph, store, only, sink):
                print(f"{', '.join(only)}: done already")
        return
    if progress != "json":
        _announce(graph, store, jobs)
    with open_sink(progress) as sink:
        outcome = run_recipe(graph, store, runs, sink, jobs)
    page = write_page(outcome.folder, outcome.changed)
    if progress != "json":
        show.results(outcome.folder)
        print(page)


def _announce(graph: Graph, store: Store, jobs: int) -> None:
    from noisewise.workflow.predict import summary

    for note in graph.base.notes:
        print(f"note: {note}")
    print(summary(graph, store, jobs), flush=True)


def write_page(folder: Path, changed: bool = True) -> Path:
    """The report and the model card; left alone where nothing changed."""
    page = folder / "report.html"
    if not changed and page.is_file():
        return page
    from noisewise.report import write_card, write_report

    page = write_report(folder)
    write_card(folder)
    return page


def report(run_folder: Path, /) -> None:
    """Write a run's page and figures again from its results.json.

    Args:
        run_folder: folder of a run, e.g. runs/digits.
    """
    print(write_page(run_folder))


def status(run_folder: Path, /) -> None:
    """Which steps of a run are done, running, failed or still to run.

    Args:
        run_folder: folder of a run, e.g. runs/digits.
    """
    from noisewise.cli import show
    from noisewise.workflow.run import open_run, states

    graph, store = open_run(run_folder)
    show.steps(graph, states(graph, store))
