"""Several denoisers, one per group of noise levels, as one diffusers model that routes by the timestep.

The plan is the one definition of the boundaries. The model runs in stock pipelines under any scheduler, since all it
looks at is the timestep it is called with, whole or not, one for the batch or one per sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn
from torch.utils._pytree import tree_map_only

from noisewise.errors import SettingError
from noisewise.models.cost import count_parameters
from noisewise.models.folders import load_model_folder, read_config
from noisewise.models.networks import Network, describe
from noisewise.models.shared import add_aliases, drop_aliases, tie, without
from noisewise.planning.plan import Plan

PASSED_ON = (
    "torch_dtype",
    "variant",
    "low_cpu_mem_usage",
    "device_map",
    "max_memory",
    "offload_folder",
    "offload_state_dict",
    "disable_mmap",
)
WITHOUT_EFFECT = ("use_safetensors", "local_files_only")  # always so


class ExpertDenoiser(ModelMixin, ConfigMixin):
    """One denoiser made of an expert per group of the plan.

    Args:
        experts: [N] models of one architecture that `describe` knows, index 0 nearest the data. Their widths may
            differ. ``None`` stands for the expert of an empty group, which is never called.
        plan: the groups.
        shared_modules: paths of modules that all experts have in common, e.g. "down_blocks". Those of the first expert
            take the place of the others' own; they are counted, trained and stored once.
    """

    __module__ = "noisewise"  # what diffusers writes into model_index.json, and where it looks again
    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("norm",)

    def __init__(self, experts: Sequence[ModelMixin | None], plan: Plan, shared_modules: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = _check_experts(experts, plan)
        tie(experts, shared_modules)
        self.experts = nn.ModuleList(experts)  # type: ignore[arg-type]  # an empty group's place stays empty
        self.plan = plan
        self.register_to_config(
            plan=plan.to_dict(),
            expert_classes=[None if expert is None else type(expert).__name__ for expert in experts],
            shared_modules=list(shared_modules),
            **_shared_settings(experts),
        )

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """Denoise each sample by its own timestep's expert.

        Arguments and answer are those of the experts' own ``forward``. The timestep is a number, or a tensor of none,
        one or B entries: what the experts were trained with. Where a batch visits several experts, each gets its own
        samples' part of the arguments that have one entry per sample.
        """
        inputs = self.network.named(arguments, keywords)
        timestep = inputs.get("timestep")
        if timestep is None:
            raise SettingError("timestep: missing; the expert is chosen by it")
        if not isinstance(timestep, torch.Tensor):
            return self._call(self.plan.group_of_model_timestep(timestep), inputs)
        if timestep.device.type == "meta":
            raise SettingError("timestep: without a value no expert can be chosen; give a number, or use one expert")
        if timestep.numel() == 1:
            return self._call(self.plan.group_of_model_timestep(timestep.item()), inputs)

        groups = self.plan.group_of_model_timestep(timestep)  # [B]
        present = groups.unique().tolist()
        if len(present) == 1:
            return self._call(present[0], inputs)
        predictions, order = [], []
        for group in present:
            rows = (groups == group).nonzero().squeeze(1)  # [b]
            part = {name: _rows(value, rows) for name, value in inputs.items() if name in self.network.batch_arguments}
            predictions.append(self._call(group, {**inputs, **part, "return_dict": False})[0])
            order.append(rows.to(predictions[-1].device))
        prediction = torch.cat(predictions)[torch.cat(order).argsort()]  # [B, C, H, W]
        return UNet2DOutput(sample=prediction) if inputs.get("return_dict", True) else (prediction,)

    def _call(self, group: int, inputs: dict[str, Any]) -> Any:
        image = inputs[self.network.image]
        return self._expert(group)(**{**inputs, "timestep": self.network.timesteps(inputs["timestep"], image)})

    def __getattr__(self, name: str) -> Any:
        """What pipelines look into beside the configuration is the same in all experts."""
        network = self.__dict__.get("network")
        if network is not None and name in network.pipeline_modules:
            return getattr(next(expert for expert in self.experts if expert is not None), name)
        return super().__getattr__(name)

    def _expert(self, group: int) -> nn.Module:
        expert = self.experts[group]
        if expert is None:
            raise SettingError(f"experts.{group}: the plan sends a timestep to this group, which has no expert")
        return expert

    def active_parameters(self) -> list[int]:
        """[N] parameters of each group's expert, 0 for an empty group."""
        return [0 if expert is None else count_parameters(expert) for expert in self.experts]

    def resident_parameters(self) -> int:
        """Parameters of all experts together, what memory has to hold; shared ones count once."""
        return count_parameters(self)

    def state_dict(self, *args: Any, prefix: str = "", **options: Any) -> dict[str, Any]:
        """As of any module, each shared tensor once, under the first expert's name."""
        state = super().state_dict(*args, prefix=prefix, **options)
        drop_aliases(self, state, prefix)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        add_aliases(self, state_dict, prefix)  # what `state_dict` left out
        super()._load_from_state_dict(state_dict, prefix, *args)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        save_function: Any = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write ``expert_<i>/`` folders, each a model of its own, and then config.json with the plan.

        Shared modules are written once, with the first expert.
        """
        if not safe_serialization:
            raise SettingError("safe_serialization: False would write pickles; noisewise writes safetensors only")
        folder = Path(save_directory)
        expert: Any
        first = next(i for i, expert in enumerate(self.experts) if expert is not None)
        for i, expert in enumerate(self.experts):
            if expert is not None:
                stored: Any = expert if i == first else without(expert, self.config.shared_modules)
                stored.save_pretrained(
                    folder / f"expert_{i}",
                    is_main_process=is_main_process,
                    save_function=save_function,
                    variant=variant,
                    max_shard_size=max_shard_size,
                )
        if is_main_process:
            self.save_config(folder)
        if push_to_hub:
            self.push_to_hub(options.pop("repo_id", folder.name), variant=variant, **options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Any:
        """Read back what `save_pretrained` wrote, from a local folder; ``options`` go to every expert.

        Returns:
            The model in evaluation mode; with ``output_loading_info`` a pair with an empty report, since an expert
            that does not load whole is an error.
        """
        folder = Path(pretrained_model_name_or_path) / (subfolder or "")
        config = read_config(folder)
        if config["_class_name"] != cls.__name__:
            raise SettingError(f"model: {folder} holds {config['_class_name']}, not {cls.__name__}")
        classes, plan = config.get("expert_classes"), config.get("plan")
        if not isinstance(classes, list) or not isinstance(plan, dict):
            raise SettingError(f"model: {folder}/config.json lists no experts (expert_classes) or no plan")
        shared = config.get("shared_modules") or []
        options = _passed_on(options)
        first = next((i for i, kind in enumerate(classes) if kind is not None), 0)
        experts = [
            None
            if kind is None
            else load_model_folder(folder / f"expert_{i}", absent=() if i == first else shared, **options)
            for i, kind in enumerate(classes)
        ]
        model = cls(experts, Plan.from_dict(plan), shared).eval()
        model.register_to_config(_name_or_path=str(folder))
        return (model, {}) if output_loading_info else model


def _passed_on(options: dict[str, Any]) -> dict[str, Any]:
    """The options that mean something to an expert; others are named in a warning."""
    if options.get("dtype") is not None:
        options["torch_dtype"] = options["dtype"]
    for name, value in options.items():
        if name not in (*PASSED_ON, *WITHOUT_EFFECT, "dtype") and value:
            warnings.warn(f"ExpertDenoiser.from_pretrained ignores {name}={value!r}", stacklevel=3)
    return {name: options[name] for name in PASSED_ON if options.get(name) is not None}


def _rows(value: Any, rows: torch.Tensor) -> Any:
    """The given samples' part of a forward argument: of a tensor [B, ...], or of all tensors within it."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor[rows.to(tensor.device)], value)


