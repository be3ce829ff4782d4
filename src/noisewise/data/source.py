"""What a source of images tells before any image is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noisewise.data.images import Split


@dataclass(frozen=True)
class Item:
    """One image still to be decoded; ``decode`` returns [C, H, W] uint8 or raises one of `decode.UNREADABLE`."""

    name: str
    label: int | None
    decode: Callable[[], np.ndarray]
    caption: str | None = None


@dataclass(frozen=True)
class Source:
    """Images by row number; the rows that end up in a split are chosen before they are decoded."""

    name: str
    setting: str  # dotted name of the setting that errors speak of, e.g. "data.folder"
    files: tuple[Path, ...]  # what the pixels depend on; empty: part of the installation
    num_train: int  # rows of the training split, or of everything where num_test is None
    num_test: int | None  # rows of the test split; None: the source has none of its own
    class_names: tuple[str, ...] | None
    read: Callable[[Split, np.ndarray], Iterator[Item]]  # the chosen rows of a split, in any order
