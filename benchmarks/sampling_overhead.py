"""What routing costs: an `ExpertDenoiser` in a stock DDIMPipeline against a hand-written loop that calls the experts.

    python benchmarks/sampling_overhead.py [--rounds 15] [--threads 2] [--device cpu|cuda]

Both make the same images in as many calls. The two take turns, so that a drift of the machine's speed cancels; medians
of the differences and ratios of each turn, with their spread. Prints a markdown table: microseconds per call on a tiny
network, the ratio on one whose forward pass takes 50 ms or more. Goals: at most 100 microseconds, at most 1.02.
"""

from __future__ import annotations

import argparse
import bisect
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

from noisewise import ExpertDenoiser, NoiseSchedule, Plan

NUM_GROUPS = 4
SLOW_SECONDS = 0.05


def network(channels: int, size: int, seed: int) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=(channels, 2 * channels),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


@torch.no_grad()
def by_hand(
    experts: list[UNet2DModel], starts: list[int], scheduler: DDIMScheduler, batch_size: int, steps: int
) -> torch.Tensor:
    """The stock pipeline's arithmetic, the expert looked up in a list."""
    config = experts[0].config
    shape = (batch_size, config.in_channels, config.sample_size, config.sample_size)
    device = next(experts[0].parameters()).device
    image = randn_tensor(shape, generator=torch.Generator().manual_seed(0), device=device)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        expert = experts[bisect.bisect_right(starts, int(t)) - 1]
        image = scheduler.step(expert(image, t).sample, t, image).prev_sample
    return (image / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()


def compare(
    channels: int, size: int, batch_size: int, steps: int, rounds: int, device: str
) -> tuple[float, list[float], list[float]]:
    """(seconds of a forward pass, seconds per call the router adds in each turn, time ratio of each turn)."""
    schedule = NoiseSchedule.named("linear")
    plan = Plan.from_snr(schedule, num_groups=NUM_GROUPS)
    experts = [network(channels, size, seed).to(device) for seed in range(NUM_GROUPS)]
    scheduler = DDIMScheduler()
    pipeline = DDIMPipeline(ExpertDenoiser(experts, plan), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    starts = [group.t_start for group in plan.groups]

    def routed() -> object:
        generator = torch.Generator().manual_seed(0)
        return pipeline(batch_size, generator, num_inference_steps=steps, output_type="np").images

    def hand() -> object:
        return by_hand(experts, starts, pipeline.scheduler, batch_size, steps)

    assert (routed() == hand()).all(), "the two must make the same images"  # type: ignore[attr-defined]
    added, ratios, forward = [], [], []
    for turn in range(rounds):
        loops = {"routed": routed, "hand": hand}
        spent = {name: seconds(loops[name]) for name in sorted(loops, reverse=turn % 2 == 1)}
        added.append((spent["routed"] - spent["hand"]) / steps)
        ratios.append(spent["routed"] / spent["hand"])
        forward.append(spent["hand"] / steps)
    return statistics.median(forward), added, ratios


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()  # ends with the images on the CPU, so the device has finished
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each loop (default 15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = [("tiny", *compare(4, 8, 1, 250, 2 * args.rounds, args.device))]
    batch_size, slow = 4, 0.0
    while slow < SLOW_SECONDS:
        batch_size *= 2
        slow, *_ = compare(32, 32, batch_size, 4, 1, args.device)
    rows.append((f"32x32, batch {batch_size}", *compare(32, 32, batch_size, 10, args.rounds, args.device)))

    print("| network | ms per call, by hand | added microseconds per call | spread | time ratio | spread |")
    print("|---|---|---|---|---|---|")
    for name, forward, added, ratios in rows:
        low, middle, high = (1e6 * x for x in statistics.quantiles(added, n=4))
        ratio_low, ratio, ratio_high = statistics.quantiles(ratios, n=4)
        print(
            f"| {name} | {1e3 * forward:.2f} | {middle:.0f} | {low:.0f} to {high:.0f} "
            f"| {ratio:.3f} | {ratio_low:.3f} to {ratio_high:.3f} |"
        )
    print(
        f"\nStock DDIMPipeline with {NUM_GROUPS} experts; spreads are quartiles over turns; {args.device}, "
        f"{args.threads} threads"
    )


if __name__ == "__main__":
    main()
