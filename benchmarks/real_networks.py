"""Real configurations without weights: what they cost, how long planning widths takes, and which widths come out.

    python benchmarks/real_networks.py [--networks sd-1.5 dit-xl-2 sd-3-medium] [--min-cost 0.5] [--json FILE]

Everything runs on the meta device. Without weights no channel is worth more than another, so the widths of a group are
the legal ones nearest to an even cut at its cost limit; the solver's own time is taken with random scores. Prints
markdown; --json writes the width of every axis.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

from noisewise import NoiseSchedule, Plan, count_macs
from noisewise.models.cost import CostModel
from noisewise.models.networks import describe
from noisewise.models.networks.wiring import Wiring
from noisewise.pruning.importance import importance
from noisewise.pruning.space import Space, open_space

NETWORKS: dict[str, tuple[str, Callable[[], Any], Any]] = {
    "sd-1.5": (
        "Stable Diffusion 1.5, 64x64 latents, 77 tokens",
        lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    ),
    "dit-xl-2": ("DiT-XL/2, 32x32 latents", lambda: DiTTransformer2DModel(out_channels=8), DDIMScheduler()),
    "sd-3-medium": (
        "Stable Diffusion 3 medium, 128x128 latents, 333 tokens",
        lambda: SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
        ),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ),
}
SMALLEST_BUDGET, NUM_GROUPS = 0.5, (4, 10)
Part = tuple[str, Callable[[str, str], bool]]  # a column, and whether an axis (its kind and name) belongs there
PARTS: tuple[Part, ...] = (
    ("streams", lambda kind, name: kind == "residual" and not name.endswith(".stream")),
    ("transformers' streams", lambda kind, name: name.endswith(".stream")),
    ("residual blocks' insides", lambda kind, name: kind == "inner" and ".resnets." in name),
    ("feed-forward insides", lambda kind, name: kind == "inner" and ".resnets." not in name),
    ("heads", lambda kind, name: kind == "attention"),
)


def kept(net: Wiring, widths: Mapping[str, int]) -> list[str]:
    """Share of the channels kept, from the least to the most of any axis, by what the axes are."""
    cells = []
    for _, belongs in PARTS:
        shares = [
            widths.get(name, net.axes[name].width) / net.axes[name].width
            for name in net.prunable
            if belongs(net.axes[name].kind, name)
        ]
        low, high = (min(shares), max(shares)) if shares else (0.0, 0.0)
        cells.append("" if not shares else f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}")
    return cells


def even_widths(cost: CostModel, limit: float) -> tuple[Space | None, dict[str, int]]:
    """Legal widths nearest to an even cut; the whole network where the limit is its own cost."""
    if limit >= 1:
        return None, {}
    space = open_space(cost.wiring, cost, limit)
    return space, space.project(space.uniform())[0].widths


def facts(title: str, model: Any) -> CostModel:
    """Prints what the network is, and how long its widths take to plan."""
    started = time.process_time()
    cost = CostModel.of(model, describe(model).example_inputs(model))
    counted = time.process_time() - started
    scores = importance(model, "random")
    started = time.process_time()
    space = open_space(cost.wiring, cost, SMALLEST_BUDGET)
    opened = time.process_time() - started
    solution = space.solve(scores)
    solved = time.process_time() - started - opened
    without_products = count_macs(model, describe(model).example_inputs(model), attention=False)
    print(f"\n### {title}\n")
    print(f"{cost.parameters({}) / 1e6:.2f}M parameters; {cost.macs({}) / 1e9:.2f}G MACs,")
    print(f"{without_products / 1e9:.2f}G without the products inside attention; {len(cost.names)} axes may be cut.")
    print(f"Counted in {counted:.1f} CPU seconds; legal widths at {SMALLEST_BUDGET:g} in {opened:.1f} s, solved in")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{solved:.1f} s ({solution.macs / cost.macs({}):.4f} reached); peak memory of the process {peak:.0f} MiB.")
    return cost


def groups_table(cost: CostModel, plan: Plan, found: dict[str, Any]) -> None:
    columns = [name for name, belongs in PARTS if any(belongs(cost.wiring.axes[a].kind, a) for a in cost.names)]
    print(f"\nN = {len(plan.groups)}, share of the channels that stay:\n")
    print("| timesteps | cost limit | MACs, G | parameters, M | " + " | ".join(columns) + " |")
    print("|---" * (4 + len(columns)) + "|")
    for group in plan.groups:
        if group.is_empty:
            continue
        _, widths = even_widths(cost, group.cost_limit)
        found[f"N={len(plan.groups)}, group {group.index}"] = widths
        cells = [cell for cell, (name, _) in zip(kept(cost.wiring, widths), PARTS, strict=True) if name in columns]
        bounds = f"{group.t_start:g} to {group.t_stop:g}"
        numbers = f"{cost.macs(widths) / 1e9:.2f} | {cost.parameters(widths) / 1e6:.2f}"
        print(f"| {bounds} | {group.cost_limit:.4f} | {numbers} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--min-cost", type=float, default=0.5, help="the least a group may cost, k of the plan")
    parser.add_argument("--json", type=Path, help="file for the width of every axis")
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for name in arguments.networks:
        title, build, scheduler = NETWORKS[name]
        with torch.device("meta"):
            model = build()
        cost = facts(title, model)
        for num_groups in NUM_GROUPS:
            schedule = NoiseSchedule.from_scheduler(scheduler)
            groups_table(cost, Plan.from_snr(schedule, num_groups, arguments.min_cost), found[name])
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
