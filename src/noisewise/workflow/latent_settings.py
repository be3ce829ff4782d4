"""The recipe's `autoencoder` section: an existing autoencoder, or a small one that the tool trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from noisewise.data.settings import LatentDtype
from noisewise.training.settings import TrainSettings
from noisewise.workflow.plan_settings import Section


class ExistingAutoencoder(Section):
    """An autoencoder that exists already, taken as it is."""

    source: Path = Field(alias="from")
    """Folder of a diffusers AutoencoderKL or VQModel, or of a pipeline with one; or its name on the Hub."""
    scaling_factor: float | None = Field(default=None, gt=0)
    """What latents are multiplied by before the denoiser sees them; default: the autoencoder's own."""
    dtype: LatentDtype = "float16"
    """Number format of the cached latents."""
    encode_batch_size: int = Field(default=64, ge=1)
    """Images encoded or decoded at once."""


class NewAutoencoder(TrainSettings):
    """A small AutoencoderKL, trained on the recipe's images before everything else; settings of its training too."""

    kind: Literal["kl"]
    """The network: diffusers' AutoencoderKL. Image size and channels follow the data."""
    block_out_channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(32, 64, 64), min_length=2)
    """Channels of each resolution, from the image's own downwards; n of them make latents 2^(n-1) times smaller."""
    layers_per_block: int = Field(default=1, ge=1, le=16)
    """Residual blocks of each resolution in the encoder (one more in the decoder)."""
    latent_channels: int = Field(default=4, ge=1)
    """Channels of the latents."""
    norm_num_groups: int = Field(default=8, ge=1)
    """Groups of every group normalisation; must divide all channels."""
    kl_weight: float = Field(default=1e-6, ge=0)
    """Weight of the Kullback-Leibler term beside the absolute error, both summed over an image."""
    dtype: LatentDtype = "float16"
    """Number format of the cached latents."""
    encode_batch_size: int = Field(default=64, ge=1)
    """Images encoded or decoded at once."""

    @property
    def network(self) -> dict[str, Any]:
        """Its part of diffusers' configuration."""
        levels = len(self.block_out_channels)
        return {
            "block_out_channels": list(self.block_out_channels),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "layers_per_block": self.layers_per_block,
            "latent_channels": self.latent_channels,
            "norm_num_groups": self.norm_num_groups,
            "scaling_factor": 1.0,
        }

    @property
    def training(self) -> TrainSettings:
        """What the training loop takes of it."""
        return TrainSettings.model_validate(self.model_dump(include={*TrainSettings.model_fields}))


def _tag(value: Any) -> str:
    is_existing = isinstance(value, ExistingAutoencoder) or (isinstance(value, dict) and "from" in value)
    return "from" if is_existing else "kl"


AutoencoderSettings = Annotated[
    Annotated[ExistingAutoencoder, Tag("from")] | Annotated[NewAutoencoder, Tag("kl")], Discriminator(_tag)
]
