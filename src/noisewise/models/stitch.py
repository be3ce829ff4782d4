"""Two networks of different size as one, without training: one serves the noisy end, the other the end at the data.

Two networks trained on the same data agree well enough along a sampling trajectory for one to go on where the other
stops (T-Stitch, arXiv:2402.14167, which gives the small one the first, noisy steps).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from noisewise.errors import SettingError
from noisewise.models.cost import count_macs
from noisewise.models.networks import describe
from noisewise.planning.plan import Plan

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from noisewise.models.experts import ExpertDenoiser
    from noisewise.schedule import NoiseSchedule

End = Literal["noise", "data"]


def stitch(
    small: ModelMixin, large: ModelMixin, schedule: NoiseSchedule, t: float, small_at: End = "noise"
) -> ExpertDenoiser:
    """One denoiser that changes from one network to the other at coordinate ``t``.

    Args:
        small, large: networks of the same images and the same prediction; they are shared, not copied.
        schedule: the noise schedule both were trained with.
        t: where the group at the noise begins: an original training timestep (whole), a sigma or a flow time, within
            the schedule's span.
        small_at: the end that the small network serves.
    """
    from noisewise.models.experts import ExpertDenoiser

    check_pair(small, large)
    cheap, dear = macs_of(small), macs_of(large)
    bounds = Plan.from_bounds(schedule, [t])
    limits = (1.0, cheap / dear) if small_at == "noise" else (cheap / dear, 1.0)
    groups = tuple(replace(group, cost_limit=limits[group.index]) for group in bounds.groups)
    plan = Plan(schedule, groups, bounds.settings, bounds.notes)
    experts = [large, small] if small_at == "noise" else [small, large]
    return ExpertDenoiser([None if g.is_empty else experts[g.index] for g in groups], plan)


def check_pair(small: ModelMixin, large: ModelMixin) -> None:
    """Raise unless the two take and give the same images and the first costs no more than the second."""
    from noisewise.models.experts import ExpertDenoiser

    for name, model in (("SMALL", small), ("LARGE", large)):
        if isinstance(model, ExpertDenoiser):
            raise SettingError(f"stitch: {name} consists of experts already; two single networks can be stitched")
    names = dict.fromkeys([*describe(small).pipeline_attributes, *describe(large).pipeline_attributes])
    for name in names:
        ours, theirs = small.config.get(name), large.config.get(name)
        if ours != theirs:
            raise SettingError(f"stitch: {name} of SMALL is {ours}, of LARGE {theirs}; they have to be the same")
    cheap, dear = macs_of(small), macs_of(large)
    if cheap > dear:
        raise SettingError(f"stitch: SMALL costs {cheap:,} MACs a call, LARGE {dear:,}; give them the other way round")


def macs_of(model: ModelMixin) -> int:
    """MACs of one forward pass on one image."""
    return count_macs(model, describe(model).example_inputs(model))
