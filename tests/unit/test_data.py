from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from noisewise.data import DataSettings, DigitsSettings, FolderSettings, IdxSettings, Images, ParquetSettings, load_data
from noisewise.data.decode import decode_image
from noisewise.data.idx import read_idx
from noisewise.errors import SettingError

RNG = np.random.default_rng(0)


def picture(size: int | tuple[int, int] = 8) -> Image.Image:
    width, height = (size, size) if isinstance(size, int) else size
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_folder(
    folder: Path, num: int = 10, size: int | tuple[int, int] = 8, classes: tuple[str, ...] = ("cat", "dog")
) -> Path:
    for i in range(num):
        path = folder / classes[i % len(classes)] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(size).save(path)
    return folder


def folder_settings(folder: Path, **more: Any) -> FolderSettings:
    return FolderSettings(kind="folder", folder=folder, test_fraction=0.3, **more)


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def make_idx(folder: Path, size: int = 8) -> dict[str, np.ndarray]:
    arrays = {}
    for prefix, num in (("train", 12), ("t10k", 5)):
        arrays[prefix] = RNG.integers(0, 256, (num, size, size), dtype=np.uint8)
        labels = np.arange(num, dtype=np.uint8) % 3
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(arrays[prefix]))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return arrays


def rows_of(images: Images) -> set[bytes]:
    return {image.tobytes() for image in images.pixels}


def test_digits_are_split_in_two_disjoint_halves_of_every_level() -> None:
    data = load_data(DigitsSettings(kind="sklearn-digits", conditional=True))

    assert (len(data.train), len(data.test), data.train.shape) == (
        899,
        898,
        (1, 8, 8),
    )
    assert (data.name, data.channels, data.size, data.num_classes) == ("digits", 1, 8, 10)
    assert sorted(np.unique(data.train.pixels)) == [round(v * 255 / 16) for v in range(17)]
    assert not rows_of(data.train) & rows_of(data.test)
    assert np.bincount(data.test.labels).min() > 60  # shuffled, so every class is in both


def test_the_split_depends_on_its_seed_alone() -> None:
    first, again = (load_data(DigitsSettings(kind="sklearn-digits")) for _ in range(2))
    other = load_data(DigitsSettings(kind="sklearn-digits", split_seed=1))
    fewer = load_data(DigitsSettings(kind="sklearn-digits", num_train=100, num_test=50))

    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert rows_of(first.test) != rows_of(other.test)
    assert np.array_equal(fewer.train.pixels, first.train.pixels[:100])
    assert np.array_equal(fewer.test.pixels, first.test.pixels[:50])


def test_a_batch_is_float_in_plus_minus_one_with_its_labels() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    images = Images.from_pixels(pixels, np.array([3, 2, 1, 0]))

    for indices in ([2, 0], torch.tensor([2, 0]), np.array([2, 0])):
        x_0, labels = images.batch(indices)
        assert x_0.dtype == torch.float32
        assert labels is not None
        assert labels.tolist() == [1, 3]
        assert torch.allclose(x_0, torch.from_numpy(pixels[[2, 0]]) / 127.5 - 1)
    whole, _ = images.batch(slice(None))
    assert (whole.min(), whole.max()) == (-1, 1)
    assert Images.from_pixels(pixels).batch([0])[1] is None


def test_the_fingerprint_sees_pixels_labels_and_shape() -> None:
    pixels = np.zeros((4, 1, 8, 8), dtype=np.uint8)
    changed = pixels.copy()
    changed[3, 0, 7, 7] = 1
    variants = [
        Images.from_pixels(pixels),
        Images.from_pixels(changed),
        Images.from_pixels(pixels, np.zeros(4)),
        Images.from_pixels(pixels, np.ones(4)),
        Images.from_pixels(pixels.reshape(1, 4, 8, 8)),
    ]
    assert len({images.fingerprint for images in variants}) == len(variants)


def test_idx_files_are_read_padded_and_shrunk(tmp_path: Path) -> None:
    arrays = make_idx(tmp_path)
    native = load_data(IdxSettings(kind="idx", folder=tmp_path, conditional=True))
    padded = load_data(IdxSettings(kind="idx", folder=tmp_path, image_size=10))
    halved = load_data(IdxSettings(kind="idx", folder=tmp_path, image_size=4))

    assert rows_of(native.train) == {image.tobytes() for image in arrays["train"]}
    assert native.num_classes == 3
    assert np.array_equal(padded.test.pixels[:, :, 1:-1, 1:-1], native.test.pixels)
    assert padded.test.pixels[:, :, 0].max() == 0
    boxes = native.test.pixels.reshape(5, 1, 4, 2, 4, 2).mean((3, 5))
    assert np.abs(halved.test.pixels - boxes).max() <= 1  # one rounding per direction


