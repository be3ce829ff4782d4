"""All numbers of a run in one place: `results.json`, collected from the steps' records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noisewise.evaluation.cost import TRAINING_FACTOR
from noisewise.workflow import provenance, text_scores, texts
from noisewise.workflow.executor import TRAININGS
from noisewise.workflow.graph import Graph, Row
from noisewise.workflow.latents import doubts, facts_of
from noisewise.workflow.steps import read_lines
from noisewise.workflow.store import StepSpec, Store, utc_now
from noisewise.workflow.verdict import verdict

FORMAT = 1
SAME_NETWORK = ("base-fewer-steps", "deepcache")  # as another row's, sampled in another way
CURVE_POINTS = 400  # of the difficulty curve, so that the page stays small


def collect(graph: Graph, store: Store, cached: Mapping[str, bool]) -> dict[str, Any]:
    """`results.json` of a finished run.

    Args:
        cached: by step name, whether the step was done before this command.
    """
    rows = [_row(graph, row, store) for row in graph.rows]
    ideal = None if graph.ideal_loss is None else store.record(graph.ideal_loss).result
    own = next(row for row in graph.rows if row.id == graph.recipe.method)
    costs = _group_costs(graph, store, own)
    reference = store.record(graph.reference).result
    learned = _learned(graph, store)
    flags = {flag for row in graph.rows for flag in store.record(row.evaluate).result["frechet"]["flags"]}
    return {
        "format": FORMAT,
        "name": graph.recipe.name,
        "created": utc_now(),
        "recipe": graph.recipe.to_dict(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "command": provenance.command(),
        "data": _data(graph),
        "metric": {
            "name": reference["metric"],
            "floor": reference["frechet"]["value"],
            "kid_floor": _interval(reference["kid"]),
            "n": reference["n"],
            "provenance": reference["frechet"],
            **covered(store.record(graph.coverage).result["floor"]),
            **text_scores.scored(graph.text_score, store, None),
            **text_scores.about(graph.text_score, store),
        },
        "classes": _classes(graph, store),
        "rows": rows,
        "verdict": verdict(rows, graph.recipe.method),
        "plan": graph.plan.to_dict(),
        "difficulty": _difficulty(graph, costs),
        "group_costs": costs,
        "routes": [{**r, "cost": r["cost"] / graph.base.macs} for r in store.record(own.sample).result["routes"]],
        "loss_per_timestep": _loss_per_timestep(graph, store),
        "ideal_loss": ideal,
        "training_curves": {
            name: points
            for step in graph.steps
            if step.action in TRAININGS
            for name, points in _curves(store, step).items()
        },
        "widths": _widths(graph, store, own),
        "memory_bank": [record for step in _prunings(own) for record in _bank(store, step)],
        "proposals": [_proposals(store, step) for step in _prunings(own)],
        "quality_against_images": _quality(graph, store, rows),
        "timing": [
            {"step": step.name, "seconds": store.record(step).all_seconds, "cached": cached.get(step.name, True)}
            for step in graph.steps
        ],
        "warnings": [
            *graph.base.notes,
            *doubts(learned),
            *texts.doubts(learned),
            *sorted(flags),
            *fallbacks(store, _prunings(own)),
        ],
        **learned,
        "real_samples": "samples/real.png",
        "model": own.model.id,
    }


def _learned(graph: Graph, store: Store) -> dict[str, Any]:
    """What networks learn in place of pixels, and the captions they are told, where they are."""
    reconstruction, latents, text = graph.reconstruction, graph.base.latents, graph.base.text
    found = {}
    if reconstruction is not None and latents is not None:
        found["autoencoder"] = facts_of(latents, reconstruction, store)
    if text is not None:
        found["captions"] = texts.facts_of(text, store)
    return found


def _row(graph: Graph, row: Row, store: Store) -> dict[str, Any]:
    sample, evaluation = store.record(row.sample), store.record(row.evaluate)
    loss = store.record(row.loss).result
    timing = store.record(graph.timing)
    cost = sample.result
    return {
        "id": row.id,
        "label": row.label,
        "note": row.note,
        "frechet": evaluation.result["frechet"]["value"],
        "kid": _interval(evaluation.result["kid"]),
        **covered(store.record(graph.coverage).result["rows"][row.id]),
        **text_scores.scored(graph.text_score, store, row.id),
        "group_test_loss": loss["groups"],
        "test_loss": loss["mean"],
        **{key: cost[key] for key in ("macs_per_image", "num_inference_steps", "active_parameters")},
        "resident_parameters": cost["resident_parameters"],
        "seconds_per_image": timing.result["seconds_per_image"][row.id],
        "training_images": sum(step.num_images for step in row.training),
        "training_macs": sum(spent_macs(step, store) for step in row.training),
        **_method_b_facts(graph, row, store),
        "samples": f"samples/{row.id}.png",
        "provenance": {
            "model": row.model.id,
            **{key: evaluation.result["frechet"][key] for key in ("samples", "reference", "flags")},
            "loss_standard_errors": loss["standard_errors"],
            "seconds_per_image_rounds": timing.result["rounds"][row.id],
            "timed_images": timing.result["num_images"],
            "threads": timing.provenance.get("threads"),
        },
    }


def covered(found: Mapping[str, Any]) -> dict[str, Any]:
    """Precision, recall and the mean distance per class, of a row or of the floor."""
    distances = [each["value"] for each in found.get("per_class", [])]
    mean = {"class_distance": sum(distances) / len(distances)} if distances else {}
    return {"precision": found["precision"], "recall": found["recall"], **mean}


def _classes(graph: Graph, store: Store) -> dict[str, Any] | None:
    """Distances class by class; None for runs without classes."""
    found = store.record(graph.coverage).result
    if "classes" not in found:
        return None
    floor = found["floor"]["per_class"]
    return {
        **found["classes"],
        "metric": floor[0]["metric"] if floor else None,
        "floor": [_interval(each) for each in floor],
        "rows": {row: [_interval(each) for each in one["per_class"]] for row, one in found["rows"].items()},
    }


def _method_b_facts(graph: Graph, row: Row, store: Store) -> dict[str, Any]:
    """What the multi-stage paper's tables say of a row besides, in recipes that have its networks."""
    if not graph.recipe.has_method_b:
        return {}
    found: dict[str, Any] = {"paper_flops": sum(paper_flops(step, store) for step in row.training)}
    picks = [store.record(step).result["num_images"] for step in row.training if step.action == "pick"]
    return found | ({"needed_images": sum(picks)} if picks else {})


