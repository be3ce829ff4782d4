"""Numbers of a study whose arms are compared by their images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noisewise.workflow.results import spent_macs
from noisewise.workflow.store import Store
from noisewise.workflow.study.cells import Layout
from noisewise.workflow.study.definition import Arm
from noisewise.workflow.study.sampled import SampledCell, SampledLayout
from noisewise.workflow.study.statistics import Difference, Spread, difference, resolution
from noisewise.workflow.study.steps import RESAMPLED
from noisewise.workflow.text_scores import about, scored


def study_facts(layout: Layout, cells: Sequence[Mapping[str, Any]], store: Store) -> dict[str, Any]:
    """What belongs to the whole study; nothing of one without images."""
    if not isinstance(layout, SampledLayout):
        return {"metric": None, "match": [], "snapshots": []}
    reference = store.record(layout.reference_step).result
    return {
        "metric": {"name": reference["metric"], "n": reference["n"], "provenance": reference["frechet"],
                   **scored(layout.text_scores.get(layout.seeds[0]), store, None),
                   **about(layout.text_scores.get(layout.seeds[0]), store), **noise(layout, store)},
        "match": cost_to_match(layout, cells, store) if layout.study.cost_to_match else [],
        "snapshots": _snapshots(layout, store),
    }  # fmt: skip


def cell_facts(layout: SampledLayout, cell: SampledCell, store: Store) -> dict[str, Any]:
    """The numbers of one arm with one seed."""
    sampled, evaluated = store.record(cell.row.sample).result, store.record(cell.row.evaluate).result
    loss, near = store.record(cell.row.loss).result, store.record(cell.neighbours).result
    training = cell.row.training
    return {
        "frechet": evaluated["frechet"]["value"],
        "kid": {key: evaluated["kid"][key] for key in ("value", "low", "high")},
        **scored(layout.text_scores.get(cell.seed), store, cell.arm.key),
        "test_loss": loss["mean"],
        "group_test_loss": loss["groups"],
        **{key: sampled[key] for key in ("macs_per_image", "num_inference_steps", "active_parameters")},
        "resident_parameters": sampled["resident_parameters"],
        "training_images": sum(step.num_images for step in training),
        "training_macs": sum(spent_macs(step, store) for step in training),
        "training_seconds": sum(store.record(step).all_seconds for step in training),
        "near_copies": near["near_copies"],
        "neighbour_distance": near["median"],
        "neighbour_distance_held_out": near["held_out_median"],
        "flags": evaluated["frechet"]["flags"],
        "steps": {"model": cell.row.model.id, "sample": cell.row.sample.id, "evaluate": cell.row.evaluate.id},
    }


SPREAD = ("frechet", "test_loss", "macs_per_image", "training_macs", "training_seconds", "near_copies",
          "neighbour_distance", "neighbour_distance_held_out")  # fmt: skip
INTERVALS = ("kid", "text_score")


def arm_facts(
    layout: SampledLayout, arm: Arm, cells: Sequence[Mapping[str, Any]], store: Store
) -> dict[str, Any]:  # fmt: skip
    """An arm's numbers over its seeds, and its difference from the reference arm."""
    first = cells[0]
    against = layout.against(arm)
    found = compare(layout, arm, against, store) if arm is not against else None
    return {
        **{name: vars(Spread.of([cell[name] for cell in cells])) for name in SPREAD},
        **{name: vars(Spread.of([cell[name]["value"] for cell in cells])) for name in INTERVALS if name in first},
        "groups": [[group.t_start, group.t_stop] for group in layout.cell(arm, layout.seeds[0]).graph.plan.groups],
        "group_test_loss": [
            None if first["group_test_loss"][g] is None else Spread.of([c["group_test_loss"][g] for c in cells]).mean
            for g in range(len(first["group_test_loss"]))
        ],
        **{key: first[key] for key in ("num_inference_steps", "active_parameters", "resident_parameters",
                                       "training_images")},
        "seconds_per_image": _seconds_per_image(layout, arm, store),
        "difference": None if found is None else {**vars(found), "relation": found.relation},
    }  # fmt: skip


def compare(layout: SampledLayout, arm: Arm, against: Arm, store: Store) -> Difference:
    """An arm against another, over all seeds."""
    observed, resampled = [], []
    for seed in layout.seeds:
        step = layout.resamples[seed]
        store.check(step)
        distances = np.load(store.folder(step) / RESAMPLED, allow_pickle=False)  # [A, B]
        order = store.record(step).result["arms"]
        resampled.append(distances[order.index(arm.key)] - distances[order.index(against.key)])
        pair = [layout.cell(which, seed).row.evaluate for which in (arm, against)]
        own, other = (store.record(step).result["frechet"]["value"] for step in pair)
        observed.append(own - other)
    return difference(observed, np.stack(resampled), np.random.default_rng(layout.seeds[0]))


