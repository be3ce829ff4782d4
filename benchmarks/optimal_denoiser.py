"""The exact optimal denoiser of a whole data set at many noise levels, and a clustering by it, against plain ones.

    python benchmarks/optimal_denoiser.py TRAIN.parquet [--draws 256] [--levels 50] [--rounds 3] [--threads 2]
                                          [--schedule vp|edm|flow] [--device cpu|cuda] [--parts denoiser clustering]

First part: posterior means of the same (image, noise) pairs at every level, against the matrix products alone of a
plain evaluation that knows that two products serve all logits: levels + 2 products [draws x images x numbers], softmax
not counted. Goals on CIFAR-10's 50,000 images: at most 0.8 of their time, under 2 GiB above the data.

Second part: similarities of all pairs of levels, against a double loop over pairs that recomputes the denoiser at both,
timed on 5 random pairs and scaled to all. Goal: at least 100 times less time at equal draws.

The two sides take turns, so that a drift of the machine's speed cancels. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from noisewise.data import load_data
from noisewise.data.settings import ParquetSettings
from noisewise.optimal import OptimalDenoiser, similarities
from noisewise.optimal.similarity import ETA, SimilarityDraws
from noisewise.planning.levels import even_levels
from noisewise.schedule import NoiseSchedule

NUM_PAIRS = 5


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def turns(rounds: int, ours: Callable[[], object], plain: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Seconds of each, taken in turns, the order swapped each time."""
    spent: dict[str, list[float]] = {"ours": [], "plain": []}
    sides = {"ours": ours, "plain": plain}
    for turn in range(rounds):
        for name in sorted(sides, reverse=turn % 2 == 1):
            spent[name].append(seconds(sides[name]))
    return spent["ours"], spent["plain"]


