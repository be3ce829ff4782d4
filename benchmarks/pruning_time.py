"""Time and memory of pruning a U-Net shaped like google/ddpm-cifar10-32 to a budget, importances aside.

    python benchmarks/pruning_time.py [--budget 0.7] [--repeats 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch
from diffusers import UNet2DModel

from noisewise import prune_to_budget
from noisewise.models.networks import describe
from noisewise.pruning.importance import importance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=0.7, help="fraction of the base's MACs (default 0.7)")
    parser.add_argument("--repeats", type=int, default=3, help="runs (default 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        norm_num_groups=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
    )
    scores = importance(model, "magnitude")
    example = describe(model).example_inputs(model)
    seconds, achieved = [], 0.0
    for _ in range(args.repeats):
        started = time.perf_counter()
        _, info = prune_to_budget(model, example, args.budget, scores)
        seconds.append(time.perf_counter() - started)
        achieved = info.achieved
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
    print("| budget | achieved | seconds, median | most | peak GiB of the process |\n|---|---|---|---|---|")
    print(f"| {args.budget} | {achieved:.4f} | {statistics.median(seconds):.1f} | {max(seconds):.1f} | {peak_gib:.2f} |")


if __name__ == "__main__":
    main()
