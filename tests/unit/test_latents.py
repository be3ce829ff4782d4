"""Latents on disk and as training reads them, autoencoders, and the pipelines they are saved in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)

from noisewise.data.images import Dataset, Images, Split
from noisewise.data.latent_files import ABOUT, load_latents, write_latents
from noisewise.data.latents import EncodedOnDemand, Latents
from noisewise.errors import SettingError
from noisewise.models.autoencoder import (
    Autoencoder,
    autoencoder_folder,
    load_autoencoder,
    save_latent_pipeline,
    without_statistics,
)
from noisewise.objectives import Objective
from noisewise.optimal.denoiser import OptimalDenoiser
from noisewise.sampling.sampler import sample_images
from noisewise.sampling.schedulers import build_scheduler
from noisewise.schedule import NoiseSchedule
from noisewise.training.loop import train
from noisewise.training.settings import TrainSettings

BLOCKS: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "in_channels": 1,
    "out_channels": 1,
}


def autoencoder_kl(seed: int = 0, **settings: Any) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(**{**BLOCKS, "latent_channels": 2, "scaling_factor": 0.7, **settings}).eval()


def vq_model(**settings: Any) -> VQModel:
    torch.manual_seed(0)
    return VQModel(**{**BLOCKS, "latent_channels": 3, "num_vq_embeddings": 16, **settings}).eval()


def images(num: int = 12, size: int = 8, seed: int = 0, labelled: bool = False) -> Dataset:
    rng = np.random.default_rng(seed)

    def half(split: Split) -> Images:
        pixels = rng.integers(0, 256, (num, 1, size, size), dtype=np.uint8)
        labels, names = (np.arange(num) % 3, ("a", "b", "c")) if labelled else (None, None)
        return Images.from_pixels(pixels, labels, names, split=split)

    return Dataset(half("train"), half("test"))


def unet(channels: int = 2, size: int = 4) -> UNet2DModel:
    torch.manual_seed(1)
    return UNet2DModel(
        sample_size=size, in_channels=channels, out_channels=channels, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1,
    ).eval()  # fmt: skip


def written(folder: Path, data: Dataset, coder: Autoencoder, **options: Any) -> dict[str, Any]:
    return write_latents(folder, data, coder.encode, autoencoder=coder.fingerprint, batch_size=5, **options)


# ---- latents on disk


@pytest.mark.parametrize(("dtype", "precision"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_cached_latents_are_what_the_autoencoder_gives_scaled(tmp_path: Path, dtype: Any, precision: float) -> None:
    data, coder = images(labelled=True), Autoencoder(autoencoder_kl())
    about = written(tmp_path, data, coder, dtype=dtype)
    found = load_latents(tmp_path, data, coder.fingerprint)
    assert found.train.mean.dtype == getattr(torch, dtype)
    assert found.train.shape == coder.latent_shape(8) == (2, 4, 4)
    pixels, labels = data.train.batch([3, 0, 11])
    posterior = coder.model.encode(pixels).latent_dist
    batch, found_labels = found.train.batch([3, 0, 11])
    torch.testing.assert_close(batch, posterior.mean * 0.7, rtol=precision, atol=precision)
    assert found.train.std is not None
    torch.testing.assert_close(found.train.std[0, [3, 0, 11]].float(), posterior.std * 0.7, rtol=0.02, atol=precision)
    assert found_labels is not None
    assert labels is not None
    assert found_labels.tolist() == labels.tolist()
    drawn, _ = found.train.draw(torch.arange(12).repeat(500), "cpu", torch.Generator().manual_seed(0))
    assert about["std"] == pytest.approx(drawn.std().item(), rel=0.02)
    torch.testing.assert_close(found.test.batch([1])[0], coder.encode(data.test.batch([1])[0])[0], rtol=0.1, atol=0.02)


def test_cache_is_mapped_and_a_vq_model_has_no_posterior(tmp_path: Path) -> None:
    data, coder = images(), Autoencoder(vq_model())
    written(tmp_path, data, coder)
    found = load_latents(tmp_path, data, coder.fingerprint).train
    assert found.std is None
    size = (tmp_path / "train.safetensors").stat().st_size
    assert found.mean.untyped_storage().nbytes() <= size  # the file's own pages, no copy of floats
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(found.draw(torch.arange(12), "cpu", generator)[0], found.batch(slice(None))[0])
    expected = coder.model.encode(data.train.batch(slice(None))[0]).latents * coder.scaling_factor
    torch.testing.assert_close(found.batch(slice(None))[0], expected, rtol=2e-3, atol=1e-3)


def test_training_draws_from_the_posterior_and_mirror_images(tmp_path: Path) -> None:
    data, coder = images(), Autoencoder(autoencoder_kl())
    written(tmp_path, data, coder, mirrored=True)
    found = load_latents(tmp_path, data, coder.fingerprint)
    assert len(found.train) == 12
    assert found.train.mean.shape[0] == 2
    assert found.test.mean.shape[0] == 1
    mirrored, std = coder.encode(data.train.batch([7])[0].flip(-1))
    torch.testing.assert_close(found.train.mean[1, [7]].float(), mirrored, rtol=2e-3, atol=1e-3)
    assert std is not None
    generator = torch.Generator().manual_seed(0)
    drawn, _ = found.train.draw(torch.full((4000,), 7), "cpu", generator)
    both = found.train.mean[:, 7].float()
    torch.testing.assert_close(drawn.mean(0), both.mean(0), rtol=0, atol=0.12)
    spread = ((both[0] - both[1]) / 2).square() + (found.train.std[:, 7].float().square()).mean(0)  # type: ignore[index]  # there is one
    torch.testing.assert_close(drawn.var(0), spread, rtol=0.15, atol=0.02)
    again, _ = found.train.draw(torch.full((4000,), 7), "cpu", torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("autoencoder", "encoded by another autoencoder"),
        ("images", "holds latents of other images"),
        ("truncated", r"has [\d,]+ of [\d,]+ bytes"),
        ("missing", "is missing"),
        ("altered", "was altered"),
        ("about", "is not what this version writes"),
    ],
)
def test_a_cache_that_is_not_this_ones_is_refused(tmp_path: Path, change: str, message: str) -> None:
    data, coder = images(), Autoencoder(autoencoder_kl())
    written(tmp_path, data, coder)
    path = tmp_path / "train.safetensors"
    whole = path.read_bytes()
    fingerprint = coder.fingerprint
    if change == "autoencoder":
        fingerprint = Autoencoder(autoencoder_kl(scaling_factor=0.5)).fingerprint
    elif change == "images":
        data = images(seed=1)
    elif change == "truncated":
        path.write_bytes(whole[:-64])
    elif change == "missing":
        path.unlink()
    elif change == "altered":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        (tmp_path / ABOUT).write_text("[]")
    with pytest.raises(SettingError, match=message):
        load_latents(tmp_path, data, fingerprint)


def test_latents_that_are_not_finite_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    data, coder = images(), Autoencoder(autoencoder_kl())
    with torch.no_grad():
        coder.model.encoder.conv_out.weight.fill_(float("nan"))
    with pytest.raises(SettingError, match="latents of train image 0 of images are not finite"):
        written(tmp_path, data, coder)
    assert not any(tmp_path.iterdir())
    large = Autoencoder(autoencoder_kl(scaling_factor=1e7))
    with pytest.raises(SettingError, match=r"autoencoder.dtype: .* beyond float16; use bfloat16"):
        written(tmp_path, data, large)
    written(tmp_path, data, large, dtype="bfloat16")


def test_a_subset_and_images_encoded_on_demand(tmp_path: Path) -> None:
    data, coder = images(labelled=True), Autoencoder(autoencoder_kl())
    written(tmp_path, data, coder)
    found = load_latents(tmp_path, data, coder.fingerprint).train
    part = found.subset([5, 2])
    assert torch.equal(part.batch([1])[0], found.batch([2])[0])
    assert part.labels is not None
    assert part.labels.tolist() == [2, 2]
    assert part.fingerprint != found.fingerprint
    lazy = EncodedOnDemand(data.train, coder.encode)
    torch.testing.assert_close(lazy.batch([5, 2])[0], part.batch(slice(None))[0], rtol=2e-3, atol=1e-3)


# ---- autoencoders


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize(
    "statistics", [{"shift_factor": 0.3}, {"latents_mean": [0.5, -1.0], "latents_std": [2.0, 0.5]}, {}]
)
def test_statistics_move_into_the_weights(convolutions: bool, statistics: dict[str, Any]) -> None:
    options = {"use_quant_conv": convolutions, "use_post_quant_conv": convolutions}
    model = autoencoder_kl(**options, **statistics)
    coder, plain = Autoencoder(model), without_statistics(model)
    assert (plain is model) == (not statistics)
    assert plain.config.shift_factor is None
    assert plain.config.latents_mean is None
    pixels, _ = images().train.batch(slice(0, 4))
    (mean, std), folded = coder.encode(pixels), plain.encode(pixels).latent_dist
    assert std is not None
    torch.testing.assert_close(folded.mean * 0.7, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(folded.std * 0.7, std, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.decode(mean / 0.7).sample, coder.decode(mean), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [autoencoder_kl(shift_factor=0.4), vq_model(latent_channels=2)])
def test_the_saved_pipeline_is_stock_and_gives_our_images(tmp_path: Path, model: Any) -> None:
    coder, network, scheduler = Autoencoder(model), unet(), DDIMScheduler(clip_sample=False)
    save_latent_pipeline(network, scheduler, coder, tmp_path / "pipeline")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is LDMPipeline
    from noisewise.streams import stream

    stock = pipe(batch_size=2, generator=[stream(5, "sample", i) for i in range(2)], num_inference_steps=3,
                 output_type="np").images  # fmt: skip
    ours = sample_images(network, scheduler, 2, num_inference_steps=3, seed=5, decode=coder.decode)
    difference = np.abs(np.round(stock * 255).transpose(0, 3, 1, 2) - ours.numpy())
    assert ours.shape == (2, 1, 8, 8)
    assert difference.max() <= 1
    assert ours.float().std() > 1  # not one flat colour
    assert autoencoder_folder(tmp_path / "pipeline") == tmp_path / "pipeline" / "vqvae"


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "dpm++"])
def test_samplers_of_latents_clip_nothing(kind: Any) -> None:
    schedule = NoiseSchedule.named("linear")
    assert not build_scheduler(kind, schedule, latent=True).config.get("clip_sample", False)
    assert build_scheduler(kind, schedule).config.get("clip_sample", True)
    own = DDIMScheduler(clip_sample=True)  # a pipeline's own word counts
    assert build_scheduler("ddim", own, latent=True).config.clip_sample
    assert not build_scheduler("ddim", DPMSolverMultistepScheduler(), latent=True).config.clip_sample


def test_fingerprints_tell_weights_and_scaling_apart() -> None:
    prints = {
        Autoencoder(m).fingerprint for m in (autoencoder_kl(), autoencoder_kl(1), autoencoder_kl(scaling_factor=1))
    }
    assert len(prints) == 3
    assert Autoencoder(autoencoder_kl()).fingerprint in prints


def test_folders_without_a_known_autoencoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"autoencoder.from: .* does not exist"):
        load_autoencoder(tmp_path / "none")
    unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(SettingError, match="holds no AutoencoderKL or VQModel"):
        load_autoencoder(tmp_path / "unet")
    autoencoder_kl().save_pretrained(tmp_path / "kl")
    assert load_autoencoder(tmp_path / "kl", scaling_factor=2.0).scaling_factor == 2.0
    (tmp_path / "kl" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    with pytest.raises(SettingError, match=r"autoencoder.from: .* cannot be loaded"):
        load_autoencoder(tmp_path / "kl")


def test_flow_samplers_do_not_run_in_the_stock_pipeline(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    with pytest.raises(SettingError, match=r"sample.scheduler: FlowMatchEuler.* does not run in diffusers. LDM"):
        save_latent_pipeline(unet(), FlowMatchEulerDiscreteScheduler(), Autoencoder(autoencoder_kl()), tmp_path)


# ---- reading them


def test_training_and_the_optimal_denoiser_read_latents(tmp_path: Path) -> None:
    data, coder = images(), Autoencoder(autoencoder_kl())
    written(tmp_path, data, coder)
    found = load_latents(tmp_path, data, coder.fingerprint).train
    schedule = NoiseSchedule.named("linear", 100)
    settings = TrainSettings(num_images=32, batch_size=8)  # type: ignore[call-arg]  # the rest has defaults

    def trained(source: Latents) -> torch.Tensor:
        result = train(unet(), Objective(schedule), source, settings, seed=0)
        return torch.cat([p.detach().flatten() for p in result.model.parameters()])

    first = trained(found)
    assert torch.equal(first, trained(found))
    mean_only = Latents(found.mean, None, None, None, found.name, found.split, found.fingerprint)
    assert not torch.equal(first, trained(mean_only))  # the posterior's noise reaches the network
    denoiser = OptimalDenoiser(found, schedule, device="cpu")
    assert len(denoiser) == 12
    assert denoiser.shape == (2, 4, 4)
    x_0 = found.batch([4])[0]
    near = schedule.signal(torch.tensor(0)) * x_0
    torch.testing.assert_close(denoiser.x_0(near.float(), 0), x_0, rtol=1e-2, atol=1e-2)
