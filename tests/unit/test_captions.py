"""Captions of images: read from metadata files and parquet, missing ones refused by name, encoded once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from noisewise.data import Dataset, FolderSettings, ParquetSettings, load_data
from noisewise.data.text_files import FILE, load_texts, write_texts
from noisewise.errors import SettingError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (90, 90, 90)}


def folder_of(place: Path, rows: str | None = None, name: str = "metadata.csv", sub: str = "") -> Path:
    """An image of each colour, and metadata with a caption of each, or ``rows`` in its place."""
    (place / sub).mkdir(parents=True, exist_ok=True)
    for colour, value in COLOURS.items():
        Image.new("RGB", (8, 8), value).save(place / sub / f"{colour}.png")
    if rows is None:
        rows = "file_name,text,other\n" + "".join(f'{sub}{c}.png,"a {c}, plain ""one""",x\n' for c in COLOURS)
    (place / name).write_text(rows)
    return place


def loaded(place: Path, cache: Path | None = None, **settings: Any) -> Dataset:
    given = {"kind": "folder", "folder": place, "caption_column": "text", "test_fraction": 0.25, **settings}
    return load_data(FolderSettings(**given), cache)


def colour_of(pixels: np.ndarray) -> str:
    return next(name for name, value in COLOURS.items() if tuple(pixels[:, 0, 0]) == value)


def pairs(data: Dataset) -> set[tuple[str, str]]:
    return {
        (colour_of(pixels), caption)
        for part in (data.train, data.test)
        for pixels, caption in zip(part.pixels, part.captions or (), strict=True)
    }


EXPECTED = {(colour, f'a {colour}, plain "one"') for colour in COLOURS}


@pytest.mark.parametrize("sub", ["", "inside/"])
def test_a_folders_captions_go_with_their_images(tmp_path: Path, sub: str) -> None:
    data = loaded(folder_of(tmp_path, sub=sub))

    assert (len(data.train), len(data.test)) == (3, 1)
    assert pairs(data) == EXPECTED
    assert data.train.subset([2, 0]).captions == (data.train.captions[2], data.train.captions[0])


def test_jsonl_and_the_cache_give_the_same(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"file_name": f"{c}.png", "text": f'a {c}, plain "one"'}) + "\n" for c in COLOURS)
    place = folder_of(tmp_path / "images", lines, "metadata.jsonl")

    for _ in range(2):
        assert pairs(loaded(place, tmp_path / "cache")) == EXPECTED


def test_a_changed_caption_is_read_again_and_leaves_the_pixels_hash(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "images")
    before = loaded(place, tmp_path / "cache")
    file = place / "metadata.csv"
    file.write_text(file.read_text().replace("a red", "something red"))

    after = loaded(place, tmp_path / "cache")

    assert pairs(after) == EXPECTED - {("red", 'a red, plain "one"')} | {("red", 'something red, plain "one"')}
    assert after.fingerprint == before.fingerprint


def test_a_test_folder_has_metadata_of_its_own(tmp_path: Path) -> None:
    train, test = folder_of(tmp_path / "train"), folder_of(tmp_path / "test")
    data = load_data(FolderSettings(kind="folder", folder=train, test_folder=test, caption_column="text"))

    assert len(data.train) == len(data.test) == 4
    assert pairs(data) == EXPECTED


def test_without_the_setting_no_captions_are_read(tmp_path: Path) -> None:
    place = folder_of(tmp_path, "file_name,text\nred.png,a\n")  # not whole, and nobody looks

    assert loaded(place, caption_column=None).train.captions is None


HEADER = "file_name,text\n"
ALL = "red.png,a\ngreen.png,b\nblue.png,c\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (HEADER + "red.png,a\n", r"3 of 4 images have no caption in .*metadata.csv: blue.png, green.png, grey.png$"),
        (HEADER + ALL + 'grey.png," "\n', "1 of 4 images have no caption .*: grey.png"),
        (HEADER + ALL + "grey.png\n", "1 of 4 images have no caption .*: grey.png"),
        (HEADER, "4 of 4 images have no caption .*: blue.png, green.png, grey.png, ..."),
        (HEADER + ALL + "grey.png,d\nwhite.png,e\n", r"1 of 5 rows of .* name images that do not exist: white.png"),
        (HEADER + ALL + "grey.png,d\nred.png,e\n", "1 of 5 rows of .* name an image that another row names: red.png"),
        ("file_name,caption\nred.png,a\n", "no column 'text' in row 1, only file_name, caption"),
        ("name,text\nred.png,a\n", "no column 'file_name' in row 1"),
        (HEADER + 'red.png,"a\n', "is not whole"),
    ],
)
def test_metadata_that_is_not_whole_is_refused(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(SettingError, match=rf"^data\.caption_column: .*{message}"):
        loaded(folder_of(tmp_path, rows))


def test_no_metadata_and_captions_that_are_no_text(tmp_path: Path) -> None:
    (folder_of(tmp_path) / "metadata.csv").unlink()
    with pytest.raises(SettingError, match=r"holds no metadata.csv or metadata.jsonl"):
        loaded(tmp_path)
    folder_of(tmp_path, "".join(f'{{"file_name": "{c}.png", "text": ["a", "b"]}}\n' for c in COLOURS), "metadata.jsonl")
    with pytest.raises(SettingError, match=r"4 of 4 captions .* are no text: blue.png"):
        loaded(tmp_path)


def test_labels_and_captions_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="told captions or labels, not both"):
        loaded(folder_of(tmp_path), conditional=True)


