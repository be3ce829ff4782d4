"""The base network a recipe asks for: described, checked, and built with seeded weights."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.files import sha256_file
from noisewise.models.networks.network import NULL_CLASS, SHAPE_SETTINGS
from noisewise.streams import seed_of
from noisewise.workflow.conditioning import check_classes
from noisewise.workflow.explain import unknown_setting
from noisewise.workflow.settings import (
    ExistingModel,
    ObjectiveSettings,
    PaperModel,
    PruneSettings,
    UNet2DSettings,
)

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from noisewise.objectives import Objective
    from noisewise.schedule import NoiseSchedule

SET_BY_DATA = ("sample_size", "in_channels", "out_channels", "num_class_embeds")


@dataclass(frozen=True)
class DataInfo:
    """What the graph of steps needs to know of the images. ``fingerprint`` is empty where they could not be read."""

    name: str
    channels: int
    size: int
    num_classes: int | None
    num_train: int
    num_test: int
    fingerprint: str
    captions: str = ""  # sha256 of all captions; empty where none are used

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size


def unet2d_config(
    settings: UNet2DSettings | PaperModel, data: DataInfo, objective: ObjectiveSettings, null_class: bool = False
) -> dict[str, Any]:
    """All settings of a new network: a UNet2DModel, or a ShapedUNet2DModel where some are shapes of single layers.

    Args:
        null_class: embed one class more, which stands for none.
    """
    from diffusers import UNet2DModel

    if isinstance(settings, PaperModel):
        from noisewise.models.paper_multi_decoder import PAPER_MULTI_DECODER_NETWORKS

        return {**PAPER_MULTI_DECODER_NETWORKS[settings.name].settings, **_sizes(data, objective, null_class)}
    given = {key: value for key, value in settings.model_dump(mode="json").items() if key != "kind"}
    known = [name for name in inspect.signature(UNet2DModel.__init__).parameters if name != "self"]
    known += SHAPE_SETTINGS
    for name in given:
        if name not in known:
            raise SettingError(unknown_setting(f"model.{name}", ["kind", *known]))
        if name in SET_BY_DATA:
            raise SettingError(f"model.{name}: {given[name]!r} given; it follows from the data, leave it out")
    levels = len(settings.block_out_channels)
    down = settings.down_block_types or ("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",)
    up = settings.up_block_types or tuple(name.replace("Down", "Up") for name in reversed(down))
    if data.size % 2 ** (levels - 1):
        raise SettingError(
            f"model.block_out_channels: {levels} resolutions need an image size divisible by {2 ** (levels - 1)}, "
            f"the images have {data.size}; use fewer, or set data.image_size"
        )
    blocks = {"down_block_types": list(down), "up_block_types": list(up)}
    return {"attention_head_dim": None, **given, **blocks, **_sizes(data, objective, null_class)}


def _sizes(data: DataInfo, objective: ObjectiveSettings, null_class: bool) -> dict[str, Any]:
    """What the data decides of a network."""
    sizes = {
        "sample_size": data.size,
        "in_channels": data.channels,
        "out_channels": data.channels * (2 if objective.variance == "learned_range" else 1),
        "num_class_embeds": data.num_classes,
    }
    if null_class and data.num_classes is not None:
        sizes |= {"num_class_embeds": data.num_classes + 1, NULL_CLASS: data.num_classes}
    return sizes


@contextmanager
def seeded(names: tuple[object, ...]) -> Iterator[None]:
    """Fresh weights made inside depend on ``names`` alone."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*names, "weights"))
        yield


def new_unet2d(config: Mapping[str, Any], names: tuple[object, ...]) -> ModelMixin:
    """A network with fresh weights that depend on ``names`` alone."""
    with seeded(names):
        return _checked_unet2d(config)


def meta_unet2d(config: Mapping[str, Any]) -> ModelMixin:
    """The same network without weights, to count its cost; refused where it would not run."""
    import torch

    from noisewise.models.networks import describe

    with torch.device("meta"):
        model = _checked_unet2d(config)
    network = describe(model)
    network.wiring(model)
    with torch.no_grad(), building():
        model(**network.example_inputs(model))
    return model


