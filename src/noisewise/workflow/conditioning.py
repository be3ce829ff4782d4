"""What a recipe says about labels and guidance, and what follows from it for steps and their cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from noisewise.data.settings import LatentDtype
from noisewise.errors import SettingError
from noisewise.planning.plan import Plan
from noisewise.planning.routes import RouteTable
from noisewise.workflow.plan_settings import Section

if TYPE_CHECKING:
    from noisewise.sampling.guidance import Guidance
    from noisewise.workflow.recipe import Recipe

GUIDANCE = "guidance"  # among a step's settings, where there is any
BESIDE_SAMPLE = {"scheduler", "num_inference_steps", "guidance_scale"}  # of `sample`, what stands beside it in a step


class ConditioningSettings(Section):
    """What the networks are told besides the noisy image (`data.conditional`, `data.caption_column`)."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability with which a training image's label or caption is dropped, for classifier-free guidance; 0.1 is
    usual."""
    dtype: LatentDtype = "float16"
    """Number format of the encoded captions in their cache."""
    encode_batch_size: int = Field(default=64, ge=1)
    """Captions encoded at once."""


def scales_of(scale: float | tuple[float, ...]) -> tuple[float, ...]:
    """A setting of one guidance scale or several as a tuple."""
    return scale if isinstance(scale, tuple) else (scale,)


def is_guided(scale: float | tuple[float, ...]) -> bool:
    return any(each != 1 for each in scales_of(scale))


def check_conditioning(recipe: Recipe) -> None:
    """Raise ValueError where labels, their dropout and guidance do not go together."""
    dropout, scale = recipe.conditioning.dropout, recipe.sample.guidance_scale
    for name, asks, given in (
        ("conditioning.dropout", dropout > 0, dropout),
        ("sample.guidance_scale", is_guided(scale), scale),
    ):
        if asks and not is_told(recipe):
            raise ValueError(
                f"{name}: {_plain(given)} given, and the images are used without labels or captions; set "
                "data.conditional or data.caption_column"
            )
    for name in ("dtype", "encode_batch_size"):
        value = getattr(recipe.conditioning, name)
        if value != ConditioningSettings.model_fields[name].default and not has_captions(recipe):
            raise ValueError(f"conditioning.{name}: {value} given; it is for captions, which data.caption_column names")
    if is_guided(scale) and dropout == 0:
        raise ValueError(
            f"sample.guidance_scale: {_plain(scale)} given, and no labels are dropped in training; guidance needs "
            "conditioning.dropout, 0.1 for one"
        )
    if is_guided(scale) and "deepcache" in recipe.rows:
        raise ValueError("compare: deepcache is sampled without guidance; leave it out, or sample.guidance_scale")
    if recipe.plan.path is None and len(scales_of(scale)) not in (1, recipe.plan.groups):
        raise ValueError(
            f"sample.guidance_scale: {len(scales_of(scale))} values given, the plan has {recipe.plan.groups} groups; "
            "give one for each, or one for all"
        )


def has_captions(recipe: Recipe) -> bool:
    """Whether networks are told captions."""
    return getattr(recipe.data, "caption_column", None) is not None


def is_told(recipe: Recipe) -> bool:
    """Whether networks are told labels or captions."""
    return recipe.data.conditional or has_captions(recipe)


def check_null_class(recipe: Recipe, model: Any) -> None:
    """Refuse dropped labels where an existing network has nothing to put in their place."""
    from noisewise.models.labels import null_class_of

    if recipe.conditioning.dropout > 0 and recipe.data.conditional:
        null_class_of(model, f"conditioning.dropout: {recipe.conditioning.dropout} given")


def check_classes(model: Any, num_classes: int | None) -> None:
    """An existing network has to know as many classes as the data has.

    Args:
        num_classes: None where labels are not used.
    """
    from noisewise.models.labels import classes_of

    found = classes_of(model)
    known = None if found is None else found.num_classes
    if known != num_classes:
        raise SettingError(
            f"data.conditional: the network in model.from has {known or 'no'} classes, the data gives "
            f"{num_classes or 'none'}"
        )


# ---- steps


def guidance_settings(scale: float | tuple[float, ...], plan_facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What steps are told of guidance: nothing where there is none, the plan where it has a scale per group."""
    if not is_guided(scale):
        return {}
    plan = dict(plan_facts) if plan_facts is not None and len(scales_of(scale)) > 1 else None
    return {GUIDANCE: {"scale": _plain(scale), "plan": plan}}


def guidance_of(settings: Mapping[str, Any]) -> Guidance:
    """The guidance that a step's settings ask for."""
    from noisewise.sampling.guidance import Guidance

    found = settings.get(GUIDANCE)
    if found is None:
        return Guidance()
    return Guidance.of(found["scale"], None if found["plan"] is None else Plan.from_dict(found["plan"]))


def guided_routes(routes: RouteTable, guidance: Guidance) -> RouteTable:
    """The same steps, each at the cost of all its calls of the network."""
    return RouteTable(tuple(replace(step, cost=step.cost * guidance.calls_at(step.t)) for step in routes.steps))


def _plain(scale: float | tuple[float, ...]) -> float | list[float]:
    return list(scale) if isinstance(scale, tuple) else scale
