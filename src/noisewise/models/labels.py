"""Class labels of a denoiser: how many classes it knows, and which label stands for no class at all.

Classifier-free guidance (arXiv:2207.12598) needs a network that also answers without being told the class. Such a
network embeds one class more, the null class, which takes the place of labels that are dropped in training. DiT has it
by construction, after its classes. A U-Net's configuration says so under `NULL_CLASS`, which diffusers keeps through
loading and saving as it does all keys that begin with an underscore.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from noisewise.errors import SettingError
from noisewise.models.networks import known_network
from noisewise.models.networks.network import NULL_CLASS


@dataclass(frozen=True)
class Classes:
    """What a network's class embedding holds."""

    num_classes: int  # labels 0 .. num_classes - 1
    null: int | None  # the label of no class, where the network has one

    def check(self, labels: Any, setting: str) -> None:
        """Refuse labels that the network has no embedding of.

        Args:
            labels: any shape, integers.
            setting: what errors speak of.
        """
        labels = torch.as_tensor(labels)
        known = (labels >= 0) & (labels < self.num_classes)
        if self.null is not None:
            known |= labels == self.null
        if not bool(known.all()):
            beyond = labels[~known].flatten()[0].item()
            no_class = "" if self.null is None else f", and {self.null} for none"
            raise SettingError(
                f"{setting}: {beyond} given; the network's num_class_embeds allow 0 to {self.num_classes - 1}{no_class}"
            )


def classes_of(model: Any) -> Classes | None:
    """The classes that a network, or a router of several, embeds; None where it embeds none that can be counted."""
    network = known_network(model)
    if network is None:
        return None
    model = getattr(model, "module", model)
    part = next((expert for expert in getattr(model, "experts", ()) if expert is not None), model)
    embeddings = network.num_classes(part)
    if embeddings is None:
        return None
    if network.null_class_follows:
        return Classes(embeddings, embeddings)
    null = part.config.get(NULL_CLASS)
    return Classes(embeddings, None) if null is None else Classes(embeddings - 1, int(null))


def null_class_of(model: Any, setting: str) -> int:
    """The label of no class; a network without one is refused.

    Args:
        setting: what asks for it, with its value, e.g. "sample.guidance_scale: 2.0 given".
    """
    classes = classes_of(model)
    if classes is None:
        raise SettingError(f"{setting}; the network takes no class labels")
    if classes.null is None:
        raise SettingError(
            f"{setting}; the network has no null class, it was never trained without labels (conditioning.dropout)"
        )
    return classes.null
