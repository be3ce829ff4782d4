"""The variational bound that teaches a model its variance (DDPM, arXiv:2006.11239; IDDPM, arXiv:2102.09672).

Shapes: B = batch, C = image channels, H, W = height and width, T = training timesteps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch


class Posterior(NamedTuple):
    """Of q(x_{t-1} | x_t, x_0), DDPM Eq. 7: one number per timestep, [T], or per image, [B, 1, 1, 1]."""

    log_variance: torch.Tensor  # also the shortest variance a model may choose
    log_beta: torch.Tensor  # the longest
    x_0: torch.Tensor  # coefficient of x_0 in the mean


def posterior(alphas_cumprod: np.ndarray) -> Posterior:
    """[T] each, float32 on the CPU, computed in float64."""
    before = np.concatenate([[1.0], alphas_cumprod[:-1]])  # [T]
    betas = 1 - alphas_cumprod / before
    variance = betas * (1 - before) / (1 - alphas_cumprod)
    variance[0] = variance[min(1, len(betas) - 1)]  # is 0 and its logarithm is needed, as IDDPM clips it
    mean_of_x_0 = betas * np.sqrt(before) / (1 - alphas_cumprod)
    numbers = (np.log(np.maximum(variance, 1e-20)), np.log(betas), mean_of_x_0)
    return Posterior(*(torch.tensor(x, dtype=torch.float32) for x in numbers))


def vlb_term(
    x_0: torch.Tensor, x_0_hat: torch.Tensor, variance: torch.Tensor, t: torch.Tensor, q: Posterior
) -> torch.Tensor:
    """One term of L_vlb in bits per dimension, IDDPM Eq. 4 to 7: [B].

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, the likelihood of 8-bit pixels for t = 0.

    Args:
        x_0, x_0_hat: [B, C, H, W], the image and the model's idea of it.
        variance: [B, C, H, W], the model's interpolation between the two variances, in [-1, 1], IDDPM Eq. 15.
        t: [B].
        q: [B, 1, 1, 1] each.
    """
    fraction = (variance + 1) / 2
    log_variance = fraction * q.log_beta + (1 - fraction) * q.log_variance  # [B, C, H, W]
    distance = q.x_0 * (x_0 - x_0_hat)  # of the two means, which share their x_t term
    gap = q.log_variance - log_variance
    kl = 0.5 * (torch.expm1(gap) - gap + distance.square() * torch.exp(-log_variance))
    nll = -discretized_gaussian_log_likelihood(x_0, x_0_hat, 0.5 * log_variance)  # at t = 0 the mean is x_0_hat itself
    return torch.where((t == 0).reshape(-1, 1, 1, 1), nll, kl).flatten(1).mean(1) / math.log(2)


def discretized_gaussian_log_likelihood(x_0: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Log-probability of 8-bit pixels in [-1, 1] under a normal, the tails falling to the end values, DDPM Eq. 13.

    All shapes equal; the result has the same shape.
    """
    centred, inverse = x_0 - mean, torch.exp(-log_scale)
    upper = torch.special.ndtr(inverse * (centred + 1 / 255))
    lower = torch.special.ndtr(inverse * (centred - 1 / 255))
    upper = torch.where(x_0 > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x_0 < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp(min=1e-12).log()
