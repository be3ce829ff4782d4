"""Where models come from: pipelines of any kind, names on the Hub, and code that comes along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline
from network_zoo import build, condition_unet
from stock_pipelines import dit, images, stable_diffusion
from unet_zoo import build as build_unet2d

from noisewise.errors import SettingError
from noisewise.models.calls import denoise
from noisewise.models.loading import load_denoiser
from noisewise.models.networks import describe
from noisewise.models.sources import find_source, has_more_than_denoiser, save_in_place_of
from noisewise.workflow.single import prune_model


@pytest.fixture(scope="module")
def text_to_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    stable_diffusion(condition_unet())[0].save_pretrained(folder)
    return folder


def changed_index(source: Path, folder: Path, **entries: Any) -> Path:
    folder.mkdir(exist_ok=True)
    index = json.loads((source / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **entries}))
    return folder


def test_a_pruned_pipeline_is_of_the_same_class_with_the_same_components(text_to_image: Path, tmp_path: Path) -> None:
    info = prune_model(text_to_image, 0.7, tmp_path / "out", "magnitude", None, None, 0)
    assert 0.686 <= info.achieved <= 0.7
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert type(pipe.unet).__name__ == "ShapedUNet2DConditionModel"
    before = DiffusionPipeline.from_pretrained(text_to_image)
    assert torch.equal(pipe.text_encoder.state_dict()["final_layer_norm.weight"],
                       before.text_encoder.state_dict()["final_layer_norm.weight"])  # fmt: skip
    call = stable_diffusion(pipe.unet)[1]
    assert images(pipe, call).shape == (1, 8, 8, 3)


def test_transformers_are_found_and_replaced(tmp_path: Path) -> None:
    pipe, call = dit(build("dit"))
    pipe.save_pretrained(tmp_path / "in")
    model, scheduler = load_denoiser(tmp_path / "in")
    assert (type(model).__name__, type(scheduler).__name__) == ("DiTTransformer2DModel", "DDIMScheduler")
    save_in_place_of(model, tmp_path / "in", tmp_path / "out")
    assert (images(DiffusionPipeline.from_pretrained(tmp_path / "out"), call) == images(pipe, call)).all()


def test_nothing_that_runs_is_copied(text_to_image: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    stable = load_denoiser(text_to_image)[0]
    DDIMPipeline(unet=build_unet2d("plain"), scheduler=DDIMScheduler()).save_pretrained(source)
    assert not has_more_than_denoiser(source)
    (source / "scheduler" / "tricks.py").write_text("raise SystemExit")
    (source / "scheduler" / "old.bin").write_bytes(b"")
    save_in_place_of(stable, source, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out" / "scheduler").iterdir()} == {"scheduler_config.json"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"unet": [None, None]}, r"no component named unet or transformer; it is a StableDiffusionPipeline with"),
        ({"unet": ["my_unet", "MyUNet"]}, r"unet .* asks for code of its own \(my_unet\); that is refused"),
        ({"text_encoder": ["tricks", "Encoder"]}, r"text_encoder .* asks for code of its own \(tricks\)"),
        ({"_class_name": ["my_pipeline", "MyPipeline"]}, r"asks for code of its own \(my_pipeline\)"),
    ],
)
def test_pipelines_that_are_refused(text_to_image: Path, tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_denoiser(changed_index(text_to_image, tmp_path / "changed", **entries))


def test_a_safety_checker_is_no_code_of_its_own(text_to_image: Path, tmp_path: Path) -> None:
    folder = changed_index(
        text_to_image, tmp_path / "changed", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]
    )
    assert has_more_than_denoiser(folder)


def test_a_denoiser_that_is_not_known_is_named(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=r"AutoencoderKL is not a network noisewise knows.*DiTTransformer2DModel"):
        load_denoiser(tmp_path)


def test_a_hub_name_without_a_network_says_how_to_point_at_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        SettingError, match=r"no-such/model .*hf download no-such/model --local-dir FOLDER.*that folder"
    ):
        find_source("no-such/model")
    with pytest.raises(SettingError, match="no/such/folder does not exist"):
        find_source("no/such/folder")


def test_text_that_is_missing_is_named() -> None:
    model = build("sd 1")
    x = describe(model).example_inputs(model)["sample"]
    with pytest.raises(SettingError, match="UNet2DConditionModel is told encoder_hidden_states of every image"):
        denoise(model, x, 3)
