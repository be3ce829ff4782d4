"""EDM's preconditioning (arXiv:2206.00364, Table 1 and Eq. 7): D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

The network F sees inputs, and learns targets, of unit variance at every noise level; c_noise = log(sigma) / 4 is the
schedule's ``to_model_timestep``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Preconditioning(NamedTuple):
    """Coefficients at some noise levels, all of the same shape."""

    c_skip: torch.Tensor
    c_out: torch.Tensor
    c_in: torch.Tensor


def preconditioning(sigma: torch.Tensor, sigma_data: float = 0.5) -> Preconditioning:
    """The coefficients at ``sigma``, any shape; ``sigma_data`` is the standard deviation of the images' values."""
    c_in = (sigma**2 + sigma_data**2).rsqrt()
    return Preconditioning((sigma_data * c_in) ** 2, sigma * sigma_data * c_in, c_in)


def network_target(
    x_0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, c_in: torch.Tensor, sigma_data: float
) -> torch.Tensor:
    """What F learns, (x_0 - c_skip x_t) / c_out, in terms of the noise: no difference of nearly equal numbers."""
    return (sigma / sigma_data * c_in) * x_0 - (sigma_data * c_in) * noise


def epsilon_of(
    F: torch.Tensor, x_t: torch.Tensor, sigma: torch.Tensor, c_in: torch.Tensor, sigma_data: float
) -> torch.Tensor:
    """The noise that F's answer stands for, (x_t - D) / sigma, without a division by a small sigma."""
    return (sigma * c_in**2) * x_t - (sigma_data * c_in) * F
