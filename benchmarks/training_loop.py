"""Training by noisewise against a bare PyTorch loop on the same model: images per second and peak memory.

    python benchmarks/training_loop.py [--images 640] [--rounds 5] [--threads 2] [--device cpu|cuda]

Both loops draw noised batches from the same uint8 images, clip gradients, step a fused AdamW and keep a moving average
of the weights; noisewise also records losses, checks them and writes its usual ten checkpoints. The two take turns, so
that a drift of the machine's speed cancels; medians of the ratios of each turn, with their spread. Peak memory is
measured in a process of its own for each. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel

from noisewise import NoiseSchedule
from noisewise.data.images import Images
from noisewise.objectives import Objective
from noisewise.training.loop import train
from noisewise.training.settings import TrainSettings

BATCH_SIZE = 64
LEARNING_RATE = 1e-4
HALFLIFE_IMAGES = 10_000


def network() -> UNet2DModel:
    """A 16x16 colour U-Net of 4.0 M parameters."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(64, 128),
        layers_per_block=2,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
    )


def images() -> Images:
    return Images.from_pixels(np.random.default_rng(0).integers(0, 256, (4096, 3, 16, 16), dtype=np.uint8))


def bare(num_images: int, device: str) -> float:
    """What one writes by hand; seconds."""
    model = network().to(device).train()
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    pixels = torch.from_numpy(images().pixels).to(device)  # [N, 3, 16, 16] uint8
    alphas_cumprod = torch.from_numpy(NoiseSchedule.named("linear").alphas_cumprod.copy()).float().to(device)
    decay = 0.5 ** (BATCH_SIZE / HALFLIFE_IMAGES)
    _finish(device)
    start = time.perf_counter()
    for _ in range(num_images // BATCH_SIZE):
        index = torch.randint(len(pixels), (BATCH_SIZE,), device=device)
        x_0 = pixels.index_select(0, index).float() / 127.5 - 1
        t = torch.randint(1000, (BATCH_SIZE,), device=device)
        noise = torch.randn_like(x_0)
        signal = alphas_cumprod[t].reshape(-1, 1, 1, 1)
        x_t = signal.sqrt() * x_0 + (1 - signal).sqrt() * noise
        loss = torch.nn.functional.mse_loss(model(x_t, t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 1 - decay)
    _finish(device)
    return time.perf_counter() - start


def noisewise(num_images: int, device: str) -> float:
    """The same through ``train``, which finds the device itself; seconds of its loop.

    Without a workspace: the turns are so short that checkpoints, ten to a training by default, would be most of them.
    """
    settings = TrainSettings(
        num_images=num_images,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        ema_halflife_images=HALFLIFE_IMAGES,
    )
    objective, data = Objective(NoiseSchedule.named("linear")), images()
    return train(network(), objective, data, settings, seed=0, log=lambda step: None).seconds


LOOPS = {"bare": bare, "noisewise": noisewise}


def peak_mebibytes(loop: str, num_images: int, device: str, threads: int) -> tuple[float, float]:
    """(whole process, above what was there after the imports) of one loop, in a fresh process."""
    command = [sys.executable, __file__, "--measure", loop, "--images", str(num_images)]
    command += ["--device", device, "--threads", str(threads)]
    whole, above = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
    return float(whole), float(above)


def measure(loop: str, num_images: int, device: str) -> None:
    """Print the peak memory of this process after one loop, in MiB."""
    before = _peak()
    LOOPS[loop](num_images, device)
    whole = _peak()
    above = whole - before
    if device == "cuda":
        whole = above = torch.cuda.max_memory_allocated() / 2**20
    print(whole, above)


def _peak() -> float:
    """Most memory this process has held, in MiB; Linux's rusage would count the parent's, too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=640, help="training images per turn (default 640)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each loop (default 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--measure", choices=list(LOOPS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if args.measure:
        measure(args.measure, args.images, args.device)
        return

    for loop in LOOPS.values():  # warm up
        loop(BATCH_SIZE * 2, args.device)
    speeds: dict[str, list[float]] = {name: [] for name in LOOPS}
    for turn in range(args.rounds):
        for name in sorted(LOOPS, reverse=turn % 2 == 1):
            speeds[name].append(args.images / LOOPS[name](args.images, args.device))
    ratios = [ours / theirs for ours, theirs in zip(speeds["noisewise"], speeds["bare"], strict=True)]
    memory = {name: peak_mebibytes(name, 4 * BATCH_SIZE, args.device, args.threads) for name in LOOPS}

    print("| | bare PyTorch | noisewise | ratio | spread of the ratio |")
    print("|---|---|---|---|---|")
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(
        f"| images per second | {medians['bare']:.1f} | {medians['noisewise']:.1f} | {statistics.median(ratios):.3f} "
        f"| {min(ratios):.3f} to {max(ratios):.3f} |"
    )
    for row, label in enumerate(("peak memory, whole process, MiB", "peak memory above the imports, MiB")):
        a, b = memory["bare"][row], memory["noisewise"][row]
        print(f"| {label} | {a:.0f} | {b:.0f} | {b / a:.3f} | |")
    parameters = sum(p.numel() for p in network().parameters())
    print(
        f"\n{parameters / 1e6:.1f} M parameters, 16x16, batch {BATCH_SIZE}, {args.images} images a turn, "
        f"{args.rounds} turns, {args.device}, {args.threads} threads"
    )


if __name__ == "__main__":
    main()
