"""Recipes that learn latents: what is known of the autoencoder before anything runs, and the steps around it.

autoencoder ─► encode ─► every step that learns or measures losses     (input `latents`)
          └──► every step that makes images                            (input `autoencoder`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.evaluation.cost import TRAINING_FACTOR
from noisewise.workflow.latent_settings import ExistingAutoencoder, NewAutoencoder
from noisewise.workflow.machine import process_rank
from noisewise.workflow.networks import DataInfo, building, seeded, source_of, weights_checksum
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.settings import ExistingModel
from noisewise.workflow.store import StepSpec, Store, closure

if TYPE_CHECKING:
    from noisewise.data.latents import LatentDataset
    from noisewise.models.autoencoder import Autoencoder

USUAL_STD = (0.5, 2.0)  # of scaled latents


@dataclass(frozen=True, eq=False)
class LatentStage:
    """The autoencoder and the latents of a recipe."""

    settings: ExistingAutoencoder | NewAutoencoder
    seen: DataInfo  # what networks learn: `channels` and `size` of latents
    factor: int  # image size / latent size
    parameters: int
    encode_macs: int  # of one image
    decode_macs: int
    autoencoder: StepSpec
    encode: StepSpec

    def quality(self, reference: StepSpec, features: dict[str, Any]) -> StepSpec:
        """How well images survive the autoencoder, by the recipe's metric: nothing sampled can be better."""
        names = ("data", "num_images", "seed")
        settings = {
            **features, **{name: reference.settings[name] for name in names}, "batch": self.settings.encode_batch_size
        }  # fmt: skip
        inputs = {"autoencoder": self.autoencoder, "reference": reference}
        macs = 2.0 * settings["num_images"] * (self.encode_macs + self.decode_macs)
        return StepSpec("reconstruction", "reconstruction", settings, inputs, macs=macs)


def settings_of(recipe: Recipe) -> ExistingAutoencoder | NewAutoencoder | None:
    """The recipe's section, or the autoencoder of the pipeline it starts from; None where pixels are learned."""
    if recipe.autoencoder is not None or not isinstance(recipe.model, ExistingModel):
        return recipe.autoencoder
    from noisewise.models.autoencoder import is_latent_pipeline

    is_latent = is_latent_pipeline(source_of(recipe.model))
    return ExistingAutoencoder.model_validate({"from": recipe.model.source}) if is_latent else None


def latent_stage(recipe: Recipe, data: DataInfo) -> LatentStage | None:
    """Everything that is known before anything runs; None where the recipe learns pixels."""
    settings = settings_of(recipe)
    if settings is None:
        return None
    if isinstance(settings, NewAutoencoder):
        described = _new_autoencoder(settings, data)
        step = _training(settings, recipe, data, described)
    else:
        from noisewise.models.autoencoder import describe_autoencoder

        described = describe_autoencoder(settings.source, settings.scaling_factor)
        step = _taking(settings)
    if described.in_channels != data.channels:
        raise SettingError(
            f"autoencoder: it takes images of {described.in_channels} channels, the data has {data.channels}"
            + ("; set data.channels" if hasattr(recipe.data, "channels") else "")
        )
    channels, size, _ = described.latent_shape(data.size)
    encode_macs, decode_macs = macs_of(described, data.shape)
    seen = replace(data, channels=channels, size=size)
    if isinstance(settings, NewAutoencoder):
        macs = TRAINING_FACTOR * (encode_macs + decode_macs) * settings.num_images
        step = replace(step, macs=float(macs))
    turns = 2 if recipe.horizontal_flip else 1
    encode = StepSpec(
        "encode",
        "encode",
        {"data": data.fingerprint, "dtype": settings.dtype, "batch": settings.encode_batch_size, "mirrored": turns > 1},
        {"autoencoder": step},
        macs=float(encode_macs * (turns * data.num_train + data.num_test)),
    )
    parameters = sum(parameter.numel() for parameter in described.model.parameters())
    stage = LatentStage(settings, seen, described.factor, parameters, encode_macs, decode_macs, step, encode)
    return stage


def _new_autoencoder(settings: NewAutoencoder, data: DataInfo) -> Autoencoder:
    import torch

    with torch.device("meta"):
        return build_autoencoder({**settings.network, **_sizes(data)})


def build_autoencoder(config: dict[str, Any], names: tuple[object, ...] = ("autoencoder",)) -> Autoencoder:
    """A new AutoencoderKL whose weights depend on ``names`` alone."""
    from diffusers import AutoencoderKL

    from noisewise.models.autoencoder import Autoencoder

    with building("autoencoder"), seeded(names):
        return Autoencoder(AutoencoderKL(**config))


def _sizes(data: DataInfo) -> dict[str, Any]:
    return {"in_channels": data.channels, "out_channels": data.channels, "sample_size": data.size}


def _training(settings: NewAutoencoder, recipe: Recipe, data: DataInfo, described: Autoencoder) -> StepSpec:
    if isinstance(recipe.model, ExistingModel):
        raise SettingError(
            "autoencoder.kind: kl trains a new autoencoder, whose latents the network in model.from has never seen; "
            "leave the section out to take the pipeline's own, or give `from`"
        )
    facts = {
        "config": {**settings.network, **_sizes(data)},
        "latent_shape": described.latent_shape(data.size),
        "kl_weight": settings.kl_weight,
        "train": settings.training,
        "horizontal_flip": recipe.horizontal_flip,
        "data": data.fingerprint,
        "seed": recipe.seed,
    }
    return StepSpec("autoencoder", "train_autoencoder", facts, num_images=settings.num_images)