def spent_macs(step: StepSpec, store: Store) -> float:
    """What a step behind a network spent; a training by the MACs of the network it really trained."""
    if step.action != "train":
        return step.macs
    teacher = store.record(step.inputs["teacher"]).result["macs"] if "teacher" in step.inputs else 0
    return (TRAINING_FACTOR * _mean_macs(step, store, "macs") + teacher) * step.num_images


def paper_flops(step: StepSpec, store: Store) -> float:
    """Cost of a training as the multi-stage paper counts it: iterations x MACs per forward, arXiv:2312.09181, Sec. 5.

    One image a batch, no backward pass, no attention; 1e15 of them are its PFLOPs.
    """
    if step.action != "train":
        return 0.0
    return step.num_images / step.settings["train"].batch_size * _mean_macs(step, store, "paper_macs")


def _mean_macs(step: StepSpec, store: Store, key: str) -> float:
    """MACs of a forward pass in training; of a joint training the groups' mean, by their shares of its draws."""
    macs = store.record(step).result[key]
    if not isinstance(macs, list):
        return float(macs)
    known = [each for each in macs if each is not None]  # an empty group has none
    return sum(share * each for share, each in zip(step.settings["shares"], known, strict=True))


def _group_costs(graph: Graph, store: Store, own: Row) -> list[float | None]:
    """What each group's network of the recipe's method costs, as a share of the base's MACs."""
    macs = store.record(own.model).result["macs"]
    return [None if each is None else each / graph.base.macs for each in macs]


def _interval(score: Mapping[str, Any]) -> dict[str, Any]:
    return {key: score[key] for key in ("value", "low", "high")}


def _data(graph: Graph) -> dict[str, Any]:
    data = graph.data
    names = ("name", "num_train", "num_test", "size", "channels", "num_classes", "fingerprint")
    return {name: getattr(data, name) for name in names}


def _difficulty(graph: Graph, costs: Sequence[float | None]) -> dict[str, list[float]]:
    """SNR and cost per noise level; decoders of given widths have a cost and no limit."""
    curves = graph.plan.difficulty()
    if graph.recipe.method == "multi-decoder" and graph.base.decoders is not None:
        per_group = [[cost or 0.0] * group.num_timesteps for cost, group in zip(costs, graph.plan.groups, strict=True)]
        curves = {"t": curves["t"], "snr_db": curves["snr_db"], "cost_limit": [x for part in per_group for x in part]}
    num = len(curves["t"])
    keep = np.unique(np.linspace(0, num - 1, min(num, CURVE_POINTS)).round().astype(int))
    return {name: [float(values[i]) for i in keep] for name, values in curves.items()}