def groups_of(layout: SampledLayout, store: Store) -> list[dict[str, Any]]:
    """What works in each group of the arms that have several, first seed: timesteps, parameters, MACs of a step.

    ``macs`` is None for a group that no sampling step falls into.
    """
    found = []
    for arm in layout.arms:
        cell = layout.cell(arm, layout.seeds[0])
        sampled = store.record(cell.row.sample).result
        active, groups = sampled["active_parameters"], cell.graph.plan.groups
        costs = {route["group"]: route["cost"] for route in sampled["routes"]}
        if len(active) == len(groups) > 1:
            found += [
                {"arm": arm.key, "label": arm.label, "group": i, "t_start": group.t_start, "t_stop": group.t_stop,
                 "parameters": active[i], "macs": costs.get(i)}
                for i, group in enumerate(groups)
            ]  # fmt: skip
    return found


def groups_table(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`groups_of` for the page."""
    columns = (
        [str(line["label"]) for line in groups],
        [str(line["group"]) for line in groups],
        [f"{line['t_start']:g}" for line in groups],
        [f"{line['t_stop']:g}" for line in groups],
        _texts([line["parameters"] for line in groups], 1e3),
        _texts([line["macs"] for line in groups], 1e6),
    )
    return {
        "title": "Sizes by group",
        "lead": "What works at which noise levels, with the first seed; group 0 lies nearest the data. Multiply-"
        "accumulates are of one sampling step.",
        "heads": ["Arm", "group", "from", "to", "parameters, k", "M MACs a step"],
        "lines": [list(line) for line in zip(*columns, strict=True)],
    }


def _texts(sizes: Sequence[float | None], unit: float) -> list[str]:
    """A column's numbers with as many decimals as its largest needs for four digits."""
    largest = max((size for size in sizes if size is not None), default=unit) / unit
    decimals = max(0, 3 - math.floor(math.log10(largest)))
    return ["–" if size is None else f"{size / unit:,.{decimals}f}" for size in sizes]


def _seconds_per_image(layout: SampledLayout, arm: Arm, store: Store) -> float | None:
    for step in layout.timings:
        if f"model[{arm.key}]" in step.inputs:
            return float(store.record(step).result["seconds_per_image"][arm.key])
    return None


def noise(layout: SampledLayout, store: Store) -> dict[str, Any]:
    """The metric's own: real against real, and one network sampled twice."""
    floor = store.record(layout.floor).result
    found = {
        "floor": {"mean": floor["mean"], "deviation": floor["deviation"], "values": floor["values"], "n": floor["n"]},
        "resolution": resolution(floor["deviation"], len(layout.seeds)),
    }
    first = layout.cell(layout.reference, layout.seeds[0]).row.evaluate
    if store.is_done(layout.again) and store.is_done(first):
        found["sampled_twice"] = [store.record(s).result["frechet"]["value"] for s in (first, layout.again)]
    return found


def _snapshots(layout: SampledLayout, store: Store) -> list[dict[str, Any]]:
    return [
        {"arm": cell.arm.key, "seed": cell.seed, "training_images": images,
         "training_macs": _macs_so_far(cell, images, store), "frechet": store.record(step).result["frechet"]["value"]}
        for cell, steps in layout.snapshots.items()
        for images, step in steps.items()
    ]  # fmt: skip


def _macs_so_far(cell: SampledCell, images: int, store: Store) -> float:
    """Of a row that is one training, after some of its images."""
    return spent_macs(cell.row.model, store) * images / cell.row.model.num_images


def cost_to_match(layout: SampledLayout, cells: Sequence[Mapping[str, Any]], store: Store) -> list[dict[str, Any]]:
    """When each arm first reaches the best distance of the arm it is compared with; None where it never does.

    Looked at where there are snapshots, so a cost is known to a snapshot's spacing, from above.
    """
    points: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for point in [*_snapshots(layout, store), *cells]:
        points.setdefault((point["arm"], point["seed"]), []).append(dict(point))
    found = []
    for cell in layout.cells:
        own = sorted(points[cell.arm.key, cell.seed], key=lambda point: point["training_images"])
        rival = points[layout.against(cell.arm).key, cell.seed]
        best = min(point["frechet"] for point in rival)
        first = next((point for point in own if point["frechet"] <= best), None)
        spent = {name: None if first is None else first[name] for name in ("training_images", "training_macs")}
        found.append({"arm": cell.arm.key, "label": cell.arm.label, "seed": cell.seed, "best": best, **spent})
    return found
