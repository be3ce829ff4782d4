"""Can a candidate be trusted by its loss right after pruning? How well scores foretell the loss after fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from noisewise.training.settings import TrainSettings
from noisewise.workflow.graph import Graph
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.store import StepSpec, Store
from noisewise.workflow.study.arms import budget_of, one_group, proposing
from noisewise.workflow.study.cells import Cell, Layout
from noisewise.workflow.study.definition import Arm, Own, OwnColumn, Paper, Study
from noisewise.workflow.study.statistics import difference
from noisewise.workflow.study.tdc import NEEDS, check_stage_2
from noisewise.workflow.trainings import Trainings

NUM_SCHEMES = 30
LENGTHS = (256, 1024, 4096)  # images of a quick fine-tuning
NUM_RESAMPLES = 2000
PAIRED, UNPAIRED = "right after pruning, shared draws", "right after pruning, own draws"
RECOVERED = "after least squares"
IMPORTANCE, AGAIN = "importance lost", "after fine-tuning again"
KNOWN = {PAIRED: "paired", UNPAIRED: "unpaired", IMPORTANCE: "importance", RECOVERED: "recovered"}


def _arms(recipe: Recipe) -> Sequence[Arm]:
    own = recipe.prune.proposer
    counts = {} if own.kind == "random" else {"rounds": 1, "candidates": NUM_SCHEMES}
    shared = {**one_group(recipe), **proposing(recipe, "random", **counts)}
    share = f"at {budget_of(recipe):g} of the base's MACs"

    def arm(label: str, note: str) -> Arm:
        return Arm(label, "tdc", shared, f"{note}, {share}")

    return (
        arm(PAIRED, "what the search goes by: the same images, noise and timesteps for every scheme"),
        arm(UNPAIRED, "as many draws, but other ones for every scheme"),
        arm(IMPORTANCE, "the share of the importances that is cut away: no network is run"),
        arm(RECOVERED, "shared draws, after the layers behind the cuts were fitted to the base's answers"),
        *(arm(_label(n), "shared draws, after a quick training on the same images for all") for n in lengths(recipe)),
        arm(AGAIN, "the whole fine-tuning on other draws: the most that any score could tell"),
    )


def _label(num_images: int) -> str:
    return f"after {num_images:,} images"


def lengths(recipe: Recipe) -> tuple[int, ...]:
    """Quick fine-tunings that are quick beside the recipe's own."""
    check_stage_2(recipe)
    return tuple(length for length in LENGTHS if 2 * length <= recipe.stage_2.num_images)


# ---- steps


def _steps(arm: Arm, graph: Graph) -> Mapping[str, StepSpec]:
    """The schemes and each one's loss after fine-tuning, and what this arm's score needs besides."""
    t = Trainings(graph.recipe, graph.base)
    bank = t.pruned(0)
    schemes = StepSpec(
        "schemes",
        "schemes",
        bank.settings,
        {"source": t.stage_1(), "bank": bank, **graph.base.learned_inputs},
        macs=6 * _score_macs(graph),
    )
    found = {"schemes": schemes}
    macs = graph.base.macs * budget_of(graph.recipe)
    for i in range(_number(graph.recipe)):
        found |= {f"loss[{i}]": _tuned(t, schemes, i, macs, "finetune")}
        if arm.label == AGAIN:
            found |= {f"again[{i}]": _tuned(t, schemes, i, macs, "again")}
        elif arm.label in map(_label, lengths(graph.recipe)):
            found |= {f"probe[{i}]": _probe(t, schemes, i, macs)}
    return found


def _number(recipe: Recipe) -> int:
    return recipe.prune.proposer.rounds * recipe.prune.proposer.candidates


def _score_macs(graph: Graph) -> float:
    """Of scoring all schemes once."""
    proposer = graph.recipe.prune.proposer
    return float(graph.base.macs * _number(graph.recipe) * proposer.num_score_images)


