"""How alike the optimal denoiser's answers at two noise levels are, arXiv:2312.09181, section 4.

Two levels a, b see the same image under the same noise. Their similarity is the fraction D of pixels at which
|eps*_a - eps*_b| <= eta. Since eps*_t - eps = (x_0 - xhat_0) / sigma_t, the noise drops out, and one posterior mean per
level and draw serves every pair. As sigma goes to 0, xhat_0 goes to x_0 (copies of x_0 in the data do not change that),
so the reference eps*_0 is eps itself; for the denoiser that answers with the data's mean, xhat_0 is that mean.

Shapes: n = levels, m = draws, B = draws of a block, D = numbers of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.optimal.denoiser import OptimalDenoiser
from noisewise.streams import stream

ETA = 2 / 255  # one 8-bit step of an image in [-1, 1]


@dataclass(frozen=True, eq=False)
class Similarity:
    """Similarities on the same draws; levels go from data to noise."""

    levels: np.ndarray  # [n] float64 coordinates
    sigma: np.ndarray  # [n] float64, noise / signal
    to_start: np.ndarray  # [n, m] float32: D of each draw to eps*_0, the limit of no noise
    to_end: np.ndarray  # [n, m] float32: D to the last of the levels
    to_mean: np.ndarray  # [n, m] float32: D to the denoiser that answers with the data's mean, at the same level
    pairs: np.ndarray  # [n, n] float64: D of each pair of levels, averaged over draws; 1 on the diagonal
    eta: float
    num_duplicates: int  # images of the data set that equal an earlier one

    @property
    def num_draws(self) -> int:
        return int(self.to_start.shape[1])


@dataclass(frozen=True)
class SimilarityDraws:
    """Draws (x_0, eps): draw i's image and noise depend on the seed and on i alone, so that more draws extend fewer."""

    denoiser: OptimalDenoiser
    num_draws: int
    seed: int = 0

    def blocks(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """x_0 and noise, [B, C, H, W] float32 each, of at most ``size`` draws at a time."""
        generator = stream(self.seed, "similarity", "images")
        rows, chosen = self.denoiser.rows, torch.empty(0, dtype=torch.int64)
        while len(chosen) < self.num_draws:  # without replacement while they last
            chosen = torch.cat([chosen, torch.randperm(len(rows), generator=generator)])
        for start in range(0, self.num_draws, size):
            draws = range(start, min(start + size, self.num_draws))
            x_0 = torch.cat([rows.chunk(i, i + 1) for i in chosen[draws.start : draws.stop].tolist()])  # [B, D]
            noise = [torch.randn(rows.shape, generator=stream(self.seed, "similarity", "noise", i)) for i in draws]
            yield rows.image(x_0).reshape(-1, *rows.shape), torch.stack(noise).to(rows.device)


def similarities(
    denoiser: OptimalDenoiser,
    levels: Sequence[float] | np.ndarray,
    num_draws: int,
    *,
    eta: float = ETA,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Similarity:
    """Similarities of every level to the references and to every other level.

    Args:
        levels: [n] coordinates from data to noise.
        num_draws: (image, noise) pairs.
        eta: largest difference that counts as the same, in units of an image in [-1, 1].
        progress: called with the fraction done.
    """
    t = np.asarray(levels, np.float64)
    if len(t) < 2 or not (np.diff(t) > 0).all():
        raise SettingError("plan.levels: two or more noise levels are needed, from data to noise")
    if num_draws < 1:
        raise SettingError(f"plan.num_draws: {num_draws} is below 1")
    if not eta > 0:
        raise SettingError(f"plan.eta: {eta} is not above 0")
    u = torch.from_numpy(1 / denoiser.sigma(t)).float().to(denoiser.device)  # [n]
    start, end, mean = [], [], []
    pairs = torch.zeros(len(t), len(t), dtype=torch.int64)
    size = denoiser.draws_at_once(len(t))
    for x_0, noise in SimilarityDraws(denoiser, num_draws, seed).blocks(size):
        off = denoiser.posterior_means(x_0, noise, t).flatten(2)  # [n, B, D]
        off.sub_(x_0.flatten(1)).mul_(-u[:, None, None])  # eps*_t - eps, in place
        of_mean = x_0.flatten(1) - denoiser.mean_image.flatten()  # [B, D], times 1 / sigma the same of the mean
        start.append(torch.stack([_close(level, eta) for level in off]))  # [n, B]
        end.append(torch.stack([_close(level - off[-1], eta) for level in off]))
        mean.append(torch.stack([_close(off[level] - of_mean * u[level], eta) for level in range(len(t))]))
        pairs += _pair_counts(off, eta)
        if progress is not None:
            progress(sum(part.shape[1] for part in start) / num_draws)
    averages = pairs.double() / (num_draws * denoiser.rows.dim)
    averages = averages + averages.T + torch.eye(len(t), dtype=torch.float64)
    to_start, to_end, to_mean = (torch.cat(parts, 1).cpu().numpy() for parts in (start, end, mean))  # [n, m] each
    num_duplicates = denoiser.num_duplicates
    return Similarity(t, denoiser.sigma(t), to_start, to_end, to_mean, averages.numpy(), eta, num_duplicates)


def _close(difference: torch.Tensor, eta: float) -> torch.Tensor:
    """Fraction of numbers within eta of 0: [..., D] -> [...] float32."""
    return (difference.abs() <= eta).float().mean(-1)


def _pair_counts(off: torch.Tensor, eta: float) -> torch.Tensor:
    """Numbers, over draws and pixels, at which two levels agree: [n, B, D] -> [n, n] int64, above the diagonal."""
    counts = torch.zeros(len(off), len(off), dtype=torch.int64, device=off.device)
    for draw in off.unbind(1):  # [n, D] fits a cache
        for a in range(len(off) - 1):
            counts[a, a + 1 :] += (draw[a + 1 :] - draw[a]).abs_().le_(eta).sum(1).long()
    return counts.cpu()
