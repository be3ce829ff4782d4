"""Captions of a folder's images: `metadata.csv` or `metadata.jsonl` beside them, as the `datasets` library has it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from noisewise.errors import SettingError

FILES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN = "file_name"
SETTING = "data.caption_column"
NUM_SHOWN = 3


def folder_captions(folder: Path, column: str, images: Sequence[Path]) -> tuple[list[str], Path]:
    """The caption of each of ``images``, and the file they stand in.

    Args:
        folder: holds metadata.csv or metadata.jsonl, whose column ``file_name`` is relative to it.
        column: of the captions.
    """
    source = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if source is None:
        raise SettingError(
            f"{SETTING}: {column} given, and {folder} holds no {' or '.join(FILES)}; it has a column {FILE_COLUMN} and "
            "one of captions"
        )
    found: dict[Path, Any] = {}
    twice = []
    for name, caption in _rows(source, column):
        path = folder / name
        if path in found:
            twice.append(name)
        found[path] = caption
    refuse(twice, f"{len(found) + len(twice)} rows of {source} name an image that another row names")
    here = set(images)
    gone = [path.relative_to(folder).as_posix() for path in found if path not in here]
    refuse(gone, f"{len(found)} rows of {source} name images that do not exist")
    check_captions({path.relative_to(folder).as_posix(): found.get(path) for path in images}, f"in {source}")
    return [found[path] for path in images], source


def check_captions(captions: Mapping[str, Any], place: str) -> None:
    """Refuse missing and empty captions, and what is no text.

    Args:
        captions: by image.
    """
    missing = [name for name, caption in captions.items() if caption is None or caption == "" or _is_blank(caption)]
    refuse(missing, f"{len(captions)} images have no caption {place}")
    other = [name for name, caption in captions.items() if not isinstance(caption, str)]
    refuse(other, f"{len(captions)} captions {place} are no text")


def refuse(names: Sequence[str], what: str) -> None:
    """An error that counts and names the first, where there are any."""
    if names:
        some = ", ".join(names[:NUM_SHOWN]) + (", ..." if len(names) > NUM_SHOWN else "")
        raise SettingError(f"{SETTING}: {len(names)} of {what}: {some}")


def captions_sha256(splits: Sequence[Sequence[str]]) -> str:
    """Hexadecimal SHA-256 of the captions of both halves of a data set, in their order."""
    return hashlib.sha256(json.dumps([list(captions) for captions in splits]).encode()).hexdigest()


def _is_blank(caption: Any) -> bool:
    return isinstance(caption, str) and not caption.strip()


def _rows(source: Path, column: str) -> Iterator[tuple[str, Any]]:
    """File name and caption of every row."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{SETTING}: {source} cannot be read as UTF-8 text ({error})") from None
    try:
        if source.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (csv.Error, json.JSONDecodeError) as error:
        raise SettingError(f"{SETTING}: {source} is not whole ({error})") from None
    for number, row in enumerate(rows, start=1):
        for needed in (FILE_COLUMN, column):
            if not isinstance(row, dict) or needed not in row:
                names = ", ".join(str(name) for name in row) if isinstance(row, dict) else "no columns"
                raise SettingError(f"{SETTING}: {source} has no column {needed!r} in row {number}, only {names}")
        if not isinstance(row[FILE_COLUMN], str) or not row[FILE_COLUMN]:
            raise SettingError(f"{SETTING}: row {number} of {source} names no file")
        yield row[FILE_COLUMN], row[column]
