"""Method A's comparisons of prunings: TDC training, arXiv:2312.13307, Tables IV, V and VI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from noisewise.workflow.graph import Graph
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.settings import ExistingModel
from noisewise.workflow.store import StepSpec, Store, closure
from noisewise.workflow.study.arms import KINDS, SEARCH, by_importance, language_model, one_group, proposing
from noisewise.workflow.study.cells import Cell
from noisewise.workflow.study.definition import Arm, Own, OwnColumn, Paper, Study
from noisewise.workflow.study.tdc import NEEDS, OTHER_SCALE
from noisewise.workflow.trainings import Trainings

ALONE = {
    "random": ("4.9", "6.02 G", "40 M"),
    "magnitude": ("4.6", "6.29 G", "40 M"),
    "Taylor": ("4.7", "5.90 G", "40 M"),
    "Diff-Pruning": ("4.4", "5.88 G", "40 M"),
}
INSIDE = {
    "random": ("3.95", "6.71 G", "46.6 M"),
    "magnitude": ("3.88", "6.75 G", "47.3 M"),
    "Taylor": ("3.90", "6.20 G", "45.3 M"),
    "Diff-Pruning": ("3.85", "6.82 G", "46.1 M"),
}
COLUMNS = ("FID", "MACs a call", "parameters")
PROXY = "the paper's proxy, GPT-4"


def _table_5(recipe: Recipe) -> Sequence[Arm]:
    one = one_group(recipe)
    search = {**one, **proposing(recipe, "evolution")}
    return (
        Arm("base, not pruned", "base", one, "before any fine-tuning", ("4.08", "8.14 G", "52.5 M")),
        Arm("base, trained on", "base-continued", one, "not pruned, on as many images as the pruned ones"),
        *_methods(recipe, one, search, ALONE),
        *_from_scratch(recipe, search),
    )


def _methods(
    recipe: Recipe,
    shared: Mapping[str, Any],
    search: Mapping[str, Any],
    paper: Mapping[str, tuple[str, ...]],
    prefix: str = "",
) -> list[Arm]:
    """Every way to prune: importances alone, the search, and the language model where there is one."""
    notes = {"random": "random channels", "Diff-Pruning": "Taylor importances at some timesteps"}
    plain = [
        Arm(prefix + label, "tdc", {**shared, **by_importance(recipe, kind)}, notes.get(label, ""), paper[label])
        for label, kind in KINDS.items()
    ]
    searched = Arm(prefix + SEARCH, "tdc", search, "widths by search, channels by the recipe's importance")
    return [*plain, searched, *language_model(recipe, prefix, overrides=dict(shared))]


def _from_scratch(recipe: Recipe, search: Mapping[str, Any]) -> list[Arm]:
    """The searched network with fresh weights, on growing numbers of images."""
    if isinstance(recipe.model, ExistingModel) or recipe.finetune is None:
        return []
    once, base = recipe.finetune.num_images, recipe.base.num_images
    paper = {"1x": "89.1", "4x": "16.8", "the base's images": "5.1"}
    counts = {"1x": once, "4x": 4 * once, "the base's images": base}
    return [
        Arm(
            f"from scratch, {label}",
            "single-stage",
            {**search, "method": "single-stage", "single_stage": {"architecture": "experts", "num_images": number}},
            "the searched network's shape, fresh weights",
            (paper[label], "5.71 G", "38.7 M"),
        )
        for label, number in counts.items()
    ]


def _table_6(recipe: Recipe) -> Sequence[Arm]:
    search = proposing(recipe, "evolution")
    return (
        Arm("base, trained on", "base-continued", search, "not pruned, no groups", ("4.08", "8.14 G", "52.5 M")),
        *_methods(recipe, {}, search, INSIDE, "TDC, "),
    )


# ---- what is measured besides


def _after_pruning(arm: Arm, graph: Graph) -> Mapping[str, StepSpec]:
    """Held-out loss of the pruned networks as they are cut, on the draws that every network of the study sees."""
    if arm.row != "tdc":
        return {}
    t = Trainings(graph.recipe, graph.base)
    cut = t.assemble("pruned", {group: t.pruned(group) for group in graph.base.trained_groups})
    return {"after_pruning": t.loss(cut, "pruned")}


def _pruning_numbers(cell: Any, store: Store) -> dict[str, float | None]:
    after = cell.own.get("after_pruning")
    spent = seconds_by_work(cell.row.training, store)
    return {
        "loss_after_pruning": None if after is None else store.record(after).result["mean"],
        "pruning_seconds": spent["pruning"] if after is not None else None,
        "stage_2_seconds": spent["stage 2"] if cell.arm.row != "base" else None,
    }


def seconds_by_work(steps: Sequence[StepSpec], store: Store) -> dict[str, float]:
    """Seconds of the steps behind a network: stage 1, pruning, of which language model, stage 2, and the rest."""
    spent = dict.fromkeys(("stage 1", "pruning", "language model", "stage 2", "rest"), 0.0)
    for step in steps:
        record = store.record(step)
        if step.action == "train":
            kind = "stage 1" if step.name == "base" else "stage 2"
            spent[kind] += record.result["training_seconds"]
            spent["rest"] += max(0.0, record.seconds - record.result["training_seconds"])
        elif step.action == "prune":
            spent["pruning"] += record.seconds
            spent["language model"] += record.result.get("proposer", {}).get("seconds", 0.0)
        else:
            spent["rest"] += record.seconds
    return spent


PRUNING = Own(
    columns=(
        OwnColumn("loss_after_pruning", "Loss on held-out images", "right after pruning", "",
                  "Held-out loss over all t before any fine-tuning, on the same draws as the loss beside it.",
                  "thousandths", 4),
        OwnColumn("pruning_seconds", "Seconds", "pruning", "s", "Importances, proposals and their scores, all groups."),
        OwnColumn("stage_2_seconds", "Seconds", "training after", "s",
                  "Training that follows the pruning, all groups; from scratch: the whole training."),
    ),
    steps=_after_pruning,
    numbers=_pruning_numbers,
)  # fmt: skip


def _table_4(recipe: Recipe) -> Sequence[Arm]:
    return (
        Arm("importances alone", "tdc", by_importance(recipe, recipe.prune.importance)),
        Arm(SEARCH, "tdc", proposing(recipe, "evolution")),
        *language_model(recipe),
    )


def _whole_method(arm: Arm, graph: Graph) -> Mapping[str, StepSpec]:
    return {"model": next(row.model for row in graph.rows if row.id == arm.row)}


def _times(cell: Cell, store: Store) -> dict[str, float | None]:
    spent = seconds_by_work(closure([cell.own["model"]]), store)
    total = sum(spent.values()) - spent["language model"]
    asked = cell.graph.recipe.prune.proposer.kind == "llm"
    return {
        "total": total,
        "stage_1": spent["stage 1"],
        "pruning": spent["pruning"],
        "language_model": spent["language model"] if asked else None,
        "stage_2": spent["stage 2"],
        "rest": spent["rest"],
        "pruning_share": 100 * spent["pruning"] / total if total else None,
    }


def _seconds(name: str, title: str, definition: str) -> OwnColumn:
    return OwnColumn(name, "Seconds", title, "s", definition)


TIMES = Own(
    columns=(
        _seconds("total", "whole method", "All steps behind the method's network, one after the other."),
        _seconds("stage_1", "stage 1", "Training of the base, which arms share: counted for each."),
        _seconds("pruning", "pruning", "Importances, proposals and their scores, all groups."),
        _seconds("language_model", "of which replies", "Waiting for the language model's replies."),
        _seconds("stage_2", "stage 2", "Fine-tuning of all groups."),
        _seconds("rest", "rest", "Loading, saving, checksums, assembling."),
        OwnColumn("pruning_share", "Share", "pruning", "%", "Pruning's share of the whole."),
    ),
    steps=_whole_method,
    numbers=_times,
    compared="total",
    quantity="seconds of the whole method",
)

STUDIES = (
    Study(
        "tdc-table4",
        "Where the time goes",
        "What share of the method's time goes into choosing widths?",
        NEEDS,
        _table_4,
        "importances alone",
        Paper("TDC, Table IV, in thousand seconds", ("total", "GPT-4", "fine-tuning"),
              "Other networks, data and machines: only shares compare. Seconds are those of the attempt that finished "
              "a step, so they are comparable where no step was interrupted and none ran beside another (--jobs 1).",
              (("TDC with GPT-4", "342", "0.078", "190"), ("OMS-DPM, a search", "> 3800", "", ""))),
        figures=("times",),
        own=TIMES,
        sampled=False,
    ),
    Study(
        "tdc-table5",
        "Pruning alone",
        "At one budget and equal fine-tuning, which pruning of one network for all timesteps keeps the most?",
        NEEDS,
        _table_5,
        "random",
        Paper("TDC, Table V: CIFAR-10, 25k steps after pruning (from scratch: 25k, 100k, 500k), FID", COLUMNS,
              OTHER_SCALE, ((PROXY, "4.2", "5.71 G", "38.7 M"),), effect=0.7 / 4.9),
        own=PRUNING,
    ),
    Study(
        "tdc-table6",
        "Pruning inside TDC",
        "Does it matter for the whole method how its experts are pruned?",
        NEEDS,
        _table_6,
        "TDC, random",
        Paper("TDC, Table VI: CIFAR-10, FID", COLUMNS, OTHER_SCALE + " Even random pruning inside TDC beats the base "
              "there, so that most of the gain is grouping and fine-tuning.",
              ((PROXY, "3.76", "6.56 G", "48.7 M"),), effect=0.19 / 3.95),
        own=PRUNING,
    ),
)  # fmt: skip
