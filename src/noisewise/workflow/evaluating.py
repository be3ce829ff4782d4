"""Evaluation of one model outside of any run: distances, precision, recall, and distances by class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.workflow import measure
from noisewise.workflow.conditioning import is_guided, scales_of
from noisewise.workflow.covering import metric_per_class, per_class, precision_and_recall
from noisewise.workflow.single import images_of
from noisewise.workflow.text_scores import encoder_of, scores

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from noisewise.data.images import Dataset
    from noisewise.evaluation.features import Features
    from noisewise.workflow.recipe import Recipe


def evaluate_model(
    folder: Path,
    recipe: Recipe,
    statistics: Path | None = None,
    save_statistics: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Scores of a model's images against a recipe's held-out images, or saved statistics, with provenance."""
    from noisewise.data.load import load_data
    from noisewise.evaluation.features import Features
    from noisewise.evaluation.metrics import frechet_score
    from noisewise.evaluation.statistics import Statistics

    sample = recipe.sample
    encoder_of(recipe)  # refuses one that nothing would look at, before any image is made
    known = None if statistics is None else Statistics.load(statistics)
    data = load_data(recipe.data)
    if known is None and sample.num_images > len(data.test):
        raise SettingError(f"sample.num_images: {sample.num_images} given; there are {len(data.test)} held-out images")
    extractor = measure.extractor_of({"evaluate": recipe.evaluate.model_dump(mode="json")})
    scales = scales_of(sample.guidance_scale)
    images = images_of(
        folder, sample.num_images, sample.scheduler, sample.num_inference_steps, sample.seed, sample.batch_size,
        sample.eta, progress, guidance_scale=scales,
        prompts=_captions(data, recipe),
    )  # fmt: skip
    sampled = Features.of(
        extractor, images, model=folder.name, sampler=sample.scheduler,
        num_inference_steps=sample.num_inference_steps, seed=sample.seed,
        guidance_scale=list(scales) if is_guided(sample.guidance_scale) else None,
    )  # fmt: skip
    if save_statistics is not None:
        Statistics.of(sampled).save(save_statistics)
    if known is not None:
        found = {"frechet": frechet_score(Statistics.of(sampled), known).to_dict(), "kid": None}
        return {**found, **_text_score(images, data, recipe)}
    real = Features.of(extractor, measure.chosen(data.test, sample.num_images, sample.seed))
    return {
        **measure.scores(sampled, real),
        **precision_and_recall(sampled, real),
        **_classes(sampled, real, data, recipe),
        **_text_score(images, data, recipe),
    }


def _captions(data: Dataset, recipe: Recipe) -> tuple[str, ...] | None:
    """Those of the held-out images that samples are compared with, in their order; None where none are used."""
    if data.test.captions is None:
        return None
    return measure.chosen(data.test, recipe.sample.num_images, recipe.sample.seed).captions


def _text_score(images: np.ndarray, data: Dataset, recipe: Recipe) -> dict[str, Any]:
    """How well the images show their captions, and how well the captions' own images do, by the user's encoder."""
    encoder = encoder_of(recipe)
    if encoder is None:
        return {}
    real, sampled = scores(encoder, measure.chosen(data.test, len(images), recipe.sample.seed), images)
    return {"text_score": {**sampled, "real": real}}


def _classes(sampled: Features, real: Features, data: Dataset, recipe: Recipe) -> dict[str, Any]:
    """Distances class by class, where the recipe's data has classes."""
    if data.num_classes is None:
        return {}
    sample = recipe.sample
    held_out, training = (measure.chosen(part, sample.num_images, sample.seed) for part in (data.test, data.train))
    labels = measure.class_labels(sample.num_images, data.num_classes).numpy()
    metric = metric_per_class(labels, held_out, training, real.values.shape[1])
    values = per_class(metric, sampled, labels, real, held_out)
    return {"classes": {**metric.to_dict(), "names": list(data.class_names or ()), "values": values}}
