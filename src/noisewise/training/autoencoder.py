"""Training of a small autoencoder on images, by the same loop as denoisers: checkpoints, moving average, processes.

The loss is that of latent diffusion's first stage (arXiv:2112.10752, appendix G) without its perceptual and adversarial
parts, which need networks of their own: absolute error plus a slight Kullback-Leibler term.

Shapes: B = batch, C, H, W = an image, c, h, w = its latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from noisewise.objectives import ImageSource
from noisewise.streams import stream
from noisewise.training.curve import TrainStep
from noisewise.training.loop import TrainResult, train
from noisewise.training.settings import TrainSettings

SCALE_IMAGES = 4096  # whose latents' standard deviation the scaling factor is made from
SCALE_BATCH = 128


class ReconstructionLoss(nn.Module):
    """An `AutoencoderKL` with its loss, so that wrappers of several processes see one forward pass."""

    def __init__(self, autoencoder: Any, kl_weight: float) -> None:
        super().__init__()
        self.autoencoder, self.kl_weight = autoencoder, kl_weight

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Loss of images [B, C, H, W] with the posterior's noise [B, c, h, w]: [B].

        Both terms are divided by the numbers of an image: sum |x - x'| + kl_weight KL, over C H W.
        """
        posterior = self.autoencoder.encode(images).latent_dist
        decoded = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample  # [B, C, H, W]
        error = (decoded.float() - images).abs().flatten(1).mean(1)  # [B]
        return error + self.kl_weight * posterior.kl().float() / images[0].numel()


@dataclass(frozen=True)
class Reconstruction:
    """What the training loop asks an objective for; there is one noise level, 0, and so one bin of losses.

    Attributes:
        latent_shape: [c, h, w].
    """

    latent_shape: tuple[int, ...]
    kl_weight: float

    def check_timesteps(self, timesteps: Any) -> tuple[float, float]:
        return 0.0, 1.0

    def bin_edges(self, timesteps: Any, num_bins: int) -> list[float]:
        return [0.0, 1.0]

    def draw(self, x_0: torch.Tensor, generator: torch.Generator, *_: Any, **__: Any) -> Any:
        """Images and the noise of their posterior."""
        noise = torch.randn(len(x_0), *self.latent_shape, generator=generator, device=generator.device)
        return SimpleNamespace(x_0=x_0, noise=noise.to(x_0.device), t=x_0.new_zeros(len(x_0)), weight=None)

    def loss(self, model: Callable[..., torch.Tensor], draw: Any, **_: Any) -> torch.Tensor:
        """[B]."""
        return model(draw.x_0, draw.noise)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "reconstruction", "kl_weight": self.kl_weight}


def train_autoencoder(
    autoencoder: Any,
    images: ImageSource,
    settings: TrainSettings,
    *,
    latent_shape: tuple[int, ...],
    kl_weight: float,
    seed: int,
    workspace: Path | None = None,
    horizontal_flip: bool = False,
    log: Callable[[TrainStep], None] | None = None,
) -> TrainResult:
    """Train an `AutoencoderKL` in place; afterwards its ``scaling_factor`` brings its latents to unit variance.

    The other arguments are those of `training.loop.train`, which goes on from its last checkpoint.
    """
    objective: Any = Reconstruction(latent_shape, kl_weight)
    model = ReconstructionLoss(autoencoder, kl_weight)
    result = train(
        model, objective, images, settings, seed=seed, workspace=workspace, names=("autoencoder",),
        horizontal_flip=horizontal_flip, log=log,
    )  # fmt: skip
    autoencoder.register_to_config(scaling_factor=1 / latent_deviation(autoencoder, images, seed))
    return result


@torch.no_grad()
def latent_deviation(autoencoder: Any, images: ImageSource, seed: int) -> float:
    """Standard deviation of all numbers of some training images' latents, posterior draws as in training."""
    generator = stream(seed, "autoencoder", "scaling factor")
    chosen = torch.randperm(len(images), generator=generator)[:SCALE_IMAGES]
    device = next(autoencoder.parameters()).device
    num, total, squares = 0, 0.0, 0.0
    for indices in chosen.split(SCALE_BATCH):
        posterior = autoencoder.encode(images.batch(indices, device)[0]).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        latents = (posterior.mean + posterior.std * noise).double().cpu()
        num += latents.numel()
        total, squares = total + latents.sum().item(), squares + latents.square().sum().item()
    return float(max(squares / num - (total / num) ** 2, 1e-12) ** 0.5)
