"""One network again: unpruned experts folded back into one of the base's size, on held-out loss.

The weights of the sum are the only thing that is fitted, on one half of the held-out images; losses are reported on the
other half. The weights minimise the mean noise error over all noise levels alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisewise.errors import SettingError
from noisewise.planning.plan import Plan
from noisewise.workflow.machine import device
from noisewise.workflow.stage_steps import split_off

if TYPE_CHECKING:
    from noisewise.objectives import Draw, Objective
    from noisewise.workflow.executor import Job
    from noisewise.workflow.graph import Graph
    from noisewise.workflow.store import Store

Result = dict[str, Any]
NUM_CHECK_IMAGES = 1024  # draws per group of the losses that are reported
ROW = "merged"


def merge(job: Job) -> Result:
    """Find the weights, and write base + sum of weights (expert - base)."""
    import torch

    from noisewise.models.merge import TaskVectors, search_weights
    from noisewise.streams import seed_of
    from noisewise.workflow.steps import load_model, objective_of, save_model

    settings, objective = job.settings, objective_of(job)
    plan, search = Plan.from_dict(settings["plan"]), settings["merge"]
    groups = [g for g in plan.groups if f"expert[{g.index}]" in job.step.inputs]
    ranges = [(g.t_start, g.t_stop) for g in groups]
    base: Any = load_model(job.input("base")).eval()
    experts: list[Any] = [load_model(job.input(f"expert[{g.index}]")).eval() for g in groups]
    vectors = TaskVectors(base, experts)
    fitted, checked = split_off(job.learned().test, 2, settings["seed"])
    seed = settings["seed"]
    draws = _draws(objective, fitted, search.num_images, (seed, "merge", "search"), ranges)
    shares = np.array([g.num_timesteps for g in groups]) / plan.num_train_timesteps

    with torch.no_grad():
        found = search_weights(
            lambda weights: float(shares @ _losses(vectors.merged(weights), objective, draws)),
            len(groups),
            search.num_evaluations,
            np.random.default_rng(seed_of(seed, "merge")),
            log=lambda done, best: job.update(done, search.num_evaluations, f"held-out loss {best:.5f}"),
        )
        check = _draws(objective, checked, NUM_CHECK_IMAGES, (seed, "merge", "check"), ranges)
        model = vectors.merged(found.weights)
        losses = {
            "base": _losses(base, objective, check).tolist(),
            "experts": [float(_losses(e, objective, [d])[0]) for e, d in zip(experts, check, strict=True)],
            "merged": _losses(model, objective, check).tolist(),
        }
    passes = found.num_evaluations * search.num_images * len(groups)
    return {
        **save_model(job, model),
        "groups": [g.index for g in groups],
        "weights": list(found.weights),
        "losses": losses,
        "mean_losses": {name: float(shares @ np.array(values)) for name, values in losses.items()},
        "num_evaluations": found.num_evaluations,
        "search_passes": passes,
        "search_images": len(fitted),
        "check_images": len(checked),
        "trace": [[list(weights), score] for weights, score in found.trace],
    }


def _draws(
    objective: Objective, images: Any, num_images: int, names: Sequence[object], ranges: Sequence[tuple[float, float]]
) -> list[list[Draw]]:
    """Fixed (image, noise, timestep) triples of each group."""
    place = device()
    return [
        objective.fixed_draws(images, num_images, (*names, *span), objective.check_timesteps(span), device=place)
        for span in ranges
    ]


def _losses(model: Any, objective: Objective, draws: Sequence[Sequence[Draw]]) -> np.ndarray:
    """[N] mean noise error of each group's draws."""
    import torch

    means = [torch.cat([objective.error(model, draw).double().cpu() for draw in group]).mean() for group in draws]
    return np.array([float(mean) for mean in means])


def graph_with_merged(folder: Path) -> tuple[Graph, Store]:
    """The graph of a finished run, with the merged network among its rows whether the run asked for it or not."""
    from noisewise.workflow.builder import build_graph
    from noisewise.workflow.recipe import check_recipe
    from noisewise.workflow.run import open_run

    graph, store = open_run(folder)
    recipe = graph.recipe
    if recipe.method != "tdc":
        raise SettingError(f"merge: {folder} is a run of method {recipe.method}; method tdc has experts to merge")
    if ROW not in recipe.rows:
        compare = [*recipe.compare, ROW]
        graph = build_graph(check_recipe({**recipe.to_dict(), "compare": compare}), store)
    step = next(row for row in graph.rows if row.id == ROW).model
    for source in step.inputs.values():
        if not store.is_done(source):
            raise SettingError(
                f"merge: {folder} has no {source.name} yet; unpruned experts are what is merged, add `unpruned` (or "
                f"`{ROW}`) to the recipe's `compare` and run it"
            )
    return graph, store


def merge_run(folder: Path, out: Path, sink: Any) -> Result:
    """Do a run's merge step (once), and write the network as a pipeline."""
    from noisewise.files import disk_errors
    from noisewise.workflow.executor import Runner, default_threads, run_step
    from noisewise.workflow.run import write_pipeline
    from noisewise.workflow.single import check_new

    check_new(out)
    graph, store = graph_with_merged(folder)
    row = next(row for row in graph.rows if row.id == ROW)
    with disk_errors(folder):
        run_step(row.model, Runner(store, sink, graph.recipe.data, default_threads(1)))
        write_pipeline(row.model, row.sample, store, out)
    return store.record(row.model).result


def merge_table(result: Result) -> str:
    """Held-out losses of base, experts and merged network by group, and what the search cost."""
    losses, means = result["losses"], result["mean_losses"]
    lines: list[tuple[str, ...]] = [("group", "weight", "base", "experts", "merged")]
    for i, group in enumerate(result["groups"]):
        values = [f"{losses[name][i]:.5f}" for name in ("base", "experts", "merged")]
        lines.append((str(group), f"{result['weights'][i]:.3f}", *values))
    lines.append(("all", "", *(f"{means[name]:.5f}" for name in ("base", "experts", "merged"))))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    table = ["  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(
        [
            *table,
            f"Held-out noise error, on {result['check_images']:,} images that the search did not see; the search: "
            f"{result['num_evaluations']} evaluations, {result['search_passes']:,} forward passes on "
            f"{result['search_images']:,} other held-out images.",
        ]
    )
