"""Budgets in time against budgets in MACs: quality at the same measured time, time at the same MACs.

    python benchmarks/pruned_time.py [--size 8] [--num-images 20000] [--batch-size 64] [--threads 1] [--clock wall|cpu]

A U-Net is trained briefly on scikit-learn's digits, then pruned by Taylor importance to shares of its MACs and to
shares of its time. Every result is timed against the base, the two taking turns; its loss is that right after pruning,
on 1,024 draws of held-out images at all noise levels. Prints the error of predicted latencies, all results, and,
between them by linear interpolation, the loss of either kind at the same measured time and the time at the same MACs.
``--clock cpu`` reads the processor time of one thread, for machines that others use too.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel

from noisewise import NoiseSchedule, prune_to_budget
from noisewise.data.load import load_data
from noisewise.data.settings import DigitsSettings
from noisewise.errors import SettingError
from noisewise.evaluation.losses import range_loss
from noisewise.models.networks import describe
from noisewise.objectives import Objective
from noisewise.pruning.importance import importance
from noisewise.pruning.latency import latency_of
from noisewise.pruning.settings import TimingSettings
from noisewise.pruning.stopwatch import time_ratio
from noisewise.pruning.time_budget import batched
from noisewise.training.loop import train
from noisewise.training.settings import TrainSettings

SHARES = (0.85, 0.75, 0.65, 0.55, 0.45)


@dataclass(frozen=True)
class Point:
    """One pruned network: shares of the base's MACs and time, and its loss."""

    asked: float
    macs: float
    time: float
    spread: tuple[float, float]
    loss: float


def network(size: int) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        block_out_channels=(64, 128),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def points(args: argparse.Namespace, base: Any, objective: Objective, data: Any) -> dict[str, list[Point]]:
    """Networks pruned by either kind of budget, measured alike; those that cannot be are said and left out."""
    example = describe(base).example_inputs(base)
    inputs = batched(base, example, args.batch_size)
    timing = TimingSettings(batch_size=args.batch_size, clock=args.clock, attempts=6)
    scores = importance(base, "taylor", objective=objective, images=data.train)
    found: dict[str, list[Point]] = {"macs": [], "seconds": []}
    for unit, kept in found.items():
        for share in SHARES:
            try:
                small, info = prune_to_budget(base, example, {unit: share}, scores, timing=timing)
            except SettingError as error:
                print(f"{unit} {share}: {error}\n")
                continue
            ratio = time_ratio(small.eval(), base.eval(), inputs, 0.01, args.clock)
            loss = range_loss(small, objective, (0, 1000), 1024, data.test).mean
            kept.append(Point(share, info.macs / info.base_macs, ratio.median, ratio.quartiles, loss))
    return found


def between(x: float, found: list[Point], of: str, what: str) -> float | None:
    """``what`` where ``of`` is ``x``, linearly between the nearest points; None outside of them."""
    ordered = sorted(found, key=lambda point: getattr(point, of))
    at = [getattr(point, of) for point in ordered]
    if not at or not at[0] <= x <= at[-1]:
        return None
    return float(np.interp(x, at, [getattr(point, what) for point in ordered]))


def table(of: str, what: str, found: dict[str, list[Point]]) -> None:
    print(f"\n| {of} | {what}, budget in MACs | {what}, budget in seconds | ratio |\n|---|---|---|---|")
    ratios = []
    for x in np.arange(0.9, 0.3, -0.05):
        by_macs, by_seconds = (between(float(x), found[unit], of, what) for unit in ("macs", "seconds"))
        if by_macs is not None and by_seconds is not None:
            ratios.append(by_seconds / by_macs)
            print(f"| {x:.2f} | {by_macs:.4f} | {by_seconds:.4f} | {ratios[-1]:.3f} |")
    if ratios:
        print(f"\nmedian ratio {statistics.median(ratios):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8, help="pixels of an image's side (default 8)")
    parser.add_argument("--num-images", type=int, default=20_000, help="of the base's training (default 20,000)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per timed pass (default 64)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    objective = Objective(NoiseSchedule.named("linear", 1000))
    data = load_data(DigitsSettings(kind="sklearn-digits", image_size=args.size))
    base = network(args.size)
    settings = {"num_images": args.num_images, "batch_size": 64, "learning_rate": 1e-3, "ema_halflife_images": 1000}
    train(base, objective, data.train, TrainSettings.model_validate(settings), seed=0)
    latency = latency_of(base, batched(base, describe(base).example_inputs(base), args.batch_size))
    print(
        f"{args.size}x{args.size}, batch {args.batch_size}, {args.threads} threads, {args.clock} clock; base loss "
        f"{range_loss(base, objective, (0, 1000), 1024, data.test).mean:.4f}; error of predicted latencies: median "
        f"{latency.prediction_error:.3f}, largest {latency.largest_error:.3f}\n"
    )
    found = points(args, base, objective, data)
    print("| budget | MACs | time | quartiles | loss right after pruning |\n|---|---|---|---|---|")
    for unit, kept in found.items():
        for p in kept:
            low, high = p.spread
            print(f"| {p.asked} of {unit} | {p.macs:.3f} | {p.time:.3f} | {low:.3f} to {high:.3f} | {p.loss:.4f} |")
    table("time", "loss", found)
    table("macs", "time", found)


if __name__ == "__main__":
    main()
