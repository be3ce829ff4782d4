from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from text_zoo import LENGTH, POOLED, WIDTH, denoiser, saved, stable_diffusion, stable_diffusion_xl, text_encoder

from noisewise.errors import SettingError
from noisewise.models.calls import denoise
from noisewise.models.text import TextEncoder, reads_text

CAPTIONS = ["a cat", "two dogs", "far more letters than fit", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(stable_diffusion(), tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="module")
def folder_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(stable_diffusion_xl(), tmp_path_factory.mktemp("pipelines") / "sdxl")


def changed(folder: Path, tmp_path: Path, **components: Any) -> Path:
    """The pipeline's folder with another model_index.json."""
    copy = tmp_path / "changed"
    copy.mkdir()
    for part in folder.iterdir():
        if part.name != "model_index.json":
            (copy / part.name).symlink_to(part)
    index = json.loads((folder / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, **components}))
    return copy


def test_the_stock_pipeline_is_told_the_same(folder: Path) -> None:
    expected, untold = stable_diffusion().encode_prompt(CAPTIONS, "cpu", 1, True)
    encoder = TextEncoder.from_pretrained(folder)

    found = encoder.encode(CAPTIONS)

    assert found.keys() == {"encoder_hidden_states"}
    assert found["encoder_hidden_states"].shape == (4, LENGTH, WIDTH)
    assert torch.equal(found["encoder_hidden_states"], expected)
    assert torch.equal(encoder.null(4)["encoder_hidden_states"], untold)
    assert not torch.equal(expected[0], expected[1])


def test_the_stock_pipeline_of_two_encoders_is_told_the_same(folder_xl: Path) -> None:
    pipe = stable_diffusion_xl()
    hidden, untold_hidden, pooled, untold_pooled = pipe.encode_prompt(CAPTIONS, device="cpu")
    encoder = TextEncoder.from_pretrained(folder_xl)

    found, null = encoder.encode(CAPTIONS), encoder.null(4)

    assert torch.equal(found["encoder_hidden_states"], hidden)
    assert torch.equal(found["added_cond_kwargs"]["text_embeds"], pooled)
    assert found["added_cond_kwargs"]["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 4  # 8x8 latents of halves
    assert torch.equal(null["encoder_hidden_states"], untold_hidden)
    assert torch.equal(null["added_cond_kwargs"]["text_embeds"], untold_pooled)
    assert not untold_hidden.any()
    assert (
        TextEncoder.from_pretrained(folder_xl, image_size=32).encode(["a"])["added_cond_kwargs"]["time_ids"][0, 0] == 32
    )


def test_a_pipeline_that_keeps_its_empty_caption_has_it_for_null(tmp_path: Path) -> None:
    pipe = stable_diffusion_xl(force_zeros_for_empty_prompt=False)
    _, untold_hidden, _, untold_pooled = pipe.encode_prompt(["a"], device="cpu")

    null = TextEncoder.from_pretrained(saved(pipe, tmp_path)).null()

    assert untold_hidden.any()
    assert torch.equal(null["encoder_hidden_states"], untold_hidden)
    assert torch.equal(null["added_cond_kwargs"]["text_embeds"], untold_pooled)


@pytest.mark.parametrize("pipe", [stable_diffusion, stable_diffusion_xl])
def test_conditions_go_into_the_denoiser_by_their_names(pipe: Any, tmp_path: Path) -> None:
    built = pipe()
    encoder = TextEncoder.from_pretrained(saved(built, tmp_path))
    encoder.check_denoiser(built.unet.config)
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        one, other = (denoise(built.unet, x_t, 500, conditions=encoder.encode([c] * 2)) for c in ("a", "b"))

    assert one.shape == x_t.shape
    assert not torch.equal(one, other)


def test_described_without_weights(folder: Path, folder_xl: Path) -> None:
    plain, two = TextEncoder.describe(folder), TextEncoder.describe(folder_xl)

    assert (plain.length, plain.width, plain.pooled_width) == (LENGTH, WIDTH, None)
    assert (two.length, two.width, two.pooled_width) == (LENGTH, 2 * WIDTH, POOLED)
    assert plain.device.type == "meta"
    assert plain.encode(["a"])["encoder_hidden_states"].shape == (1, LENGTH, WIDTH)


def test_long_captions_are_counted(folder: Path) -> None:
    assert TextEncoder.describe(folder).num_tokens(CAPTIONS) == [6, 9, 23, 2]


def test_fingerprint_follows_weights_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    same = saved(stable_diffusion(), tmp_path / "same")
    other = saved(stable_diffusion(text_encoder=text_encoder(seed=5)), tmp_path / "other")

    found = [TextEncoder.from_pretrained(each).fingerprint for each in (folder, same, other)]

    assert found[0] == found[1] != found[2]


def test_half_precision_files_are_read_as_the_pipeline_reads_them(tmp_path: Path) -> None:
    saved(stable_diffusion(text_encoder=text_encoder().half()), tmp_path)

    assert TextEncoder.from_pretrained(tmp_path).encode(["a"])["encoder_hidden_states"].dtype == torch.float32


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({"text_encoder_3": ["transformers", "T5EncoderModel"]}, "three text encoders"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "a T5EncoderModel"),
        ({"text_encoder": [None, None]}, "has no text encoder"),
        ({"tokenizer": ["transformers", "T5Tokenizer"]}, "a T5Tokenizer"),
        ({"requires_aesthetics_score": True}, "refiner"),
    ],
)
def test_other_pipelines_are_refused(folder: Path, tmp_path: Path, components: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        TextEncoder.describe(changed(folder, tmp_path, **components))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cross_attention_dim": 12}, "text has width 8.*one of width 12"),
        ({"num_class_embeds": 3}, "num_class_embeds 3"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 30,
            },
            "there is one text encoder",
        ),
    ],
)
def test_denoisers_that_are_told_other_things_are_refused(folder: Path, settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        TextEncoder.describe(folder).check_denoiser(denoiser(**settings).config)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    weights = saved(stable_diffusion(), tmp_path) / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])

    with pytest.raises(SettingError, match=r"text_encoder .*cannot be loaded"):
        TextEncoder.from_pretrained(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    weights = saved(stable_diffusion(), tmp_path) / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))

    with pytest.raises(SettingError, match="pickle"):
        TextEncoder.from_pretrained(tmp_path)


def test_whether_a_pipeline_reads_text(folder: Path, folder_xl: Path, tmp_path: Path) -> None:
    assert reads_text(folder)
    assert reads_text(folder_xl)
    assert not reads_text(folder / "unet")
    assert not reads_text(changed(folder, tmp_path, text_encoder=[None, None]))


def test_without_transformers_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # what an import meets where it is not installed

    with pytest.raises(SettingError, match=r"pip install 'noisewise\[text\]'"):
        TextEncoder.describe(folder)
