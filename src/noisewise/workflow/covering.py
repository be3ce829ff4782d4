"""What the step `coverage` does: precision and recall of every row and, with classes, their distances one by one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from noisewise.workflow import measure

if TYPE_CHECKING:
    import numpy as np

    from noisewise.data.images import Images
    from noisewise.evaluation.classes import ClassMetric
    from noisewise.evaluation.features import Features
    from noisewise.workflow.executor import Job

Result = dict[str, Any]


def coverage(job: Job) -> Result:
    """Every row's features against the held-out images', and as many training images against them: the floor."""
    from noisewise.evaluation.features import Features

    settings, data = job.settings, job.dataset()
    num_images, num_classes = settings["num_images"], settings.get("num_classes")
    real = measure.load_features(job.input("reference"))
    held_out, training = (measure.chosen(part, num_images, settings["seed"]) for part in (data.test, data.train))
    floor = Features.of(measure.extractor_of(settings), training)
    rows = {
        role[len("evaluate[") : -1]: measure.load_features(job.input(role))
        for role in job.step.inputs
        if role.startswith("evaluate[")
    }
    found: Result = {
        "rows": {row: precision_and_recall(sampled, real) for row, sampled in rows.items()},
        "floor": precision_and_recall(floor, real),
    }
    if num_classes is None:
        return found
    labels = measure.class_labels(num_images, num_classes).numpy()
    metric = metric_per_class(labels, held_out, training, real.values.shape[1])
    for row, sampled in rows.items():
        found["rows"][row]["per_class"] = per_class(metric, sampled, labels, real, held_out)
    found["floor"]["per_class"] = per_class(metric, floor, training.labels, real, held_out)
    return {**found, "classes": {**metric.to_dict(), "names": list(held_out.class_names or ())}}


def precision_and_recall(sampled: Features, real: Features) -> dict[str, Any]:
    """Both shares, with the neighbour that radii reach to; None where there are too few images for it."""
    from noisewise.evaluation.coverage import NEAREST, coverage

    if min(len(sampled), len(real)) <= NEAREST:
        return {"precision": None, "recall": None, "k": NEAREST}
    return {**asdict(coverage(sampled, real)), "k": NEAREST}


def metric_per_class(labels: np.ndarray, held_out: Images, training: Images, num_features: int) -> ClassMetric:
    """The distance that every class has enough sampled, held-out and training images for."""
    from noisewise.evaluation.classes import choose_metric

    assert held_out.labels is not None
    assert training.labels is not None
    sides = {"sampled": labels, "held-out": held_out.labels, "training": training.labels}
    return choose_metric(sides, held_out.class_names or (), num_features)


def per_class(
    metric: ClassMetric, sampled: Features, labels: np.ndarray | None, real: Features, held_out: Images
) -> list[dict[str, Any]]:
    """[K] distances, with intervals where the metric has them."""
    from noisewise.evaluation.classes import class_scores

    assert labels is not None
    assert held_out.labels is not None
    scores = class_scores(metric, sampled, labels, real, held_out.labels)
    return [{key: getattr(score, key) for key in ("metric", "value", "low", "high")} for score in scores]