def _taking(settings: ExistingAutoencoder) -> StepSpec:
    from noisewise.models.autoencoder import find_autoencoder

    facts: dict[str, Any] = {
        "from": str(settings.source), "checksum": weights_checksum(find_autoencoder(settings.source))
    }  # fmt: skip
    if settings.scaling_factor is not None:
        facts["scaling_factor"] = settings.scaling_factor
    return StepSpec("autoencoder", "take_autoencoder", facts)


def macs_of(described: Autoencoder, shape: tuple[int, int, int]) -> tuple[int, int]:
    """MACs of encoding and of decoding one image of ``shape``."""
    import torch

    from noisewise.models.autoencoder import Half
    from noisewise.models.cost import count_macs

    latents = described.latent_shape(shape[1])
    with building("autoencoder"):
        encode = count_macs(Half(described.model, "encode"), {"sample": torch.zeros(1, *shape)})
        decode = count_macs(Half(described.model, "decode"), {"sample": torch.zeros(1, *latents)})
    return encode, decode


def check_denoiser(recipe: Recipe, model: Any, stage: LatentStage) -> list[str]:
    """An existing denoiser must have learned this autoencoder's latents.

    Returns:
        Notes for the user.
    """
    from noisewise.models.autoencoder import (
        autoencoder_folder,
        describe_autoencoder,
        find_autoencoder,
        is_latent_pipeline,
        latent_statistics,
    )

    assert isinstance(recipe.model, ExistingModel)
    assert isinstance(stage.settings, ExistingAutoencoder)
    config, source, seen = model.config, source_of(recipe.model), stage.seen
    if config.in_channels != seen.channels:
        raise SettingError(
            f"autoencoder: its latents have {seen.channels} channels, the network in model.from takes "
            f"{config.in_channels}; they are not made for each other"
        )
    if isinstance(config.sample_size, int) and config.sample_size != seen.size:
        raise SettingError(
            f"autoencoder: its latents are {seen.size}x{seen.size}, {stage.factor} times smaller than the images, the "
            f"network in model.from is made for {config.sample_size}x{config.sample_size}; set data.image_size: "
            f"{config.sample_size * stage.factor}"
        )
    own_folder = autoencoder_folder(source) if is_latent_pipeline(source) else None
    if own_folder is None:
        return [f"model.from: {source} has no autoencoder, so that nothing tells whether it learned these latents"]
    own = describe_autoencoder(source, setting="model.from")
    given = describe_autoencoder(stage.settings.source, stage.settings.scaling_factor)
    if given.scaling_factor != own.scaling_factor:
        raise SettingError(
            f"autoencoder.scaling_factor: {given.scaling_factor:g}, the network in model.from has learned latents "
            f"scaled by {own.scaling_factor:g}"
        )
    statistics = [latent_statistics(each.model.config, each.channels) for each in (given, own)]
    if statistics[0] != statistics[1]:
        raise SettingError("autoencoder: its shift_factor or latents_mean and latents_std differ from model.from's")
    if weights_checksum(find_autoencoder(stage.settings.source)) != weights_checksum(own_folder):
        return [f"autoencoder: other weights than those of model.from's own autoencoder, {own_folder}"]
    return []


# ---- latents before the run: of plans that look at data


def latents_now(
    stage: LatentStage,
    recipe: Recipe,
    store: Store | None,
    may_work: bool,
    say: Callable[[str], None] | None,
    text: StepSpec | None = None,
) -> LatentDataset:
    """The latents of a recipe whose plan looks at them: its first steps are done now, unless they are done already.

    Args:
        text: the step that encodes captions, where the plan looks at networks that are told them.
    """
    from noisewise.workflow.executor import Runner, default_threads, follow, run_serial
    from noisewise.workflow.texts import told

    steps = closure([stage.encode, *([] if text is None else [text])])
    missing = [] if store is None else [step for step in steps if not store.is_done(step)]
    if store is None or (missing and not may_work):
        raise SettingError(
            f"plan.method: {recipe.plan.method} looks at latents, which `noisewise run RECIPE --only encode` makes"
            f"{' (and encode-text)' if text is not None else ''}; do that first"
        )
    runner = Runner(store, lambda event: None, recipe.data, default_threads(1))
    if missing and say is not None:
        say(f"plan: {recipe.plan.method} looks at latents, so first: {', '.join(step.name for step in missing)}")
    (run_serial if process_rank() == 0 else follow)(steps, runner)
    found = runner.latents(stage.encode)
    return found if text is None else told(found, text, runner)


# ---- results


def facts_of(stage: LatentStage, reconstruction: StepSpec, store: Store) -> dict[str, Any]:
    """The autoencoder as `results.json` has it: what it is, how well it gives images back, what it costs."""
    made, encoded = store.record(stage.autoencoder).result, store.record(stage.encode).result
    seen = stage.seen
    names = ("kind", "fingerprint", "scaling_factor", "parameters", "num_images")
    return {
        **{name: made.get(name) for name in names},
        "source": str(stage.settings.source) if isinstance(stage.settings, ExistingAutoencoder) else None,
        "factor": stage.factor,
        "shape": list(seen.shape),
        "dtype": encoded["dtype"],
        "std": encoded["std"],
        "bytes": encoded["bytes"],
        "encode_macs": stage.encode_macs,
        "decode_macs": stage.decode_macs,
        **store.record(reconstruction).result,
        "samples": "samples/reconstructions.png",
    }


def doubts(results: Mapping[str, Any]) -> list[str]:
    """What a user should know of the latents in `results.json`'s part on them."""
    found = results.get("autoencoder")
    if found is None or USUAL_STD[0] <= found["std"] <= USUAL_STD[1]:
        return []
    return [
        f"the scaled latents' standard deviation is {found['std']:.3g}; noise schedules expect about 1, see "
        "autoencoder.scaling_factor"
    ]
