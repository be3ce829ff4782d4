"""The folder of an `ExpertDenoiser`: a model folder per expert, and config.json with the plan.

What experts have in common is written once, with the first that holds it. Reading maps files and builds an expert when
it is first used; what can be checked without building it is checked at once.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import nn

from noisewise.errors import SettingError
from noisewise.models.folders import check_weights, load_model_folder, model_class, read_config
from noisewise.models.lazy import LazyExperts
from noisewise.models.shared import Ties, found_ties, without

if TYPE_CHECKING:
    from diffusers import ModelMixin

TIES = "ties"  # in config.json: expert -> module path ("": all of it) -> the expert that has it


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
WEIGHTS = re.compile(  # diffusers' names of a model's files, whole or in shards, and of the list of shards
    r"diffusion_pytorch_model(?:\.([^.]+?))?(?:-\d{5}-of-\d{5})?\.safetensors(?:\.index(?:\.([^.]+))?\.json)?"
)


def write_experts(
    experts: Sequence[Any], folder: Path, shared: Sequence[str], variant: str | None, **options: Any
) -> Ties:
    """Write ``expert_<i>/`` folders; what an expert has in common with one before it is left out.

    A folder that is there already is replaced rather than written into: experts may be mapped from its files. Its
    weights of other variants stay.

    Args:
        experts: [N]; None for an empty group.
        shared: module paths that all experts share with the first.
        variant: part of the weights' file names; None for the ordinary ones.
        options: of a model's ``save_pretrained``.

    Returns:
        What was left out beside the shared modules.
    """
    ties = found_ties(experts)
    first = next(i for i, expert in enumerate(experts) if expert is not None)
    for i, expert in enumerate(experts):
        tied = ties.get(i, {})
        if expert is None or "" in tied:
            continue
        paths = [*(shared if i != first else ()), *(path for path in tied if path not in shared)]
        stored: Any = without(expert, paths) if paths else expert
        target, beside = folder / f"expert_{i}", folder / f".expert_{i}.{os.getpid()}"
        stored.save_pretrained(beside, variant=variant, **options)
        for file, other in _weights(target):
            if other != variant:
                file.rename(beside / file.name)
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
    beyond = {i: {path: j for path, j in tied.items() if path not in shared} for i, tied in ties.items()}
    return {i: tied for i, tied in beyond.items() if tied}


def _weights(folder: Path) -> list[tuple[Path, str | None]]:
    """Files of a model's weights, each with its variant."""
    found = [(file, WEIGHTS.fullmatch(file.name)) for file in sorted(folder.glob("*"))]
    return [(file, match[1] or match[2]) for file, match in found if match]


def read_experts(folder: Path, config: Mapping[str, Any], options: Mapping[str, Any]) -> LazyExperts:
    """Experts that load when they are first used; missing or damaged files are refused now.

    Args:
        folder: holds the experts' folders.
        config: of the router.
        options: of every expert's ``from_pretrained``.
    """
    classes, shared = config["expert_classes"], config.get("shared_modules") or []
    first = next((i for i, kind in enumerate(classes) if kind is not None), 0)
    ties = _read_ties(folder, config)
    options = {**options, "variant": options.get("variant") or _only_variant(folder / f"expert_{first}")}
    experts: LazyExperts

    def load(i: int) -> nn.Module:
        tied = {**({} if i == first else dict.fromkeys(shared, first)), **ties.get(i, {})}
        if "" in tied:
            whole: nn.Module = experts[tied[""]]
            return whole
        expert: ModelMixin = load_model_folder(folder / f"expert_{i}", absent=tuple(tied), **options)
        for path, j in tied.items():
            expert.set_submodule(path, experts[j].get_submodule(path))
        return expert

    for i, kind in enumerate(classes):
        if kind is not None and "" not in ties.get(i, {}):
            check_files(folder / f"expert_{i}")
    experts = LazyExperts([None if kind is None else _later(load, i) for i, kind in enumerate(classes)])
    return experts


def _only_variant(folder: Path) -> str | None:
    """The variant that an expert's weights are all of; diffusers' pipelines cannot be told it where models nest."""
    variants = {variant for _, variant in _weights(folder)}
    if len(variants) != 1 or None in variants:
        return None
    (variant,) = variants
    warnings.warn(f"model: {folder.parent} has weights of the variant {variant} alone; they are loaded", stacklevel=4)
    return variant


def _later(load: Any, i: int) -> Any:
    return lambda: load(i)


def _read_ties(folder: Path, config: Mapping[str, Any]) -> Ties:
    """What experts have in common, of one expert with another before it."""
    classes = config["expert_classes"]
    try:
        ties = {int(i): {str(path): int(j) for path, j in tied.items()} for i, tied in (config.get(TIES) or {}).items()}
        sound = all(0 <= j < i < len(classes) and classes[j] for i, tied in ties.items() for j in tied.values())
    except (AttributeError, TypeError, ValueError):
        sound = False
    if not sound:
        raise SettingError(f"model: {folder}/config.json says of {TIES} what cannot be: {config.get(TIES)}")
    return ties


def check_files(folder: Path) -> None:
    """Raise unless the folder has a known class and whole safetensors; nothing is read but their headers."""
    model_class(read_config(folder)["_class_name"])
    check_weights(folder)
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise SettingError(f"model: {folder} cannot be loaded: {file.name} is damaged ({error})") from None


def passed_on(options: dict[str, Any]) -> dict[str, Any]:
    """The options that mean something to an expert; others are named in a warning."""
    if options.get("dtype") is not None:
        options["torch_dtype"] = options["dtype"]
    for name, value in options.items():
        if name not in (*PASSED_ON, *WITHOUT_EFFECT, "dtype") and value:
            warnings.warn(f"ExpertDenoiser.from_pretrained ignores {name}={value!r}", stacklevel=3)
    return {name: options[name] for name in PASSED_ON if options.get(name) is not None}
