"""A multi-decoder network out of a trained one: the encoder whole, a decoder per group cut down to its budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.models.multi_decoder import BOTTLENECK, ENCODER, MultiDecoderUNet2DModel
from noisewise.planning.plan import Plan
from noisewise.pruning.importance import ImportanceKind, Importances
from noisewise.pruning.prune import PruneInfo, prune_to_budget

if TYPE_CHECKING:
    from diffusers import UNet2DModel


def kept_whole(unet: UNet2DModel, share_bottleneck: bool) -> list[str]:
    """``keep`` of a pruning that leaves the encoder as it is: its modules that have channels of their own."""
    embeddings = ("time_proj", "time_embedding", "class_embedding")  # never cut
    paths = [path for path in ENCODER if path not in embeddings]
    return [*paths, BOTTLENECK] if share_bottleneck and unet.mid_block is not None else paths


def prune_decoders(
    unet: UNet2DModel,
    plan: Plan,
    example_inputs: Mapping[str, Any],
    importance: ImportanceKind | Importances = "taylor",
    *,
    budgets: Sequence[float | None] | None = None,
    share_bottleneck: bool = True,
    **settings: Any,
) -> tuple[MultiDecoderUNet2DModel, list[PruneInfo | None]]:
    """Start a multi-decoder network from a trained one: encoder and decoders are its own, the decoders pruned.

    Args:
        unet: the trained network; it stays as it is.
        plan: the groups; importances are computed on each group's own noise levels.
        example_inputs: forward's keywords; MACs are counted for them.
        importance: which channels matter, or scores by axis for all groups.
        budgets: [N] MACs of a group's whole way, encoder and decoder, as fractions of ``unet``'s; 1 leaves its decoder
            whole. Default: the plan's cost limits. An empty group's is not looked at.
        share_bottleneck: one bottleneck for all groups; otherwise each group's is pruned with its decoder.
        settings: of `prune_to_budget`, e.g. objective and images, which taylor needs.

    Returns:
        The network, and what each group's pruning reached; None for empty groups and whole decoders.

    Raises:
        SolverError: where the encoder alone costs more than a budget; it carries the nearest costs there are.
    """
    budgets = [group.cost_limit for group in plan.groups] if budgets is None else budgets
    if len(budgets) != len(plan.groups):
        raise SettingError(f"budgets: {len(budgets)} given, the plan has {len(plan.groups)} groups")
    keep = kept_whole(unet, share_bottleneck)
    decoders: list[UNet2DModel | None] = []
    infos: list[PruneInfo | None] = []
    for group, budget in zip(plan.groups, budgets, strict=True):
        decoder = info = None
        if budget is None and not group.is_empty:
            raise SettingError(f"budgets.{group.index}: none given, but the group has {group.num_timesteps} timesteps")
        if budget is not None and budget != 1 and not group.is_empty:
            decoder, info = prune_to_budget(
                unet,
                example_inputs,
                budget,
                importance,
                timesteps=(group.t_start, group.t_stop),
                keep=keep,
                **settings,
            )
        decoders.append(decoder)
        infos.append(info)
    return MultiDecoderUNet2DModel.from_unet(unet, plan, decoders, share_bottleneck=share_bottleneck), infos
