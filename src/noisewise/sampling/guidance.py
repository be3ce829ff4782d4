"""Classifier-free guidance (arXiv:2207.12598): away from what the network answers when it is told nothing.

    guided = untold + scale (told - untold)

in the network's own prediction, in which all parametrisations are linear at one noise level. Scale 1 is no guidance
and 0 no condition, each one call of the network; any other takes two, made as one of twice the batch. The scale may
differ from group to group of a plan; which group a noise level belongs to is the plan's to say.

Shapes: B = batch, C = image channels, H, W = height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from noisewise.errors import SettingError
from noisewise.models.calls import denoise
from noisewise.parametrisation import Labels
from noisewise.planning.plan import Plan

SETTING = "sample.guidance_scale"


@dataclass(frozen=True)
class Guidance:
    """Guidance scales: one for all noise levels, or one per group of a plan."""

    scales: tuple[float, ...] = (1.0,)
    plan: Plan | None = None  # of several scales

    @classmethod
    def of(cls, scale: float | Sequence[float], plan: Plan | None = None) -> Guidance:
        """Scales as a setting gives them, checked.

        Args:
            scale: a number, or one for each of the plan's groups, from data to noise.
            plan: the groups; without a use where one scale is given.
        """
        scales = (float(scale),) if isinstance(scale, int | float) else tuple(float(each) for each in scale)
        for each in scales:
            if not 0 <= each < math.inf:
                raise SettingError(f"{SETTING}: {each:g} is not 0 or more")
        if len(scales) == 1:
            return cls(scales)
        given = f"{SETTING}: {len(scales)} values given"
        if plan is None:
            raise SettingError(f"{given}, one per group, and the model has no groups; give one value")
        if len(scales) != len(plan.groups):
            raise SettingError(f"{given}, the plan has {len(plan.groups)} groups; give one for each, or one for all")
        return cls(scales, plan)

    @property
    def is_off(self) -> bool:
        return all(scale == 1 for scale in self.scales)

    def at(self, timestep: Any) -> float:
        """The scale at what the network receives as its timestep."""
        return self.scales[0] if self.plan is None else self.scales[self.plan.group_of_model_timestep(float(timestep))]

    def calls_at(self, t: float) -> int:
        """How often the network is called at a coordinate of the noise schedule: the cost of a step."""
        scale = self.scales[0] if self.plan is None else self.scales[self.plan.group_of(t)]
        return 1 if scale in (0, 1) else 2


def guided(
    model: Callable[..., Any], x_t: torch.Tensor, t: Any, told: Labels, untold: Labels, scale: float
) -> torch.Tensor:
    """A denoiser's guided output, [B, C or 2C, H, W]; a learned variance is that of the condition, as in DiT.

    Args:
        told: class labels [B], or what forward is told, by its arguments' names.
        untold: the same for no condition.
    """
    if scale in (0, 1):
        return denoise(model, x_t, t, *_arguments(told if scale == 1 else untold))
    both = tree_map(lambda one, other: torch.cat([one, other]), told, untold)
    output = denoise(model, torch.cat([x_t, x_t]), t, *_arguments(both))  # [2B, C or 2C, H, W]
    of_told, of_untold = output.chunk(2)
    channels = x_t.shape[1]
    prediction = of_untold[:, :channels] + scale * (of_told - of_untold)[:, :channels]  # [B, C, H, W]
    return torch.cat([prediction, of_told[:, channels:]], dim=1)


def _arguments(told: Labels) -> tuple[torch.Tensor | None, Mapping[str, Any] | None]:
    """Class labels, and all else that forward is told."""
    if not isinstance(told, Mapping):
        return told, None
    return told.get("class_labels"), {name: value for name, value in told.items() if name != "class_labels"}
