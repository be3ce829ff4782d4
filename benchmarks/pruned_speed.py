"""MACs saved that become time saved: a pruned U-Net's time against its base's, per budget and alignment of the widths.

    python benchmarks/pruned_speed.py [--batch-size 64] [--repeats 9] [--threads 2] [--device cpu]

The base and all pruned networks take turns, so that a drift of the machine's speed cancels; medians of the ratios of
each turn, with their spread. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from diffusers import UNet2DModel

from noisewise import count_macs, prune_to_budget
from noisewise.models.networks import describe


def network() -> UNet2DModel:
    """A 32x32 colour U-Net of 4.4 M parameters."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
    ).eval()


@torch.no_grad()
def seconds(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """One forward pass, to its end on the device."""
    started = time.perf_counter()
    model(**inputs)
    if inputs["sample"].device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass (default 64)")
    parser.add_argument("--repeats", type=int, default=9, help="turns (default 9)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    base = network()
    example = describe(base).example_inputs(base)
    macs = count_macs(base, example)
    models: dict[tuple[float, str], torch.nn.Module] = {}
    for budget in (0.8, 0.65, 0.5):
        for alignment in (1, 8, 16, "auto"):
            small, _ = prune_to_budget(base, example, budget, "magnitude", alignment=alignment)
            models[budget, str(alignment)] = small.eval().to(args.device)
    base.to(args.device)
    inputs = describe(base).example_inputs(base, args.batch_size)

    ratios: dict[tuple[float, str], list[float]] = {key: [] for key in models}
    for turn in range(args.repeats + 1):
        for key, small in models.items():
            ratio = seconds(small, inputs) / seconds(base, inputs)
            if turn:  # the first turn warms up
                ratios[key].append(ratio)

    print(f"32x32, batch {args.batch_size}, {args.device}, {args.threads} threads, {args.repeats} turns\n")
    print("| budget | alignment | MACs | time, median | least | most |\n|---|---|---|---|---|---|")
    for (budget, alignment), values in ratios.items():
        achieved = count_macs(models[budget, alignment], example) / macs
        row = (achieved, statistics.median(values), min(values), max(values))
        print(f"| {budget} | {alignment} | " + " | ".join(f"{value:.3f}" for value in row) + " |")


if __name__ == "__main__":
    main()