def check_budget(
    network: Mapping[str, Any],
    budget: float,
    settings: PruneSettings,
    group: int,
    share_bottleneck: bool | None = None,
) -> None:
    """Refuse a group's cost limit that no legal widths meet, before anything is trained.

    Args:
        share_bottleneck: of a network whose decoder alone is cut; None: all of it may be.
    """
    from noisewise.models.networks import describe
    from noisewise.pruning.decoders import kept_whole
    from noisewise.pruning.prune import space_of
    from noisewise.pruning.solver import SolverError

    if "config" in network:
        model: Any = meta_unet2d(network["config"])
    else:
        model, _ = existing_model(ExistingModel.model_validate({"from": network["from"]}))
    proposer = settings.proposer
    try:
        space_of(
            model,
            describe(model).example_inputs(model),
            budget,
            tolerance=settings.tolerance,
            alignment=proposer.alignment,
            min_width=proposer.min_width,
            depth=proposer.depth,
            keep=() if share_bottleneck is None else kept_whole(model, share_bottleneck),
        )
    except SolverError as error:
        reason = str(error).partition(": ")[2]
        raise SettingError(f"plan: the cost limit of group {group} is {budget:.4g}, but {reason}") from None


def check_cacheable(network: Mapping[str, Any]) -> None:
    """Refuse, before anything is trained, a base that DeepCache is not written for."""
    from noisewise.sampling.deepcache import check

    if "config" in network:
        check(meta_unet2d(network["config"]))
    else:
        check(existing_model(ExistingModel.model_validate({"from": network["from"]}))[0])


def _checked_unet2d(config: Mapping[str, Any]) -> ModelMixin:
    from noisewise.models.networks import network_of_class

    network = network_of_class("UNet2DModel")
    kind = network.shaped if any(config.get(name) for name in SHAPE_SETTINGS) else network.kind
    with building():
        return kind(**config)


@contextmanager
def building(section: str = "model") -> Iterator[None]:
    """diffusers checks little itself, so that a setting it cannot use may end in any error."""
    try:
        yield
    except SettingError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingError(f"{section}: diffusers refuses this network ({reason})") from error


def existing_model(settings: ExistingModel) -> tuple[ModelMixin, Any]:
    """The network in a folder and its scheduler, if that is a pipeline's."""
    from noisewise.models.loading import load_denoiser

    model, scheduler = load_denoiser(settings.source)
    return model, scheduler


def source_of(settings: ExistingModel) -> Path:
    """The folder of an existing model; a name on the Hub is fetched first."""
    from noisewise.models.sources import find_source

    return find_source(settings.source)


def weights_checksum(folder: Path) -> str:
    """One checksum for all settings and weights in a model's folder, so that a changed model makes new steps."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))
    return f"{seed_of(*(sha256_file(path) for path in files)):016x}"


def make_objective(settings: ObjectiveSettings, schedule: NoiseSchedule) -> Objective:
    """The recipe's objective on its noise schedule; what is not given gets the schedule's default."""
    from noisewise.objectives import Objective

    return Objective(schedule, **settings.model_dump(exclude_none=True))


def predicted_by(scheduler: Any) -> str | None:
    """What the network of a pipeline with this scheduler predicts, in the objective's words; None: it does not say."""
    found = None if scheduler is None else scheduler.config.get("prediction_type")
    return {None: None, "flow_prediction": "velocity"}.get(found, found)


def check_time_embedding(model: ModelMixin, schedule: NoiseSchedule) -> None:
    """diffusers' Fourier embedding takes the logarithm of the timestep and divides by it, so it must be above 0."""
    if model.config.get("time_embedding_type") != "fourier" or schedule.model_timestep in ("sigma", "flow-time"):
        return
    numbers = "log(sigma) / 4, which is below 0 near the data" if schedule.kind == "edm" else "timesteps from 0 on"
    raise SettingError(
        "model.time_embedding_type: fourier takes the logarithm of what the network gets as its timestep, here "
        f"{numbers}; use positional"
    )


def check_fits(model: ModelMixin, scheduler: Any, data: DataInfo, objective: Objective) -> None:
    """An existing network must take the recipe's images and labels and predict what the objective says."""
    predicts = predicted_by(scheduler)
    if predicts is not None and objective.schedule.kind == "vp" and predicts != objective.prediction_type:
        raise SettingError(
            f"objective.prediction_type: {objective.prediction_type} given, the pipeline in model.from has {predicts}"
        )
    from noisewise.models.networks import describe

    network = describe(model)
    if network.in_channels(model) != data.channels:
        raise SettingError(
            f"model.from: the network takes images of {network.in_channels(model)} channels, the data has "
            f"{data.channels}"
        )
    expected = data.channels * (2 if objective.variance == "learned_range" else 1)
    if network.out_channels(model) != expected:
        raise SettingError(
            f"objective.variance: {objective.variance} needs {expected} output channels, "
            f"the network in model.from has {network.out_channels(model)}"
        )
    size = network.image_size(model)
    if size is not None and size != (data.size, data.size):
        raise SettingError(
            f"model.from: the network is made for images of {'x'.join(map(str, sorted(set(size))))} pixels, the data "
            f"has {data.size}; set data.image_size: {size[0]}"
        )
    check_classes(model, data.num_classes)
