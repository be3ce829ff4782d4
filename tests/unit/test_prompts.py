"""`noisewise sample` with prompts: the stock pipeline's images, files that say what they show, and mistakes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_folder import save_photos
from diffusers import DDIMScheduler, DiffusionPipeline
from network_zoo import sd3
from PIL import Image
from stock_pipelines import stable_diffusion_3
from text_zoo import denoiser, saved, scheduler, stable_diffusion, stable_diffusion_xl
from unet_zoo import build as build_unet2d

from noisewise import ExpertDenoiser, NoiseSchedule, Plan
from noisewise.cli import main
from noisewise.data.load import load_data
from noisewise.errors import SettingError
from noisewise.models.loading import load_denoiser, save_pipeline
from noisewise.models.text import TextEncoder
from noisewise.streams import stream
from noisewise.workflow.looking import as_learned
from noisewise.workflow.prompts import grid_columns, read_prompts
from noisewise.workflow.recipe import load_recipe
from noisewise.workflow.single import images_of

PROMPTS = ("a cat", "two dogs")
PLAN = Plan.from_bounds(NoiseSchedule.from_scheduler(scheduler()), [400])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipelines as their owners have them on disk."""
    root = tmp_path_factory.mktemp("pipelines")
    experts = ExpertDenoiser([denoiser(), denoiser(layers_per_block=2)], PLAN)
    save_pipeline(build_unet2d("heads"), DDIMScheduler(), root / "pixels")
    return {
        "stock": saved(stable_diffusion(), root / "stock"),
        "xl": saved(stable_diffusion_xl(), root / "xl"),
        "experts": saved(stable_diffusion(unet=experts), root / "experts"),
        "sd3": saved(stable_diffusion_3(sd3())[0], root / "sd3"),
        "pixels": root / "pixels",
    }


def drawn(folder: Path, num_images: int = 4, steps: int = 3, batch_size: int = 3, **options: Any) -> np.ndarray:
    options = {"prompts": PROMPTS, "guidance_scale": (5.0,), **options}
    return images_of(folder, num_images, None, steps, 3, batch_size, 0.0, **options)