def _loss_per_timestep(graph: Graph, store: Store) -> dict[str, list[float]]:
    losses = {row.id: store.record(row.loss).result for row in graph.rows if row.id not in SAME_NETWORK}
    t = next(iter(losses.values()))["t"]
    return {"t": t, **{row_id: loss["bins"] for row_id, loss in losses.items()}}


def _curves(store: Store, step: StepSpec) -> dict[str, list[dict[str, Any]]]:
    """A training's recorded points by its name; those of a joint training also by group, `joint[0]` and so on."""
    lines = read_lines(store.folder(step) / "metrics.jsonl")
    curves = {step.name: [{"images": line["images"], "loss": line["loss"], "bins": line["bins"]} for line in lines]}
    edges = store.record(step).result.get("bin_edges", [])
    for group, (start, stop) in zip(step.settings.get("groups", ()), step.settings.get("ranges", ()), strict=True):
        inside = [i for i in range(len(edges) - 1) if start <= (edges[i] + edges[i + 1]) / 2 < stop]
        means = [_mean([line["bins"][i] for i in inside]) for line in lines]
        curves[f"{step.name}[{group}]"] = [
            {"images": line["images"], "loss": mean, "bins": []} for line, mean in zip(lines, means, strict=True)
        ]
    return curves


def _mean(losses: Sequence[float | None]) -> float | None:
    """Over bins that saw an image."""
    known = [loss for loss in losses if loss is not None]
    return sum(known) / len(known) if known else None


def _prunings(own: Row) -> list[StepSpec]:
    return [step for step in own.training if step.action == "prune"]


def _group_of(step: StepSpec) -> int:
    group = step.settings["names"][-1]
    return group if isinstance(group, int) else -1


def _widths(graph: Graph, store: Store, own: Row) -> list[dict[str, Any] | None]:
    infos: dict[int, Mapping[str, Any]] = {}
    for step in own.training:
        found = store.record(step).result
        if step.action == "prune":
            infos[_group_of(step)] = found
        elif step.action == "decoders":
            infos |= {group: info for group, info in enumerate(found["groups"]) if info is not None}
    return [_kept(group.index, infos.get(group.index)) for group in graph.plan.groups]


def _kept(group: int, info: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Channels that a pruning kept of those there were, per axis."""
    if info is None:
        return None
    axes = {name: [kept, info["full_widths"][name]] for name, kept in info["widths"].items()}
    more = {name: info[name] for name in ("recovery", "time") if info.get(name)}
    return {"group": group, "budget": info["asked"], "achieved": info["macs"] / info["base_macs"], "axes": axes, **more}


def _proposals(store: Store, step: StepSpec) -> dict[str, Any]:
    """Candidates of a group by the proposer they are from, and what a proposer that counts says it used."""
    result = store.record(step).result
    return {"group": _group_of(step), "candidates": result.get("proposed", {}), **result.get("proposer", {})}


def fallbacks(store: Store, prunings: Sequence[StepSpec]) -> list[str]:
    """Groups whose language model did not give all candidates that were asked for."""
    found = []
    for step in prunings:
        counts = store.record(step).result.get("proposed", {})
        asked, total = step.settings["prune"].proposer.kind, sum(counts.values())
        if counts.get(asked, 0) < total:
            found.append(
                f"group {_group_of(step)}: the proposer {asked} gave {counts.get(asked, 0)} of {total} candidates, "
                "the default one the rest"
            )
    return found


def _bank(store: Store, step: StepSpec) -> list[dict[str, Any]]:
    from noisewise.pruning.search import BANK

    return read_lines(store.folder(step) / BANK)


def _quality(graph: Graph, store: Store, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    snapshots = [
        {"strategy": "base", "training_images": images, "frechet": store.record(step).result["frechet"]["value"]}
        for images, step in graph.snapshots.items()
    ]
    rest = [{"strategy": row["id"], **{key: row[key] for key in ("training_images", "frechet")}} for row in rows]
    return snapshots + rest


def all_metrics(graph: Graph, store: Store) -> list[dict[str, Any]]:
    """Every recorded point of every training, each with its step's name: `metrics.jsonl` of the run."""
    return [
        {"step": step.name, **line}
        for step in graph.steps
        if step.action in TRAININGS
        for line in read_lines(store.folder(step) / "metrics.jsonl")
    ]
