"""The sections of a recipe that belong to no other room; each attribute's docstring is its help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from noisewise.pruning.proposers import ImportanceSettings, ProposerSettings
from noisewise.pruning.settings import TimingSettings
from noisewise.pruning.time_budget import Budget
from noisewise.sampling.kinds import SchedulerKind
from noisewise.training.settings import TrainSettings
from noisewise.workflow.plan_settings import Section

KIND_OF = {
    "betas": "given",
    "beta_min": "vp",
    "beta_max": "vp",
    "sigma_min": "edm",
    "sigma_max": "edm",
    "shift": "flow",
}


class ScheduleSettings(Section):
    """The forward process x_t = signal(t) x_0 + noise(t) eps."""

    kind: Literal["linear", "scaled_linear", "cosine", "vp", "given", "edm", "flow"] = "linear"
    """linear (betas 1e-4 to 0.02), scaled_linear (.00085 to .012), cosine, vp (beta_min, beta_max), given (betas),
    edm (x_t = x_0 + sigma eps), flow (x_t = (1 - t) x_0 + t eps)."""
    num_train_timesteps: int = Field(default=1000, ge=2, le=100_000)
    """Training timesteps T; with `given` the number of betas, with `edm` and `flow` the points that plans look at."""
    betas: tuple[float, ...] | None = None
    """All T betas, each in (0, 1); only with kind `given`."""
    beta_min: float = Field(default=0.1, gt=0)
    """Lower end of the continuous schedule's rate; only with kind `vp`."""
    beta_max: float = Field(default=20.0, gt=0)
    """Upper end of the continuous schedule's rate; only with kind `vp`."""
    sigma_min: float = Field(default=0.002, gt=0)
    """Smallest noise level; only with kind `edm`."""
    sigma_max: float = Field(default=80.0, gt=0)
    """Largest noise level; only with kind `edm`."""
    shift: float = Field(default=1.0, gt=0)
    """How far the plan's and the sampler's flow times crowd towards noise; only with kind `flow`."""

    @model_validator(mode="after")
    def _settings_have_their_kind(self) -> ScheduleSettings:
        if (self.kind == "given") != (self.betas is not None):
            raise ValueError("betas belong to kind `given`, and kind `given` needs them")
        if self.betas is not None and len(self.betas) != self.num_train_timesteps:
            raise ValueError(f"{len(self.betas)} betas given for num_train_timesteps {self.num_train_timesteps}")
        for name, kind in KIND_OF.items():
            if self.kind != kind and name in self.model_fields_set and getattr(self, name) != _default(self, name):
                raise ValueError(f"{name} belongs to kind `{kind}`; kind `{self.kind}` would ignore it")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min: {self.sigma_min} given; it must be below sigma_max, {self.sigma_max}")
        return self


def _default(section: BaseModel, name: str) -> Any:
    return type(section).model_fields[name].default


class UNet2DSettings(BaseModel):
    """A new diffusers UNet2DModel; any of its settings may be given, and shapes of single layers as noisewise's
    ShapedUNet2DModel takes them; those below have defaults of our own."""

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


class PaperModel(Section):
    """A network of one of the papers, by name."""

    kind: Literal["paper"]
    """The network: one that a paper describes. Image size and channels follow the data."""
    name: Literal["multistage-vp-cifar10", "multistage-edm-cifar10", "multistage-latent"]
    """Which: those of the multi-stage framework (arXiv:2312.09181), with one decoder."""


class ExistingModel(Section):
    """A model that exists already: a diffusers pipeline folder or model folder."""

    source: Path = Field(alias="from")
    """Folder of a diffusers model, or of a pipeline with one; or its name on the Hub."""


def _model_tag(value: Any) -> str:
    """`from` marks an existing model, kind `paper` a known one; anything else describes a new network."""
    if isinstance(value, ExistingModel) or (isinstance(value, dict) and "from" in value):
        return "from"
    if isinstance(value, PaperModel) or (isinstance(value, dict) and value.get("kind") == "paper"):
        return "paper"
    return "unet2d"


