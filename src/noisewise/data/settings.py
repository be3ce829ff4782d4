"""What a recipe's ``data:`` may say; ``kind`` picks one of four sources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class CommonSettings(BaseModel):
    """Settings every kind of data has."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    name: str | None = None
    """Name in results and reports; by default the data set's own or its folder's."""
    image_size: int | None = Field(default=None, ge=4, le=4096)
    """Height and width to bring images to, in pixels; by default they stay as they are and must be square and alike."""
    conditional: bool = False
    """Use the labels: train and sample by class."""
    num_train: int | None = Field(default=None, ge=1)
    """Use at most this many training images, chosen at random; by default all."""
    num_test: int | None = Field(default=None, ge=1)
    """Use at most this many held-out images, chosen at random; by default all."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the random choices above and of `test_fraction`'s split."""


class DigitsSettings(CommonSettings):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, 10 classes; part of the installation."""

    kind: Literal["sklearn-digits"]
    """Which source."""
    test_fraction: float = Field(default=0.5, gt=0, lt=1)
    """Share of the images held out, between 0 and 1; half by default, since they are also the metric's reference."""


class IdxSettings(CommonSettings):
    """A folder of IDX files as MNIST and Fashion-MNIST have them: grey, with a test split.

    A larger `image_size` pads with black (28 to 32); a smaller one averages boxes of pixels.
    """

    kind: Literal["idx"]
    """Which source."""
    folder: Path
    """Holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and two more for `t10k-`, each maybe with `.gz`."""


class PillowSettings(CommonSettings):
    """Settings of images that Pillow decodes."""

    channels: Literal[1, 3] = 3
    """1: grey, 3: colour; transparency is laid on white."""
    on_corrupt: Literal["fail", "skip"] = "fail"
    """What an image that cannot be read does: stop with its name, or be left out with a warning that counts them."""
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the images held out where the source has no test split of its own, between 0 and 1."""
    caption_column: str | None = None
    """Use captions instead of labels: their column in `metadata.csv` or `metadata.jsonl` of a folder (beside
    `file_name`), or in parquet. By default none are read."""

    @model_validator(mode="after")
    def _labels_or_captions(self) -> PillowSettings:
        if self.conditional and self.caption_column is not None:
            raise ValueError("caption_column and conditional given; networks are told captions or labels, not both")
        return self


class FolderSettings(PillowSettings):
    """Any folder of images, searched recursively; `conditional` takes the class from the immediate subfolder's name.

    With `image_size` images are cropped to their central square and resized (bicubic, antialiased).
    """

    kind: Literal["folder"]
    """Which source."""
    folder: Path
    """The training images, or all images where `test_folder` is absent."""
    test_folder: Path | None = None
    """The held-out images; by default `test_fraction` of `folder`."""


class ParquetSettings(PillowSettings):
    """Image parquet as the Hugging Face hub has it; needs the extra `data` (pyarrow)."""

    kind: Literal["parquet"]
    """Which source."""
    train: Path | tuple[Path, ...]
    """Parquet file or files of the training images, or of all images where `test` is absent."""
    test: Path | tuple[Path, ...] | None = None
    """Parquet file or files of the held-out images; by default `test_fraction` of `train`."""
    image_column: str = "image"
    """Column of structs with a field `bytes`, or of plain binary."""
    label_column: str = "label"
    """Column of class numbers, read when `conditional`."""


DataSettings = Annotated[DigitsSettings | IdxSettings | FolderSettings | ParquetSettings, Field(discriminator="kind")]

LatentDtype = Literal["float16", "bfloat16"]
"""Number formats of latents on disk."""
