"""Labels dropped in training, so that a network also learns to answer without them (classifier-free guidance)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import nn

from noisewise.errors import SettingError
from noisewise.models.labels import classes_of, null_class_of
from noisewise.parametrisation import Labels
from noisewise.streams import stream

SETTING = "conditioning.dropout"


@dataclass(frozen=True)
class LabelDropout:
    """Class labels that turn into the null class with a probability."""

    probability: float
    null_class: int

    @classmethod
    def of(cls, probability: float, model: nn.Module) -> LabelDropout | None:
        """None for probability 0; refused for a network without a null class."""
        if not 0 <= probability < 1:
            raise SettingError(f"{SETTING}: {probability} is not from 0 to below 1")
        if probability == 0:
            return None
        return cls(probability, null_class_of(model, f"{SETTING}: {probability} given"))

    def __call__(self, labels: Labels, names: tuple[object, ...]) -> Labels:
        """Labels [B], alone or among what else forward is told, some of them dropped.

        Args:
            names: of the random stream, one of its own: noise and timesteps are those of a training without dropout.
        """
        if isinstance(labels, Mapping):
            return {**labels, "class_labels": self(labels.get("class_labels"), names)}
        if labels is None:
            raise SettingError(f"{SETTING}: {self.probability} given, and the images have no labels (data.conditional)")
        drawn = torch.rand(len(labels), generator=stream(*names, "dropped labels"))  # [B]
        dropped = (drawn < self.probability).to(labels.device)
        return torch.where(dropped, torch.full_like(labels, self.null_class), labels)


def check_labels(model: nn.Module, data: Any) -> None:
    """Refuse labels that the network has no embedding of, before the first step."""
    classes, labels = classes_of(model), getattr(data, "labels", None)
    if classes is not None and labels is not None and len(labels):
        classes.check([int(labels.min()), int(labels.max())], "data: label")


@contextmanager
def own_dropout_off(model: nn.Module) -> Iterator[None]:
    """Without diffusers' own label dropout (DiT's): it draws from the global generator, and anew in every block."""
    embeddings = [module for module in model.modules() if isinstance(module, LabelEmbedding)]
    probabilities = [embedding.dropout_prob for embedding in embeddings]
    for embedding in embeddings:
        embedding.dropout_prob = 0.0
    try:
        yield
    finally:
        for embedding, probability in zip(embeddings, probabilities, strict=True):
            embedding.dropout_prob = probability
