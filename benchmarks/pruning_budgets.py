"""Are MACs budgets met on networks of every shape? Random `UNet2DModel` configurations, five budgets each.

    python benchmarks/pruning_budgets.py --configs 50 --seed 0 > docs/pruning-budgets.md

Prints a markdown table of how many budgets are met within [0.98, 1.00] of what was asked, every refusal with the
nearest costs that can be reached, and the time and memory of pruning a network shaped like google/ddpm-cifar10-32.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel

from noisewise.models.cost import count_macs
from noisewise.models.networks import describe
from noisewise.pruning.importance import importance
from noisewise.pruning.prune import prune_to_budget
from noisewise.pruning.solver import SolverError
from noisewise.streams import seed_of

BUDGETS = (0.95, 0.8, 0.65, 0.5, 0.3)


@dataclass(frozen=True)
class Result:
    """One configuration at one budget."""

    number: int
    budget: float
    achieved: float | None
    alignment: int | None
    seconds: float
    proof: str = ""

    @property
    def met(self) -> bool:
        return self.achieved is not None and 0.98 * self.budget <= self.achieved <= self.budget


def random_settings(seed: int, number: int, widest: int = 128) -> dict[str, Any]:
    """Settings of a `UNet2DModel`: 1 to 4 resolutions, 8 to 32 norm groups, and every standard 2-D block.

    Args:
        widest: channels of the first resolution are at most this.
    """
    chosen = random.Random(seed_of(seed, "pruning budgets", number))
    groups = chosen.choice([8, 16, 32])
    first = chosen.choice([width for width in (32, 64, 96, 128) if width <= widest])
    resolutions = chosen.randint(1, 4)
    widths = [first]
    for _ in range(resolutions - 1):
        widths.append(min(widths[-1] * chosen.choice([1, 1, 2]), 2 * first))
    attention = [chosen.random() < 0.4 for _ in widths]
    resampling = chosen.choice(["conv", "resnet"])
    resnet_blocks = chosen.random() < 0.2 and resampling == "resnet"  # blocks that have no attention

    def blocks(side: str) -> tuple[str, ...]:
        if resnet_blocks:
            return tuple(f"Resnet{side}sampleBlock2D" for _ in widths)
        return tuple(f"Attn{side}Block2D" if with_attention else f"{side}Block2D" for with_attention in attention)

    return {
        "sample_size": 2 ** (resolutions + 1),
        "in_channels": 3,
        "out_channels": chosen.choice([3, 6]),
        "block_out_channels": tuple(widths),
        "layers_per_block": chosen.choice([1, 2, 3]),
        "norm_num_groups": groups,
        "down_block_types": blocks("Down"),
        "up_block_types": blocks("Up")[::-1],
        "add_attention": chosen.random() < 0.7,
        "attention_head_dim": chosen.choice([None, 8, 16]),
        "resnet_time_scale_shift": chosen.choice(["default", "scale_shift"]),
        "downsample_type": resampling,
        "upsample_type": resampling,
        "num_class_embeds": chosen.choice([None, 10]),
    }


def try_budgets(number: int, settings: dict[str, Any], budgets: Sequence[float] = BUDGETS) -> list[Result]:
    """Prune one fresh network to each budget by magnitude, computed once."""
    torch.manual_seed(number)
    model = UNet2DModel(**settings)
    inputs = describe(model).example_inputs(model)
    scores = importance(model, "magnitude")
    results = []
    for budget in budgets:
        started = time.perf_counter()
        try:
            _, info = prune_to_budget(model, inputs, budget, scores)
        except SolverError as error:
            results.append(Result(number, budget, None, None, time.perf_counter() - started, str(error)))
        else:
            results.append(Result(number, budget, info.achieved, info.alignment, time.perf_counter() - started))
    return results


def table(results: Sequence[Result]) -> str:
    """Markdown: budgets met, by budget, and all refusals."""
    lines = [
        "| budget | met | of | least achieved/asked | largest alignment, median | seconds, median | seconds, most |",
        "|---|---|---|---|---|---|---|",
    ]
    for budget in sorted({result.budget for result in results}, reverse=True):
        rows = [result for result in results if result.budget == budget]
        met = [result for result in rows if result.met]
        least = min((result.achieved or 0) / budget for result in met) if met else float("nan")
        alignment = _median([result.alignment or 0 for result in met])
        seconds = [result.seconds for result in rows]
        lines.append(
            f"| {budget} | {len(met)} | {len(rows)} | {least:.4f} | {alignment:g} "
            f"| {_median(seconds):.1f} | {max(seconds):.1f} |"
        )
    met_in_all = sum(result.met for result in results)
    lines.append(f"| all | {met_in_all} | {len(results)} | | | | |")
    lines += ["", f"Met: {100 * met_in_all / len(results):.1f} %.", "", "Refused:", ""]
    refused = [f"- configuration {r.number}, budget {r.budget}: {r.proof}" for r in results if not r.met]
    return "\n".join(lines + (refused or ["- none"]))


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] if values else float("nan")


def time_ddpm_cifar10(budget: float = 0.7) -> str:
    """Time and memory of pruning a network of google/ddpm-cifar10-32's shape, importances aside."""
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    inputs = describe(model).example_inputs(model)
    scores = importance(model, "magnitude")
    started = time.perf_counter()
    small, info = prune_to_budget(model, inputs, budget, scores)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB; the kernel counts in KiB
    return (
        f"google/ddpm-cifar10-32's shape ({info.base_parameters / 1e6:.1f}M parameters, {info.base_macs / 1e9:.2f} G "
        f"MACs) to {budget}: {info.achieved:.4f} reached ({count_macs(small, inputs) / 1e9:.2f} G MACs), alignment "
        f"{info.alignment}, {seconds:.1f} s, peak memory of the process {peak:.2f} GiB."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=50, help="random configurations (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the configurations (default 0)")
    options = parser.parse_args(arguments)
    timing = time_ddpm_cifar10()  # first, so that the peak memory is its own
    results = []
    for number in range(options.configs):
        results += try_budgets(number, random_settings(options.seed, number))
        met = sum(result.met for result in results)
        print(f"{number + 1} of {options.configs} configurations, {met} of {len(results)} met", file=sys.stderr)
    print("# MACs budgets met by pruning\n")
    print(f"`python benchmarks/pruning_budgets.py --configs {options.configs} --seed {options.seed}`\n")
    print(
        "Random `UNet2DModel` configurations (1 to 4 resolutions, 8 to 32 norm groups, 1 to 3 layers per block, with\n"
        "and without attention, one head or several, `scale_shift`, resampling by convolution or residual block,\n"
        "class-conditional, learned variance), pruned by magnitude with the default settings. A budget is met if the\n"
        f"MACs counted on the pruned network lie within [0.98, 1.00] of it. torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s).\n"
    )
    print(table(results))
    print(f"\n## Time and memory\n\n{timing}")


if __name__ == "__main__":
    main()
