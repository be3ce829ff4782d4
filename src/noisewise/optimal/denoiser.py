"""The optimal denoiser of a finite data set, arXiv:2312.09181, section 3: exact, over every image, a chunk at a time.

For x_t = signal x_0 + noise eps with x_0 drawn from the data, the best guess of x_0 is the mean of all images, weighted
by softmax(-|x_t - signal y|^2 / (2 noise^2)). Everything else follows from it and from sigma = noise / signal, whatever
the schedule: eps*(x_t) - eps = (x_0 - xhat_0(x_t)) / sigma.

Shapes: n = images, B = batch, C, H, W = an image, D = C H W, L = noise levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.optimal.posterior import posterior_means
from noisewise.optimal.rows import as_rows
from noisewise.schedule import NoiseSchedule

Prediction = Literal["epsilon", "v_prediction", "sample", "edm", "velocity"]
PREDICTIONS: dict[str, tuple[Prediction, ...]] = {
    "vp": ("epsilon", "v_prediction", "sample"),
    "edm": ("edm",),
    "flow": ("velocity",),
}
WORKING_MEMORY = 2**30  # bytes
MOST_IMAGES = 4096  # of a chunk: more make the product no quicker
BYTES_OF_CHUNK = 21  # per number of its images: uint8, float32, twice float64


@dataclass(frozen=True)
class Cost:
    """What posterior means will take, at most: weights that collapse make it less."""

    macs: float  # multiply-accumulates
    passes: int  # over the data
    data_bytes: int  # read in a pass
    working_bytes: int  # held at a time, beside the data and the answer

    def __str__(self) -> str:
        read = f"{self.passes} passes over {self.data_bytes / 1e6:.3g} MB of images"
        return f"{read}, at most {self.macs / 1e12:.3g} TMACs, {self.working_bytes / 2**20:,.0f} MiB of working memory"


class OptimalDenoiser:
    """A denoiser that has learned a data set by heart; samplers and losses run it like a network.

    Attributes:
        schedule: what turns a timestep into signal and noise.
        config: ``in_channels`` and ``sample_size``, as a network's configuration has them.
    """

    def __init__(
        self,
        images: Any,
        schedule: NoiseSchedule,
        *,
        prediction_type: Prediction | None = None,
        sigma_data: float = 0.5,
        device: torch.device | str | None = None,
        chunk: int | None = None,
        working_memory: int = WORKING_MEMORY,
    ) -> None:
        """Nothing is computed yet.

        Args:
            images: a data set (`noisewise.data.Images`; its pixels may be a memory map larger than memory), uint8
                pixels [n, C, H, W], or a float tensor in about [-1, 1].
            prediction_type: what a call answers. By default epsilon (vp), EDM's network output F (edm), or the
                velocity eps - x_0 (flow); "v_prediction" and "sample" are for vp.
            sigma_data: EDM's preconditioning constant.
            device: where to compute; the images stay where they are. Default: that of a float tensor, else CUDA if
                there is one, else the CPU.
            chunk: images moved to the device at a time; by default 4096, fewer where they are large.
            working_memory: bytes to stay below, beside the data and the answer; draws are taken in blocks to do so.
        """
        if device is None:
            cuda = "cuda" if torch.cuda.is_available() else "cpu"
            device = images.device if isinstance(images, torch.Tensor) and images.is_floating_point() else cuda
        if chunk is not None and chunk < 1:
            raise SettingError(f"optimal.chunk: {chunk} is below 1")
        self.device = torch.device(device)
        self.schedule = schedule
        self.prediction_type: Prediction = prediction_type or PREDICTIONS[schedule.kind][0]
        if self.prediction_type not in PREDICTIONS[schedule.kind]:
            allowed = ", ".join(PREDICTIONS[schedule.kind])
            raise SettingError(
                f"optimal.prediction_type: {prediction_type!r}; allowed under a {schedule.kind} schedule: {allowed}"
            )
        self.sigma_data = sigma_data
        self.rows = as_rows(images, self.device)
        self.working_memory = working_memory
        chunk = chunk or max(1, min(MOST_IMAGES, working_memory // 4 // (BYTES_OF_CHUNK * self.rows.dim)))
        self.chunk = min(chunk, len(self.rows))
        self.config = SimpleNamespace(in_channels=self.rows.shape[0], sample_size=self.rows.shape[1:])

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of an image."""
        return self.rows.shape

    @property
    def num_duplicates(self) -> int:
        """Images that equal an earlier one: they count twice in every mean. One pass over the data, once."""
        return self.rows.num_duplicates

    @property
    def mean_image(self) -> torch.Tensor:
        """[C, H, W] float32: the posterior mean at infinite noise. One pass over the data, once."""
        return self.rows.mean.reshape(self.shape)

    # ---- one noisy image, one noise level

    def x_0(self, x_t: torch.Tensor, t: Any) -> torch.Tensor:
        """Posterior mean of the clean image.

        Args:
            x_t: [B, C, H, W].
            t: coordinate of the schedule, a number or [B].

        Returns:
            [B, C, H, W] float32, on the denoiser's device.
        """
        x_t = self._flat(x_t)  # [B, D]
        signal, noise = self._levels(t, len(x_t))  # [B, 1] each
        # Any split of x_t into signal x_0 + noise eps serves; the nearer x_0 is to the data, the smaller the numbers.
        x_0 = torch.nan_to_num(x_t / signal).clamp(self.rows.low, self.rows.high)
        x_0 = self.rows.image(self.rows.anchor(x_0)).float()
        eps = (x_t - signal * x_0) / noise
        u = (signal / noise).float().T  # [1, B]
        means = torch.empty(1, *x_0.shape, device=self.device)
        for block in self._blocks(len(x_t), 1):
            posterior_means(self.rows, x_0[block], eps[block].float(), u[:, block], self.chunk, means[:, block])
        return means.reshape(-1, *self.shape)

    def epsilon(self, x_t: torch.Tensor, t: Any) -> torch.Tensor:
        """The optimal guess of the noise, (x_t - signal xhat_0) / noise: [B, C, H, W] float32."""
        x_0 = self.x_0(x_t, t)
        signal, noise = (part.reshape(-1, *[1] * len(self.shape)) for part in self._levels(t, len(x_t)))
        return ((x_t.to(self.device) - signal * x_0) / noise).float()

    def __call__(self, sample: torch.Tensor, timestep: Any, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """What a network of this schedule would answer, on the sample's device and in its dtype.

        Args:
            sample: [B, C, H, W], scaled as a network would get it (EDM: c_in x_t).
            timestep: what a scheduler hands to a network, see ``NoiseSchedule.to_model_timestep``; a number or [B].
            class_labels: ignored: the denoiser of all classes.
        """
        t = self.schedule.to_coordinate(torch.as_tensor(timestep, dtype=torch.float64, device="cpu"))
        shape = (-1, *[1] * len(self.shape))
        signal, noise = (part.reshape(shape).to(sample.device) for part in self._levels(t, len(sample)))
        x_t = sample.to(noise.dtype)
        if self.prediction_type == "edm":
            scale = (noise**2 + self.sigma_data**2).sqrt()  # 1 / c_in
            x_t = x_t * scale
        x_0 = self.x_0(x_t, t).to(x_t)
        if self.prediction_type == "edm":  # F = (D - c_skip x) / c_out, arXiv:2206.00364, Eq. 7
            answer = (x_0 - (self.sigma_data / scale) ** 2 * x_t) * scale / (noise * self.sigma_data)
        elif self.prediction_type == "sample":
            answer = x_0
        else:
            answer = eps = (x_t - signal * x_0) / noise
            if self.prediction_type == "v_prediction":
                answer = signal * eps - noise * x_0
            elif self.prediction_type == "velocity":
                answer = eps - x_0
        return answer.to(sample.dtype)

    # ---- many levels at once

    def posterior_means(
        self,
        x_0: torch.Tensor,
        noise: torch.Tensor,
        levels: Sequence[float] | np.ndarray,
        progress: Callable[[float], None] | None = None,
    ) -> torch.Tensor:
        """Posterior mean at signal x_0 + noise eps for every level, for little more than a few levels cost.

        Args:
            x_0, noise: [B, C, H, W] on any device; images (of this data set or not) and unit noise.
            levels: [L] coordinates, from data to noise.
            progress: called with the fraction done.

        Returns:
            [L, B, C, H, W] float32 on the denoiser's device: mind its size.
        """
        x_0, noise = self._flat(x_0), self._flat(noise)
        sigma = self.sigma(levels)  # [L]
        if not (np.diff(levels) > 0).all():
            raise SettingError("levels: noise levels must rise, from data to noise")
        u = torch.from_numpy(1 / sigma).float().to(self.device)[:, None].expand(-1, len(x_0))  # [L, B]
        means = torch.empty(*u.shape, self.rows.dim, device=self.device)
        for block in self._blocks(len(x_0), len(u)):
            x, eps = x_0[block].float(), noise[block].float()
            if block == slice(0, len(x_0)):
                posterior_means(self.rows, x, eps, u, self.chunk, means)
            else:
                part = torch.empty(len(u), len(x), self.rows.dim, device=self.device)
                posterior_means(self.rows, x, eps, u[:, block], self.chunk, part)
                means[:, block] = part
            if progress is not None:
                progress(block.stop / len(x_0))
        return means.reshape(len(u), len(x_0), *self.shape)

    def sigma(self, levels: Sequence[float] | np.ndarray) -> np.ndarray:
        """noise / signal at coordinates [L]: [L] float64, infinite where there is no signal."""
        signal, noise = self._levels(np.asarray(levels, dtype=np.float64), len(levels))
        with np.errstate(divide="ignore"):
            return (noise.double().cpu().numpy() / signal.double().cpu().numpy())[:, 0]

    def cost(self, num_draws: int, num_levels: int) -> Cost:
        """What ``posterior_means`` of so many draws and levels will take; print it before a long run."""
        blocks = self._blocks(num_draws, num_levels)
        at_once = blocks[0].stop if blocks else 0
        return Cost(
            macs=float(num_draws) * len(self) * self.rows.dim * (num_levels + 2),
            passes=2 * len(blocks),
            data_bytes=len(self) * self.rows.dim * self.rows.data.dtype.itemsize,
            working_bytes=self._bytes_per_draw(num_levels) * at_once + BYTES_OF_CHUNK * self.chunk * self.rows.dim,
        )

    def draws_at_once(self, num_levels: int) -> int:
        """How many draws to give ``posterior_means`` so that its working memory and answer stay within the limit."""
        return self._block_size(self._bytes_per_draw(num_levels))

    # ---- inner

    def _bytes_per_draw(self, num_levels: int) -> int:
        """d and e of every image, d in float64 first; weights of a chunk; a mean per level."""
        return 20 * len(self) + 4 * num_levels * (self.chunk + self.rows.dim)

    def _block_size(self, bytes_per_draw: int) -> int:
        return max(1, (self.working_memory - BYTES_OF_CHUNK * self.chunk * self.rows.dim) // bytes_per_draw)

    def _blocks(self, num_draws: int, num_levels: int) -> list[slice]:
        """Draws to take together, about the same number each time."""
        num_blocks = math.ceil(num_draws / self._block_size(self._bytes_per_draw(num_levels)))
        size = math.ceil(num_draws / max(1, num_blocks))
        return [slice(start, min(start + size, num_draws)) for start in range(0, num_draws, max(1, size))]

    def _flat(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] as [B, D] on the device."""
        if tuple(x.shape[1:]) != self.shape:
            raise SettingError(f"images: {list(x.shape[1:])} given, the denoiser's data set has {list(self.shape)}")
        return x.to(self.device).flatten(1)

    def _levels(self, t: Any, num: int) -> tuple[torch.Tensor, torch.Tensor]:
        """signal and noise at coordinates (a number, or [num]): [num, 1] each, in float64 where there is one."""
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu").expand(num)
        signal, noise = self.schedule.signal(t), self.schedule.noise(t)
        if not (noise > 0).all():
            raise SettingError("timestep: a level without noise has nothing to denoise")
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return signal[:, None].to(self.device, dtype), noise[:, None].to(self.device, dtype)
