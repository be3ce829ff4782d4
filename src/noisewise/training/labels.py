"""Labels or captions dropped in training: a network also learns to answer without (classifier-free guidance)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

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


@dataclass(frozen=True)
class TextDropout:
    """What a network is told of captions that turns into what it is told of none with a probability."""

    probability: float
    null: Mapping[str, Any]  # by forward's arguments: tensors [1, ...], or mappings of them

    def __call__(self, told: Labels, names: tuple[object, ...]) -> Labels:
        """Conditions, [B, ...] each, some of them dropped.

        Args:
            names: of the random stream, one of its own: noise and timesteps are those of a training without dropout.
        """
        assert isinstance(told, Mapping)
        num = len(tree_leaves(told)[0])
        drawn = torch.rand(num, generator=stream(*names, "dropped captions"))  # [B]
        dropped = drawn < self.probability

        def drop(one: torch.Tensor, null: torch.Tensor) -> torch.Tensor:
            chosen = dropped.to(one.device).view(-1, *[1] * (one.ndim - 1))  # [B, 1, ...]
            return torch.where(chosen, null.to(one), one)

        found: Labels = tree_map(drop, dict(told), dict(self.null))
        return found


class Dropout(Protocol):
    """Of what a network is told."""

    @property
    def probability(self) -> float: ...

    def __call__(self, told: Labels, names: tuple[object, ...], /) -> Labels: ...


def dropout_of(probability: float, model: nn.Module, data: Any) -> Dropout | None:
    """How a data set's captions, or else its labels, are dropped; None where they never are."""
    texts = getattr(data, "texts", None)
    if texts is None:
        return LabelDropout.of(probability, model)
    if not 0 <= probability < 1:
        raise SettingError(f"{SETTING}: {probability} is not from 0 to below 1")
    return TextDropout(probability, texts.of_none()) if probability else None


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