def _tuned(t: Trainings, schemes: StepSpec, scheme: int, macs: float, kind: str) -> StepSpec:
    """Held-out loss of a scheme that went through stage 2; training draws are the same for all schemes."""
    train = t.recipe.stage_2.model_copy(update={"distill_weight": 0.0})
    trained = t.train(f"{kind}[scheme {scheme}]", train, (kind, 0), t.timesteps(0), schemes, macs, scheme=scheme)
    return t.loss(trained, f"{kind} scheme {scheme}")


def _probe(t: Trainings, schemes: StepSpec, scheme: int, macs: float) -> StepSpec:
    quick = [_quick(t.recipe.stage_2, length) for length in lengths(t.recipe)]
    images = sum(train.num_images for train in quick)
    settings = {
        **schemes.settings, "trainings": quick, "scheme": scheme,
        "horizontal_flip": t.recipe.horizontal_flip and t.base.latents is None,
    }  # fmt: skip
    return StepSpec(
        f"probe[scheme {scheme}]",
        "probe",
        settings,
        {"schemes": schemes, **t.base.learned_inputs},
        num_images=images,
        macs=3 * macs * images,
    )


def _quick(train: TrainSettings, num_images: int) -> TrainSettings:
    """Stage 2's settings for a few images: no average of the weights, which would hold them back."""
    changes = {
        "num_images": num_images, "batch_size": min(train.batch_size, num_images), "ema_halflife_images": 0,
        "warmup_images": None, "checkpoint_images": None, "distill_weight": 0.0,
    }  # fmt: skip
    return train.model_copy(update=changes)


# ---- numbers


def _scores(cell: Cell, store: Store) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores and losses after fine-tuning of all schemes that could be cut, [N] each, and seconds a candidate."""
    known = store.record(cell.own["schemes"]).result["schemes"]
    number = range(len(known))
    final = [store.record(cell.own[f"loss[{i}]"]).result["mean"] for i in number]
    label = cell.arm.label
    if label in KNOWN:
        scores = [scheme["scores"][KNOWN[label]] for scheme in known]
        seconds = [scheme["seconds"][KNOWN[label]] for scheme in known]
    elif label == AGAIN:
        steps = [cell.own[f"again[{i}]"] for i in number]
        scores = [store.record(step).result["mean"] for step in steps]
        seconds = [store.record(step).seconds + store.record(step.inputs["model"]).seconds for step in steps]
    else:
        which = [_label(length) for length in lengths(cell.graph.recipe)].index(label)
        records = [store.record(cell.own[f"probe[{i}]"]).result for i in number]
        scores = [record["losses"][which] for record in records]
        seconds = [record["seconds"][which] for record in records]
    return np.array(scores), np.array(final), float(np.mean(seconds))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's, along the last axis: [...]. 0 where either has but one value."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=-1) for values in (one, other)]
    a, b = (values - values.mean(-1, keepdims=True) for values in ranks)
    norm = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.asarray(np.where(norm > 0, (a * b).sum(-1) / np.where(norm > 0, norm, 1), 0.0))


def _numbers(cell: Cell, store: Store) -> dict[str, float | None]:
    scores, final, seconds = _scores(cell, store)
    return {
        "rank_correlation": float(rank_correlation(scores, final)),
        "chosen": float(final[scores.argmin()]),
        "seconds": seconds,
    }


def _judged(layout: Layout, store: Store) -> dict[str, dict[str, Any]]:
    """Intervals by a bootstrap over schemes, the same ones for all arms, and over seeds."""
    own: dict[str, tuple[list[float], np.ndarray]] = {}
    for arm in layout.arms:
        observed, again = [], []
        for seed in layout.seeds:
            scores, final, _ = _scores(layout.cell(arm, seed), store)
            chosen = _chosen(seed, len(final), layout.num_resamples or NUM_RESAMPLES)  # [B, N]
            observed.append(float(rank_correlation(scores, final)))
            again.append(rank_correlation(scores[chosen], final[chosen]))
        own[arm.key] = observed, np.stack(again)
    found = {}
    for arm in layout.arms:
        (observed, resampled), (others, other) = own[arm.key], own[layout.against(arm).key]
        alone = difference(observed, resampled, np.random.default_rng(layout.seeds[0]))
        value: dict[str, Any] = {"own": {"interval": _interval(alone)}}
        if arm is not layout.against(arm):
            gaps = [a - b for a, b in zip(observed, others, strict=True)]
            against = difference(gaps, resampled - other, np.random.default_rng(layout.seeds[0]))
            covers = against.low <= 0 <= against.high
            relation = "no difference shown" if covers else "better" if against.low > 0 else "worse"
            value["difference"] = {**vars(against), "relation": relation}
        found[arm.key] = value
    return found


@cache
def _chosen(seed: int, number: int, num_resamples: int) -> np.ndarray:
    """[B, N] schemes, with repeats."""
    return np.random.default_rng(seed).integers(number, size=(num_resamples, number))


def _interval(found: Any) -> dict[str, float]:
    """A correlation is at most 1, whatever Student's t says."""
    return {"value": found.value, "low": max(found.low, -1.0), "high": min(found.high, 1.0)}


