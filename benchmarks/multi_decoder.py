"""What the multi-decoder's routing costs: mixed batches against their groups run apart, sampling against one decoder.

    python benchmarks/multi_decoder.py [--rounds 15] [--batch-size 24] [--threads 2] [--device cpu|cuda]

Three groups with decoders of 1.5, 1 and 0.25 times the encoder's width. Mixed: one forward pass on a batch whose
timesteps belong to all groups, against the sum of the experts' passes on their own samples, cut out beforehand. One
group: a forward pass as a sampler makes it, one timestep for the batch, against the same expert called directly, for
each group. The two take turns; medians of each turn's ratio, with quartiles. Prints a markdown table. Goals: at most
1.05 and 1.02.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from noisewise import MultiDecoderUNet2DModel, NoiseSchedule, Plan

DECODERS = (1.5, 1, 0.25)


def network(plan: Plan, channels: int, size: int) -> MultiDecoderUNet2DModel:
    torch.manual_seed(0)
    return MultiDecoderUNet2DModel.build(
        plan,
        DECODERS,
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=(channels, 2 * channels),
        layers_per_block=2,
        norm_num_groups=8,
        attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


def compare(routed: Callable[[], object], apart: Callable[[], object], rounds: int) -> tuple[float, list[float]]:
    """Median seconds of ``apart`` and the ratio of each turn."""
    routed(), apart()
    ratios, spent = [], []
    for turn in range(rounds):
        calls = {"routed": routed, "apart": apart}
        taken = {name: seconds(calls[name]) for name in sorted(calls, reverse=turn % 2 == 1)}
        ratios.append(taken["routed"] / taken["apart"])
        spent.append(taken["apart"])
    return statistics.median(spent), ratios


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(args: argparse.Namespace) -> list[tuple[str, float, float, list[float]]]:
    """Rows: name, goal, seconds, ratios."""
    plan = Plan.equal_width(NoiseSchedule.named("linear"), num_groups=3)
    model = network(plan, args.channels, 32).to(args.device)
    x = torch.randn(args.batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(args.device)
    t = (torch.arange(args.batch_size) * 397 % 1000).to(args.device)  # all groups, in no order
    rows = plan.group_of(t)
    parts = [(model.experts[g], x[rows == g], t[rows == g]) for g in rows.unique().tolist()]

    def apart() -> None:
        for expert, samples, timesteps in parts:
            expert(samples, timesteps)

    found = [("mixed batch", 1.05, *compare(lambda: model(x, t), apart, args.rounds))]
    for group in plan.groups:
        expert, now = model.experts[group.index], torch.tensor(int(group.t_start), device=args.device)
        name = f"group {group.index}, decoder {DECODERS[group.index]:g}"
        pair: tuple[Callable[[], object], Callable[[], object]] = (
            lambda now=now: model(x, now),  # type: ignore[misc]
            lambda expert=expert, now=now: expert(x, now),  # type: ignore[misc]
        )
        found.append((name, 1.02, *compare(*pair, args.rounds)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each pair (default 15)")
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--channels", type=int, default=32, help="of the encoder's first resolution")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print("| | goal | ms apart | time ratio | spread |")
    print("|---|---|---|---|---|")
    for name, goal, apart, ratios in measure(args):
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {name} | {goal} | {1e3 * apart:.1f} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    place = f"{args.device}, {args.threads} threads"
    print(f"\nBatches of {args.batch_size} at 32x32; spreads are quartiles over turns; {place}")


if __name__ == "__main__":
    main()