def of_stock(folder: Path, scale: float, numbers: list[int]) -> np.ndarray:
    """The stock pipeline's own images of the prompts in turn, from the noise of our images with these numbers."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn(4, 8, 8, generator=stream(3, "sample", i)) for i in numbers])
    pictures = pipe(
        prompt=[PROMPTS[i % 2] for i in numbers], latents=noise, guidance_scale=scale, num_inference_steps=3,
        output_type="np",
    ).images  # fmt: skip
    return (pictures * 255).round().astype(np.uint8).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("kind", ["stock", "xl", "experts"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_images_are_those_of_the_stock_pipeline(folders: dict[str, Path], kind: str, scale: float) -> None:
    ours, theirs = drawn(folders[kind], guidance_scale=(scale,)), of_stock(folders[kind], scale, [0, 1, 2, 3])
    assert ours.shape == theirs.shape == (4, 3, 16, 16)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.abs(ours[0].astype(int) - ours[1]).max() > 1


def test_an_image_depends_on_its_number_and_prompt_alone(folders: dict[str, Path]) -> None:
    whole, single = (drawn(folders["stock"], batch_size=size).astype(int) for size in (4, 1))
    assert np.abs(whole - single).max() <= 1
    one_prompt = drawn(folders["stock"], prompts=PROMPTS[1:]).astype(int)
    assert np.abs(one_prompt - whole)[[1, 3]].max() <= 1
    assert np.abs(one_prompt - whole)[[0, 2]].max() > 1


def test_scale_0_tells_nothing(folders: dict[str, Path]) -> None:
    untold = drawn(folders["stock"], guidance_scale=(0.0,)).astype(int)
    empty = drawn(folders["stock"], prompts=[""], guidance_scale=(1.0,)).astype(int)
    assert np.abs(untold - empty).max() <= 1


def test_a_scale_per_group(folders: dict[str, Path]) -> None:
    both = drawn(folders["experts"], guidance_scale=(1.0, 5.0))
    assert not np.array_equal(both, drawn(folders["experts"], guidance_scale=(5.0, 1.0)))
    with pytest.raises(SettingError, match="3 values given, the plan has 2 groups"):
        drawn(folders["experts"], guidance_scale=(1.0, 5.0, 1.0))


def test_the_command(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, words = tmp_path / "images", tmp_path / "words.txt"
    words.write_text("a cat\n\n  two, dogs \n")
    common = ["sample", str(folders["stock"]), "--num-images", "3", "--num-inference-steps", "2"]
    assert main([*common, "--out", str(out), "--prompts", "a cat", "two, dogs", "--guidance-scale", "5"]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["0.png", "1.png", "2.png", "grid.png", "metadata.csv"]
    with (out / "metadata.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["file_name", "text"], ["0.png", "a cat"], ["1.png", "two, dogs"], ["2.png", "a cat"]
        ]  # fmt: skip
    capsys.readouterr()

    again = tmp_path / "again"
    assert main([*common, "--out", str(again), "--prompts-from", str(words), "--guidance-scale", "5"]) == 0
    for name in ("0.png", "1.png", "2.png"):
        assert np.array_equal(np.asarray(Image.open(out / name)), np.asarray(Image.open(again / name)))


def test_each_prompt_has_its_columns() -> None:
    assert [grid_columns(num) for num in (1, 2, 3, 8, 10)] == [8, 8, 6, 8, 10]


# ---- mistakes


def test_prompts_and_networks_have_to_go_together(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"prompts: 2 given; the pipeline in .* has no text encoder"):
        drawn(folders["pixels"])
    for kind in ("stock", "experts"):
        with pytest.raises(SettingError, match=r"prompts: missing; the pipeline in .* makes images of text"):
            drawn(folders[kind], prompts=None)
    with pytest.raises(SettingError, match="class_labels: 1 given; the network takes no class labels"):
        drawn(folders["stock"], class_labels=[1])
    with pytest.raises(SettingError, match="told encoder_hidden_states, and there is no text encoder"):
        drawn(bare(folders["stock"], tmp_path / "bare"), prompts=None)
    with pytest.raises(SettingError, match="prompts: none given"):
        drawn(folders["stock"], prompts=[])
    with pytest.raises(SettingError, match="told encoder_hidden_states and pooled_projections, and there is no text"):
        drawn(folders["sd3"], prompts=None)


def bare(folder: Path, out: Path) -> Path:
    """The pipeline without its text encoder."""
    pipe = DiffusionPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    pipe.save_pretrained(out)
    return out


def test_a_text_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = saved(stable_diffusion(unet=denoiser(cross_attention_dim=12)), tmp_path)
    with pytest.raises(SettingError, match="width 8, the denoiser reads one of width 12"):
        drawn(folder)


def test_a_tokenizer_without_words_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers would make one up to which all prompts are alike."""
    copied = shutil.copytree(folders["stock"], tmp_path / "copied")
    (copied / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(SettingError, match=r"tokenizer has no vocabulary .tokenizer\.json or vocab\.json"):
        drawn(copied)


def test_a_prompt_that_is_cut_off_is_said(folders: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="prompts: 1 of 2 exceed 12 tokens and are cut off, first 'far more letters"):
        drawn(folders["stock"], prompts=["a cat", "far more letters than fit"], num_images=2, steps=1)


def test_files_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\r\n\r\nzwei Bären\r\n".encode())
    assert read_prompts(path) == ("one", "zwei Bären")
    for content, message in ((b"\n \n", "has no prompts"), (b"\xff\xfe\x00", "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(SettingError, match=f"--prompts-from: .*{message}"):
            read_prompts(path)
    with pytest.raises(SettingError, match=r"--prompts-from: .*No such file"):
        read_prompts(tmp_path / "nowhere.txt")


def test_options_that_exclude_each_other(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["sample", str(folders["stock"]), "--out", str(tmp_path / "out"), "--prompts", "a cat"]
    for more, message in (
        (["--prompts-from", "x.txt"], "--prompts-from: given together with --prompts"),
        (["--class-labels", "1"], "--class-labels: given together with prompts"),
    ):
        assert main([*common, *more]) == 2
        assert message in capsys.readouterr().err


# ---- what the other commands do with such pipelines


RECIPE = """
name: captioned
data: {kind: folder, folder: FOLDER, image_size: 16, caption_column: text}
method: tdc
model: {from: PIPELINE}
base: {num_images: 8, batch_size: 4}
finetune: {num_images: 8}
sample: {num_images: 4, num_inference_steps: 3, scheduler: ddim}
"""


@pytest.fixture(scope="module")
def recipe(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured images with captions of their colour."""
    root = tmp_path_factory.mktemp("captioned")
    photos = save_photos(root / "photos")
    path = root / "recipe.yaml"
    path.write_text(RECIPE.replace("FOLDER", str(photos)).replace("PIPELINE", str(folders["stock"])))
    return path


def test_pruning_looks_at_images_with_their_captions(folders: dict[str, Path], recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    common = ["prune", str(folders["stock"]), "--budget", "0.7", "--importance", "taylor", "--recipe", str(recipe)]
    assert main([*common, "--timesteps", "100", "110", "--out", str(out)]) == 0

    pipe = DiffusionPipeline.from_pretrained(out)
    assert type(pipe) is type(stable_diffusion())
    shares = sum(p.numel() for p in pipe.unet.parameters()) / sum(p.numel() for p in denoiser().parameters())
    assert shares < 0.9
    assert drawn(out).shape == (4, 3, 16, 16)


def test_importances_depend_on_the_captions(folders: dict[str, Path], recipe: Path) -> None:
    settings = load_recipe(recipe)
    images, source = load_data(settings.data).train, folders["stock"]
    model, _ = load_denoiser(source)
    seen = as_learned(source, model, images)
    x, told = seen.batch(torch.tensor([5, 0]))
    encoder = TextEncoder.from_pretrained(source)
    assert images.captions is not None
    expected = encoder.encode([images.captions[5], images.captions[0]])["encoder_hidden_states"]
    torch.testing.assert_close(told["encoder_hidden_states"], expected)
    assert x.shape == (2, 4, 8, 8)
    assert len(seen) == len(images)
    again, told = seen.batch(slice(0, 3))
    assert len(again) == len(told["encoder_hidden_states"]) == 3
    torch.testing.assert_close(again[0], x[1])


def test_images_without_captions_do_not_score_such_a_network(
    folders: dict[str, Path], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path, *more: str) -> str:
        common = ["prune", str(folder), "--budget", "0.7", "--importance", "taylor", "--recipe", str(recipe)]
        assert main([*common, "--out", str(tmp_path / "out"), *more]) == 2
        error: str = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    plain = "--set", "data.caption_column=null"
    missing = refused(folders["stock"], *plain)
    assert "data.caption_column: missing; the network in" in missing
    assert "--set data.caption_column=text" in missing
    assert "there is no text encoder; give the folder of a whole pipeline" in refused(folders["stock"] / "unet")
    assert "takes no text; leave it out" in refused(folders["pixels"])
    assert not (tmp_path / "out").exists()
