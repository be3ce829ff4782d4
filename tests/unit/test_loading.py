"""Folders that hold a denoiser, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
)
from safetensors.torch import load_file, save_file
from unet_zoo import build

from noisewise import ExpertDenoiser, NoiseSchedule, Plan
from noisewise.errors import SettingError
from noisewise.models.loading import load_denoiser, save_pipeline
from noisewise.models.surgery import cut


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return type(a) is type(b) and all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_a_bare_model_has_no_scheduler(tmp_path: Path) -> None:
    model = build("heads")
    model.save_pretrained(tmp_path)
    loaded, scheduler = load_denoiser(tmp_path)
    assert same(loaded, model)
    assert not loaded.training
    assert scheduler is None
    assert load_denoiser(tmp_path, torch_dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_pipelines_round_trip(kind: type, tmp_path: Path) -> None:
    model = cut(build("plain"), {"conv_in": torch.arange(8)})
    plan = Plan.single(NoiseSchedule.from_scheduler(DDPMScheduler()))
    for denoiser in (model, ExpertDenoiser([model], plan)):
        save_pipeline(denoiser, kind(beta_end=0.03), tmp_path)
        loaded, scheduler = load_denoiser(tmp_path)
        assert same(loaded, denoiser)
        assert type(scheduler) is kind
        assert scheduler.config.beta_end == 0.03
        shutil.rmtree(tmp_path)


def test_older_pipelines_keep_their_components_side_by_side(tmp_path: Path) -> None:
    model = build("plain")
    DDPMPipeline(unet=model, scheduler=DDPMScheduler(num_train_timesteps=500)).save_pretrained(tmp_path)
    for part in ("unet", "scheduler"):
        for file in (tmp_path / part).iterdir():
            file.rename(tmp_path / file.name)
        (tmp_path / part).rmdir()
    loaded, scheduler = load_denoiser(tmp_path)
    assert same(loaded, model)
    assert scheduler.config.num_train_timesteps == 500


def test_pickles_are_refused(tmp_path: Path) -> None:
    model = build("plain")
    for suffix in (".bin", ".pt", ".ckpt"):
        file = tmp_path / f"model{suffix}"
        torch.save(model.state_dict(), file)
        with pytest.raises(SettingError, match=r"is a pickle"):
            load_denoiser(file)
    with pytest.raises(SettingError, match=r"holds a pickle \(model\.bin\)"):
        load_denoiser(tmp_path)

    folder = tmp_path / "pickled weights"
    model.save_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "diffusion_pytorch_model.bin")
    with pytest.raises(SettingError, match=r"weights in a pickle \(diffusion_pytorch_model\.bin\)"):
        load_denoiser(folder)


def test_what_is_no_diffusers_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="does not exist"):
        load_denoiser(tmp_path / "nowhere")
    with pytest.raises(SettingError, match="neither model_index"):
        load_denoiser(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(SettingError, match="is not JSON"):
        load_denoiser(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(SettingError, match="does not name a diffusers class"):
        load_denoiser(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "DDPMScheduler"}))
    with pytest.raises(SettingError, match="asks for DDPMScheduler"):
        load_denoiser(tmp_path)
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]})
    )
    with pytest.raises(SettingError, match="no component named unet or transformer"):
        load_denoiser(tmp_path)
    with pytest.raises(SettingError, match="is a file"):
        load_denoiser(tmp_path / "config.json")


def test_a_diffusers_model_that_is_no_denoiser_is_refused(tmp_path: Path) -> None:
    AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match="AutoencoderKL"):
        load_denoiser(tmp_path)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    build("plain").save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SettingError, match="damaged"):
        load_denoiser(tmp_path)

    weights.write_bytes(whole)
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "conv_in.bias"}, weights, {"format": "pt"})
    with pytest.raises(SettingError, match=r"missing keys, first conv_in\.bias"):
        load_denoiser(tmp_path)
    save_file({**tensors, "more": torch.zeros(1)}, weights, {"format": "pt"})
    with pytest.raises(SettingError, match=r"unexpected keys, first more"):
        load_denoiser(tmp_path)
    save_file({**tensors, "conv_in.bias": torch.zeros(15)}, weights, {"format": "pt"})
    with pytest.raises(SettingError, match=r"does not fit.*conv_in\.bias"):
        load_denoiser(tmp_path)

    (tmp_path / "config.json").unlink()
    cut(build("plain"), {}).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"norm_groups": {', '"norm_groups": {"nonsense": 4,'))
    with pytest.raises(SettingError, match=r"norm_groups\.nonsense"):
        load_denoiser(tmp_path)
