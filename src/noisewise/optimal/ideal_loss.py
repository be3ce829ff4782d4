"""The lowest loss any denoiser can have on its training images, noise level by noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.optimal.denoiser import OptimalDenoiser
from noisewise.optimal.similarity import SimilarityDraws


def ideal_loss(
    denoiser: OptimalDenoiser,
    levels: Sequence[float] | np.ndarray,
    num_draws: int = 256,
    *,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Mean squared error of the optimal denoiser's noise, on draws from its own images, the same at all levels.

    A denoiser that generalises stays above it on its training images, most of all near the data, where the optimum has
    the images by heart; on held-out images it is no bound.

    Args:
        levels: [L] coordinates.

    Returns:
        [L] float64.
    """
    if num_draws < 1:
        raise SettingError(f"evaluate.num_draws: {num_draws} is below 1")
    u = torch.from_numpy(1 / denoiser.sigma(levels)).to(denoiser.device)  # [L]
    total = torch.zeros(len(u), dtype=torch.float64)
    done = 0
    for x_0, noise in SimilarityDraws(denoiser, num_draws, seed).blocks(denoiser.draws_at_once(len(u))):
        means = denoiser.posterior_means(x_0, noise, levels)  # [L, B, C, H, W]
        squares = means.sub_(x_0).square_().flatten(2).mean(2).double()  # [L, B]
        total += (squares.sum(1) * u.square()).cpu()
        done += len(x_0)
        if progress is not None:
            progress(done / num_draws)
    return (total / num_draws).numpy()
