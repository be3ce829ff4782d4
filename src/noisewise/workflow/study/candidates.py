"""Method A's comparison of proposers, TDC training, arXiv:2312.13307, Fig. 5: candidates round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noisewise.workflow.graph import Graph
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.steps import read_lines
from noisewise.workflow.store import StepSpec, Store
from noisewise.workflow.study.arms import SEARCH, language_model, one_group, proposing
from noisewise.workflow.study.cells import Cell, Layout
from noisewise.workflow.study.definition import Arm, Own, OwnColumn, Paper, Study
from noisewise.workflow.study.statistics import Spread, paired_difference
from noisewise.workflow.study.tdc import NEEDS
from noisewise.workflow.trainings import Trainings

ROUNDS, CANDIDATES = 5, 3  # the paper's
RANDOM = "random proposals"


def _figure_5(recipe: Recipe) -> Sequence[Arm]:
    one, numbers = one_group(recipe), {"rounds": ROUNDS, "candidates": CANDIDATES}

    def arm(label: str, kind: str, note: str) -> Arm:
        return Arm(label, "tdc", {**one, **proposing(recipe, kind, **numbers)}, note)

    return (
        arm(RANDOM, "random", "every axis at a random legal width"),
        arm("importance variations", "importance", "the solver's answer, then variations of the importances"),
        arm(SEARCH, "evolution", "the solver's answer, an even cut, then children of the best"),
        *language_model(recipe, overrides=one, changes=numbers),
    )


def _pruning(arm: Arm, graph: Graph) -> Mapping[str, StepSpec]:
    """The one search; no network is trained after it."""
    return {"prune": Trainings(graph.recipe, graph.base).pruned(0)}


def _rounds(cell: Cell, store: Store) -> list[dict[str, Any]]:
    """Losses of each round's accepted candidates, from the search's memory bank."""
    from noisewise.pruning.search import BANK

    records = read_lines(store.folder(cell.own["prune"]) / BANK)
    found: list[dict[str, Any]] = []
    best = np.inf
    for number in range(max(record["round"] for record in records) + 1):
        own = [record for record in records if record["round"] == number]
        losses = [record["loss"] for record in own if record["accepted"]]
        best = min([best, *losses])
        known = {"best": min(losses), "mean": float(np.mean(losses)), "worst": max(losses)} if losses else {}
        found.append({
            "arm": cell.arm.key, "label": cell.arm.label, "seed": cell.seed, "round": number,
            **(known or dict.fromkeys(("best", "mean", "worst"))),
            "best_so_far": best, "accepted": len(losses), "proposed": len(own),
        })  # fmt: skip
    return found


def _numbers(cell: Cell, store: Store) -> dict[str, float | None]:
    rounds = _rounds(cell, store)
    record = store.record(cell.own["prune"])
    return {
        "best": rounds[-1]["best_so_far"],
        "first_best": rounds[0]["best"],
        "first_mean": rounds[0]["mean"],
        "last_best": rounds[-1]["best"],
        "last_mean": rounds[-1]["mean"],
        "last_worst": rounds[-1]["worst"],
        "seconds": record.seconds,
    }


def _judged(layout: Layout, store: Store) -> dict[str, dict[str, Any]]:
    """Best candidates against those of random proposals, paired by seed, since all are scored on the same draws."""
    found = {}
    for arm in layout.arms:
        against = layout.against(arm)
        if arm is against or len(layout.seeds) < 2:
            continue
        pairs = [
            [_numbers(layout.cell(which, seed), store)["best"] for which in (arm, against)] for seed in layout.seeds
        ]
        difference = paired_difference([float(own) - float(other) for own, other in pairs])  # type: ignore[arg-type]
        found[arm.key] = {"difference": {**vars(difference), "relation": difference.relation}}
    return found


def _gathered(layout: Layout, store: Store) -> dict[str, Any]:
    """Every round of every arm and seed, and as a table the means over seeds."""
    rounds = [line for cell in layout.cells for line in _rounds(cell, store)]
    lines = []
    for arm in layout.arms:
        for number in sorted({line["round"] for line in rounds if line["arm"] == arm.key}):
            own = [line for line in rounds if (line["arm"], line["round"]) == (arm.key, number)]
            texts = [_spread([line[name] for line in own]) for name in ("best", "mean", "worst", "best_so_far")]
            lines.append([arm.label, str(number + 1), *texts])
    table = {
        "title": "Round by round",
        "lead": "Loss right after pruning of each round's candidates, mean over seeds ± standard deviation; all "
        "candidates of a seed are scored on the same images, noise and timesteps.",
        "heads": ["Arm", "round", "best", "mean", "worst", "best so far"],
        "lines": lines,
    }
    return {"lists": {"rounds": rounds}, "tables": [table]}


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    found = Spread.of(known)
    return f"{found.mean:.4f}" + ("" if found.deviation is None else f" ± {found.deviation:.4f}")


def _loss(name: str, section: str, title: str, definition: str) -> OwnColumn:
    return OwnColumn(name, section, title, "", definition, "thousandths", 4)


PROPOSALS = Own(
    columns=(
        _loss("best", "Loss right after pruning", "best of all", "The least loss of any candidate, on the draws that "
              "all candidates of a seed share."),
        _loss("first_best", "First round", "best", "Best candidate of the first round."),
        _loss("first_mean", "First round", "mean", "Mean of its candidates."),
        _loss("last_best", "Last round", "best", "Best candidate of the last round."),
        _loss("last_mean", "Last round", "mean", "Mean of its candidates."),
        _loss("last_worst", "Last round", "worst", "Worst of its candidates."),
        OwnColumn("seconds", "Seconds", "search", "s", "Importances, proposals and their scores."),
    ),
    steps=_pruning,
    numbers=_numbers,
    gather=_gathered,
    judge=_judged,
    compared="best",
    quantity="loss of the best candidate",
)  # fmt: skip

STUDIES = (
    Study(
        "tdc-figure5",
        "Proposers, round by round",
        "At the same number of measured candidates, does a proposer that learns from the memory bank find better ones?",
        NEEDS,
        _figure_5,
        RANDOM,
        Paper("TDC, Fig. 5, draws best, mean and worst of 3 candidates in 5 rounds at keep ratio 0.7 for GPT-4 and "
              "prints no numbers; it compares with no search", (),
              "Ours are losses right after pruning, before any fine-tuning."),
        figures=("rounds",),
        own=PROPOSALS,
        sampled=False,
    ),
)  # fmt: skip
