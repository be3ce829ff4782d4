"""What a denoiser learns: draw a timestep and noise, compare the model's answer with its target, one loss per image.

Training, pruning scores, Taylor importances and evaluation all ask this module, so that they mean the same by "loss".

Sources: DDPM (arXiv:2006.11239), v prediction (arXiv:2202.00512, appendix D), learned-range variance and the hybrid
loss (IDDPM, arXiv:2102.09672, Eq. 15 and 16), P2 weighting (arXiv:2204.00227, Eq. 8), min-SNR (arXiv:2303.09556).

Shapes: B = batch, C = image channels, H, W = height and width, T = training timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch

from noisewise.errors import SettingError
from noisewise.likelihood import Posterior, posterior, vlb_term
from noisewise.schedule import NoiseSchedule
from noisewise.streams import stream

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Variance = Literal["fixed", "learned_range"]
Weighting = Literal["uniform", "min-snr", "p2"]

VLB_WEIGHT = 0.001  # lambda of IDDPM's L_hybrid = L_simple + lambda L_vlb


class ImageSource(Protocol):
    """Images by index, as ``noisewise.data.Images`` gives them."""

    def __len__(self) -> int: ...

    def batch(self, indices: torch.Tensor, device: Any) -> tuple[torch.Tensor, torch.Tensor | None]: ...


@dataclass(frozen=True)
class Draw:
    """A batch of noised images: everything that is random about a loss."""

    x_0: torch.Tensor  # [B, C, H, W], in [-1, 1]
    noise: torch.Tensor  # [B, C, H, W], unit normal
    t: torch.Tensor  # [B] int64, original training timesteps
    x_t: torch.Tensor  # [B, C, H, W]
    class_labels: torch.Tensor | None = None  # [B] int64

    def __len__(self) -> int:
        return len(self.t)

    def to(self, device: torch.device | str) -> Draw:
        labels = None if self.class_labels is None else self.class_labels.to(device)
        return Draw(self.x_0.to(device), self.noise.to(device), self.t.to(device), self.x_t.to(device), labels)


class _Tables(NamedTuple):
    """float32 [T] each, on one device."""

    signal: torch.Tensor
    noise: torch.Tensor
    snr: torch.Tensor
    posterior: Posterior


@dataclass(frozen=True)
class Objective:
    """How a model's answer becomes a loss. The schedule must be variance preserving with discrete timesteps."""

    schedule: NoiseSchedule
    prediction_type: PredictionType = "epsilon"
    variance: Variance = "fixed"
    weighting: Weighting = "uniform"
    min_snr_gamma: float = 5.0
    p2_gamma: float = 1.0
    p2_k: float = 1.0

    def __post_init__(self) -> None:
        allowed: dict[str, tuple[str, ...]] = {
            "prediction_type": ("epsilon", "v_prediction", "sample"),
            "variance": ("fixed", "learned_range"),
            "weighting": ("uniform", "min-snr", "p2"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise SettingError(f"objective.{name}: {getattr(self, name)!r} is not one of {', '.join(values)}")
        if self.schedule.alphas_cumprod is None:
            raise SettingError(
                f"objective.schedule: a {self.schedule.kind} schedule has no discrete timesteps to train on; "
                "a variance-preserving one (linear, scaled_linear, cosine, given betas) is needed"
            )
        if self.min_snr_gamma <= 0 or self.p2_k < 0 or self.p2_gamma < 0:
            raise SettingError(
                f"objective: min_snr_gamma {self.min_snr_gamma}, p2_k {self.p2_k}, p2_gamma {self.p2_gamma}: "
                "the first must be positive, the others not negative"
            )

    @property
    def num_train_timesteps(self) -> int:
        return self.schedule.num_train_timesteps

    def to_dict(self) -> dict[str, Any]:
        """JSON of every choice, the schedule's included."""
        settings = {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}
        return {**settings, "schedule": self.schedule.to_dict()}

    def draw(
        self,
        x_0: torch.Tensor,
        generator: torch.Generator,
        timesteps: tuple[int, int] | None = None,
        class_labels: torch.Tensor | None = None,
        *,
        all_timesteps_share: float = 0.0,
    ) -> Draw:
        """Noise ``x_0`` at timesteps drawn uniformly from ``timesteps`` (half-open; all of them where None).

        With ``all_timesteps_share`` each image's timestep comes, with that probability, from all timesteps instead.
        Numbers are drawn on the generator's device and moved to that of ``x_0``.
        """
        start, stop = self.check_timesteps(timesteps)
        place = generator.device
        t = torch.randint(start, stop, (len(x_0),), generator=generator, device=place)  # [B]
        if all_timesteps_share > 0:
            anywhere = torch.randint(self.num_train_timesteps, (len(x_0),), generator=generator, device=place)
            chosen = torch.rand(len(x_0), generator=generator, device=place) < all_timesteps_share
            t = torch.where(chosen, anywhere, t)
        noise = torch.randn(x_0.shape, generator=generator, device=place, dtype=x_0.dtype)  # [B, C, H, W]
        return self.noised(x_0, noise.to(x_0.device), t.to(x_0.device), class_labels)

    def noised(
        self, x_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> Draw:
        """x_t = signal(t) x_0 + noise(t) eps for given numbers, on the device of ``x_0``."""
        tables = self._tables(x_0.device)
        x_t = _per_image(tables.signal, t) * x_0 + _per_image(tables.noise, t) * noise  # [B, C, H, W]
        return Draw(x_0, noise, t, x_t.to(x_0.dtype), class_labels)

    def fixed_draws(
        self,
        images: ImageSource | torch.Tensor,
        num_images: int,
        names: Sequence[object],
        timesteps: tuple[int, int] | None = None,
        class_labels: torch.Tensor | None = None,
        *,
        batch_size: int = 128,
        device: torch.device | str = "cpu",
    ) -> list[Draw]:
        """The same (image, noise, timestep) triples for every model that is compared, so that luck cancels.

        Images come without replacement while they last; timesteps are stratified over the range. ``images`` is a data
        set or a tensor [N, C, H, W] in [-1, 1] with its ``class_labels`` [N].
        """
        start, stop = self.check_timesteps(timesteps)
        generator = stream(*names, "fixed draws")
        rounds = math.ceil(num_images / max(len(images), 1))
        order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(rounds)])[:num_images]
        jitter = torch.rand(num_images, generator=generator, dtype=torch.float64)
        strata = (torch.arange(num_images, dtype=torch.float64) + jitter) / num_images  # [num_images], in [0, 1)
        t = (start + (strata * (stop - start)).long()).clamp(max=stop - 1)
        t = t[torch.randperm(num_images, generator=generator)]  # every batch sees the whole range
        draws = []
        for first in range(0, num_images, batch_size):
            indices = order[first : first + batch_size]
            if isinstance(images, torch.Tensor):
                x_0 = images[indices.to(images.device)].to(device)
                labels = None if class_labels is None else class_labels[indices.to(class_labels.device)].to(device)
            else:
                x_0, labels = images.batch(indices, device)
            noise = torch.randn(x_0.shape, generator=generator).to(device)
            draws.append(self.noised(x_0, noise, t[first : first + batch_size].to(device), labels))
        return draws

    def loss(
        self,
        model: Callable[..., Any],
        draw: Draw,
        *,
        teacher: Callable[..., Any] | None = None,
        distill_weight: float = 0.0,
    ) -> torch.Tensor:
        """The training loss: weighted error of the prediction, plus IDDPM's variational term where it learns variance.

        With a ``teacher``, adds ``distill_weight`` times the squared distance of the two models' predictions.

        Returns:
            [B] float32.
        """
        output = denoise(model, draw.x_t, draw.t, draw.class_labels).float()  # [B, C or 2C, H, W]
        prediction, variance = self._split(output, draw.x_t.shape[1])
        loss = self.weight(draw.t) * _square_mean(prediction - self.target(draw))
        if variance is not None:
            q = Posterior(*(_per_image(table, draw.t) for table in self._tables(draw.t.device).posterior))
            term = vlb_term(draw.x_0, self.x_0(prediction.detach(), draw), variance, draw.t, q)  # [B]
            loss = loss + VLB_WEIGHT * self.num_train_timesteps * term  # L_vlb is a sum over timesteps
        if teacher is not None and distill_weight > 0:
            with torch.no_grad():
                taught = denoise(teacher, draw.x_t, draw.t, draw.class_labels).float()[:, : draw.x_t.shape[1]]
            loss = loss + distill_weight * _square_mean(prediction - taught)
        return loss

    def error(self, model: Callable[..., Any], draw: Draw) -> torch.Tensor:
        """Mean squared error of the noise the model sees in ``x_t``, unweighted, whatever the model predicts.

        Returns:
            [B] float32.
        """
        output = denoise(model, draw.x_t, draw.t, draw.class_labels).float()
        prediction, _ = self._split(output, draw.x_t.shape[1])
        return _square_mean(self.epsilon(prediction, draw) - draw.noise.float())

    def target(self, draw: Draw) -> torch.Tensor:
        """What the model should answer: [B, C, H, W] float32."""
        if self.prediction_type == "epsilon":
            return draw.noise.float()
        if self.prediction_type == "sample":
            return draw.x_0.float()
        tables = self._tables(draw.t.device)
        return _per_image(tables.signal, draw.t) * draw.noise - _per_image(tables.noise, draw.t) * draw.x_0

    def epsilon(self, prediction: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The noise a prediction [B, C, H, W] stands for."""
        if self.prediction_type == "epsilon":
            return prediction
        tables = self._tables(draw.t.device)
        signal, noise = _per_image(tables.signal, draw.t), _per_image(tables.noise, draw.t)
        if self.prediction_type == "sample":
            return (draw.x_t - signal * prediction) / noise
        return signal * prediction + noise * draw.x_t

    def x_0(self, prediction: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The clean image a prediction [B, C, H, W] stands for, unclipped."""
        if self.prediction_type == "sample":
            return prediction
        tables = self._tables(draw.t.device)
        signal, noise = _per_image(tables.signal, draw.t), _per_image(tables.noise, draw.t)
        if self.prediction_type == "epsilon":
            return (draw.x_t - noise * prediction) / signal
        return signal * draw.x_t - noise * prediction

    def weight(self, t: torch.Tensor) -> torch.Tensor:
        """Weight of the squared error at ``t`` in the prediction's own space: [B] float32, all 1 where uniform.

        Both papers weight the error of the noise; |eps|^2 = SNR |x_0|^2 = SNR / (SNR + 1) |v|^2 carries it over.
        """
        snr = self._tables(t.device).snr[t]  # [B]
        if self.weighting == "uniform":
            return torch.ones_like(snr)
        if self.weighting == "min-snr":
            weight = (self.min_snr_gamma / snr).clamp(max=1.0)  # min(SNR, gamma) / SNR, finite at SNR = 0
        else:
            weight = (self.p2_k + snr) ** -self.p2_gamma
        if self.prediction_type == "sample":
            weight = weight * snr
        elif self.prediction_type == "v_prediction":
            weight = weight * snr / (snr + 1)
        return weight

    def check_timesteps(self, timesteps: tuple[int, int] | None) -> tuple[int, int]:
        """The half-open range itself, [0, T) for None; an empty one or one beyond [0, T) is refused."""
        if timesteps is None:
            return 0, self.num_train_timesteps
        start, stop = timesteps
        if not 0 <= start < stop <= self.num_train_timesteps:
            raise SettingError(
                f"timesteps: [{start}, {stop}) is not a range of timesteps within [0, {self.num_train_timesteps})"
            )
        return start, stop

    def _split(self, output: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A model's output [B, C or 2C, H, W] as prediction and, where it is learned, variance fraction in [-1, 1]."""
        expected = channels if self.variance == "fixed" else 2 * channels
        if output.shape[1] != expected:
            raise SettingError(
                f"objective.variance: {self.variance} on images of {channels} channels needs a model with {expected} "
                f"output channels, this one has {output.shape[1]}"
            )
        return output[:, :channels], None if self.variance == "fixed" else output[:, channels:]

    @cached_property
    def _table_cache(self) -> dict[str, _Tables]:
        return {}

    def _tables(self, device: torch.device) -> _Tables:
        """Coefficients per timestep, computed in float64 once per device."""
        if str(device) not in self._table_cache:
            alphas_cumprod = np.asarray(self.schedule.alphas_cumprod, dtype=np.float64)  # [T]
            numbers = (np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod), alphas_cumprod / (1 - alphas_cumprod))
            signal, noise, snr = (torch.tensor(x, dtype=torch.float32).to(device) for x in numbers)
            q = Posterior(*(table.to(device) for table in posterior(alphas_cumprod)))
            self._table_cache[str(device)] = _Tables(signal, noise, snr, q)
        return self._table_cache[str(device)]


def denoise(
    model: Callable[..., Any],
    x_t: torch.Tensor,
    t: torch.Tensor | int | float,
    class_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """A denoiser's raw output, [B, C or 2C, H, W]: of a diffusers network, or of any callable that returns a tensor.

    Class labels reach only models that embed them; for others they are the evaluation's business.
    """
    if takes_class_labels(model):
        if class_labels is None:
            raise SettingError("data: the model is conditioned on classes, and these images have no labels")
        output = model(x_t, t, class_labels=class_labels)
    else:
        output = model(x_t, t)
    return output if isinstance(output, torch.Tensor) else output.sample


def takes_class_labels(model: Callable[..., Any]) -> bool:
    """Whether the model embeds class labels; a wrapper for several processes is looked through."""
    model = getattr(model, "module", model)
    if getattr(model, "class_embedding", None) is not None:
        return True
    config = getattr(model, "config", None)
    return any(getattr(config, name, None) is not None for name in ("num_class_embeds", "class_embed_type"))


def _per_image(table: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """table[t] as [B, 1, 1, 1]."""
    return table[t].reshape(-1, 1, 1, 1)


def _square_mean(difference: torch.Tensor) -> torch.Tensor:
    """Mean square over all but the batch: [B]."""
    return difference.square().flatten(1).mean(1)
