"""Two checkpoints of latents as one: measured on decoded images, saved with everything else their pipelines hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, DiffusionPipeline, LDMPipeline, UNet2DModel
from network_zoo import condition_unet
from stock_pipelines import images, stable_diffusion

from noisewise import ExpertDenoiser, NoiseSchedule
from noisewise.cli import main
from noisewise.data.latents import EncodedOnDemand
from noisewise.data.load import load_data
from noisewise.data.settings import DigitsSettings
from noisewise.evaluation.losses import loss_per_timestep
from noisewise.models.autoencoder import Autoencoder, load_autoencoder, save_latent_pipeline
from noisewise.models.loading import load_denoiser
from noisewise.models.stitch import macs_of, stitch
from noisewise.objectives import Objective
from noisewise.planning.plan import Plan
from noisewise.workflow.single import images_of

DIGITS = ["--data", "{kind: sklearn-digits}"]
FEW = [
    "--set", "sample.num_images=16", "--set", "sample.num_inference_steps=4", "--set", "evaluate.num_loss_images=16",
    "--num-switch-points", "1", "--progress", "lines",
]  # fmt: skip


def autoencoder(seed: int = 0, **settings: Any) -> Autoencoder:
    torch.manual_seed(seed)
    model: Any = AutoencoderKL(
        **{
            "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16], "latent_channels": 2,
            "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 2, "scaling_factor": 0.5,
            "up_block_types": ["UpDecoderBlock2D"] * 2, **settings,
        }
    )  # fmt: skip
    return Autoencoder(model.eval())


def pipeline(folder: Path, width: int, coder: Autoencoder, size: int = 4) -> str:
    torch.manual_seed(width)
    network = UNet2DModel(
        sample_size=size, in_channels=2, out_channels=2, block_out_channels=(width, 2 * width), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1,
    )  # fmt: skip
    save_latent_pipeline(network.eval(), DDIMScheduler(clip_sample=False), coder, folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder, coder = tmp_path_factory.mktemp("models"), autoencoder()
    large = pipeline(folder / "large", 8, coder)
    Path(large, "README.md").write_text("the large one's results")
    return pipeline(folder / "small", 4, coder), large


@pytest.fixture(scope="module")
def swept(folders: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    words = ["stitch", *folders, *DIGITS, *FEW, "--at", "500", "--runs", str(runs), "--save", str(runs / "chosen")]
    assert main(words) == 0
    return runs


def results_of(runs: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / "stitch" / "stitch.json").read_text())
    return found


def test_the_saved_pipeline_is_of_latents_and_makes_the_decoded_images_that_were_measured(swept: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(swept / "chosen")
    assert type(pipe) is LDMPipeline
    assert isinstance(pipe.unet, ExpertDenoiser)
    assert [group.t_start for group in pipe.unet.plan.groups] == [0, 500]
    drawn = images_of(swept / "chosen", 16, "ddim", 4, 0, 64, 0.0)
    assert drawn.shape == (16, 1, 8, 8)
    point = next(point for point in results_of(swept)["points"] if point["t"] == 500)
    assert point["provenance"]["samples"]["data_fingerprint"] == hashlib.sha256(drawn.tobytes()).hexdigest()
    assert "changes at timestep 500" in (swept / "chosen" / "README.md").read_text()


def test_losses_are_of_latents_and_costs_of_networks_without_the_decoder(swept: Path, folders: tuple[str, str]) -> None:
    results = results_of(swept)
    (small, scheduler), (large, _) = (load_denoiser(folder) for folder in folders)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    digits = load_data(DigitsSettings(kind="sklearn-digits")).test
    latents = EncodedOnDemand(digits, load_autoencoder(Path(folders[0])).encode)
    losses = loss_per_timestep(
        stitch(small, large, schedule, 500), Objective(schedule), latents, plan=Plan.from_bounds(schedule, [500]),
        num_bins=1, num_images=16, num_images_per_bin=1,
    )  # fmt: skip
    whole, middle, alone = results["points"]
    assert middle["loss"] == pytest.approx(sum(group.mean for group in losses.groups if group) / 2, rel=1e-4)
    assert [point["macs_per_image"] for point in (whole, alone)] == [4 * macs_of(large), 4 * macs_of(small)]
    assert results["decode_macs"] > 0
    assert "Not counted: decoding" in (swept / "stitch" / "stitch.md").read_text()


def test_the_same_command_resumes(swept: Path, folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    before = (swept / "stitch" / "stitch.json").read_bytes()
    assert main(["stitch", *folders, *DIGITS, *FEW, "--at", "500", "--runs", str(swept)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (swept / "stitch" / "stitch.json").read_bytes() == before


def test_a_text_to_image_pipeline_keeps_its_other_components(tmp_path: Path) -> None:
    torch.manual_seed(0)
    large = condition_unet()
    narrow = [width // 2 for width in large.config.block_out_channels]
    small = type(large).from_config({**large.config, "block_out_channels": narrow})
    for name, network in (("small", small), ("large", large)):
        stable_diffusion(network.eval())[0].save_pretrained(tmp_path / name)
    (tmp_path / "large" / "README.md").write_text("the large one's results")
    words = ["stitch", str(tmp_path / "small"), str(tmp_path / "large")]
    assert main([*words, "--save", str(tmp_path / "out"), "--at", "500"]) == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert [expert.config.block_out_channels for expert in pipe.unet.experts] == [
        list(large.config.block_out_channels), narrow
    ]  # fmt: skip
    assert images(pipe, stable_diffusion(pipe.unet)[1]).shape == (1, 8, 8, 3)
    assert not (tmp_path / "out" / "README.md").exists()


def test_what_does_not_share_its_latents_or_text_is_refused(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = folders
    pixels = UNet2DModel.from_pretrained(large, subfolder="unet")
    DDPMPipeline(pixels, DDIMScheduler()).save_pretrained(tmp_path / "pixels")
    text = condition_unet()
    for name in ("prompts", "other prompts"):
        pipe = stable_diffusion(text)[0]
        if name == "other prompts":
            pipe.text_encoder.final_layer_norm.weight.data.mul_(2)
        pipe.save_pretrained(tmp_path / name)
    new = ["--save", str(tmp_path / "new"), "--at", "500"]
    cases = [
        ([small, pipeline(tmp_path / "other", 8, autoencoder(1)), *new], "the autoencoders of SMALL and LARGE differ"),
        ([small, pipeline(tmp_path / "scaled", 8, autoencoder(scaling_factor=0.25)), *new],
         "SMALL has learned latents scaled by 0.5, LARGE by 0.25"),
        ([small, str(tmp_path / "pixels"), *new], "SMALL is a pipeline of latents, LARGE has no autoencoder"),
        ([str(tmp_path / "prompts"), str(tmp_path / "other prompts"), *new], "the text_encoder of SMALL and of LARGE"),
        ([small, large, *DIGITS, "--set", "data.image_size=16"], "made for 4x4; set data.image_size: 8"),
        ([small, large, *DIGITS, "--set", "data.image_size=9"], "data.image_size: the images have 9 pixels"),
    ]  # fmt: skip
    capsys.readouterr()  # transformers shows how it writes
    for words, said in cases:
        assert main(["stitch", *words, "--runs", str(tmp_path / "runs")]) == 2, words
        error = capsys.readouterr().err
        assert said in error, error
        assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