@pytest.mark.parametrize("cut", [3, 10, 100])
def test_a_cut_idx_file_is_refused(tmp_path: Path, cut: int) -> None:
    make_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SettingError, match=r"data\.folder: .*train-images-idx3-ubyte"):
        load_data(IdxSettings(kind="idx", folder=tmp_path))


def test_idx_files_that_lack_or_disagree_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is not a folder"):
        load_data(IdxSettings(kind="idx", folder=tmp_path / "none"))
    with pytest.raises(SettingError, match="lacks train-images-idx3-ubyte"):
        load_data(IdxSettings(kind="idx", folder=tmp_path))
    make_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(4, np.uint8)))[:-9])
    with pytest.raises(SettingError, match="cannot be read"):
        load_data(IdxSettings(kind="idx", folder=tmp_path))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    with pytest.raises(SettingError, match=r"5 images, .* 4 labels"):
        load_data(IdxSettings(kind="idx", folder=tmp_path))
    (tmp_path / "x").write_bytes(b"\x00\x00\x0d\x01\x00\x00\x00\x00")
    with pytest.raises(SettingError, match="not an IDX file of unsigned bytes"):
        read_idx(tmp_path / "x")


def test_a_folder_gives_images_and_classes_by_subfolder(tmp_path: Path) -> None:
    make_folder(tmp_path)
    data = load_data(folder_settings(tmp_path, conditional=True, name="pets"))

    assert (data.name, len(data.train), len(data.test), data.channels, data.size) == ("pets", 7, 3, 3, 8)
    assert data.class_names == ("cat", "dog")
    for images in (data.train, data.test):
        assert images.labels is not None
        for pixels, label in zip(images.pixels, images.labels, strict=True):
            stored = {decode_image(p, 3, None).tobytes() for p in (tmp_path / data.class_names[label]).iterdir()}
            assert pixels.tobytes() in stored
    assert load_data(folder_settings(tmp_path)).train.labels is None


def test_a_test_folder_is_the_test_split_and_the_fraction_is_said_to_be_ignored(tmp_path: Path) -> None:
    train, test = make_folder(tmp_path / "a", 6), make_folder(tmp_path / "b", 4)
    with pytest.warns(UserWarning, match="test_fraction is ignored"):
        data = load_data(folder_settings(train, test_folder=test))
    assert (len(data.train), len(data.test)) == (6, 4)