ModelSettings = Annotated[
    Annotated[UNet2DSettings, Tag("unet2d")]
    | Annotated[PaperModel, Tag("paper")]
    | Annotated[ExistingModel, Tag("from")],
    Discriminator(_model_tag),
]


class ObjectiveSettings(Section):
    """What the networks learn to predict, and how noise levels are drawn and weighted."""

    prediction_type: Literal["epsilon", "v_prediction", "sample", "edm", "velocity"] | None = None
    """The network's output: the noise, v, or the image; edm and velocity are those of schedules `edm` and `flow`.
    Default: epsilon, or what an existing model predicts; edm and velocity with their schedules."""
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
    time: Literal["discrete", "continuous"] = "discrete"
    """Whole training timesteps, or any real time; schedules `edm` and `flow` are always continuous."""
    noise_distribution: Literal["uniform", "lognormal", "logit-normal"] | None = None
    """How noise levels are drawn. Default: uniform; lognormal with schedule `edm`. (logit-normal: `flow` only.)"""
    p_mean: float | None = None
    """Mean of lognormal (of log sigma, default -1.2) and logit-normal (of the logit of t, default 0)."""
    p_std: float | None = Field(default=None, gt=0)
    """Standard deviation of lognormal (default 1.2) and logit-normal (default 1)."""
    sigma_data: float | None = Field(default=None, gt=0)
    """Standard deviation of the data in EDM's preconditioning; default 0.5."""


