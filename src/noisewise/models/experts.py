"""Several denoisers, one per group of noise levels, as one diffusers model that routes by the timestep.

The plan is the one definition of the boundaries. The model runs in stock pipelines under any scheduler, since all it
looks at is the timestep it is called with, whole or not, one for the batch or one per sample.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from noisewise.errors import SettingError
from noisewise.models.card import read_card, write_card
from noisewise.models.cost import count_parameters
from noisewise.models.expert_files import TIES, passed_on, read_experts, write_experts
from noisewise.models.folders import read_config
from noisewise.models.lazy import LazyExperts
from noisewise.models.networks import Network, describe
from noisewise.models.offload import ExpertOffload, check_device
from noisewise.models.shared import Ties, add_aliases, drop_aliases, tie, tie_equal
from noisewise.planning.plan import Plan

FOR_EVERY_EXPERT = ("set_attention_slice", "set_default_attn_processor", "enable_freeu", "disable_freeu")  # methods


class ExpertDenoiser(ModelMixin, AttentionMixin, ConfigMixin):
    """One denoiser made of an expert per group of the plan, in evaluation mode where all experts are.

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
        self._offload: ExpertOffload | None = None
        self._card: str | None = None
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
        self.training = self.experts.training = any(expert.training for expert in experts if expert is not None)

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
            part = self.network.part(inputs, rows, len(groups))
            predictions.append(self._call(group, {**part, "return_dict": False})[0])
            order.append(rows.to(predictions[-1].device))
        prediction = torch.cat(predictions)[torch.cat(order).argsort()]  # [B, C, H, W]
        return UNet2DOutput(sample=prediction) if inputs.get("return_dict", True) else (prediction,)

    def _call(self, group: int, inputs: dict[str, Any]) -> Any:
        image = inputs[self.network.image]
        return self._expert(group)(**{**inputs, "timestep": self.network.timesteps(inputs["timestep"], image)})

    def __getattr__(self, name: str) -> Any:
        """What pipelines look into beside the configuration is the same in all experts; what they set, all are told."""
        network = self.__dict__.get("network")
        if network is not None and name in network.pipeline_modules:
            return getattr(self._first(), name)
        if network is not None and name in FOR_EVERY_EXPERT and hasattr(network.kind, name):
            return partial(self._tell, name)
        return super().__getattr__(name)

    def _tell(self, name: str, *arguments: Any, **keywords: Any) -> None:
        for expert in self.experts:
            if expert is not None:
                getattr(expert, name)(*arguments, **keywords)

    def _expert(self, group: int) -> nn.Module:
        expert = self.experts[group]
        if expert is None:
            raise SettingError(f"experts.{group}: the plan sends a timestep to this group, which has no expert")
        if self._offload is None:
            return expert
        if self.training and torch.is_grad_enabled():
            raise SettingError("experts: they are kept off the device, for sampling; disable_expert_offload() to train")
        return self._offload.bring(group)

    # ---- memory

    def enable_expert_offload(self, device: torch.device | str | None = None, prefetch: bool = True) -> None:
        """Keep experts in host memory and only the one at work on ``device``: for sampling, not for training.

        Args:
            device: where forward passes run; by default the accelerator that is there.
            prefetch: copy the expert that comes next while the current one runs; two are on the device then.
        """
        self.disable_expert_offload()
        place = check_device(device)
        self._offload = ExpertOffload(self.experts, place, prefetch)

    def disable_expert_offload(self) -> None:
        """Leave the experts where they are kept; nothing of them stays on the device."""
        if self._offload is not None:
            self._offload.stop()
            self._offload = None

    def tie_equal_experts(self) -> Ties:
        """Hold equal parts of experts once, in memory and in files: experts of one configuration, modules bit by bit.

        From then on they are one: training one trains all that share it.

        Returns:
            By expert: the paths of modules ("" for all of it) it has in common with which expert before it.
        """
        return tie_equal(self.experts)

    @property
    def device(self) -> torch.device:
        """Where forward passes run."""
        return self._first().device if self._offload is None else self._offload.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the experts' weights."""
        return self._first().dtype

    def _first(self) -> Any:
        """The expert that samplers begin with: it is there even while others are still to be built."""
        return next(self.experts[i] for i in reversed(range(len(self.experts))) if self.experts[i] is not None)

    def to(self, *args: Any, **options: Any) -> Any:
        """As of any module; while experts are offloaded, only to where they are brought anyway."""
        if self._offload is not None:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **options)
            same = device is None or device == self._offload.device or (device.index, device.type) == (
                None, self._offload.device.type
            )  # fmt: skip
            if same and dtype in (None, self.dtype):
                return self
        return super().to(*args, **options)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if self._offload is not None:
            raise SettingError("experts: they are kept off the device; disable_expert_offload() before moving them")
        return super()._apply(fn, recurse)

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
        if self._offload is not None:
            raise SettingError("experts: they are kept off the device; disable_expert_offload() before loading weights")
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

        What experts have in common is written once, with the first that has it. Only the main process writes.
        """
        if not safe_serialization:
            raise SettingError("safe_serialization: False would write pickles; noisewise writes safetensors only")
        if not is_main_process:
            return
        folder = Path(save_directory)
        ties = write_experts(
            list(self.experts),
            folder,
            self.config.shared_modules,
            variant,
            save_function=save_function,
            max_shard_size=max_shard_size,
        )
        if ties or self.config.get(TIES):
            self.register_to_config(**{TIES: {str(i): tied for i, tied in ties.items()}})
        self.save_config(folder)
        write_card(self, folder, self._card)
        if push_to_hub:
            self.push_to_hub(options.pop("repo_id", folder.name), variant=variant, **options)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> str:
        """Upload the model as any diffusers model is; the card is the one `save_pretrained` writes, not an empty one.

        Args:
            repo_id: e.g. "you/your-model"; made if it is not there.
            subfolder: of the repository, to upload into.

        The other arguments are those of diffusers' models.
        """
        from huggingface_hub import create_repo, upload_folder

        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            done: str = upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                path_in_repo=subfolder,
                token=token,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                create_pr=create_pr,
            )
        return done

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Any:
        """Read back what `save_pretrained` wrote, from a local folder.

        Files are mapped, and an expert is built when it is first used. ``options`` go to every expert.

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
        experts = read_experts(folder, config, passed_on(options))
        model = cls._of_files(experts, Plan.from_dict(plan), config)
        model._card = read_card(folder)
        model.register_to_config(_name_or_path=str(folder))
        return (model, {}) if output_loading_info else model

    @classmethod
    def _of_files(cls, experts: LazyExperts, plan: Plan, config: Mapping[str, Any]) -> Any:
        """A router of experts that are still to be built, in evaluation mode; the one that samplers begin with is."""
        _check_places([kind is not None for kind in config["expert_classes"]], plan)
        model = cls.__new__(cls)
        ModelMixin.__init__(model)
        model._offload = model._card = None
        begins = max(i for i, kind in enumerate(config["expert_classes"]) if kind is not None)
        model.network = describe(experts[begins])
        model.experts, model.plan = experts, plan
        model.training = experts.training = False
        model.register_to_config(**{"shared_modules": [], **{k: v for k, v in config.items() if k[:1] != "_"}})
        return model


def _check_experts(experts: Sequence[ModelMixin | None], plan: Plan) -> Network:
    """The architecture that all experts have in common."""
    _check_places([expert is not None for expert in experts], plan)
    networks = {i: describe(expert) for i, expert in enumerate(experts) if expert is not None}
    (first, network), *others = networks.items()
    for i, other in others:
        if other is not network:
            raise SettingError(f"experts.{i}: a {other.name} given, experts.{first} is a {network.name}")
    return network


def _check_places(present: Sequence[bool], plan: Plan) -> None:
    """Every group that has timesteps needs an expert."""
    if len(present) != len(plan.groups):
        raise SettingError(f"experts: {len(present)} given, the plan has {len(plan.groups)} groups")
    for group, there in zip(plan.groups, present, strict=True):
        if not there and not group.is_empty:
            raise SettingError(f"experts.{group.index}: none given, but the group has {group.num_timesteps} timesteps")
    if not any(present):
        raise SettingError("experts: none given")


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