def peak_above(function: Callable[[], object], device: torch.device) -> float:
    """Bytes that ``function`` needs at its peak above what is held before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith(name)).split()[1])


class Plain:
    """The denoiser as anyone would write it first: the data in float32, one query batch and level at a time."""

    def __init__(self, denoiser: OptimalDenoiser) -> None:
        n = len(denoiser)
        self.y = torch.empty(n, denoiser.rows.dim, device=denoiser.device)  # [n, D]
        for start in range(0, n, 4096):
            part = slice(start, min(start + 4096, n))
            self.y[part] = denoiser.rows.image(denoiser.rows.chunk(part.start, part.stop))
        self.squares = self.y.square().sum(1)  # [n]

    def posterior_mean(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """E[x_0 | x_0 + sigma eps = z] of z [B, D]."""
        logits = (z @ self.y.T - self.squares / 2) / sigma**2  # [B, n]
        return logits.softmax(1) @ self.y

    def products(self, x_0: torch.Tensor, noise: torch.Tensor, num_levels: int) -> torch.Tensor:
        """The matrix products of all levels, nothing else."""
        weights = x_0 @ self.y.T  # [B, n]
        weights += noise @ self.y.T
        for _ in range(num_levels):
            means = weights @ self.y  # [B, D]
        return means

    def similarity(self, x_0: torch.Tensor, noise: torch.Tensor, sigmas: tuple[float, float]) -> float:
        """D of two levels, both denoisers computed for it."""
        eps = [(noise + (x_0 - self.posterior_mean(x_0 + sigma * noise, sigma)) / sigma) for sigma in sigmas]
        return float(((eps[0] - eps[1]).abs() <= ETA).float().mean())


def denoiser_part(denoiser: OptimalDenoiser, levels: np.ndarray, draws: int, rounds: int) -> list[str]:
    x_0, noise = next(SimilarityDraws(denoiser, draws).blocks(draws))
    print(f"posterior means: {denoiser.cost(draws, len(levels))}")
    denoiser.mean_image  # noqa: B018, reads all of the data, which a memory map then holds in memory
    peak = peak_above(lambda: denoiser.posterior_means(x_0, noise, levels), denoiser.device)
    plain = Plain(denoiser)
    flat = x_0.flatten(1), noise.flatten(1)

    def of_ours() -> None:
        denoiser.posterior_means(x_0, noise, levels)

    def of_plain() -> None:
        plain.products(*flat, len(levels))

    ours, theirs = turns(rounds, of_ours, of_plain)
    means = denoiser.posterior_means(x_0, noise, levels).flatten(2)
    sigmas = denoiser.sigma(levels)
    apart = max(
        float((plain.posterior_mean(flat[0] + float(s) * flat[1], float(s)) - m).abs().max())
        for m, s in list(zip(means, sigmas, strict=True))[:: max(1, len(levels) // 5)]
        if 0.5 < s < float("inf")  # below, the plain one's float32 distances are too coarse
    )
    print(f"largest difference from the plain denoiser: {apart:.1g}\n")
    return [_row(f"{draws} draws, {len(levels)} levels", ours, theirs, peak)]


def clustering_part(denoiser: OptimalDenoiser, levels: np.ndarray, draws: int, rounds: int) -> list[str]:
    print(f"clustering: {denoiser.cost(draws, len(levels))}")
    plain = Plain(denoiser)
    x_0, noise = (torch.cat(parts) for parts in zip(*SimilarityDraws(denoiser, draws).blocks(256), strict=True))
    finite = [float(s) for s in denoiser.sigma(levels) if np.isfinite(s)]
    num_pairs = len(levels) * (len(levels) - 1) // 2
    rng = random.Random(0)

    def of_ours() -> None:
        similarities(denoiser, levels, draws)

    def of_plain() -> None:
        for _ in range(NUM_PAIRS):
            sigmas = rng.sample(finite, 2)
            for block in range(0, draws, 256):
                part = slice(block, block + 256)
                plain.similarity(x_0[part].flatten(1), noise[part].flatten(1), (sigmas[0], sigmas[1]))

    peak = peak_above(of_ours, denoiser.device)
    ours, theirs = turns(rounds, of_ours, of_plain)
    scaled = [spent * num_pairs / NUM_PAIRS for spent in theirs]
    print(f"{NUM_PAIRS} pairs of the double loop: {statistics.median(theirs):.1f} s, scaled to {num_pairs}\n")
    return [_row(f"clustering, {draws} draws, {len(levels)} levels", ours, scaled, peak)]


def _row(name: str, ours: list[float], theirs: list[float], peak: float) -> str:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    return (
        f"| {name} | {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} | {ratio:.3g} "
        f"| {min(ratios):.3g} to {max(ratios):.3g} | {1 / ratio:.3g} | {peak / 2**30:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="image parquet of the training images")
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--levels", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--schedule", choices=["vp", "edm", "flow"], default="vp")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", choices=["denoiser", "clustering"], nargs="+", default=["denoiser", "clustering"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    schedule = {"vp": NoiseSchedule.vp, "edm": NoiseSchedule.edm, "flow": NoiseSchedule.flow}[args.schedule]()
    levels = even_levels(schedule, args.levels)
    with tempfile.TemporaryDirectory() as cache:
        settings = ParquetSettings(kind="parquet", train=args.train, test=args.train, num_test=1)
        images = load_data(settings, Path(cache)).train
        denoiser = OptimalDenoiser(images, schedule, device=args.device)
        parts = {"denoiser": denoiser_part, "clustering": clustering_part}
        rows = [row for name in args.parts for row in parts[name](denoiser, levels, args.draws, args.rounds)]
    print("| what | seconds | plain, seconds | time ratio | spread | times faster | peak GiB above the data |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{len(images):,} images {list(images.shape)}, {args.schedule}, medians of {args.rounds} turns and extremes; "
        f"{args.device}, {args.threads} threads; {memory:.1f} GiB at the most, the plain side's float32 data included"
    )


if __name__ == "__main__":
    main()