def _check_experts(experts: Sequence[ModelMixin | None], plan: Plan) -> Network:
    """The architecture that all experts have in common."""
    if len(experts) != len(plan.groups):
        raise SettingError(f"experts: {len(experts)} given, the plan has {len(plan.groups)} groups")
    for group, expert in zip(plan.groups, experts, strict=True):
        if expert is None and not group.is_empty:
            raise SettingError(f"experts.{group.index}: none given, but the group has {group.num_timesteps} timesteps")
    networks = {i: describe(expert) for i, expert in enumerate(experts) if expert is not None}
    if not networks:
        raise SettingError("experts: none given")
    (first, network), *others = networks.items()
    for i, other in others:
        if other is not network:
            raise SettingError(f"experts.{i}: a {other.name} given, experts.{first} is a {network.name}")
    return network


def _shared_settings(experts: Sequence[ModelMixin | None]) -> dict[str, Any]:
    """What pipelines read of a model's configuration; all experts have to agree on it."""
    shared: dict[str, Any] = {}
    for i, expert in enumerate(experts):
        if expert is None:
            continue
        for name in describe(expert).pipeline_attributes:
            value = expert.config.get(name)
            if shared.setdefault(name, value) != value:
                raise SettingError(f"experts.{i}.{name}: {value} given, the experts before it have {shared[name]}")
    return shared
