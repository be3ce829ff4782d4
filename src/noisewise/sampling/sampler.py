"""Images from a denoiser and a scheduler. Image i has a random stream of its own, so it does not depend on its batch.

Shapes: N = images, B = batch, C = image channels, H, W = height and width.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from noisewise.errors import SettingError
from noisewise.models.labels import classes_of, null_class_of
from noisewise.parametrisation import Labels
from noisewise.planning.plan import Plan
from noisewise.sampling.guidance import SETTING, Guidance, guided
from noisewise.streams import stream


@dataclass(frozen=True)
class SampleStep:
    """One call of the model."""

    index: int
    num_steps: int
    t: float  # what the model was called with
    x: torch.Tensor  # [B, C, H, W], after the step, as the scheduler keeps it; after the last, images in about [-1, 1]


def sample_images(
    model: Callable[..., Any],
    scheduler: Any,
    num_images: int,
    *,
    num_inference_steps: int,
    seed: int = 0,
    first_image: int = 0,
    batch_size: int = 128,
    sample_shape: Sequence[int] | None = None,
    class_labels: torch.Tensor | None = None,
    conditions: Callable[[range], Mapping[str, Any]] | None = None,
    null_conditions: Mapping[str, Any] | None = None,
    guidance_scale: float | Sequence[float] = 1.0,
    plan: Plan | None = None,
    eta: float = 0.0,
    device: torch.device | str | None = None,
    progress: Callable[[float], None] | None = None,
    decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Images ``first_image`` to ``first_image + num_images`` of a seed.

    Image i comes from ``stream(seed, "sample", i)`` alone. In another batch size its floats differ by the arithmetic
    of the network's kernels (about 1e-5), so its pixels by at most 1 of 255.

    Args:
        model: a diffusers denoiser, an expert denoiser, or any callable (x_t, t) -> [B, C or 2C, H, W].
        scheduler: a diffusers scheduler; left as it is.
        sample_shape: [C, H, W] of an image; default: what the model's configuration says.
        class_labels: [num_images] int64, for models that take them.
        conditions: gives what else forward is told of a batch, text for one, as `denoise` takes it: asked for its
            positions among the ``num_images``.
        null_conditions: the same of no condition, with one entry: what guidance leads away from.
        guidance_scale: how far to lead away from what the model answers without being told, one value or one per
            group: 1 not at all, 0 nothing is told; see `guidance`. Others need a model that was trained to go without.
        plan: the groups of a scale per group; default: the model's own.
        eta: DDIM's share of fresh noise, 0 to 1.
        device: default: that of the model, which is not moved.
        progress: called after each step with the number of images it amounts to so far.
        decode: latents of a batch, as the scheduler keeps them, to its images in about [-1, 1]; of latent models.

    Returns:
        [num_images, C, H, W] uint8, on the CPU.
    """
    if class_labels is not None and len(class_labels) != num_images:
        raise SettingError(f"class_labels: {len(class_labels)} given for num_images {num_images}")
    if batch_size < 1:
        raise SettingError(f"sample.batch_size: {batch_size} is below 1")
    batches = []
    for start in range(0, num_images, batch_size):
        stop = min(start + batch_size, num_images)
        labels = None if class_labels is None else class_labels[start:stop]
        steps = trajectory(
            model,
            scheduler,
            range(first_image + start, first_image + stop),
            num_inference_steps=num_inference_steps,
            seed=seed,
            sample_shape=sample_shape,
            class_labels=labels,
            conditions=None if conditions is None else conditions(range(start, stop)),
            null_conditions=null_conditions,
            guidance_scale=guidance_scale,
            plan=plan,
            eta=eta,
            device=device,
        )
        for step in steps:
            if progress is not None:
                progress(start + (stop - start) * (step.index + 1) / step.num_steps)
        if not step.x.isfinite().all():
            raise SettingError("sample: the model's images are not finite; its weights may be damaged")
        images = step.x if decode is None else decode(step.x)
        if not images.isfinite().all():
            raise SettingError("sample: the decoded images are not finite; the autoencoder's weights may be damaged")
        batches.append(to_uint8(images))
    return torch.cat(batches) if batches else torch.empty(0, dtype=torch.uint8)


