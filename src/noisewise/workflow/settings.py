"""The sections of a recipe that belong to no other room; each attribute's docstring is its help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from noisewise.pruning.proposers import ImportanceSettings, ProposerSettings
from noisewise.training.settings import TrainSettings

RowId = Literal["base", "base-continued", "base-fewer-steps", "unpruned", "tdc", "uniform", "distilled", "single-stage"]
SchedulerKind = Literal["ddpm", "ddim", "pndm", "dpm++", "unipc", "heun", "euler"]


class Section(BaseModel):
    """A part of a recipe: frozen, and every key known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ScheduleSettings(Section):
    """The forward process x_t = signal(t) x_0 + noise(t) eps."""

    kind: Literal["linear", "scaled_linear", "cosine", "vp", "given"] = "linear"
    """linear (betas 1e-4 to 0.02), scaled_linear (.00085 to .012), cosine, vp (beta_min, beta_max), given (betas)."""
    num_train_timesteps: int = Field(default=1000, ge=2, le=100_000)
    """Training timesteps T; with `given` it must be the number of betas."""
    betas: tuple[float, ...] | None = None
    """All T betas, each in (0, 1); only with kind `given`."""
    beta_min: float = Field(default=0.1, gt=0)
    """Lower end of the continuous schedule's rate; only with kind `vp`."""
    beta_max: float = Field(default=20.0, gt=0)
    """Upper end of the continuous schedule's rate; only with kind `vp`."""

    @model_validator(mode="after")
    def _betas_come_with_given(self) -> ScheduleSettings:
        if (self.kind == "given") != (self.betas is not None):
            raise ValueError("betas belong to kind `given`, and kind `given` needs them")
        if self.betas is not None and len(self.betas) != self.num_train_timesteps:
            raise ValueError(f"{len(self.betas)} betas given for num_train_timesteps {self.num_train_timesteps}")
        for name in ("beta_min", "beta_max"):
            if self.kind != "vp" and name in self.model_fields_set and getattr(self, name) != _default(self, name):
                raise ValueError(f"{name} belongs to kind `vp`; kind `{self.kind}` would ignore it")
        return self


def _default(section: BaseModel, name: str) -> Any:
    return type(section).model_fields[name].default


class UNet2DSettings(BaseModel):
    """A new diffusers UNet2DModel; any of its settings may be given, those below have defaults of our own."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, use_attribute_docstrings=True)

    kind: Literal["unet2d"] = "unet2d"
    """The network: diffusers' UNet2DModel. Image size, channels and (where labels are used) classes follow the data."""
    block_out_channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(32, 64), min_length=1)
    """Channels of each resolution, from the image's own downwards."""
    layers_per_block: int = Field(default=1, ge=1, le=16)
    """Residual blocks of each resolution on the way down (one more on the way up)."""
    norm_num_groups: int = Field(default=8, ge=1)
    """Groups of every group normalisation; must divide all channels."""
    down_block_types: tuple[str, ...] | None = None
    """One block type per resolution; default: DownBlock2D, and AttnDownBlock2D (attention) at the lowest resolution."""
    up_block_types: tuple[str, ...] | None = None
    """One block type per resolution, from the lowest upwards; default: the mirror image of down_block_types."""


class ExistingModel(Section):
    """A model that exists already: a diffusers pipeline folder or model folder."""

    source: Path = Field(alias="from")
    """Folder of a diffusers UNet2DModel, or of a pipeline with one."""


def _model_tag(value: Any) -> str:
    """`from` marks an existing model; anything else describes a new network."""
    if isinstance(value, ExistingModel) or (isinstance(value, dict) and "from" in value):
        return "from"
    return "unet2d"


ModelSettings = Annotated[
    Annotated[UNet2DSettings, Tag("unet2d")] | Annotated[ExistingModel, Tag("from")], Discriminator(_model_tag)
]


class ObjectiveSettings(Section):
    """What the networks learn to predict, and how timesteps are weighted."""

    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    """The network's output: the noise, the velocity, or the image."""
    variance: Literal["fixed", "learned_range"] = "fixed"
    """learned_range doubles the output channels and trains the variance with the hybrid loss (IDDPM)."""
    weighting: Literal["uniform", "min-snr", "p2"] = "uniform"
    """Loss weight of a timestep."""
    min_snr_gamma: float = Field(default=5.0, gt=0)
    """Clip of min-SNR weighting."""
    p2_gamma: float = Field(default=1.0, ge=0)
    """Strength of P2 weighting."""
    p2_k: float = Field(default=1.0, gt=0)
    """Offset of P2 weighting."""


