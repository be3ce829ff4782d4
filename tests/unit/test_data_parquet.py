from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from noisewise.data import Images, ParquetSettings, load_data
from noisewise.errors import SettingError

RNG = np.random.default_rng(0)


def make_parquet(path: Path, num: int = 10, row_group_size: int = 4, **columns: Any) -> np.ndarray:
    pixels = RNG.integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)
    images = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({"image": images, "label": [i % 2 for i in range(num)], **columns})
    pq.write_table(table.replace_schema_metadata({"classes": "cat,dog"}), path, row_group_size=row_group_size)
    return pixels


def rows_of(images: Images) -> set[bytes]:
    return {image.tobytes() for image in images.pixels}


def test_parquet_gives_the_rows_of_its_files(tmp_path: Path) -> None:
    train = make_parquet(tmp_path / "train.parquet")
    test = make_parquet(tmp_path / "test.parquet", 5)
    settings = ParquetSettings(
        kind="parquet", train=tmp_path / "train.parquet", test=tmp_path / "test.parquet", conditional=True
    )
    data = load_data(settings)

    assert np.array_equal(data.train.pixels, train.transpose(0, 3, 1, 2))
    assert np.array_equal(data.test.pixels, test.transpose(0, 3, 1, 2))
    assert (data.class_names, data.train.labels.tolist()) == (("cat", "dog"), [0, 1] * 5)
    one_file = ParquetSettings(kind="parquet", train=(tmp_path / "train.parquet",), test_fraction=0.4)
    split = load_data(one_file)
    assert (len(split.train), len(split.test)) == (6, 4)
    assert rows_of(split.train) | rows_of(split.test) == rows_of(data.train)


def test_parquet_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(name: str, **more: Any) -> ParquetSettings:
        return ParquetSettings(kind="parquet", train=tmp_path / name, **more)

    make_parquet(tmp_path / "a.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    with pytest.raises(SettingError, match=r"data\.train: .* does not exist"):
        load_data(settings("none.parquet"))
    with pytest.raises(SettingError, match="not a whole parquet file"):
        load_data(settings("cut.parquet"))
    with pytest.raises(SettingError, match=r"data\.image_column: .* has no column 'img', only image, label"):
        load_data(settings("a.parquet", image_column="img"))
    with pytest.raises(SettingError, match=r"data\.test: .*a\.parquet is among data\.train too"):
        load_data(settings("a.parquet", test=(tmp_path / ".." / tmp_path.name / "a.parquet",)))
    make_parquet(tmp_path / "text.parquet", words=["x"] * 10)
    with pytest.raises(SettingError, match=r"data\.label_column: 'words'"):
        load_data(settings("text.parquet", conditional=True, label_column="words"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SettingError, match=r"pip install 'noisewise\[data\]'"):
        load_data(settings("a.parquet"))
