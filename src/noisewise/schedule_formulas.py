"""The arithmetic of noise schedules: betas by name, SNR of discrete and of continuous VP, and their inverses.

``log_snr`` is the natural logarithm of signal^2 / noise^2 throughout, in float64 where the device has it.

Shapes: T = num_train_timesteps; other tensors may have any shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

Level = TypeVar("Level", float, np.ndarray, torch.Tensor)

FIRST_TIME = 1e-5  # continuous VP is trained from this time on, as in score SDE (arXiv:2011.13456, appendix C)


def named_betas(name: str, T: int, start: float, end: float) -> np.ndarray:
    """[T] noise variance of each step; the cosine schedule (arXiv:2102.09672, Eq. 17) is cut at ``end``."""
    if name == "linear":
        return np.linspace(start, end, T)
    if name == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, T) ** 2
    s = np.arange(T + 1) / T  # [T + 1]
    alpha_bar = np.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2  # [T + 1]
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], end)


def table_log_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """[T] of discrete VP; minus infinity where no signal is left."""
    with np.errstate(divide="ignore"):
        return np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)


def between_timesteps(t: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """log SNR at coordinates ``t`` in [0, T-1], linear between the entries of ``table`` [T]."""
    low = t.floor().long()
    below, above = table[low], table[(low + 1).clamp(max=len(table) - 1)]
    return torch.where(t == low, below, below + (above - below) * (t - low))  # infinity times 0 is not 0


def timestep_at(log_snr: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The inverse of ``between_timesteps``, in [0, T-1]; what lies beyond the table gives its ends."""
    rising = -table  # [T]
    low = (torch.searchsorted(rising, -log_snr.contiguous(), right=True) - 1).clamp(0, len(table) - 2)
    below, above = rising[low], rising[low + 1]
    share = ((-log_snr - below) / (above - below)).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)  # 0 on flat parts
    return low + torch.where(-log_snr >= above, torch.ones_like(share), share)


def continuous_log_snr(time: torch.Tensor, beta_min: float, beta_max: float) -> torch.Tensor:
    """log SNR of VP at time s in (0, 1]: alpha_bar = exp(-B), B = beta_min s + (beta_max - beta_min) s^2 / 2."""
    return -torch.log(torch.expm1(time * (beta_min + (beta_max - beta_min) / 2 * time)))


def continuous_time_at(log_snr: torch.Tensor, beta_min: float, beta_max: float) -> torch.Tensor:
    """The inverse of ``continuous_log_snr``: s above 0, the positive root of the square equation for B."""
    B = torch.logaddexp(torch.zeros_like(log_snr), -log_snr).clamp(1e-30, 1e30)  # infinite SNR has a limit, too
    return 2 * B / (beta_min + torch.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * B))


def in_float64(t: Level, formula: Callable[[torch.Tensor], torch.Tensor]) -> Level:
    """``formula`` in float64 (float32 on Apple devices), given back as what came in."""
    if isinstance(t, torch.Tensor):
        dtype = t.dtype if t.is_floating_point() else torch.get_default_dtype()
        return formula(t.to(torch.float32 if t.device.type == "mps" else torch.float64)).to(dtype)
    if isinstance(t, np.ndarray):
        result = formula(torch.from_numpy(np.array(t, dtype=np.float64))).numpy()
        return result.astype(t.dtype) if np.issubdtype(t.dtype, np.floating) else result
    return float(formula(torch.tensor(float(t), dtype=torch.float64)))