def parquet(path: Path, captions: Sequence[str | None]) -> Path:
    place = folder_of(path.parent / "images")
    images = [{"bytes": (place / f"{colour}.png").read_bytes()} for colour in COLOURS]
    pq.write_table(pa.table({"image": images, "text": list(captions)}), path, row_group_size=3)
    return path


def test_parquet_captions(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet", [caption for _, caption in sorted(EXPECTED, key=lambda p: list(COLOURS).index(p[0]))]
    )
    settings = {"kind": "parquet", "train": path, "test_fraction": 0.25}

    assert pairs(load_data(ParquetSettings(**settings, caption_column="text"))) == EXPECTED
    with pytest.raises(SettingError, match="no column 'words'"):
        load_data(ParquetSettings(**settings, caption_column="words"))
    parquet(path, ["a", None, "", "d"])
    with pytest.raises(SettingError, match=r"2 of 4 images have no caption in .*: row 1, row 2"):
        load_data(ParquetSettings(**settings, caption_column="text"))


# ---- encoded


def encode(captions: Sequence[str]) -> dict[str, Any]:
    """A number per caption, in the places of a real encoder's."""
    numbers = torch.tensor([float(sum(map(ord, caption))) for caption in captions])
    return {
        "encoder_hidden_states": numbers[:, None, None].repeat(1, 5, 3) / 7,
        "added_cond_kwargs": {
            "text_embeds": numbers[:, None].repeat(1, 2),
            "time_ids": torch.full((len(numbers), 6), 2049.0),
        },
    }


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    rows = HEADER + "".join(f"{c}.png,{'same' if c in ('red', 'blue') else c}\n" for c in COLOURS)
    return loaded(folder_of(tmp_path / "images", rows), test_fraction=0.5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_different_caption_is_encoded_once_and_read_back(data: Dataset, tmp_path: Path, dtype: Any) -> None:
    asked: list[str] = []

    def counted(captions: Sequence[str]) -> dict[str, Any]:
        asked.extend(captions)
        return encode(captions)

    about = write_texts(tmp_path, data, counted, encode([""]), encoder="e", dtype=dtype, batch_size=2)
    halves = load_texts(tmp_path, data, "e")

    assert sorted(asked) == ["green", "grey", "same"]
    assert about["num_captions"] == 3
    for part, texts in zip((data.train, data.test), halves, strict=True):
        expected, found = encode(part.captions or ()), texts.at(torch.arange(2))
        hidden, rounding = found["encoder_hidden_states"], 2**-8 if dtype == "bfloat16" else 2**-11
        torch.testing.assert_close(hidden, expected["encoder_hidden_states"], rtol=rounding, atol=0)
        assert found["added_cond_kwargs"]["time_ids"].tolist() == [[2049] * 6] * 2  # which half precision rounds
        assert (
            texts.subset(torch.tensor([1]))
            .at(torch.tensor([0]))["added_cond_kwargs"]["text_embeds"]
            .equal(found["added_cond_kwargs"]["text_embeds"][1:])
        )
        assert not texts.of_none()["encoder_hidden_states"].any()


def test_networks_are_told_texts_in_place_of_labels(data: Dataset, tmp_path: Path) -> None:
    write_texts(tmp_path, data, encode, encode([""]), encoder="e")
    texts, _ = load_texts(tmp_path, data, "e")

    told = data.train.with_texts(texts)
    x_0, found = told.batch(torch.tensor([1, 0, 1]))

    assert x_0.shape == (3, 3, 8, 8)
    expected = encode([data.train.captions[i] for i in (1, 0, 1)])
    torch.testing.assert_close(found["encoder_hidden_states"], expected["encoder_hidden_states"], rtol=2**-11, atol=0)
    assert told.fingerprint != data.train.fingerprint
    torch.testing.assert_close(told.subset([1]).batch([0])[1], told.batch([1])[1], rtol=0, atol=0)


def test_other_captions_encoders_and_altered_files_are_refused(data: Dataset, tmp_path: Path) -> None:
    write_texts(tmp_path, data, encode, encode([""]), encoder="e")
    other = loaded(folder_of(tmp_path / "images"), test_fraction=0.5)
    with pytest.raises(SettingError, match="holds other captions than those of images"):
        load_texts(tmp_path, other, "e")
    with pytest.raises(SettingError, match="another text encoder"):
        load_texts(tmp_path, data, "f")
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(SettingError, match="altered"):
        load_texts(tmp_path, data, "e")
    (tmp_path / FILE).write_bytes(content[:-1])
    with pytest.raises(SettingError, match="bytes"):
        load_texts(tmp_path, data, "e")


@pytest.mark.parametrize(
    ("value", "message"), [(1e6, "conditioning.dtype: .* use bfloat16"), (float("nan"), "not finite")]
)
def test_texts_that_do_not_fit_are_refused(data: Dataset, tmp_path: Path, value: float, message: str) -> None:
    def bad(captions: Sequence[str]) -> dict[str, Any]:
        return {"encoder_hidden_states": torch.full((len(captions), 5, 3), value)}

    with pytest.raises(SettingError, match=message):
        write_texts(tmp_path, data, bad, {"encoder_hidden_states": torch.zeros(1, 5, 3)}, encoder="e")
    assert [path for path in tmp_path.iterdir() if "captions" in path.name] == []
