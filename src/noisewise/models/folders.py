"""One model's folder (config.json and safetensors) read back whole, or refused with one clear line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from noisewise.errors import SettingError
from noisewise.files import read_json

if TYPE_CHECKING:
    from diffusers import ModelMixin

PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, which has to name a class."""
    if not (folder / "config.json").is_file():
        raise SettingError(f"model: {folder} is no diffusers model folder (it has no config.json)")
    config = read_json(folder / "config.json", "model")
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise SettingError(f"model: {folder}/config.json does not name a diffusers class (_class_name)")
    return config


def model_class(name: str) -> type[ModelMixin]:
    """The public model class of that name, from noisewise or diffusers and nowhere else."""
    import diffusers

    import noisewise

    found = getattr(noisewise if name in noisewise.__all__ else diffusers, name, None)
    if not inspect.isclass(found) or not issubclass(found, diffusers.ModelMixin):
        raise SettingError(f"model: config.json asks for {name}, which is no model of noisewise or diffusers")
    return found


def check_weights(folder: Path) -> None:
    """Weights have to be there, and as safetensors: loading a pickle can run any program."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    if pickles:
        raise SettingError(f"model: {folder} has its weights in a pickle ({pickles[0]}); save them as safetensors")
    raise SettingError(f"model: {folder} has no weights (*.safetensors)")


def load_model_folder(folder: Path, absent: Sequence[str] = (), **options: Any) -> ModelMixin:
    """Load the model in ``folder`` with its class's ``from_pretrained``; a tensor missing or left over is an error.

    Args:
        folder: holds config.json and safetensors.
        absent: paths of modules whose tensors are kept elsewhere; the model comes back with empty modules there.
        options: what ``from_pretrained`` takes, e.g. ``torch_dtype``, ``variant``, ``device_map``.
    """
    config = read_config(folder)
    kind = model_class(config["_class_name"])
    if "expert_classes" in config:
        return kind.from_pretrained(folder, **options)  # comes back here for every expert
    check_weights(folder)
    try:
        loader = _without_modules(kind, absent) if absent else kind
        model, report = loader.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    except SettingError as error:
        raise SettingError(f"model: {folder} does not fit its config.json: {error}") from None
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise SettingError(
            f"model: {folder} cannot be loaded: a file is damaged, missing or does not fit config.json ({reason})"
        ) from error
    _check_report(folder, report)
    model.__class__ = kind
    return model


def _without_modules(kind: type[ModelMixin], absent: Sequence[str]) -> type[ModelMixin]:
    """The class, but what it builds from a configuration has empty modules at ``absent``.

    So its ``from_pretrained`` asks for no tensors there, whichever way it fills and places the others.
    """
    from torch import nn

    def from_config(_: type, *args: Any, **options: Any) -> Any:
        model = kind.from_config(*args, **options)
        for path in absent:
            model.set_submodule(path, nn.Module())
        return model

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "from_config": classmethod(from_config)})


def _check_report(folder: Path, report: Mapping[str, Any]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report.get(kind):
            first = next(iter(report[kind]))
            hint = _lies_elsewhere(folder, first) if kind == "missing_keys" else ""
            raise SettingError(
                f"model: {folder} does not fit its config.json: {kind.replace('_', ' ')}, first {first}{hint}"
            )


def _lies_elsewhere(folder: Path, name: str) -> str:
    """A word on a tensor that is shared with another expert, where the folder is one expert's."""
    above = folder.resolve().parent
    if not (above / "config.json").is_file():
        return ""
    shared = read_config(above).get("shared_modules") or []
    if not any(name.startswith(f"{path}.") for path in shared):
        return ""
    return f"; this expert shares {', '.join(shared)} with the first, load {above} instead"
