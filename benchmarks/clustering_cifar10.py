"""Where CIFAR-10's optimal denoiser parts the noise range, for which alpha, and how many draws it takes to know.

    python benchmarks/clustering_cifar10.py DATA_FOLDER [--num-draws 1024] [--eta-draws 128] [--figures FOLDER]

DATA_FOLDER holds train.parquet and test.parquet. One long measurement at 99 noise levels serves every table but two;
every second of its levels are the 50 of the default plan. Prints markdown; --figures writes the figures as SVG.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from noisewise import NoiseSchedule, Plan
from noisewise.data import Images, ParquetSettings, load_data
from noisewise.optimal.denoiser import OptimalDenoiser
from noisewise.optimal.similarity import ETA, Similarity, SimilarityDraws
from noisewise.planning import clusters as c
from noisewise.planning.cluster_cut import SETTLED, measure
from noisewise.planning.clusters import ALPHA, NUM_DRAWS, Band

PUBLISHED = (0.442, 0.631)  # t1 and t2 of arXiv:2312.09181
VP = NoiseSchedule.vp()
REFERENCES = ("end", "mean")
Curves = dict[str, np.ndarray]  # start, end, mean -> [n, m]


def curves_of(similarity: Similarity, draws: slice = slice(None)) -> tuple[np.ndarray, Curves]:
    """Continuous time t [n], and similarities per level and draw, float64."""
    parts = {"start": similarity.to_start, "end": similarity.to_end, "mean": similarity.to_mean}
    return times(similarity.levels), {name: part[:, draws].astype(np.float64) for name, part in parts.items()}


def times(levels: np.ndarray) -> np.ndarray:
    return (levels + 1) / VP.num_train_timesteps


def bounds(t: np.ndarray, curves: Curves, alpha: float) -> dict[str, Band]:
    """t1 and t2 for both references, with their bootstrap bands."""
    weights = c.resampling_weights(curves["start"].shape[1], 0)
    found = {
        "t1": Band.of(*(c.last_within(t, S, alpha) for S in (curves["start"].mean(1), weights @ curves["start"].T)))
    }
    for name in REFERENCES:
        S = curves[name]
        found[name] = Band.of(*(c.first_within(t, part, alpha) for part in (S.mean(1), weights @ S.T)))
    return found


def alphas_of_published(t: np.ndarray, curves: Curves) -> dict[str, float]:
    """The mean similarity over [0, 0.442) and, for both references, over [0.631, 1]."""
    t1, t2 = PUBLISHED
    backwards = {name: c.running_means(-t[::-1], curves[name].mean(1)[::-1])[::-1] for name in REFERENCES}
    return {"t1": float(np.interp(t1, t, c.running_means(t, curves["start"].mean(1))))} | {
        name: float(np.interp(t2, t, means)) for name, means in backwards.items()
    }


def every_second(similarity: Similarity) -> Similarity:
    """The same measurement at half of its levels."""
    parts = {name: getattr(similarity, name)[::2] for name in ("levels", "sigma", "to_start", "to_end", "to_mean")}
    return replace(similarity, **parts, pairs=similarity.pairs[::2, ::2])


# ---- tables


def alpha_table(similarity: Similarity) -> Iterator[str]:
    t, curves = curves_of(similarity)
    yield "| alpha | t1 | t2, end | t2, mean | three groups |\n|---|---|---|---|---|"
    for alpha in (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.996, 0.999):
        found = bounds(t, curves, alpha)
        cells = [f"{float(b.estimate):.3f} ± {float(b.half_width):.3f}" for b in found.values()]
        parted = [name for name in REFERENCES if found["t1"].estimate < found[name].estimate]
        yield f"| {alpha:g} | {' | '.join(cells)} | {' and '.join(parted) or 'no'} |"


def level_table(similarity: Similarity) -> Iterator[str]:
    yield "| levels | t1 | t2, end | t2, mean |\n|---|---|---|---|"
    while len(similarity.levels) >= 13:
        t, curves = curves_of(similarity)
        cells = [f"{float(band.estimate):.4f}" for band in bounds(t, curves, ALPHA).values()]
        yield f"| {len(t)} | {' | '.join(cells)} |"
        similarity = every_second(similarity)


def draw_table(similarity: Similarity) -> Iterator[str]:
    """Half-widths of disjoint parts of the draws, the fewest draws that settle both bounds."""
    yield f"| draws | t1, mean (largest) | t2, end | t2, mean | all at most {SETTLED} |\n|---|---|---|---|---|"
    for num in (32, 64, 96, 128, 160, 192, 224, 256, 384, 512):
        parts = [slice(i, i + num) for i in range(0, similarity.num_draws - num + 1, num)]
        if not parts:
            break
        found = [bounds(*curves_of(similarity, part), ALPHA) for part in parts]
        widths = {name: [float(one[name].half_width) for one in found] for name in found[0]}
        cells = [f"{np.mean(values):.4f} ({max(values):.4f})" for values in widths.values()]
        settled = all(max(values) <= SETTLED for values in widths.values())
        yield f"| {num} ({len(parts)} parts) | {' | '.join(cells)} | {'yes' if settled else 'no'} |"


def group_table(similarity: Similarity) -> Iterator[str]:
    yield "| groups | cuts, t | mean similarity inside each |\n|---|---|---|"
    t = times(similarity.levels)
    for k in range(1, 6):
        cuts, means = c.most_similar_cuts(similarity.pairs, k)
        between = [f"{(t[i - 1] + t[i]) / 2:.3f}" for i in cuts]
        yield f"| {k} | {', '.join(between) or '-'} | {', '.join(f'{mean:.3f}' for mean in means)} |"


def eta_table(images: Images, levels: np.ndarray, num_draws: int) -> Iterator[str]:
    """Other tolerances: the alphas that the published bounds would need."""
    yield "| eta | for t1 = 0.442 | for t2 = 0.631, end | mean |\n|---|---|---|---|"
    etas = [k / 255 for k in (0.5, 1, 2, 4, 8, 16, 20, 24, 28, 32, 36)]
    denoiser = OptimalDenoiser(images, VP)
    u = torch.from_numpy(1 / denoiser.sigma(levels)).float()[:, None, None].to(denoiser.device)  # [n, 1, 1]
    close: dict[tuple[float, str], list[torch.Tensor]] = {}
    for x_0, noise in SimilarityDraws(denoiser, num_draws, 1).blocks(denoiser.draws_at_once(len(levels))):
        means = denoiser.posterior_means(x_0, noise, levels).flatten(2)  # [n, B, D]
        off = (x_0.flatten(1) - means) * u
        apart = {"start": off, "end": off - off[-1], "mean": (means - denoiser.mean_image.flatten()) * u}
        for eta in etas:
            for name, difference in apart.items():
                close.setdefault((eta, name), []).append((difference.abs() <= eta).double().mean(-1).cpu())
    for eta in etas:
        curves = {name: torch.cat(close[eta, name], 1).numpy() for name in ("start", *REFERENCES)}
        cells = [f"{alpha:.4f}" for alpha in alphas_of_published(times(levels), curves).values()]
        yield f"| {eta * 255:g}/255 | {' | '.join(cells)} |"


def write_figures(similarity: Similarity, folder: Path) -> None:
    """The plan's three figures; pairs from a plan by dynamic programming."""
    from noisewise.report.clustering_figures import pairs_figure, similarity_figure, threshold_figure
    from noisewise.report.style import standalone_svg, svg_of

    plan = Plan.from_optimal_denoiser(VP, similarity)
    pairs = Plan.from_optimal_denoiser(VP, similarity, cut="dynamic-programming")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("similarity", similarity_figure(plan)),
        ("thresholds", threshold_figure(plan)),
        ("pairs", pairs_figure(pairs)),
    ):
        (folder / f"clustering-{name}.svg").write_text(standalone_svg(svg_of(figure)))