class PruneSettings(Section):
    """Which channels of the base a group's expert keeps."""

    importance: Literal["taylor", "magnitude", "random", "diff-pruning"] = "taylor"
    """Score of a channel; taylor and diff-pruning look at the group's own timesteps."""
    timestep_stride: int | None = Field(default=None, ge=1)
    """Taylor and diff-pruning visit one timestep in so many; default: as few as visit at most 50."""
    tolerance: float = Field(default=0.02, gt=0, lt=0.5)
    """The cost reached lies within [1 - tolerance, 1] of the budget."""
    budget_in: Literal["macs", "seconds"] = "macs"
    """What the plan's cost limits are shares of: the base's MACs, or its latency as measured here. A network that is
    pruned to what another row costs is so by MACs."""
    timing: TimingSettings = TimingSettings()
    """How latency is measured; only with budget_in `seconds`."""
    proposer: ProposerSettings = ImportanceSettings()
    """What suggests widths: rounds of candidates, each scored on the group's timesteps and remembered."""
    recovery: Literal["none", "least-squares"] = "none"
    """least-squares: before any fine-tuning, the layers behind a cut are fitted to the base's own answers on images of
    the group, in closed form. Candidates are scored without; the network that is kept is repaired."""
    num_recovery_images: int = Field(default=256, ge=2)
    """Images, noised once, that recovery fits layers on; as many more measure what it gained."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of the step; default: the machine's cores divided by the jobs."""

    @model_validator(mode="after")
    def _images_come_with_recovery(self) -> PruneSettings:
        if self.recovery == "none" and self.num_recovery_images != _default(self, "num_recovery_images"):
            raise ValueError("num_recovery_images belongs to recovery `least-squares`; `none` would ignore it")
        return self

    @model_validator(mode="after")
    def _timing_comes_with_seconds(self) -> PruneSettings:
        if self.budget_in == "macs" and self.timing != _default(self, "timing"):
            raise ValueError("timing belongs to budget_in `seconds`; `macs` would ignore it")
        if self.budget_in == "seconds" and self.proposer.kind == "llm":
            raise ValueError("proposer: a language model is told of MACs; budget_in `seconds` goes with the others")
        return self

    def asked(self, share: float) -> Budget:
        """A cost limit as the pruner takes it."""
        return {"seconds": share} if self.budget_in == "seconds" else share

    @model_serializer(mode="wrap")
    def _identity(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        """What names a step of the store: without recovery and seconds, as before there were any."""
        values = handler(self)
        if (info.context or {}).get("identity"):
            unused = {"recovery", "num_recovery_images"} if self.recovery == "none" else set()
            unused |= {"budget_in", "timing"} if self.budget_in == "macs" else set()
            return {name: value for name, value in values.items() if name not in unused}
        return values


class BaseSettings(TrainSettings):
    """Stage 1: the model of all timesteps. num_images 0 takes an existing model as it is."""

    num_images: int = Field(ge=0)
    """Training images seen by the base; 0 only with an existing model (`model.from`)."""
    num_snapshots: int = Field(default=0, ge=0, le=50)
    """Evenly spaced snapshots of the base to evaluate, for the curve of quality against training images."""

    @model_validator(mode="after")
    def _has_no_teacher(self) -> BaseSettings:
        if self.distill_weight > 0:
            raise ValueError(f"distill_weight: {self.distill_weight:g} given; stage 1 has no teacher, finetune has")
        return self


class SingleStageSettings(Section):
    """Method single-stage: each group's model from scratch, at the same total number of training images."""

    architecture: Literal["pruned", "base", "experts"] = "pruned"
    """The networks' shapes: as a new network is pruned, the base's, or those of method tdc's experts (needs a base)."""
    num_images: int | None = Field(default=None, ge=1)
    """Training images of each group; default: its share of what the other rows see."""


class MultiDecoderSettings(Section):
    """Method multi-decoder: one encoder for all groups, a decoder for each, trained together."""

    decoders: tuple[Annotated[float, Field(gt=0, le=64)] | tuple[Annotated[int, Field(ge=1)], ...], ...] | None = Field(
        default=None, min_length=1
    )
    """Per group, from data to noise, a factor on model.block_out_channels (1.5) or the decoder's channels per
    resolution; with start `base` they are left out, since decoders are then pruned to the plan's cost limits."""
    share_bottleneck: bool = True
    """Whether the middle of the network belongs to the encoder, or each decoder has its own."""
    group_draws: Literal["uniform", "host", "balanced"] = "uniform"
    """How a training image gets its group: every group alike, by the objective's own distribution, or alike with
    weights that keep the objective. Separate networks share the training images in the same proportion."""
    start: Literal["scratch", "base"] = "scratch"
    """scratch: trained by section `base`; base: from the trained base, and trained on by section `finetune`."""

    @model_validator(mode="after")
    def _decoders_come_with_scratch(self) -> MultiDecoderSettings:
        if self.start == "base" and self.decoders is not None:
            raise ValueError("decoders: start `base` would ignore them; it prunes decoders to the plan's cost limits")
        return self


class MergeSettings(Section):
    """Row `merged`: unpruned experts as one network, base + sum of weights (expert - base)."""

    num_evaluations: int = Field(default=80, ge=8, le=100_000)
    """How many sets of weights the search may try."""
    num_images: int = Field(default=256, ge=8)
    """(image, noise, t) draws per group that a set of weights is judged by, from half of the held-out images."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of the step; default: the machine's cores divided by the jobs."""


class SampleSettings(Section):
    """Images for the evaluation."""

    scheduler: SchedulerKind = "ddim"
    """The sampler, made for the schedule's kind: edm-... and flow-... for theirs, the others for the rest."""
    num_inference_steps: int = Field(default=50, ge=1, le=100_000)
    """Steps of the sampler; of dpm-solver-3 its calls of the network. (edm-heun's 18 steps are 35 calls.)"""
    num_images: int = Field(ge=2)
    """Images per row; at most the number of training images, which give the real-against-real floor at the same n."""
    batch_size: int = Field(default=128, ge=1)
    """Images made at once; an image does not depend on it."""
    guidance_scale: Annotated[float, Field(ge=0)] | tuple[Annotated[float, Field(ge=0)], ...] = 1.0
    """How far to lead away from what a network answers without labels (classifier-free guidance): one value, or one per
    group from data to noise. 1: no guidance, one call of the network a step; all but 0 and 1 take two."""
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
    text_image_encoder: Path | None = None
    """Folder of a transformers CLIP model with its tokenizer and image processor: with captions, rows get its score."""
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
