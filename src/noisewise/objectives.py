"""What a denoiser learns: draw a timestep and noise, compare the model's answer with its target, one loss per image.

Training, pruning scores, Taylor importances and evaluation all ask this module, so that they mean the same by "loss".

Sources: DDPM (arXiv:2006.11239), v prediction (arXiv:2202.00512, appendix D), learned-range variance and the hybrid
loss (IDDPM, arXiv:2102.09672, Eq. 15 and 16), P2 weighting (arXiv:2204.00227, Eq. 8), min-SNR (arXiv:2303.09556),
EDM (arXiv:2206.00364, Table 1), flow matching's velocity (arXiv:2209.03003).

Shapes: B = batch, C = image channels, H, W = height and width, T = training timesteps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from noisewise.errors import SettingError
from noisewise.likelihood import vlb_term
from noisewise.models.calls import denoise
from noisewise.noise_distribution import (
    DISTRIBUTIONS,
    MEAN_AND_STD,
    DistributionName,
    NoiseDistribution,
    Timesteps,
)
from noisewise.parametrisation import PREDICTIONS, SIGMA_DATA, Draw, Labels, Parametrisation, labels_at, wide
from noisewise.streams import stream

Variance = Literal["fixed", "learned_range"]
Weighting = Literal["uniform", "min-snr", "p2"]

VLB_WEIGHT = 0.001  # lambda of IDDPM's L_hybrid = L_simple + lambda L_vlb


class ImageSource(Protocol):
    """Images by index, as ``noisewise.data.Images`` gives them, with what a network is told of them."""

    def __len__(self) -> int: ...

    def batch(self, indices: torch.Tensor, device: Any) -> tuple[torch.Tensor, Labels]: ...


@runtime_checkable
class RandomSource(ImageSource, Protocol):
    """Images that are draws themselves, as ``noisewise.data.latents.Latents`` are: training draws them anew."""

    def draw(self, indices: torch.Tensor, device: Any, generator: torch.Generator) -> tuple[torch.Tensor, Labels]: ...


@dataclass(frozen=True)
class Objective(Parametrisation):
    """How a model's answer becomes a loss; what it stands for is in `Parametrisation`, with its settings.

    Attributes:
        variance: "learned_range" trains IDDPM's variance too, in discrete time.
        weighting: of noise levels; min-SNR and P2 weight the error of the noise, whatever is predicted.
        noise_distribution: of the levels drawn in training, see `noise_distribution`; None takes the schedule's own.
        p_mean, p_std: of the log-normal (default -1.2, 1.2) or logit-normal distribution (0, 1).
    """

    variance: Variance = "fixed"
    weighting: Weighting = "uniform"
    min_snr_gamma: float = 5.0
    p2_gamma: float = 1.0
    p2_k: float = 1.0
    noise_distribution: DistributionName = None  # type: ignore[assignment]  # never None once made
    p_mean: float | None = None
    p_std: float | None = None

    def __post_init__(self) -> None:
        kind = self.schedule.kind
        defaults = {"prediction_type": PREDICTIONS[kind][0], "noise_distribution": DISTRIBUTIONS[kind][0]}
        for name, default in {**defaults, "sigma_data": SIGMA_DATA}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if kind != "vp":
            object.__setattr__(self, "time", "continuous")
        allowed: dict[str, tuple[str, ...]] = {
            "prediction_type": PREDICTIONS[kind],
            "variance": ("fixed", "learned_range"),
            "weighting": ("uniform", "min-snr", "p2"),
            "time": ("discrete", "continuous"),
            "noise_distribution": DISTRIBUTIONS[kind],
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                place = f" (under a {kind} schedule)" if name in defaults else ""
                raise SettingError(
                    f"objective.{name}: {getattr(self, name)!r} is not one of {', '.join(values)}{place}"
                )
        if self.variance == "learned_range" and not self.is_discrete:
            raise SettingError(
                "objective.variance: learned_range needs a variance-preserving schedule in discrete time"
            )
        if self.min_snr_gamma <= 0 or self.p2_k < 0 or self.p2_gamma < 0:
            raise SettingError(
                f"objective: min_snr_gamma {self.min_snr_gamma}, p2_k {self.p2_k}, p2_gamma {self.p2_gamma}: "
                "the first must be positive, the others not negative"
            )
        self._settle_distribution()

    def _settle_distribution(self) -> None:
        """Defaults of the distribution's numbers; those that nothing depends on are warned of."""
        defaults = MEAN_AND_STD.get(self.noise_distribution)
        for name, default in zip(("p_mean", "p_std"), defaults or (None, None), strict=True):
            given = getattr(self, name)
            if defaults is None and given is not None:
                warnings.warn(
                    f"objective.{name}: {given} is ignored by the {self.noise_distribution} distribution", stacklevel=4
                )
            object.__setattr__(self, name, default if defaults is None or given is None else given)
        if self.schedule.kind != "edm" and self.sigma_data != SIGMA_DATA:
            warnings.warn(f"objective.sigma_data: {self.sigma_data} is ignored, it belongs to edm", stacklevel=4)
        for name in ("p_std", "sigma_data"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingError(f"objective.{name}: {value} is not above 0")

    @property
    def num_train_timesteps(self) -> int:
        return self.schedule.num_train_timesteps

    @cached_property
    def distribution(self) -> NoiseDistribution:
        """Which noise levels training draws: the host method's distribution."""
        numbers = {} if self.p_mean is None or self.p_std is None else {"mean": self.p_mean, "std": self.p_std}
        return NoiseDistribution(self.schedule, self.noise_distribution, discrete=self.is_discrete, **numbers)

    def to_dict(self) -> dict[str, Any]:
        """JSON of every choice that matters to the loss, the schedule's included."""
        settings = {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}
        unused = {"time", "noise_distribution"} if self.is_discrete else set()
        unused |= {name for name in ("p_mean", "p_std") if settings[name] is None}
        unused |= set() if self.schedule.kind == "edm" else {"sigma_data"}
        kept = {name: value for name, value in settings.items() if name not in unused}
        return {**kept, "schedule": self.schedule.to_dict()}

    # ---- draws

    def draw(
        self,
        x_0: torch.Tensor,
        generator: torch.Generator,
        timesteps: Timesteps | None = None,
        class_labels: Labels = None,
        *,
        all_timesteps_share: float = 0.0,
        ranges: Sequence[Timesteps] | None = None,
        balanced: bool = False,
    ) -> Draw:
        """Noise ``x_0`` at levels of the host's distribution.

        Numbers are drawn on the generator's device and moved to that of ``x_0``.

        Args:
            timesteps: restrict the distribution to this half-open range; the outermost ranges reach as far as it does.
            all_timesteps_share: with this probability an image's level comes from the whole distribution instead.
            ranges: for each image first one of these ranges, all alike, then the distribution restricted to it.
            balanced: give the draw weights with which the expected loss over ``ranges`` is the host's again.
        """
        if ranges is None and balanced:
            raise SettingError("objective: balanced draws need ranges to balance")
        if ranges is not None and (timesteps is not None or all_timesteps_share > 0):
            raise SettingError("objective: draws are from ranges, or from timesteps and all of them, not both")
        weight, host = None, self.distribution
        if ranges is not None:
            t, weight = host.draw_among(len(x_0), generator, ranges)  # [B] each
        else:
            t = host.draw(len(x_0), generator, timesteps)  # [B]
        if all_timesteps_share > 0:
            anywhere = host.draw(len(x_0), generator)
            chosen = torch.rand(len(x_0), generator=generator, device=generator.device) < all_timesteps_share
            t = torch.where(chosen, anywhere, t)
        noise = torch.randn(x_0.shape, generator=generator, device=generator.device, dtype=x_0.dtype)  # [B, C, H, W]
        draw = self.noised(x_0, noise.to(x_0.device), t.to(x_0.device), class_labels)
        return replace(draw, weight=weight.to(x_0.device)) if balanced and weight is not None else draw

    def draw_at(self, x_0: torch.Tensor, generator: torch.Generator, t: float, class_labels: Labels = None) -> Draw:
        """Noise all of ``x_0`` at one coordinate."""
        if self.is_discrete:
            return self.draw(x_0, generator, (t, t + 1), class_labels)
        levels = torch.full((len(x_0),), t, dtype=wide(x_0.device), device=x_0.device)  # [B]
        noise = torch.randn(x_0.shape, generator=generator, device=generator.device, dtype=x_0.dtype)
        return self.noised(x_0, noise.to(x_0.device), levels, class_labels)

    def fixed_draws(
        self,
        images: ImageSource | torch.Tensor,
        num_images: int,
        names: Sequence[object],
        timesteps: Timesteps | None = None,
        class_labels: Labels = None,
        *,
        batch_size: int = 128,
        device: torch.device | str = "cpu",
    ) -> list[Draw]:
        """The same (image, noise, timestep) triples for every model that is compared, so that luck cancels.

        Images come without replacement while they last; levels are stratified over the range, evenly in t, flow time
        or log sigma. ``images`` is a data set or a tensor [N, C, H, W] in [-1, 1] with its ``class_labels`` [N].
        """
        generator = stream(*names, "fixed draws")
        rounds = math.ceil(num_images / max(len(images), 1))
        order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(rounds)])[:num_images]
        jitter = torch.rand(num_images, generator=generator, dtype=torch.float64)
        strata = (torch.arange(num_images, dtype=torch.float64) + jitter) / num_images  # [num_images], in [0, 1)
        t = self.distribution.stratified(strata, timesteps)
        t = t[torch.randperm(num_images, generator=generator)]  # every batch sees the whole range
        draws = []
        for first in range(0, num_images, batch_size):
            indices = order[first : first + batch_size]
            if isinstance(images, torch.Tensor):
                x_0 = images[indices.to(images.device)].to(device)
                labels = labels_at(class_labels, indices, device)
            else:
                x_0, labels = images.batch(indices, device)
            noise = torch.randn(x_0.shape, generator=generator).to(device)
            levels = t[first : first + batch_size]
            levels = levels if self.is_discrete else levels.to(wide(torch.device(device)))
            draws.append(self.noised(x_0, noise, levels.to(device), labels))
        return draws

    # ---- ranges of noise levels

    def share(self, timesteps: Timesteps | None) -> float:
        """Probability of a range under the host's distribution, in [0, 1]."""
        return self.distribution.share(timesteps)

    def check_timesteps(self, timesteps: Timesteps | None) -> Timesteps:
        """The half-open range itself, the schedule's span for None; an empty one or one beyond it is refused."""
        return self.distribution.check(timesteps)

    def bin_edges(self, timesteps: Timesteps | None, num_bins: int) -> list[float]:
        """[bins + 1] edges of bins equal in t, flow time or log sigma; in discrete time whole, and no more than fit."""
        return self.distribution.edges(timesteps, num_bins)

    def levels(self, timesteps: Timesteps | None, stride: int = 1) -> list[float]:
        """Every ``stride``-th timestep, or point of the schedule's grid, within a range; at least one."""
        return self.distribution.levels(timesteps, stride)

    def centre(self, timesteps: Timesteps) -> float:
        """The middle of a range in t, flow time or log sigma; in discrete time of its first and its last timestep."""
        return self.distribution.centre(timesteps)

    # ---- losses

    def loss(
        self,
        model: Callable[..., Any],
        draw: Draw,
        *,
        teacher: Callable[..., Any] | None = None,
        distill_weight: float = 0.0,
    ) -> torch.Tensor:
        """The training loss: weighted error of the prediction, plus IDDPM's variational term where it learns variance.

        With a ``teacher``, adds ``distill_weight`` times the squared distance of the two models' predictions. A draw's
        own weight multiplies all of it.

        Returns:
            [B] float32.
        """
        inputs = self.model_inputs(draw)
        output = denoise(model, *inputs, draw.class_labels, draw.conditions).float()  # [B, C or 2C, H, W]
        prediction, variance = self._split(output, draw.x_t.shape[1])
        loss = self.weight(draw.t) * _square_mean(prediction - self.target(draw))
        if variance is not None:
            x_0 = self.x_0(prediction.detach(), draw)  # [B, C, H, W]
            term = vlb_term(draw.x_0, x_0, variance, draw.t, self.posterior(draw.t))  # [B]
            loss = loss + VLB_WEIGHT * self.num_train_timesteps * term  # L_vlb is a sum over timesteps
        if teacher is not None and distill_weight > 0:
            with torch.no_grad():
                taught = denoise(teacher, *inputs, draw.class_labels, draw.conditions).float()[:, : draw.x_t.shape[1]]
            loss = loss + distill_weight * _square_mean(prediction - taught)
        return loss if draw.weight is None else loss * draw.weight

    def error(self, model: Callable[..., Any], draw: Draw) -> torch.Tensor:
        """Mean squared error of the noise the model sees in ``x_t``, unweighted, whatever the model predicts.

        Returns:
            [B] float32.
        """
        output = denoise(model, *self.model_inputs(draw), draw.class_labels, draw.conditions).float()
        prediction, _ = self._split(output, draw.x_t.shape[1])
        return _square_mean(self.epsilon(prediction, draw) - draw.noise.float())

    def weight(self, t: torch.Tensor) -> torch.Tensor:
        """Weight of the squared error at ``t`` in the prediction's own space: [B] float32, all 1 where uniform.

        Min-SNR and P2 weight the error of the noise, carried over to what is predicted.
        """
        if self.weighting == "uniform":
            return torch.ones(len(t), device=t.device)
        snr = self.snr(t)  # [B]
        if self.weighting == "min-snr":
            weight = (self.min_snr_gamma / snr).clamp(max=1.0)  # min(SNR, gamma) / SNR, finite at SNR = 0
        else:
            weight = (self.p2_k + snr) ** -self.p2_gamma
        return self.in_prediction_space(weight, t)

    def _split(self, output: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A model's output [B, C or 2C, H, W] as prediction and, where it is learned, variance fraction in [-1, 1]."""
        expected = channels if self.variance == "fixed" else 2 * channels
        if output.shape[1] != expected:
            raise SettingError(
                f"objective.variance: {self.variance} on images of {channels} channels needs a model with {expected} "
                f"output channels, this one has {output.shape[1]}"
            )
        return output[:, :channels], None if self.variance == "fixed" else output[:, channels:]


def _square_mean(difference: torch.Tensor) -> torch.Tensor:
    """Mean square over all but the batch: [B]."""
    return difference.square().flatten(1).mean(1)