def show(title: str, lines: Iterator[str]) -> None:
    print(f"\n**{title}**\n", flush=True)
    for line in lines:
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--num-draws", type=int, default=1024, help="of the long measurement (default 1024)")
    parser.add_argument("--eta-draws", type=int, default=128, help="of the table of etas; 0 leaves it out")
    parser.add_argument("--figures", type=Path, help="folder for SVG files")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    files = {split: args.data_folder / f"{split}.parquet" for split in ("train", "test")}
    images = load_data(ParquetSettings(kind="parquet", **files)).train
    started = time.perf_counter()
    plan = Plan.from_optimal_denoiser(VP, images)
    seconds = time.perf_counter() - started
    device = OptimalDenoiser(images, VP).device
    print(f"Default plan: {NUM_DRAWS} draws, {seconds:.0f} s on {device}, {args.threads} threads")
    print(f"\n```\n{plan.table()}\n```")

    started = time.perf_counter()
    fine = measure(VP, images, args.num_draws, 99, ETA, seed=0)
    print(f"\nLong measurement: {fine.num_draws} draws, 99 levels, {time.perf_counter() - started:.0f} s")
    coarse = every_second(fine)
    needed = alphas_of_published(*curves_of(fine))
    t2 = ", ".join(f"{needed[name]:.4f} ({name})" for name in REFERENCES)
    print(f"\nt1 = 0.442 needs alpha {needed['t1']:.4f}, t2 = 0.631 {t2}")
    show("t1 and t2 against alpha", alpha_table(coarse))
    show(f"Bootstrap half-widths, alpha {ALPHA}", draw_table(coarse))
    show(f"Levels, alpha {ALPHA}", level_table(fine))
    show("The most similar groups", group_table(coarse))
    if args.figures:
        write_figures(coarse, args.figures)
    if args.eta_draws:
        show("Other etas", eta_table(images, coarse.levels, args.eta_draws))


if __name__ == "__main__":
    main()