class PlanSettings(Section):
    """Which timesteps form a group, and what each group's denoiser may cost."""

    method: Literal["snr", "equal-width", "given"] = "snr"
    """snr: equal bins of cost (TDC); equal-width: equal ranges of t, cost limits from the SNR; given: a saved plan."""
    path: Path | None = None
    """A plan.json; only with method `given`, beside which no other setting may stand."""
    num_groups: int = Field(default=4, ge=1, le=1000)
    """Groups; bins that no timestep falls into stay empty and are reported."""
    min_cost: float = Field(default=0.5, gt=0, le=1)
    """Smallest cost limit, as a fraction of the base's MACs."""
    big_model_at: Literal["noise", "data"] = "noise"
    """Which end gets the large model: noise (the TDC paper) or data (what most later work measures)."""
    cost_schedule: Literal["snr", "constant", "increasing", "decreasing"] = "snr"
    """How the cost limits run over the groups; the last two in t."""
    average_cost: float | None = Field(default=None, gt=0, le=1)
    """Make the timestep-weighted mean cost limit equal this fraction, so that cost schedules compare fairly."""
    snr_range: Literal["all", "visited"] = "all"
    """Take the SNR's range over all timesteps, or over those that sampling visits."""
    clip_db: float | tuple[float, float] | None = None
    """Lowest and highest SNR told apart, in decibels, or c for -c to c; default: nothing is clipped."""

    @model_validator(mode="after")
    def _path_comes_with_given(self) -> PlanSettings:
        if (self.method == "given") != (self.path is not None):
            raise ValueError("path belongs to method `given`, and method `given` needs it")
        ignored = sorted(
            name for name in self.model_fields_set - {"method", "path"} if getattr(self, name) != _default(self, name)
        )
        if self.method == "given" and ignored:
            raise ValueError(f"method `given` would ignore {', '.join(ignored)}")
        return self


class PruneSettings(Section):
    """Which channels of the base a group's expert keeps."""

    importance: Literal["taylor", "magnitude", "random", "diff-pruning"] = "taylor"
    """Score of a channel; taylor and diff-pruning look at the group's own timesteps."""
    timestep_stride: int | None = Field(default=None, ge=1)
    """Taylor and diff-pruning visit one timestep in so many; default: as few as visit at most 50."""
    tolerance: float = Field(default=0.02, gt=0, lt=0.5)
    """The cost reached lies within [1 - tolerance, 1] of the budget."""
    proposer: ProposerSettings = ImportanceSettings()
    """What suggests widths: rounds of candidates, each scored on the group's timesteps and remembered."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of the step; default: the machine's cores divided by the jobs."""


class BaseSettings(TrainSettings):
    """Stage 1: the model of all timesteps. num_images 0 takes an existing model as it is."""

    num_images: int = Field(ge=0)
    """Training images seen by the base; 0 only with an existing model (`model.from`)."""
    num_snapshots: int = Field(default=0, ge=0, le=50)
    """Evenly spaced snapshots of the base to evaluate, for the curve of quality against training images."""


class SingleStageSettings(Section):
    """Method single-stage: each group's model from scratch, at the same total number of training images."""

    architecture: Literal["pruned", "base"] = "pruned"
    """The networks: the pruned ones' shapes, or the base's."""


class SampleSettings(Section):
    """Images for the evaluation."""

    scheduler: SchedulerKind = "ddim"
    """The sampler."""
    num_inference_steps: int = Field(default=50, ge=1, le=100_000)
    """Steps of the sampler."""
    num_images: int = Field(ge=2)
    """Images per row; at most the number of training images, which give the real-against-real floor at the same n."""
    batch_size: int = Field(default=128, ge=1)
    """Images made at once; an image does not depend on it."""
    eta: float = Field(default=0.0, ge=0, le=1)
    """DDIM's noise: 0 deterministic, 1 as DDPM."""
    seed: int = Field(default=0, ge=0)
    """Seed of the images; every row uses the same."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of the step; default: the machine's cores divided by the jobs."""


class EvaluateSettings(Section):
    """How the rows are compared."""

    features: Literal["efficientnet-lite0", "inception"] = "efficientnet-lite0"
    """Feature extractor; inception needs `inception_path` and is the only one whose distance is called FID."""
    tap: Literal["block10", "final"] = "block10"
    """Where EfficientNet-Lite0 is read: block10 (112 features, tells small images apart at small n) or final (1280)."""
    inception_path: Path | None = None
    """The standard TorchScript Inception file."""
    num_loss_images: int = Field(default=1024, ge=8)
    """(image, noise, t) draws of the held-out loss per group, an eighth of it per bin of t; the same for all rows."""
    num_timing_images: int = Field(default=64, ge=1)
    """Images per timing of a row; rows take turns, three times, and the median counts."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of the step; default: the machine's cores divided by the jobs."""

    @model_validator(mode="after")
    def _path_comes_with_inception(self) -> EvaluateSettings:
        if (self.features == "inception") != (self.inception_path is not None):
            raise ValueError("inception_path belongs to features `inception`, which need it")
        return self
