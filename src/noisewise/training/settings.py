"""What a recipe may say about a training: stage 1, stage 2 and single stage alike. Budgets are counted in images."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TrainSettings(BaseModel):
    """Settings of one training."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    num_images: int = Field(ge=1)
    """Training images seen, repeats included."""
    batch_size: int = Field(128, ge=1)
    """Images per step, over all processes."""
    learning_rate: float = Field(2e-4, gt=0)
    """Highest learning rate of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    warmup_images: int | None = Field(None, ge=0)
    """Images over which the learning rate rises from 0; default: a twentieth of num_images, at most 50,000."""
    rate: Literal["cosine", "constant"] = "cosine"
    """After the warm-up the learning rate falls to 0 along a cosine, or stays."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest norm of all gradients together; null: gradients are not clipped."""
    ema_halflife_images: int = Field(10_000, ge=0)
    """Half-life of the weights' exponential moving average, in images; 0: no average, the weights themselves."""
    ema_rampup: float | None = Field(0.05, gt=0)
    """Early on, the half-life is at most this fraction of the images seen, so the start is forgotten; null: off."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Arithmetic of the forward pass; weights stay float32. fp16 needs a GPU."""
    checkpoint_images: int | None = Field(None, ge=1)
    """Images between two checkpoints; default: a tenth of num_images."""
    all_timesteps_share: float = Field(0.0, ge=0, le=1)
    """Share of the images whose timestep is drawn from all timesteps when a group is trained."""
    distill_weight: float = Field(0.0, ge=0)
    """Weight of the squared distance to the base model's prediction, added to the loss; 0: off."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads of each process; default: as the process has them. Bit-equal results need equal threads."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> TrainSettings:
        if self.warmup_images is not None and self.warmup_images > max(self.num_images, 0):
            raise ValueError(
                f"warmup_images: {self.warmup_images} given; at most num_images, {self.num_images}, are possible"
            )
        return self

    @property
    def effective_warmup_images(self) -> int:
        return min(self.num_images // 20, 50_000) if self.warmup_images is None else self.warmup_images

    @property
    def effective_checkpoint_images(self) -> int:
        return max(1, self.num_images // 10) if self.checkpoint_images is None else self.checkpoint_images