def test_held_out_images_that_are_trained_on_too_are_refused(tmp_path: Path) -> None:
    inner = make_folder(tmp_path / "all" / "test", 4)
    make_folder(tmp_path / "all" / "train", 6)
    (tmp_path / "link").symlink_to(inner)
    for train, test in (
        (tmp_path / "all", inner),
        (inner, inner),
        (inner, tmp_path / "all"),
        (inner, tmp_path / "link"),
    ):
        with pytest.raises(SettingError, match=r"data\.test_folder: 4 of its (4|10) images are training images too"):
            load_data(FolderSettings(kind="folder", folder=train, test_folder=test))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight_and_levels_without_a_range_are_refused(tmp_path: Path, channels: int) -> None:
    levels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray(levels.astype(np.int32)).save(tmp_path / "a.tif")

    found = decode_image(tmp_path / "a.png", channels, None)
    assert np.array_equal(found, np.broadcast_to(levels // 256, (channels, 8, 8)))
    with pytest.raises(ValueError, match="mode I"):
        decode_image(tmp_path / "a.tif", channels, None)


def test_images_are_cropped_to_the_centre_resized_and_laid_on_white(tmp_path: Path) -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200  # the central square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")

    assert np.array_equal(decode_image(tmp_path / "wide.png", 3, 4), np.full((3, 4, 4), 200))
    assert np.array_equal(decode_image(tmp_path / "clear.png", 1, None), np.full((1, 4, 4), 255))


def test_mixed_sizes_are_refused_unless_a_size_is_asked(tmp_path: Path) -> None:
    make_folder(tmp_path)
    picture(12).save(tmp_path / "cat" / "odd.png")
    with pytest.raises(SettingError, match=r"data\.folder: images differ in size .*8x8.*; set data\.image_size"):
        load_data(folder_settings(tmp_path))
    assert load_data(folder_settings(tmp_path, image_size=8)).train.shape == (3, 8, 8)
    make_folder(tmp_path / "wide", 4, (8, 6))
    with pytest.raises(SettingError, match="8x6, not square"):
        load_data(folder_settings(tmp_path / "wide"))


def test_corrupt_images_are_named_and_counted_and_skipped_only_if_asked(tmp_path: Path) -> None:
    make_folder(tmp_path, 12)
    whole = (tmp_path / "cat" / "000.png").read_bytes()
    (tmp_path / "cat" / "000.png").write_bytes(whole[:60])
    (tmp_path / "dog" / "001.png").write_bytes(b"no image")
    settings = folder_settings(tmp_path)
    with pytest.raises(SettingError, match=r"data\.folder: [12] of .*(000|001)\.png.*data\.on_corrupt") as error:
        load_data(settings, tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").iterdir())

    skipping = settings.model_copy(update={"on_corrupt": "skip"})
    with pytest.warns(UserWarning, match=r"(000|001)\.png.*left out"):
        data = load_data(skipping, tmp_path / "cache")
    assert (data.num_skipped, len(data.train) + len(data.test)) == (2, 10)
    assert load_data(skipping, tmp_path / "cache").num_skipped == 2  # known from the cache


def test_folders_without_usable_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data\.folder: .*none does not exist"):
        load_data(folder_settings(tmp_path / "none"))
    with pytest.raises(SettingError, match="holds no images"):
        load_data(folder_settings(tmp_path))
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SettingError, match="is a file"):
        load_data(folder_settings(tmp_path / "a.png"))
    with pytest.raises(SettingError, match="leaves a split empty"):
        load_data(folder_settings(tmp_path))
    with pytest.raises(SettingError, match="lies in no class subfolder"):
        load_data(folder_settings(tmp_path, conditional=True))
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(SettingError, match="no image is left"):
        load_data(folder_settings(tmp_path, on_corrupt="skip"))


def test_an_unreadable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path)

    def refuse(path: Any) -> None:  # the tests may run as root, whom permissions do not stop
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(SettingError, match=r"data\.folder: .* cannot be read \(Permission denied\)"):
        load_data(folder_settings(tmp_path))


def test_the_cache_is_mapped_reused_and_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = make_folder(tmp_path / "images"), tmp_path / "cache"
    settings = folder_settings(folder, conditional=True)
    in_memory, first = load_data(settings), load_data(settings, cache)
    assert isinstance(first.train.pixels, np.memmap)
    assert first.fingerprint == in_memory.fingerprint
    assert np.array_equal(first.train.pixels, in_memory.train.pixels)
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".json", ".npy", ".npy"]

    with monkeypatch.context() as patch:
        patch.setattr("noisewise.data.folder.decode_image", lambda *_: pytest.fail("decoded again"))
        again = load_data(settings.model_copy(update={"name": "renamed"}), cache)
        assert again.fingerprint == first.fingerprint
        assert np.array_equal(again.train.labels, first.train.labels)

    for path in cache.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-1])  # a copy of the cache that was cut short
    assert load_data(settings, cache).fingerprint == first.fingerprint
    picture().save(folder / "cat" / "000.png")
    assert load_data(settings, cache).fingerprint != first.fingerprint


def test_settings_are_chosen_by_kind_and_refuse_what_they_do_not_know() -> None:
    read = TypeAdapter(DataSettings).validate_python
    assert read({"kind": "idx", "folder": "x"}) == IdxSettings(kind="idx", folder=Path("x"))
    for wrong in (
        {"kind": "sklearn-digit"},
        {"kind": "sklearn-digits", "folder": "x"},
        {"kind": "sklearn-digits", "test_fraction": 1.0},
        {"kind": "folder", "folder": "x", "channels": 2},
        {"kind": "folder", "folder": "x", "image_size": 0},
    ):
        with pytest.raises(ValidationError):
            read(wrong)
    for settings in (DigitsSettings, IdxSettings, FolderSettings, ParquetSettings):
        assert all(field.description for field in settings.model_fields.values())


def test_a_good_load_does_not_warn(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_data(folder_settings(make_folder(tmp_path / "images")), tmp_path / "cache")
        data.train.batch([0, 1])
