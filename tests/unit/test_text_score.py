from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_folder import SMALL, clip_model, save_clip
from safetensors.torch import load_file, save_file
from text_zoo import LENGTH
from transformers import CLIPModel, CLIPProcessor, CLIPVisionConfig, CLIPVisionModel

from noisewise.errors import SettingError
from noisewise.evaluation.text_score import SETTING, TextImageEncoder, folder_checksum, text_score, text_scores

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 3, 20, 30), dtype=np.uint8)
CAPTIONS = ["fed", "a bad cab", "a cab", "hh", "hh"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextImageEncoder:
    return TextImageEncoder(folder)


def reference(folder: Path, images: np.ndarray, captions: list[str]) -> np.ndarray:
    """100 max(cos, 0) by transformers' own logits, which are exp(logit_scale) cos, of images with their captions."""
    model, inputs = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    given = inputs(images=list(images), text=captions, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**given).logits_per_image / model.logit_scale.exp()  # [N, N]
    return 100 * logits.diagonal().numpy().clip(min=0)


def test_scores_are_the_cosines_of_transformers_own_logits(folder: Path, encoder: TextImageEncoder) -> None:
    expected = reference(folder, IMAGES, CAPTIONS)
    assert (expected > 0).sum() == 3
    assert (expected == 0).sum() == 2  # cosines below 0 count as 0, image by image

    found = text_scores(encoder, IMAGES, CAPTIONS)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(text_scores(encoder, torch.from_numpy(IMAGES), CAPTIONS), found)


def test_the_score_is_their_mean_with_its_standard_error(folder: Path, encoder: TextImageEncoder) -> None:
    each = text_scores(encoder, IMAGES, CAPTIONS)
    found = text_score(encoder, IMAGES, CAPTIONS)

    assert found.value == pytest.approx(sum(each) / 5)
    variance = sum((score - found.value) ** 2 for score in each) / 4
    assert found.standard_error == pytest.approx(math.sqrt(variance / 5))
    assert found.resize == "shortest_edge 16 bicubic, centre 16x16"
    assert (found.metric, found.num_images, found.encoder) == ("clip_score", 5, folder.name)
    assert json.loads(json.dumps(found.to_dict()))["encoder_sha256"] == found.encoder_sha256
    assert text_score(encoder, IMAGES[:1], CAPTIONS[:1]).standard_error is None


def test_many_images_are_scored_in_batches(encoder: TextImageEncoder) -> None:
    images = RNG.integers(0, 256, (70, 3, 16, 16), dtype=np.uint8)
    captions = [f"{first} {second}" for first in "abcdefgh" for second in "abcdefghb"][:70]
    alone = [text_scores(encoder, images[i : i + 1], captions[i : i + 1])[0] for i in (0, 63, 64, 69)]
    np.testing.assert_allclose(text_scores(encoder, images, captions)[[0, 63, 64, 69]], alone, atol=1e-3)


def test_grey_images_are_scored_as_colour_ones(encoder: TextImageEncoder) -> None:
    grey = IMAGES[:, :1]
    np.testing.assert_allclose(
        text_scores(encoder, grey, CAPTIONS), text_scores(encoder, grey.repeat(3, axis=1), CAPTIONS)
    )


def test_a_caption_beyond_the_encoders_length_is_cut_off_and_said(folder: Path, encoder: TextImageEncoder) -> None:
    fits = "a " * (LENGTH - 2)
    with pytest.warns(UserWarning, match=f"1 of 2 captions exceed its {LENGTH} tokens"):
        found = text_scores(encoder, IMAGES[:2], [fits + "b c", fits])
    np.testing.assert_allclose(found, reference(folder, IMAGES[:2], [fits, fits]), atol=1e-3)


def test_the_encoders_checksum_is_that_of_its_weights(folder: Path, encoder: TextImageEncoder, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    assert TextImageEncoder(copied).sha256 == encoder.sha256
    clip_model().save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(folder / file, tmp_path / "shards")
    parts = TextImageEncoder(tmp_path / "shards")
    assert len(parts.sha256) == 64
    np.testing.assert_allclose(text_scores(parts, IMAGES, CAPTIONS), text_scores(encoder, IMAGES, CAPTIONS))


def test_a_folders_checksum_is_of_all_that_scores_depend_on(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    assert folder_checksum(copied) == folder_checksum(folder)
    settings = copied / "processor_config.json"
    settings.write_text(settings.read_text().replace('"shortest_edge": 16', '"shortest_edge": 20'))
    assert folder_checksum(copied) != folder_checksum(folder)


# ---- bad input


def test_each_image_needs_its_caption(encoder: TextImageEncoder) -> None:
    with pytest.raises(SettingError, match="captions: 4 given for 5 images"):
        text_scores(encoder, IMAGES, CAPTIONS[:4])
    with pytest.raises(SettingError, match="there are no images"):
        text_scores(encoder, IMAGES[:0], [])
    with pytest.raises(TypeError, match="uint8"):
        text_scores(encoder, IMAGES.astype(np.float32), CAPTIONS)


def test_damaged_weights_are_not_scored(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    weights = load_file(copied / "model.safetensors")
    weights["visual_projection.weight"][0, 0] = torch.nan
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingError, match="not finite"):
        text_scores(TextImageEncoder(copied), IMAGES, CAPTIONS)


def without(folder: Path, out: Path, name: str) -> Path:
    shutil.copytree(folder, out)
    (out / name).unlink()
    return out


def test_a_folder_without_all_its_parts_is_refused(folder: Path, tmp_path: Path) -> None:
    for name, message in (
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
        ("processor_config.json", "the image processor in .* cannot be loaded"),
    ):
        with pytest.raises(SettingError, match=f"{SETTING}: .*{message}"):
            TextImageEncoder(without(folder, tmp_path / name, name))
    with pytest.raises(SettingError, match=f"{SETTING}: .*does not exist"):
        TextImageEncoder(tmp_path / "nowhere")


def test_another_model_is_refused(tmp_path: Path) -> None:
    CLIPVisionModel(CLIPVisionConfig(**SMALL, image_size=16, patch_size=4)).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=f"{SETTING}: .* is no CLIP model .its model_type is clip_vision_model"):
        TextImageEncoder(tmp_path)


def test_weights_in_a_pickle_are_refused(folder: Path, tmp_path: Path) -> None:
    copied = without(folder, tmp_path / "copied", "model.safetensors")
    torch.save({}, copied / "pytorch_model.bin")
    with pytest.raises(SettingError, match=f"{SETTING}: .*pickle"):
        TextImageEncoder(copied)


def test_tensors_that_are_missing_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    weights = load_file(copied / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingError, match=r"missing keys, first text_projection\.weight"):
        TextImageEncoder(copied)


def test_without_transformers_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingError, match=r"noisewise\[text\]"):
        TextImageEncoder(folder)
