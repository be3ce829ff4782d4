"""Image parquet as the Hugging Face hub has it; pyarrow is imported when this is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from noisewise.data.captions import check_captions
from noisewise.data.decode import decode_image
from noisewise.data.images import Split
from noisewise.data.settings import ParquetSettings
from noisewise.data.source import Item, Source
from noisewise.errors import SettingError


def parquet_source(settings: ParquetSettings) -> Source:
    """The rows of the training files and, when given, of the test files, in the files' order."""
    paths: dict[Split, tuple[Path, ...]] = {"train": _paths(settings.train)}
    if settings.test is not None:
        paths["test"] = _paths(settings.test)
    files = {split: [_open(path, f"data.{split}", settings) for path in paths[split]] for split in paths}
    trained_on = {path.resolve() for path in paths["train"]}
    for path in paths.get("test", ()):
        if path.resolve() in trained_on:
            raise SettingError(f"data.test: {path} is among data.train too; held-out images must be others")
    num_rows = {split: sum(file.metadata.num_rows for file in files[split]) for split in files}
    class_names = _class_names(files, settings) if settings.conditional else None
    if settings.caption_column is not None:
        for split in files:
            for path, file in zip(paths[split], files[split], strict=True):
                texts = file.read(columns=[settings.caption_column])[settings.caption_column].to_pylist()
                check_captions({f"row {i}": text for i, text in enumerate(texts)}, f"in {path}")

    def read(split: Split, rows: np.ndarray) -> Iterator[Item]:
        # Rows leave in the files' order: a row group is decoded once and forgotten.
        wanted, start = np.sort(rows), 0
        for path, file in zip(paths[split], files[split], strict=True):
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
                if len(here):
                    yield from _items(file, group, here, path, start, settings)
                start = stop

    name = paths["train"][0].resolve().parent.name
    all_paths = tuple(path for split in paths for path in paths[split])
    return Source(name, "data.train", all_paths, num_rows["train"], num_rows.get("test"), class_names, read)


def _items(
    file: Any, group: int, rows: np.ndarray, path: Path, start: int, settings: ParquetSettings
) -> Iterator[Item]:
    more = [settings.label_column] if settings.conditional else [settings.caption_column]
    columns = [settings.image_column, *(name for name in more if name is not None)]
    table = file.read_row_group(group, columns=columns)
    for row in rows:
        image = table[settings.image_column][int(row)].as_py()
        data = image.get("bytes") if isinstance(image, dict) else image
        label = table[settings.label_column][int(row)].as_py() if settings.conditional else None
        caption = None if settings.caption_column is None else table[settings.caption_column][int(row)].as_py()
        name = f"{path.name} row {start + row}"
        yield Item(name, label, partial(_decode, data, settings.channels, settings.image_size), caption)


def _decode(data: bytes | None, channels: int, image_size: int | None) -> np.ndarray:
    if data is None:
        raise ValueError("the row holds no bytes")
    return decode_image(data, channels, image_size)


def _paths(value: Path | tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(path.expanduser() for path in ((value,) if isinstance(value, Path) else value))


def _open(path: Path, setting: str, settings: ParquetSettings) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SettingError("data.kind: parquet needs pyarrow; install it with: pip install 'noisewise[data]'") from None
    try:
        file = ParquetFile(path)
    except FileNotFoundError:
        raise SettingError(f"{setting}: {path} does not exist") from None
    except (ArrowInvalid, OSError) as error:
        raise SettingError(f"{setting}: {path} is not a whole parquet file ({str(error).splitlines()[0]})") from None
    needed = {"image_column": settings.image_column}
    if settings.conditional:
        needed["label_column"] = settings.label_column
    if settings.caption_column is not None:
        needed["caption_column"] = settings.caption_column
    for name, column in needed.items():
        if column not in file.schema_arrow.names:
            raise SettingError(
                f"data.{name}: {path} has no column {column!r}, only {', '.join(file.schema_arrow.names)}"
            )
    return file


def _class_names(files: dict[Split, list[Any]], settings: ParquetSettings) -> tuple[str, ...]:
    """Class names from the schema's metadata, else the numbers 0 .. the largest label."""
    largest = -1
    for split in files:
        for file in files[split]:
            for group in range(file.num_row_groups):
                labels = file.read_row_group(group, columns=[settings.label_column])[settings.label_column]
                values = labels.to_pylist()
                if any(not isinstance(value, int) or value < 0 for value in values):
                    raise SettingError(
                        f"data.label_column: {settings.label_column!r} holds other things than 0, 1, 2, ..."
                    )
                largest = max(largest, *values)
    metadata = files["train"][0].schema_arrow.metadata or {}
    names = _named_classes(metadata, settings.label_column)
    return names if len(names) > largest else tuple(str(i) for i in range(largest + 1))


def _named_classes(metadata: dict[bytes, bytes], label_column: str) -> tuple[str, ...]:
    """Names from the key `classes` (a JSON list, or commas) or from what the `datasets` library writes."""
    text = metadata.get(b"classes", b"").decode(errors="replace")
    try:
        if text:
            return tuple(str(name) for name in json.loads(text))
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return tuple(features.get(label_column, {}).get("names", ()))
    except (json.JSONDecodeError, AttributeError, TypeError):
        return tuple(name.strip() for name in text.split(",")) if text else ()
