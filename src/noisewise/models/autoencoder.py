"""Autoencoders of latent diffusion (arXiv:2112.10752): latents as denoisers see them, and back to images.

A denoiser's latents are scaled as diffusers' pipelines do: (z - mean) / std * scaling_factor, where mean is the
configuration's ``shift_factor`` or ``latents_mean`` and std its ``latents_std``; most have neither.

Shapes: B = batch, C, H, W = an image, c, h, w = its latents, with h = H / factor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, VQModel

from noisewise.errors import SettingError
from noisewise.files import read_json
from noisewise.models.folders import load_model_folder, read_config
from noisewise.models.sources import INDEX, fetched

KINDS: dict[str, type[Any]] = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}
COMPONENTS = ("vqvae", "vae")  # an autoencoder's names in diffusers' pipelines
SETTING = "autoencoder.from"


class Autoencoder:
    """A diffusers ``AutoencoderKL`` or ``VQModel`` with its latents' shape and scaling.

    Attributes:
        model: the network; may lie on the meta device, where only its shape is asked for.
        in_channels: C of the images it takes, which have to be [-1, 1].
        channels: c.
        factor: image size / latent size.
        scaling_factor: brings latents to about unit variance.
    """

    def __init__(self, model: Any) -> None:
        if type(model).__name__ not in KINDS:
            raise SettingError(f"autoencoder: {type(model).__name__} is unknown; allowed: {', '.join(KINDS)}")
        self.model = model
        config = model.config
        self.in_channels = int(config.in_channels)
        if config.out_channels != config.in_channels:
            raise SettingError(
                f"autoencoder: it takes {config.in_channels} channels and gives {config.out_channels} back"
            )
        self.is_random = isinstance(model, AutoencoderKL)  # latents are draws from a posterior
        self.channels = int(config.latent_channels if self.is_random else config.vq_embed_dim or config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.scaling_factor = float(config.scaling_factor)
        if not 0 < self.scaling_factor < float("inf"):
            raise SettingError(f"autoencoder: scaling_factor {self.scaling_factor} is not above 0")

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """[c, h, w] of a square image; a size that the network does not halve evenly is refused."""
        if image_size % self.factor:
            raise SettingError(
                f"data.image_size: the images have {image_size} pixels a side, which the autoencoder's factor "
                f"{self.factor} does not divide; set data.image_size to {image_size // self.factor * self.factor} or "
                f"{(image_size // self.factor + 1) * self.factor}"
            )
        size = image_size // self.factor
        return self.channels, size, size

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents of images [B, C, H, W] in [-1, 1], scaled.

        Returns:
            Mean and standard deviation of their posterior, [B, c, h, w] each; without one (VQ) the latents before
            quantisation, which the decoder does, and None.
        """
        offset, spread = self._affine(images)
        encoded = self.model.encode(images)
        if not self.is_random:
            return encoded.latents * self.scaling_factor, None
        posterior = encoded.latent_dist
        return (posterior.mean - offset) / spread * self.scaling_factor, posterior.std / spread * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] in about [-1, 1] of scaled latents [B, c, h, w]."""
        offset, spread = self._affine(latents)
        decoded: torch.Tensor = self.model.decode(latents / self.scaling_factor * spread + offset).sample
        return decoded

    def _affine(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the unscaled latents by the configuration: [c, 1, 1] each."""
        mean, std = latent_statistics(self.model.config, self.channels)
        return tuple(torch.tensor(x, dtype=like.dtype, device=like.device)[:, None, None] for x in (mean, std))  # type: ignore[return-value]  # two of them

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the configuration and of every weight."""
        config = {key: value for key, value in sorted(self.model.config.items()) if not key.startswith("_")}
        digest = hashlib.sha256(repr((type(self.model).__name__, config)).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


class Half(torch.nn.Module):
    """One direction of an autoencoder as a module of its own, to count its cost."""

    def __init__(self, model: Any, direction: Literal["encode", "decode"]) -> None:
        super().__init__()
        self.model, self.direction = model, direction

    def forward(self, sample: torch.Tensor) -> Any:
        return getattr(self.model, self.direction)(sample)


def latent_statistics(config: Mapping[str, Any], channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel that a configuration takes out of its latents: [c] each."""
    mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0] * channels
    std = config.get("latents_std") or [1.0] * channels
    for name, values in (("latents_mean", mean), ("latents_std", std)):
        if len(values) != channels or not all(abs(value) < float("inf") for value in values):
            raise SettingError(f"autoencoder: {name} {list(values)}; {channels} finite numbers are needed")
    return [float(value) for value in mean], [float(value) for value in std]


# ---- folders


def autoencoder_folder(folder: Path) -> Path | None:
    """Where the autoencoder of a pipeline's folder lies, or the folder itself where it is one; None: it has none."""
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json", "model")
        names = [name for name in COMPONENTS if isinstance(index, dict) and (index.get(name) or [None])[0]]
        return folder / names[0] if names else None
    if not (folder / "config.json").is_file():
        return None
    return folder if read_config(folder)["_class_name"] in KINDS else None