def trajectory(
    model: Callable[..., Any],
    scheduler: Any,
    images: Sequence[int],
    *,
    num_inference_steps: int,
    seed: int = 0,
    sample_shape: Sequence[int] | None = None,
    class_labels: torch.Tensor | None = None,
    conditions: Mapping[str, Any] | None = None,
    null_conditions: Mapping[str, Any] | None = None,
    guidance_scale: float | Sequence[float] = 1.0,
    plan: Plan | None = None,
    eta: float = 0.0,
    device: torch.device | str | None = None,
) -> Iterator[SampleStep]:
    """Denoise some images of a seed as one batch, a step at a time.

    Args:
        images: [B] numbers of the images; the noise of number i comes from ``stream(seed, "sample", i)``, first that
            of the start, then, under a stochastic scheduler, that of its steps.
        class_labels: [B].
        conditions: what else forward is told, by its arguments' names: tensors [B, ...], or mappings of them.

    The other arguments are those of `sample_images`.
    """
    place = torch.device(device) if device is not None else _device_of(model)
    shape = tuple(sample_shape) if sample_shape is not None else _shape_of(model)
    guidance = Guidance.of(guidance_scale, plan or getattr(model, "plan", None))
    told: Labels = None if class_labels is None else class_labels.to(place)  # [B]
    if conditions is None:
        untold: Labels = _untold(model, told, guidance)
    elif told is None:
        told, untold = _told(model, conditions, null_conditions, guidance, len(images), place)
    else:
        raise SettingError("class_labels: given together with other conditions; a model is told one or the other")
    generators = [stream(seed, "sample", i) for i in images]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])  # [B, C, H, W]
    scheduler = copy.deepcopy(scheduler)
    _set_timesteps(scheduler, num_inference_steps)
    options = _step_options(scheduler, eta, generators)
    x = noise.to(place) * getattr(scheduler, "init_noise_sigma", 1.0)  # flow matching's have none: it is 1
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)  # nor do those scale
    learns_variance = getattr(scheduler.config, "variance_type", None) == "learned_range"
    dtype = getattr(model, "dtype", x.dtype)

    # The timesteps stay on the CPU: routers and schedulers look at their values, which must not wait for the device.
    for index, t in enumerate(scheduler.timesteps):
        with torch.no_grad(), _evaluating(model):
            x_in = scale(x, t).to(dtype)
            output = guided(model, x_in, t, told, untold, guidance.at(t)).to(x.dtype)  # [B, C or 2C, H, W]
            if output.shape[1] == 2 * shape[0] and not learns_variance:
                output = output[:, : shape[0]]  # the learned variance, which this scheduler has no use for
            x = scheduler.step(output, t, x, **options).prev_sample
        yield SampleStep(index, len(scheduler.timesteps), float(t), x)


def _untold(model: Any, told: Any, guidance: Guidance) -> torch.Tensor | None:
    """Labels of no class, [B], where guidance asks for them; labels that the model does not know are refused."""
    classes = classes_of(model)
    if classes is not None and told is not None:
        classes.check(told, "class_labels")
    if guidance.is_off:
        return None
    null = null_class_of(model, f"{SETTING}: {', '.join(f'{scale:g}' for scale in guidance.scales)} given")
    if told is None:
        raise SettingError(f"{SETTING}: guidance needs class_labels")
    return torch.full_like(told, null)


def _told(
    model: Any, conditions: Mapping[str, Any], null: Mapping[str, Any] | None, guidance: Guidance, num: int, place: Any
) -> tuple[Labels, Labels]:
    """Conditions, and those of no condition as often, in the model's dtype; the second where guidance asks for them."""
    dtype = getattr(model, "dtype", torch.float32)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(place, dtype) if tensor.is_floating_point() else tensor.to(place)

    told: Labels = tree_map_only(torch.Tensor, moved, dict(conditions))
    if guidance.is_off:
        return told, None
    if null is None:
        raise SettingError(f"{SETTING}: guidance needs null_conditions, what the model is told of no condition")
    return told, tree_map_only(torch.Tensor, lambda one: moved(one).expand(num, *one.shape[1:]), dict(null))


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Floats in [-1, 1], what lies outside clipped, as uint8 on the CPU; any shape, rounded as diffusers does."""
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _set_timesteps(scheduler: Any, num_inference_steps: int) -> None:
    if num_inference_steps < 1:
        raise SettingError(f"sample.num_inference_steps: {num_inference_steps} is below 1")
    try:
        scheduler.set_timesteps(num_inference_steps)
    except (ValueError, IndexError, ArithmeticError, AssertionError) as error:
        raise SettingError(f"sample.num_inference_steps: {num_inference_steps} is refused ({error})") from error


def _step_options(scheduler: Any, eta: float, generators: list[torch.Generator]) -> dict[str, Any]:
    """The arguments of ``scheduler.step`` that this scheduler knows."""
    known = inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"generator": generators} if "generator" in known else {}
    if "eta" in known:
        options["eta"] = eta
    elif eta:
        warnings.warn(f"sample.eta: {eta} is ignored by {type(scheduler).__name__}", stacklevel=3)
    return options


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout off, for the time being."""
    was_training = isinstance(model, torch.nn.Module) and model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def _device_of(model: Any) -> torch.device:
    if isinstance(getattr(model, "device", None), torch.device) and isinstance(model, torch.nn.Module):
        return model.device  # type: ignore[return-value]  # a router may keep parameters elsewhere
    parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _shape_of(model: Any) -> tuple[int, ...]:
    """[C, H, W] from a model's configuration."""
    config = getattr(model, "config", None)
    size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
    if size is None or channels is None:
        raise SettingError("sample_shape: the model's configuration does not say it; give [C, H, W]")
    return (channels, *(size if isinstance(size, tuple | list) else (size, size)))
