"""Where a model comes from: a folder, or a name on the Hub whose files are fetched; code is refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.files import read_json, write_json
from noisewise.models.folders import PICKLES

if TYPE_CHECKING:
    from diffusers import ModelMixin

COMPONENTS = ("unet", "transformer")  # what pipelines call their denoiser
SECOND = "transformer_2"  # what those with two experts call the one nearer the data
LIBRARIES = ("diffusers", "transformers", "noisewise")  # whose classes a pipeline may name
INDEX = "model_index.json"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FETCHED = ["*.json", "*.safetensors", "*.txt", "*.model"]  # settings, weights and vocabularies; no pickles, no code


def find_source(path: str | Path, setting: str = "model") -> Path:
    """A model's or pipeline's folder: the one given, or that into which the Hub's files of this name are fetched.

    Args:
        setting: what errors call the path.
    """
    folder = fetched(path, setting)
    _check_folder(folder, setting)
    return folder


def fetched(path: str | Path, setting: str = "model") -> Path:
    """The path itself, or the folder into which the Hub's files of this name are fetched.

    A name ("owner/name") is looked for on the Hub only where no such folder exists.

    Args:
        setting: what errors call the path.
    """
    folder = Path(path)
    return _fetch(str(path), setting) if not folder.exists() and HUB_NAME.fullmatch(str(path)) else folder


def _fetch(name: str, setting: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=FETCHED))
    except (OSError, ValueError, HfHubHTTPError) as error:  # no network, no such name, no right to it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingError(
            f"{setting}: {name} does not exist as a folder, and the Hub gives no model of that name ({reason}); "
            f"without a network, fetch it elsewhere (hf download {name} --local-dir FOLDER) and give that folder"
        ) from error


def _check_folder(folder: Path, setting: str) -> None:
    if not folder.exists():
        raise SettingError(f"{setting}: {folder} does not exist; give a folder, or a name on the Hub (owner/name)")
    if not folder.is_dir():
        if folder.suffix in PICKLES:
            raise SettingError(
                f"{setting}: {folder} is a pickle, which can run any program; save it as a diffusers folder"
            )
        raise SettingError(f"{setting}: {folder} is a file; the folder of a diffusers model or pipeline is needed")
    if (folder / INDEX).is_file() or (folder / "config.json").is_file():
        return
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise SettingError(
            f"{setting}: {folder} holds a pickle ({pickles[0]}) and no diffusers model; pickles are refused"
        )
    likely = (folder / "pipeline" / INDEX, folder / "model" / "config.json")  # of a run, and of a step or snapshot
    hint = next((f"; did you mean {file.parent}?" for file in likely if file.is_file()), "")
    raise SettingError(
        f"{setting}: {folder} is no diffusers folder (it has neither model_index.json nor config.json){hint}"
    )


def read_index(folder: Path) -> dict[str, Any]:
    """A pipeline's model_index.json, which may ask for no code but that of known libraries."""
    index = read_json(folder / INDEX, "model")
    if not isinstance(index, dict):
        raise SettingError(f"model: {folder}/{INDEX} does not list a pipeline's components")
    pipeline = index.get("_class_name")
    if isinstance(pipeline, list):
        raise SettingError(f"model: the pipeline in {folder} asks for code of its own ({pipeline[0]}); that is refused")
    for name, found in index.items():
        library = found[0] if isinstance(found, list) and found else None
        own_pipeline = isinstance(library, str) and _is_pipeline_module(library)
        if isinstance(library, str) and library not in LIBRARIES and not own_pipeline:
            raise SettingError(
                f"model: {name} in {folder}/{INDEX} asks for code of its own ({library}); that is refused"
            )
    return index


def _is_pipeline_module(library: str) -> bool:
    """Some components, safety checkers among them, are named by the module of diffusers' pipeline they belong to."""
    from diffusers import pipelines

    return library in dir(pipelines)


def component_of(folder: Path, index: dict[str, Any]) -> str:
    """What the pipeline calls its denoiser."""
    found = [name for name in COMPONENTS if (index.get(name) or [None])[0] is not None]
    if not found:
        others = ", ".join(name for name, value in index.items() if isinstance(value, list) and value[0] is not None)
        raise SettingError(
            f"model: {folder}/{INDEX} has no component named {' or '.join(COMPONENTS)}; "
            f"it is a {index.get('_class_name')} with {others or 'no components'}"
        )
    return found[0]


def holds_two(folder: Path) -> bool:
    """Whether a pipeline's folder has a second denoiser beside its first, as diffusers' Wan pipelines may."""
    return (folder / INDEX).is_file() and has_component(read_index(folder), SECOND)


def has_component(index: Mapping[str, Any], name: str) -> bool:
    """Whether the pipeline has the component; [null, null] stands for one that is left out."""
    value = index.get(name)
    return isinstance(value, list) and len(value) == 2 and value[1] is not None


def has_more_than_denoiser(folder: Path) -> bool:
    """Whether a pipeline's folder holds components beside denoiser and scheduler: text encoders, an autoencoder."""
    if not (folder / INDEX).is_file():
        return False
    index = read_index(folder)
    own = (*COMPONENTS, "scheduler")
    return any(isinstance(value, list) and value[0] is not None for name, value in index.items() if name not in own)


def save_in_place_of(model: ModelMixin, source: Path, path: Path) -> None:
    """The pipeline in ``source`` with ``model`` for its denoiser; its other components are copied as they are."""
    index = read_index(source)
    name = component_of(source, index)
    shutil.copytree(source, path, dirs_exist_ok=True, ignore=lambda folder, _: _left_out(folder, source, name))
    model.save_pretrained(path / name)
    library = type(model).__module__.partition(".")[0]
    write_json(path / INDEX, {**index, name: [library, type(model).__name__]})


def _left_out(folder: str, source: Path, component: str) -> set[str]:
    """The denoiser's own folder, the card that is about it, and everything that could run code when it is loaded."""
    left = {file.name for file in Path(folder).iterdir() if file.suffix in (*PICKLES, ".py")}
    return left | ({component, "README.md"} if Path(folder) == source else set())
