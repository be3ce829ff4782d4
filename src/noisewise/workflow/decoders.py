"""The multi-decoder network that a recipe describes: what each group's way through it costs, known before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.planning.plan import Plan
from noisewise.workflow.networks import building, seeded

if TYPE_CHECKING:
    from diffusers import ModelMixin

KEY = "multi-decoder"  # of such a description among a step's settings


@dataclass(frozen=True, eq=False)
class Decoders:
    """Sizes of a multi-decoder network that starts from scratch."""

    description: Mapping[str, Any]  # config, plan, decoders, share_bottleneck: what `build` takes, as JSON
    macs: tuple[int | None, ...]  # [N] of one forward pass on one image, encoder included; None for an empty group
    parameters: tuple[int, ...]  # [N] that work for each group
    resident: int  # parameters of all groups together

    def network(self, group: int | None = None) -> dict[str, Any]:
        """The description as a step's setting: of the whole network, or of one group's encoder and decoder alone."""
        return {KEY: dict(self.description), **({} if group is None else {"group": group})}


def measure_decoders(
    config: Mapping[str, Any], plan: Plan, facts: Mapping[str, Any], widths: Sequence[Any], share_bottleneck: bool
) -> tuple[Decoders, list[str]]:
    """Build the network without weights and count; widths that do not fit the plan or the norm groups are refused.

    Args:
        facts: the plan as JSON, as steps know it.

    Returns:
        What was counted, and notes for the user.
    """
    import torch

    from noisewise.models.cost import count_macs, count_parameters
    from noisewise.models.networks import describe

    if len(widths) != len(plan.groups):
        raise SettingError(
            f"multi_decoder.decoders: {len(widths)} given, the plan has {len(plan.groups)} groups; each needs one"
        )
    description = {
        "config": dict(config),
        "plan": dict(facts),
        "decoders": [None if g.is_empty else _plain(width) for g, width in zip(plan.groups, widths, strict=True)],
        "share_bottleneck": share_bottleneck,
    }
    with torch.device("meta"):
        model = _build(description)
    macs = tuple(
        None if expert is None else count_macs(expert, describe(expert).example_inputs(expert))
        for expert in model.experts
    )
    notes = [
        f"group {group.index} is empty, so that its decoder in multi_decoder.decoders ({_plain(width)}) is left out"
        for group, width in zip(plan.groups, widths, strict=True)
        if group.is_empty
    ]
    return Decoders(description, macs, tuple(model.active_parameters()), count_parameters(model)), notes


def _plain(width: Any) -> Any:
    return list(width) if isinstance(width, Sequence) else width


def new_multi_decoder(network: Mapping[str, Any], names: tuple[object, ...]) -> ModelMixin:
    """The network that a step's setting describes, with weights that depend on ``names`` alone."""
    with seeded(names):
        model = _build(network[KEY])
    return model if "group" not in network else model.experts[network["group"]]


def _build(description: Mapping[str, Any]) -> Any:
    from noisewise.models.multi_decoder import MultiDecoderUNet2DModel

    with building("multi_decoder"), _under_its_section():
        return MultiDecoderUNet2DModel.build(
            Plan.from_dict(description["plan"]),
            description["decoders"],
            share_bottleneck=description["share_bottleneck"],
            **description["config"],
        )


@contextmanager
def _under_its_section() -> Iterator[None]:
    """The network knows its setting as `decoders`, the recipe as `multi_decoder.decoders`."""
    try:
        yield
    except SettingError as error:
        message = str(error)
        raise SettingError(f"multi_decoder.{message}" if message.startswith("decoders") else message) from None
