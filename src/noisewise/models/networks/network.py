"""What the tool knows of one architecture, as plain functions; router, pruner, counter and trainer ask it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from noisewise.models.networks.wiring import Wiring

NULL_CLASS = "_null_class"  # configuration key: the label that stands for no class
SHAPE_SETTINGS = ("layers", "norm_groups", "heads", "removed_blocks", "shortcuts")


class ExampleInputs(Protocol):
    """``example_inputs(model, batch_size=1)``: the keywords of one forward pass, on the model's device and dtype."""

    def __call__(self, model: ModelMixin, batch_size: int = 1) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Network:
    """One architecture.

    Attributes:
        kind: diffusers' class.
        shaped: the class of the same architecture with a size per layer, which pruning leaves.
        component: what pipelines call their denoiser of this architecture.
        wiring: the axes and layers of a model of this architecture, read from its modules.
        example_inputs: inputs of the right shapes.
        arguments: forward's arguments in their order; the first one is the noisy image.
        batch_arguments: those that have one entry per sample, or hold tensors that have.
        conditions: those that forward cannot do without beside image, timestep and class: text, for one.
        class_settings: configuration keys one of which is set where the model takes class labels.
        num_classes_setting: the one that says how many classes.
        null_class_follows: whether there is always one more embedding after the classes, for no class.
        pipeline_attributes: configuration keys that pipelines read; a router of several models repeats them.
        pipeline_modules: modules that pipelines look into; a router answers with its first model's.
        timestep_per_sample: whether forward wants one timestep per sample, on the image's device; otherwise one for
            all will do.
        timestep: what forward is told of the noise level: training timesteps, or flow matching's time in [0, 1].
        makes_videos: what it denoises are [B, C, F, H, W], which only its stock pipeline samples.
    """

    kind: type[ModelMixin]
    shaped: type[ModelMixin]
    component: Literal["unet", "transformer"]
    wiring: Callable[[ModelMixin], Wiring]
    example_inputs: ExampleInputs
    arguments: tuple[str, ...]
    batch_arguments: tuple[str, ...]
    conditions: tuple[str, ...] = ()
    class_settings: tuple[str, ...] = ()
    num_classes_setting: str = "num_class_embeds"
    null_class_follows: bool = False
    pipeline_attributes: tuple[str, ...] = ()
    pipeline_modules: tuple[str, ...] = ()
    timestep_per_sample: bool = False
    timestep: Literal["timestep", "flow-time"] = "timestep"
    makes_videos: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.kind.__name__

    @property
    def image(self) -> str:
        """Forward's argument that takes the noisy image [B, C, H, W]."""
        return self.arguments[0]

    def named(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments by name, as Python would bind them."""
        if len(arguments) > len(self.arguments):
            raise TypeError(f"{self.name}.forward takes {len(self.arguments)} arguments, {len(arguments)} were given")
        by_place = dict(zip(self.arguments, arguments, strict=False))
        for name in keywords:
            if name in by_place:
                raise TypeError(f"{self.name}.forward got several values for argument {name!r}")
            if name not in self.arguments:
                raise TypeError(f"{self.name}.forward has no argument {name!r}")
        return {**by_place, **keywords}

    def part(self, inputs: Mapping[str, Any], rows: torch.Tensor, num: int) -> dict[str, Any]:
        """A call's arguments for some of its ``num`` samples, ``rows`` [b]; what is one for all samples stays whole."""

        def of_rows(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[rows.to(tensor.device)] if tensor.ndim and len(tensor) == num else tensor

        return {
            name: tree_map_only(torch.Tensor, of_rows, value) if name in self.batch_arguments else value
            for name, value in inputs.items()
        }

    def timesteps(self, timestep: Any, image: torch.Tensor) -> Any:
        """``timestep``, a number or a tensor of none, one or B entries, as forward wants it."""
        if not self.timestep_per_sample:
            return timestep
        return torch.as_tensor(timestep, device=image.device).reshape(-1).expand(len(image))  # [B]

    def settings(self, model: ModelMixin) -> dict[str, Any]:
        """The settings of ``kind`` that ``model`` was built with; a shaped one's are those of its skeleton."""
        known = {*inspect.signature(self.kind.__init__).parameters, NULL_CLASS}
        return {name: value for name, value in model.config.items() if name in known}

    def reshaped(self, model: ModelMixin, shape: Mapping[str, Any]) -> ModelMixin:
        """The same architecture on the meta device with the sizes ``shape`` gives, for a pruner to fill."""
        with torch.device("meta"):
            return self.shaped(**self.settings(model), **shape)

    def output_shape(self, model: ModelMixin, inputs: Mapping[str, Any]) -> torch.Size:
        """Shape of the model's answer; the networks here answer with as many pixels as they are asked about."""
        image = inputs[self.image]
        return torch.Size([len(image), self.out_channels(model), *image.shape[2:]])

    def in_channels(self, model: ModelMixin) -> int:
        """Channels of the noisy image."""
        return int(model.config["in_channels"])

    def out_channels(self, model: ModelMixin) -> int:
        """Channels of the answer; twice the image's where the variance is learned."""
        return int(model.config["out_channels"] or model.config["in_channels"])

    def image_size(self, model: ModelMixin) -> tuple[int, int] | None:
        """Height and width the model is made for; None: its configuration does not say."""
        size = model.config["sample_size"]
        if size is None:
            return None
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def num_classes(self, model: ModelMixin) -> int | None:
        """Classes the model has an embedding of; None: none."""
        return model.config.get(self.num_classes_setting) or None

    def takes_class_labels(self, model: Any) -> bool:
        """Whether the model, or a router of such models, embeds class labels."""
        return any(model.config.get(name) is not None for name in self.class_settings)
