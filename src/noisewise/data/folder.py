"""Any folder of images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from noisewise.data.captions import folder_captions
from noisewise.data.decode import IMAGE_SUFFIXES, decode_image
from noisewise.data.images import Split
from noisewise.data.settings import FolderSettings
from noisewise.data.source import Item, Source
from noisewise.errors import SettingError


def folder_source(settings: FolderSettings) -> Source:
    """The images below ``settings.folder`` and, when given, ``settings.test_folder``, by name in sorted order."""
    folder = settings.folder.expanduser()
    paths: dict[Split, list[Path]] = {"train": find_images(folder, "data.folder")}
    if settings.test_folder is not None:
        paths["test"] = find_images(settings.test_folder.expanduser(), "data.test_folder")
        _check_disjoint(paths["train"], paths["test"])
    roots: dict[Split, Path] = {"train": folder, "test": (settings.test_folder or folder).expanduser()}
    class_names = _class_names(roots, paths) if settings.conditional else None
    captions: dict[Split, list[str]] = {}
    metadata: list[Path] = []
    if settings.caption_column is not None:
        for split, images in paths.items():
            captions[split], file = folder_captions(roots[split], settings.caption_column, images)
            metadata.append(file)

    numbers = {name: number for number, name in enumerate(class_names or ())}

    def read(split: Split, rows: np.ndarray) -> Iterator[Item]:
        for row in rows:
            path = paths[split][row]
            label = numbers[path.relative_to(roots[split]).parts[0]] if numbers else None
            caption = captions[split][row] if captions else None
            yield Item(str(path), label, partial(decode_image, path, settings.channels, settings.image_size), caption)

    num_test = len(paths["test"]) if "test" in paths else None
    files = (*(path for split in paths for path in paths[split]), *metadata)
    return Source(folder.resolve().name, "data.folder", files, len(paths["train"]), num_test, class_names, read)


def find_images(folder: Path, setting: str) -> list[Path]:
    """Every image file below ``folder``, hidden ones left out, sorted."""
    if not folder.exists():
        raise SettingError(f"{setting}: {folder} does not exist; give a folder of images")
    if not folder.is_dir():
        raise SettingError(f"{setting}: {folder} is a file; give a folder of images")

    def refuse(error: OSError) -> None:
        raise SettingError(f"{setting}: {error.filename} cannot be read ({error.strerror})")

    paths, seen = [], set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        visible = (Path(parent, name) for name in names if not name.startswith("."))
        paths += [path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise SettingError(f"{setting}: {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return sorted(paths)


def _check_disjoint(train: list[Path], test: list[Path]) -> None:
    """Refuse held-out images that are training images too, as where one folder lies in the other."""
    places = {parent: Path(os.path.realpath(parent)) for parent in {path.parent for path in (*train, *test)}}
    known = {places[path.parent] / path.name for path in train}
    shared = [path for path in test if places[path.parent] / path.name in known]
    if shared:
        raise SettingError(
            f"data.test_folder: {len(shared)} of its {len(test)} images are training images too, first {shared[0]}; "
            "give folders of which neither holds the other's images"
        )


def _class_names(roots: dict[Split, Path], paths: dict[Split, list[Path]]) -> tuple[str, ...]:
    names: dict[Split, set[str]] = {}
    for split, images in paths.items():
        relative = [path.relative_to(roots[split]) for path in images]
        for path in relative:
            if len(path.parts) == 1:
                raise SettingError(
                    f"data.conditional: {roots[split] / path} lies in no class subfolder of {roots[split]}"
                )
        names[split] = {path.parts[0] for path in relative}
    unknown = names.get("test", set()) - names["train"]
    if unknown:
        raise SettingError(f"data.test_folder: class {min(unknown)!r} is not among the training images' classes")
    return tuple(sorted(names["train"]))
