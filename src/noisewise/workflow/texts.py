"""Recipes whose networks are told captions: what is known before anything runs, and the step that encodes them.

encode-text ─► every step that learns or measures losses, and every one that makes images       (input `text`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.workflow.conditioning import has_captions
from noisewise.workflow.machine import device
from noisewise.workflow.networks import DataInfo, source_of
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.settings import ExistingModel
from noisewise.workflow.store import StepSpec, Store

if TYPE_CHECKING:
    from noisewise.data.images import Dataset
    from noisewise.data.latents import LatentDataset
    from noisewise.data.texts import Texts
    from noisewise.workflow.executor import Job, Runner

ROLE = "text"  # of the encoding step among others' inputs
Result = dict[str, Any]


@dataclass(frozen=True, eq=False)
class TextStage:
    """The text encoder and the encoded captions of a recipe."""

    source: Path  # the pipeline whose text encoders they are
    length: int  # tokens
    macs: int  # of one caption
    encode: StepSpec


def text_stage(recipe: Recipe, data: DataInfo, model: Any) -> TextStage | None:
    """Everything that is known before anything runs; None where networks are told no captions.

    Args:
        model: the base, which has to be told what the text encoder gives.
    """
    from noisewise.models.networks import describe

    network, source = describe(model), None
    if isinstance(recipe.model, ExistingModel):
        source = source_of(recipe.model)
    if not has_captions(recipe):
        _check_untold(recipe, source, network.name, network.conditions)
        return None
    given = f"data.caption_column: {recipe.data.caption_column} given"  # type: ignore[union-attr]  # looked at above
    if not network.conditions or source is None:
        raise SettingError(f"{given}; a {network.name} takes no text, set model.from to a pipeline that does")
    from noisewise.models.text import TextEncoder, reads_text, text_fingerprint

    if not reads_text(source):
        raise SettingError(f"{given}, and model.from: {source} has no text encoder; give the folder of a pipeline")
    described = TextEncoder.describe(source, data.size)
    described.check_denoiser(model.config)
    macs, settings = described.macs(), recipe.conditioning
    facts = {
        "from": str(source),
        "checksum": text_fingerprint(source),
        "data": data.fingerprint,
        "captions": data.captions,
        "dtype": settings.dtype,
        "batch": settings.encode_batch_size,
        **({} if described.pooled_width is None else {"image_size": data.size}),
    }
    most = data.num_train + data.num_test  # captions may be alike
    return TextStage(
        source, described.length, macs, StepSpec("encode-text", "encode_text", facts, macs=float(macs * most))
    )


def _check_untold(recipe: Recipe, source: Path | None, name: str, conditions: tuple[str, ...]) -> None:
    """Refuse a network that is told text where the data has none."""
    if not conditions:
        return
    what = f"model.from: {source} is told text, a {name} takes {' and '.join(conditions)}"
    if not hasattr(recipe.data, "caption_column"):
        raise SettingError(f"{what}; data.kind: {recipe.data.kind} has no captions, use folder or parquet")
    raise SettingError(f"{what}; set data.caption_column, the column of metadata.csv or of the parquet with captions")


# ---- steps


def encode(job: Job) -> Result:
    """What the denoiser is told of every caption, once."""
    from noisewise.data.captions import captions_sha256
    from noisewise.data.text_files import captions_of, write_texts
    from noisewise.models.text import TextEncoder

    settings, images = job.settings, job.dataset()
    halves = captions_of(images)
    encoder = TextEncoder.from_pretrained(settings["from"], settings.get("image_size"))
    for what, then, now in (
        ("captions", settings["captions"], captions_sha256(halves)),
        ("text encoder", settings["checksum"], encoder.fingerprint),
    ):
        if then != now:
            raise SettingError(f"data: the {what} changed while the run was under way; give the same command again")
    encoder.to(device())
    about = write_texts(
        job.workspace,
        images,
        encoder.encode,
        encoder.null(),
        encoder=encoder.fingerprint,
        dtype=settings["dtype"],
        batch_size=settings["batch"],
        progress=lambda done, total: job.update(done, total),
    )
    different = sorted({caption for half in halves for caption in half})
    too_long = sum(tokens > encoder.length for tokens in encoder.num_tokens(different))
    if too_long:
        job.note(f"{too_long:,} of {len(different):,} captions exceed {encoder.length} tokens and are cut off")
    return {
        "fingerprint": encoder.fingerprint,
        "num_captions": about["num_captions"],
        "num_cut_off": too_long,
        "length": encoder.length,
        "dtype": about["dtype"],
        "bytes": about["size"],
    }


def told(learned: Dataset | LatentDataset, encode: StepSpec, runner: Runner) -> Any:
    """What networks learn, with the captions they are told."""
    from dataclasses import replace

    halves: Any = learned
    train, test = runner.texts(encode)
    return replace(halves, train=halves.train.with_texts(train), test=halves.test.with_texts(test))


def telling(sampled: StepSpec, runner: Runner) -> dict[str, Any]:
    """What `sample_images` is told in a sampling step: captions of held-out images in turn; nothing without captions.

    The images are those of the step `reference`, in their order: image i has the caption of the i-th.
    """
    source = sampled.inputs.get(ROLE)
    if source is None:
        return {}
    from noisewise.workflow.measure import order_of

    _, test = runner.texts(source)
    order = order_of(len(test), sampled.settings["sample"]["seed"])
    return {"conditions": _of_images(test, order), "null_conditions": test.of_none(device())}


def _of_images(texts: Texts, order: Any) -> Callable[[range], dict[str, Any]]:
    import torch

    return lambda rows: texts.at(order[torch.tensor(list(rows)) % len(order)], device())


# ---- results


def facts_of(stage: TextStage, store: Store) -> dict[str, Any]:
    """The captions as `results.json` has them: how many, what encoded them, what the cache takes."""
    found = store.record(stage.encode).result
    return {**found, "source": str(stage.source), "macs": stage.macs}


def doubts(results: Mapping[str, Any]) -> list[str]:
    """What a user should know of the captions in `results.json`'s part on them."""
    found = results.get("captions")
    if found is None or not found["num_cut_off"]:
        return []
    return [
        f"{found['num_cut_off']:,} of {found['num_captions']:,} captions exceed the text encoder's {found['length']} "
        "tokens and are cut off"
    ]