def _gathered(layout: Layout, store: Store) -> dict[str, Any]:
    """Every scheme of every seed by every score, and how far the schemes lie apart."""
    points, lines = [], []
    for cell in layout.cells:
        scores, final, _ = _scores(cell, store)
        points += [
            {"arm": cell.arm.key, "seed": cell.seed, "scheme": i, "score": float(score), "loss": float(loss)}
            for i, (score, loss) in enumerate(zip(scores, final, strict=True))
        ]
        if cell.arm is layout.reference:
            lines.append([
                str(cell.seed), str(len(final)), f"{final.min():.4f}", f"{final.mean():.4f}", f"{final.max():.4f}",
                f"{final.std(ddof=1):.4f}",
            ])  # fmt: skip
    table = {
        "title": "The schemes",
        "lead": "Held-out loss of the random schemes after fine-tuning: where they lie close together, it matters "
        "little which is chosen.",
        "heads": ["Seed", "schemes", "best", "mean", "worst", "deviation"],
        "lines": lines,
    }
    return {"lists": {"points": points}, "tables": [table]}


SCORES = Own(
    columns=(
        OwnColumn("rank_correlation", "Rank correlation", "mean", "", "Spearman's, of the scores with the held-out "
                  "losses after fine-tuning, over the schemes: mean over seeds ± standard deviation."),
        OwnColumn("interval", "Rank correlation", "95 % interval", "", "Of that mean: a bootstrap over schemes and "
                  "seeds, at least as wide as Student's t over the seeds."),
        OwnColumn("chosen", "Its choice", "loss after fine-tuning", "", "Held-out loss, after fine-tuning, of the "
                  "scheme that scores best.", "thousandths", 4),
        OwnColumn("seconds", "Seconds", "a candidate", "s", "To score one candidate; importances, once for all, "
                  "aside.", "milli"),
    ),
    steps=_steps,
    numbers=_numbers,
    gather=_gathered,
    judge=_judged,
    compared="rank_correlation",
    quantity="rank correlation",
    higher_is_better=True,
)  # fmt: skip

STUDIES = (
    Study(
        "pruning-score",
        "Can pruning's score be trusted",
        "How well does a candidate's score right after pruning foretell its loss after fine-tuning?",
        NEEDS,
        _arms,
        PAIRED,
        Paper("TDC does not say how a candidate is scored", (), "Ours are losses of the predicted noise: scores on "
              "training images, losses after fine-tuning on held-out ones."),
        figures=("correlations", "scores"),
        own=SCORES,
        sampled=False,
    ),
)  # fmt: skip
