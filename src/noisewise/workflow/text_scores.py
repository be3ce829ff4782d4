"""How well sampled images show the captions they were told, by a CLIP model of the user's: the step `text-score`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisewise.errors import SettingError
from noisewise.workflow import measure
from noisewise.workflow.conditioning import has_captions
from noisewise.workflow.machine import device
from noisewise.workflow.prompts import in_turn
from noisewise.workflow.store import StepSpec, Store

if TYPE_CHECKING:
    from noisewise.data.images import Images
    from noisewise.workflow.executor import Job
    from noisewise.workflow.foundation import Foundation
    from noisewise.workflow.recipe import Recipe

SAMPLE = "sample["  # of a row among the step's inputs, closed by "]"
Result = dict[str, Any]


def text_score_step(recipe: Recipe, base: Foundation, samples: Mapping[str, StepSpec]) -> StepSpec | None:
    """One step for all ``samples``, by the name of their row; None where the user gives no encoder."""
    encoder = encoder_of(recipe)
    if encoder is None:
        return None
    from noisewise.evaluation.text_score import folder_checksum

    settings = {
        "encoder": str(encoder),
        "checksum": folder_checksum(encoder),
        "data": base.data.fingerprint,
        "captions": base.data.captions,
        "num_images": recipe.sample.num_images,
        "seed": recipe.sample.seed,
        "evaluate": recipe.evaluate.model_dump(mode="json", include={"num_threads"}),
    }
    return StepSpec(
        "text-score", "text_score", settings, {f"{SAMPLE}{row}]": sample for row, sample in samples.items()}
    )


def encoder_of(recipe: Recipe) -> Path | None:
    """The encoder's folder; one that nothing would look at is refused."""
    encoder = recipe.evaluate.text_image_encoder
    if encoder is not None and not has_captions(recipe):
        raise SettingError(
            f"evaluate.text_image_encoder: {encoder} given, and the images are used without captions; set "
            "data.caption_column"
        )
    return encoder


def text_score(job: Job) -> Result:
    """Every row's images, and the real ones they are compared with, against the captions of the latter."""
    from noisewise.evaluation.text_score import folder_checksum

    settings = job.settings
    encoder = Path(settings["encoder"])
    if folder_checksum(encoder) != settings["checksum"]:
        raise SettingError(
            f"evaluate.text_image_encoder: {encoder} changed while the run was under way; give the same command again"
        )
    held_out = measure.chosen(job.dataset().test, settings["num_images"], settings["seed"])
    rows = [role[len(SAMPLE) : -1] for role in job.step.inputs if role.startswith(SAMPLE)]
    images = {row: np.load(job.input(f"{SAMPLE}{row}]") / measure.IMAGES, allow_pickle=False) for row in rows}
    real, *found = scores(encoder, held_out, *images.values())
    return {"real": real, "rows": dict(zip(rows, found, strict=True))}


def scores(encoder: Path, real: Images, *sampled: np.ndarray) -> list[Result]:
    """Scores of real images, then of sets of sampled ones, all against the real ones' captions in turn."""
    from noisewise.evaluation.text_score import TextImageEncoder, text_score

    assert real.captions is not None  # settings without captions are refused
    loaded = TextImageEncoder(encoder, device=device())
    sets = (np.asarray(real.pixels), *sampled)
    return [text_score(loaded, images, in_turn(real.captions, len(images))).to_dict() for images in sets]


# ---- results


def scored(step: StepSpec | None, store: Store, row_id: str | None) -> Result:
    """A row's part of `results.json`, or without a row that of the real images; empty where no step scores."""
    if step is None:
        return {}
    found = store.record(step).result
    return {"text_score": as_interval(found["real"] if row_id is None else found["rows"][row_id])}


def as_interval(found: Mapping[str, Any]) -> dict[str, Any]:
    """A score with its 95 % interval over the images, and what encoded them."""
    from noisewise.evaluation.metrics import Z_95

    half = None if found["standard_error"] is None else Z_95 * found["standard_error"]
    low, high = (None, None) if half is None else (found["value"] - half, found["value"] + half)
    return {"value": found["value"], "low": low, "high": high}


def about(step: StepSpec | None, store: Store) -> Result:
    """What the scores are of, as the metric's part of `results.json` has it."""
    if step is None:
        return {}
    real = store.record(step).result["real"]
    return {"text_encoder": {key: real[key] for key in ("encoder", "encoder_sha256", "resize")}}