def is_latent_pipeline(folder: Path) -> bool:
    """Whether the folder is a pipeline's whose samples are decoded."""
    return (folder / INDEX).is_file() and autoencoder_folder(folder) is not None


def find_autoencoder(path: str | Path, setting: str = SETTING) -> Path:
    """The folder of an autoencoder: the one given, a pipeline's, or one that is fetched from the Hub by its name.

    Args:
        setting: what errors call the path.
    """
    folder = fetched(path, setting)
    found = autoencoder_folder(folder)
    if found is None:
        what = "does not exist" if not folder.exists() else f"holds no {' or '.join(KINDS)}"
        raise SettingError(f"{setting}: {folder} {what}; give the folder of one, or of a pipeline with one")
    name = read_config(found)["_class_name"]
    if name not in KINDS:
        raise SettingError(f"{setting}: {found} is a {name}; allowed: {', '.join(KINDS)}")
    return found


def describe_autoencoder(folder: Path, scaling_factor: float | None = None, setting: str = SETTING) -> Autoencoder:
    """What is known of the autoencoder in a folder without its weights; its network is on the meta device."""
    found = find_autoencoder(folder, setting)
    config = read_config(found)
    changed = {} if scaling_factor is None else {"scaling_factor": scaling_factor}
    try:
        with torch.device("meta"):
            model = KINDS[config["_class_name"]].from_config({**config, **changed})
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise SettingError(f"{setting}: diffusers refuses {found}/config.json ({error})") from error
    return Autoencoder(model)


def load_autoencoder(folder: str | Path, scaling_factor: float | None = None, setting: str = SETTING) -> Autoencoder:
    """The autoencoder in its own folder or in a pipeline's, in evaluation mode.

    Args:
        scaling_factor: instead of the configuration's.
        setting: what errors call the folder.
    """
    found = find_autoencoder(folder, setting)
    try:
        model: Any = load_model_folder(found)
    except SettingError as error:
        raise SettingError(f"{setting}: {str(error).removeprefix('model: ')}") from None
    if scaling_factor is not None:
        model.register_to_config(scaling_factor=scaling_factor)
    return Autoencoder(model.eval())


# ---- pipelines


def check_scheduler(scheduler: Any) -> None:
    """`LDMPipeline` asks its scheduler for the size of the first noise and to scale the network's input."""
    for name in ("init_noise_sigma", "scale_model_input"):
        if not hasattr(scheduler, name):
            raise SettingError(
                f"sample.scheduler: {type(scheduler).__name__} does not run in diffusers' LDMPipeline, which latent "
                "models are saved as; use a schedule of another kind than flow"
            )


def save_latent_pipeline(model: Any, scheduler: Any, autoencoder: Autoencoder, path: str | Path) -> None:
    """Write a stock `LDMPipeline`'s folder.

    The pipeline divides latents by ``scaling_factor`` and knows no other statistics, so that those of an
    `AutoencoderKL` that has some move into its weights (`without_statistics`); its images are the same.
    """
    from diffusers import LDMPipeline

    check_scheduler(scheduler)
    LDMPipeline(vqvae=without_statistics(autoencoder.model), unet=model, scheduler=scheduler).save_pretrained(path)


def without_statistics(model: Any) -> Any:
    """The same autoencoder with mean and std of its latents in the 1x1 convolutions around them.

    With z' = (z - mean) / std the encoder's last convolution gives z' and the decoder's first one takes it.
    """
    channels = Autoencoder(model).channels
    mean, std = (torch.tensor(values) for values in latent_statistics(model.config, channels))
    if not mean.any() and bool((std == 1).all()):
        return model
    plain = {"shift_factor": None, "latents_mean": None, "latents_std": None}
    folded: Any = type(model).from_config(
        {**model.config, **plain, "use_quant_conv": True, "use_post_quant_conv": True}
    )
    weights = dict(model.state_dict())
    for name, width in (("quant_conv", 2 * channels), ("post_quant_conv", channels)):
        weights.setdefault(f"{name}.weight", torch.eye(width)[:, :, None, None])
        weights.setdefault(f"{name}.bias", torch.zeros(width))
    weights = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    # moments [2c]: the mean's rows, then the logarithm of the variance's
    divisor = torch.cat([std, torch.ones(channels)])
    shift = torch.cat([mean / std, 2 * std.log()])
    weights["quant_conv.weight"] = weights["quant_conv.weight"] / divisor[:, None, None, None]
    weights["quant_conv.bias"] = weights["quant_conv.bias"] / divisor - shift
    kernel = weights["post_quant_conv.weight"]  # [c, c, 1, 1]
    weights["post_quant_conv.bias"] = weights["post_quant_conv.bias"] + kernel[:, :, 0, 0] @ mean
    weights["post_quant_conv.weight"] = kernel * std[None, :, None, None]
    folded.load_state_dict(weights)
    return folded.to(model.device).eval()
