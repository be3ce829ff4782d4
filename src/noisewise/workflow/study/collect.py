"""All numbers of a study in one place: `results.json`, from the steps' records."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noisewise.workflow import provenance
from noisewise.workflow.results import spent_macs
from noisewise.workflow.store import Record, StepSpec, Store, utc_now
from noisewise.workflow.study.definition import Arm
from noisewise.workflow.study.layout import Cell, Layout
from noisewise.workflow.study.statistics import Difference, Spread, difference, resolution
from noisewise.workflow.study.steps import RESAMPLED

FORMAT = 1
FEATURE_STEPS = ("evaluate", "reference", "floor")
KINDS = {"loss": "held-out losses", "prune": "pruning", "neighbours": "nearest neighbours",
         "timing": "sampling", "resample": "resampling for the intervals"}  # fmt: skip


SAVING, WAITING = "loading and saving", "starting and waiting"
OVERHEAD = (SAVING, WAITING)  # what no arm asked for


def collect(layout: Layout, store: Store, commands: Mapping[str, float]) -> dict[str, Any]:
    """`results.json` of a finished study.

    Args:
        commands: seconds of this command's own work outside steps, by what it was.
    """
    study = layout.study
    cells = [_cell(cell, store) for cell in layout.cells]
    reference = store.record(layout.reference_step).result
    arms = [_arm(layout, arm, [cell for cell in cells if cell["arm"] == arm.key], store) for arm in layout.arms]
    return {
        "format": FORMAT,
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "created": utc_now(),
        "command": provenance.command(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "recipe": layout.recipe.to_dict(),
        "data": _data(layout),
        "seeds": list(layout.seeds),
        "reference": layout.reference.key,
        "paper": {"source": study.paper.source, "columns": list(study.paper.columns), "limits": study.paper.limits,
                  "others": [list(other) for other in study.paper.others]},
        "axis": study.axis,
        "match": cost_to_match(layout, cells, store) if study.cost_to_match else [],
        "figures": list(study.figures),
        "metric": {"name": reference["metric"], "n": reference["n"], "provenance": reference["frechet"],
                   **noise(layout, store)},
        "arms": arms,
        "cells": cells,
        "snapshots": _snapshots(layout, store),
        "timing": timing(layout.steps, store, commands),
        "warnings": sorted({note for cell in layout.cells for note in cell.graph.base.notes}
                           | {flag for cell in cells for flag in cell["flags"]}),
    }  # fmt: skip


def _data(layout: Layout) -> dict[str, Any]:
    data = layout.cells[0].graph.data
    names = ("name", "num_train", "num_test", "size", "channels", "num_classes", "fingerprint")
    return {name: getattr(data, name) for name in names}


def _cell(cell: Cell, store: Store) -> dict[str, Any]:
    """The numbers of one arm with one seed."""
    sampled, evaluated = store.record(cell.row.sample).result, store.record(cell.row.evaluate).result
    loss, near = store.record(cell.row.loss).result, store.record(cell.neighbours).result
    training = cell.row.training
    return {
        "arm": cell.arm.key,
        "label": cell.arm.label,
        "seed": cell.seed,
        "row": cell.arm.row,
        "frechet": evaluated["frechet"]["value"],
        "kid": {key: evaluated["kid"][key] for key in ("value", "low", "high")},
        "test_loss": loss["mean"],
        "group_test_loss": loss["groups"],
        **{key: sampled[key] for key in ("macs_per_image", "num_inference_steps", "active_parameters")},
        "resident_parameters": sampled["resident_parameters"],
        "training_images": sum(step.num_images for step in training),
        "training_macs": sum(spent_macs(step, store) for step in training),
        "training_seconds": sum(store.record(step).seconds for step in training),
        "near_copies": near["near_copies"],
        "neighbour_distance": near["median"],
        "neighbour_distance_held_out": near["held_out_median"],
        "flags": evaluated["frechet"]["flags"],
        "steps": {"model": cell.row.model.id, "sample": cell.row.sample.id, "evaluate": cell.row.evaluate.id},
    }


SPREAD = ("frechet", "test_loss", "macs_per_image", "training_macs", "training_seconds", "near_copies",
          "neighbour_distance", "neighbour_distance_held_out")  # fmt: skip


def _arm(layout: Layout, arm: Arm, cells: Sequence[Mapping[str, Any]], store: Store) -> dict[str, Any]:
    """An arm's numbers over its seeds, and its difference from the reference arm."""
    first = cells[0]
    against = layout.against(arm)
    found = compare(layout, arm, against, store) if arm is not against else None
    return {
        "key": arm.key,
        "label": arm.label,
        "note": arm.note,
        "row": arm.row,
        "overrides": dict(arm.overrides),
        "paper": list(arm.paper),
        "x": arm.x,
        "line": arm.line,
        "against": against.key,
        **{name: vars(Spread.of([cell[name] for cell in cells])) for name in SPREAD},
        "kid": vars(Spread.of([cell["kid"]["value"] for cell in cells])),
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


def compare(layout: Layout, arm: Arm, against: Arm, store: Store) -> Difference:
    """An arm against another, over all seeds."""
    observed, resampled = [], []
    for seed in layout.seeds:
        step = layout.resamples[seed]
        distances = np.load(store.folder(step) / RESAMPLED, allow_pickle=False)  # [A, B]
        order = store.record(step).result["arms"]
        resampled.append(distances[order.index(arm.key)] - distances[order.index(against.key)])
        pair = [layout.cell(which, seed).row.evaluate for which in (arm, against)]
        own, other = (store.record(step).result["frechet"]["value"] for step in pair)
        observed.append(own - other)
    return difference(observed, np.stack(resampled), np.random.default_rng(layout.seeds[0]))


def _seconds_per_image(layout: Layout, arm: Arm, store: Store) -> float | None:
    for step in layout.timings:
        if f"model[{arm.key}]" in step.inputs:
            return float(store.record(step).result["seconds_per_image"][arm.key])
    return None


def noise(layout: Layout, store: Store) -> dict[str, Any]:
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


def _snapshots(layout: Layout, store: Store) -> list[dict[str, Any]]:
    return [
        {"arm": cell.arm.key, "seed": cell.seed, "training_images": images,
         "training_macs": _macs_so_far(cell, images, store), "frechet": store.record(step).result["frechet"]["value"]}
        for cell, steps in layout.snapshots.items()
        for images, step in steps.items()
    ]  # fmt: skip


def _macs_so_far(cell: Cell, images: int, store: Store) -> float:
    """Of a row that is one training, after some of its images."""
    return spent_macs(cell.row.model, store) * images / cell.row.model.num_images


def cost_to_match(layout: Layout, cells: Sequence[Mapping[str, Any]], store: Store) -> list[dict[str, Any]]:
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


def timing(steps: Sequence[StepSpec], store: Store, commands: Mapping[str, float]) -> dict[str, Any]:
    """Where the time went, by kind, whichever command did the steps; and the share outside the three that must be."""
    spent: dict[str, float] = {"training": 0.0, "sampling": 0.0, "feature extraction and distances": 0.0}
    main = tuple(spent)
    number: dict[str, int] = {}
    for step in steps:
        for kind, seconds in _kinds(step, store.record(step)).items():
            spent[kind] = spent.get(kind, 0.0) + seconds
            number[kind] = number.get(kind, 0) + 1
    spent |= {kind: spent.get(kind, 0.0) + seconds for kind, seconds in commands.items()}
    total = sum(spent.values())
    outside = total - sum(spent[kind] for kind in main)
    overhead = sum(seconds for kind, seconds in spent.items() if kind in OVERHEAD)
    return {
        "kinds": [{"kind": kind, "seconds": seconds, "steps": number.get(kind, 0)} for kind, seconds in spent.items()],
        "seconds": total,
        "share_outside": outside / total if total else 0.0,
        "share_overhead": overhead / total if total else 0.0,
    }


def _kinds(step: StepSpec, record: Record) -> dict[str, float]:
    """A step's seconds: what its kind of work took, and the rest (loading, saving, checksums)."""
    if step.action in FEATURE_STEPS:
        return {"feature extraction and distances": record.seconds}
    if step.action in KINDS:
        return {KINDS[step.action]: record.seconds}
    own = {"train": ("training", "training_seconds"), "sample": ("sampling", "seconds")}.get(step.action)
    if own is None:
        return {SAVING: record.seconds}
    worked = min(record.seconds, record.result[own[1]])
    return {own[0]: worked, SAVING: record.seconds - worked}


def csv_of_cells(cells: Sequence[Mapping[str, Any]]) -> str:
    """One line per cell; groups' losses and KID's ends in columns of their own."""
    lines = [_flat(cell) for cell in cells]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(cell: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in cell.items():
        if name == "kid":
            flat |= {"kid": value["value"], "kid_low": value["low"], "kid_high": value["high"]}
        elif name == "group_test_loss":
            flat |= {f"test_loss_group_{i}": loss for i, loss in enumerate(value)}
        elif name == "active_parameters":
            flat[name] = " ".join(str(count) for count in value)
        elif name == "steps":
            flat |= {f"{kind}_step": step for kind, step in value.items()}
        elif name != "flags":
            flat[name] = value
    return flat
