"""Training on cached latents against the same loop on random latents in memory: images per second.

    python benchmarks/latent_reading.py [--images 3200] [--rounds 7] [--threads 1] [--latents 60000] [--device cpu|cuda]

Both are ``training.train`` on the same small network, which leaves reading the largest share. One reads a memory-mapped
cache of means and deviations in float16 (made here by `write_latents`, mirror images included) and draws from the
posterior; the other indexes a float32 tensor of random numbers. They take turns, so that a drift of the machine's speed
cancels; the median of the ratios of each turn, with their quartiles. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel

from noisewise import NoiseSchedule
from noisewise.data.images import Dataset, Images, Split
from noisewise.data.latent_files import load_latents, write_latents
from noisewise.objectives import Objective
from noisewise.training.loop import train
from noisewise.training.settings import TrainSettings

CHANNELS, SIZE, BATCH_SIZE = 4, 8, 64
GOAL = 0.97


class InMemory:
    """Random latents as a float32 tensor."""

    labels = None

    def __init__(self, num: int, device: str) -> None:
        self.values = torch.randn(num, CHANNELS, SIZE, SIZE).to(device)

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: torch.Tensor, device: Any) -> tuple[torch.Tensor, None]:
        return self.values[indices.to(self.values.device)], None


def cached(num: int, folder: Path) -> Any:
    """Latents of ``num`` images, written to ``folder`` and mapped."""
    rng = np.random.default_rng(0)

    def half(split: Split, count: int) -> Images:
        return Images.from_pixels(rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), split=split)

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(len(pixels), CHANNELS, SIZE, SIZE), torch.full((len(pixels), CHANNELS, SIZE, SIZE), 0.05)

    data = Dataset(half("train", num), half("test", BATCH_SIZE))
    write_latents(folder, data, encode, autoencoder="benchmark", batch_size=1024, mirrored=True)
    return load_latents(folder, data, "benchmark").train


def network() -> UNet2DModel:
    """An 8x8 U-Net of 0.18 M parameters."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=SIZE, in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip


def images_per_second(data: Any, num_images: int, device: str) -> float:
    """By this process's own time on a CPU, so that other processes do not count; by the clock on a GPU."""
    settings = TrainSettings.model_validate({"num_images": num_images, "batch_size": BATCH_SIZE})
    model, objective = network(), Objective(NoiseSchedule.named("linear"))
    started = time.process_time()
    result = train(model, objective, data, settings, seed=0)
    return num_images / (result.seconds if device == "cuda" else time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--latents", type=int, default=60_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        sources = {"cached": cached(options.latents, Path(folder)), "random": InMemory(options.latents, options.device)}
        speeds: dict[str, list[float]] = {name: [] for name in sources}
        for turn in range(options.rounds + 1):
            for name in sorted(sources, reverse=bool(turn % 2)):
                speed = images_per_second(sources[name], options.images, options.device)
                if turn:  # the first turn warms up
                    speeds[name].append(speed)
    ratios = [a / b for a, b in zip(speeds["cached"], speeds["random"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print("| images/s, random latents in memory | images/s, cached latents | ratio | spread (quartiles) |")
    print("|---|---|---|---|")
    random, mapped = (statistics.median(speeds[name]) for name in ("random", "cached"))
    print(f"| {random:,.0f} | {mapped:,.0f} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    print(
        f"\n{options.latents:,} latents of {CHANNELS}x{SIZE}x{SIZE}, batch {BATCH_SIZE}, {options.images:,} images a "
        f"turn, {options.rounds} turns, {options.threads} threads, {options.device}; goal: at least {GOAL}."
    )


if __name__ == "__main__":
    main()
