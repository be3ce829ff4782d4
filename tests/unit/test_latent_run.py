"""Recipes that learn latents: their steps, a whole run from an untrained autoencoder to a page, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, LDMPipeline, UNet2DModel
from PIL import Image

from noisewise.errors import SettingError
from noisewise.models.autoencoder import Autoencoder, save_latent_pipeline
from noisewise.report import write_report
from noisewise.training.autoencoder import latent_deviation, train_autoencoder
from noisewise.workflow.builder import build_graph
from noisewise.workflow.graph import Graph
from noisewise.workflow.progress import Event
from noisewise.workflow.recipe import check_recipe
from noisewise.workflow.run import open_graph, run_recipe
from noisewise.workflow.single import images_of, prune_model
from noisewise.workflow.store import Store, closure

SMALL = {"block_out_channels": [8, 16], "norm_num_groups": 4, "latent_channels": 2}
TINY: dict[str, Any] = {
    "name": "latent",
    "data": {"kind": "sklearn-digits", "num_train": 64, "num_test": 32},
    "autoencoder": {"kind": "kl", **SMALL, "num_images": 256, "batch_size": 32, "learning_rate": 5e-3},
    "model": {"kind": "unet2d", "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 8},
    "base": {"num_images": 96, "batch_size": 32, "num_threads": 1},
    "plan": {"num_groups": 2},
    "prune": {
        "timestep_stride": 300,
        "proposer": {"kind": "importance", "rounds": 1, "candidates": 2, "num_score_images": 16},
    },
    "finetune": {"num_images": 64, "batch_size": 32, "num_threads": 1},
    "sample": {"num_images": 8, "num_inference_steps": 4},
    "evaluate": {"num_loss_images": 8, "num_timing_images": 2},
    "compare": ["base"],
}


def graph(store: Store | None = None, **changes: Any) -> Graph:
    merged = {**TINY}
    for name, value in changes.items():
        is_other = isinstance(value, dict) and "from" in value
        merged[name] = {**TINY[name], **value} if isinstance(value, dict) and name in TINY and not is_other else value
    return build_graph(check_recipe({key: value for key, value in merged.items() if value is not None}), store)


def quiet(event: Event) -> None:
    pass


def autoencoder(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    config = {
        "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16], "latent_channels": 2, "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, **settings,
    }  # fmt: skip
    AutoencoderKL(**config).save_pretrained(folder)
    return folder


def pipeline(folder: Path, channels: int = 2, size: int = 4, **settings: Any) -> Path:
    torch.manual_seed(1)
    network = UNet2DModel(
        sample_size=size, in_channels=channels, out_channels=channels, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1,
    )  # fmt: skip
    coder: Any = AutoencoderKL.from_pretrained(autoencoder(folder.with_name("coder"), **settings))
    save_latent_pipeline(network, DDIMScheduler(clip_sample=False), Autoencoder(coder), folder)
    return folder


# ---- steps


def test_every_step_that_learns_reads_latents_and_every_one_that_samples_decodes() -> None:
    found = graph(method="multi-decoder", multi_decoder={"decoders": [1.5, 0.5]}, compare=["base", "separate"])
    learning = ("train", "prune", "decoders", "pick", "loss", "ideal_loss")
    for step in found.steps:
        assert ("latents" in step.inputs) == (step.action in learning), step.name
        assert ("autoencoder" in step.inputs) == (step.action in ("sample", "encode", "reconstruction")), step.name
    assert found.base.network["config"]["sample_size"] == 4
    assert found.base.network["config"]["in_channels"] == 2
    assert found.data.size == 8
    assert found.data.channels == 1


def test_what_the_networks_share_does_not_count_as_their_training() -> None:
    row = next(row for row in graph().rows if row.id == "tdc")
    assert sum(step.num_images for step in row.training) == 96 + 2 * 64
    assert {"autoencoder", "encode"} <= {step.name for step in closure([row.model])}


@pytest.mark.parametrize(
    ("change", "redone", "kept"),
    [
        ({"autoencoder": {"learning_rate": 1e-3}}, {"autoencoder", "encode", "base", "sample[tdc]"}, {"reference"}),
        ({"autoencoder": {"dtype": "bfloat16"}}, {"encode", "base"}, {"autoencoder", "reconstruction"}),
        ({"horizontal_flip": True}, {"autoencoder", "encode", "base"}, {"reference"}),
        ({"base": {"learning_rate": 1e-3}}, {"base"}, {"autoencoder", "encode", "reconstruction"}),
        ({"autoencoder": None}, {"base", "sample[tdc]", "loss[tdc]"}, {"reference"}),
    ],
)
def test_a_change_redoes_what_depends_on_it(change: dict[str, Any], redone: set[str], kept: set[str]) -> None:
    before = {step.name: step.id for step in graph().steps}
    after = {step.name: step.id for step in graph(**change).steps}
    for name in redone:
        assert before[name] != after.get(name), name
    for name in kept:
        assert before[name] == after[name], name


# ---- a run


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    found, store = open_graph(graph().recipe, runs)
    assert run_recipe(found, store, runs, quiet).changed
    again, store = open_graph(graph().recipe, runs)
    assert not run_recipe(again, store, runs, quiet).changed
    return runs / "latent"


def test_the_run_says_how_good_its_autoencoder_is(ran: Path) -> None:
    results = json.loads((ran / "results.json").read_text())
    found = results["autoencoder"]
    assert found["kind"] == "AutoencoderKL"
    assert found["shape"] == [2, 4, 4]
    assert found["num_images"] == 256
    assert found["std"] == pytest.approx(1, abs=0.1)
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / found["mse"]))
    assert 0 < found["frechet"] < found["floor"] + results["metric"]["floor"]
    assert found["decode_macs"] > found["encode_macs"] > 0
    curve = results["training_curves"]["autoencoder"]
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]  # it learns
    page = write_report(ran).read_text()
    assert 'id="autoencoder"' in page
    assert page.count("data:image/png") >= len(results["rows"]) + 2  # rows, real images, reconstructions


def test_its_pipeline_is_stock_and_gives_the_run_its_images(ran: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(ran / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is LDMPipeline
    assert pipe.scheduler.config.clip_sample is False  # latents are not in [-1, 1]
    assert pipe(batch_size=3, num_inference_steps=4).images[0].size == (8, 8)
    results = json.loads((ran / "results.json").read_text())
    model = next(row["provenance"]["model"] for row in results["rows"] if row["id"] == "tdc")
    sampled = [folder for folder in (ran.parent / "store").glob("sample-tdc*") if (folder / "images.npy").is_file()]
    assert model in json.loads((sampled[0] / "artefact.json").read_text())["inputs"]["model"]
    known = np.load(sampled[0] / "images.npy").astype(int)
    assert known.shape == (8, 1, 8, 8)
    ours = images_of(ran / "pipeline", 8, "ddim", 4, 0, 8, 0.0)
    assert np.abs(ours.astype(int) - known).max() <= 1


def test_altered_latents_are_refused_by_the_step_that_would_read_them(ran: Path) -> None:
    found, store = open_graph(graph(seed=0, base={"learning_rate": 3e-3}).recipe, ran.parent)
    encode = found.step("encode")
    path = store.folder(encode) / "train.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    try:
        with pytest.raises(SettingError, match="is not what the step wrote"):
            run_recipe(found, store, ran.parent, quiet)
    finally:
        path.write_bytes(whole)


def test_a_plan_that_looks_at_data_looks_at_latents(ran: Path, tmp_path: Path) -> None:
    plan = {
        "method": "optimal-denoiser",
        "num_groups": 2,
        "cut": "dynamic-programming",
        "num_draws": 8,
        "num_levels": 20,
    }
    store = Store(ran.parent / "store")
    changed = {"plan": {**plan, "num_groups": 2}}
    found = graph(store, **changed)
    assert found.plan.settings["data"]["shape"] == [2, 4, 4]
    assert found.step("encode").id == graph().step("encode").id
    with pytest.raises(SettingError, match="looks at latents, which `noisewise run RECIPE --only encode` makes"):
        graph(None, **changed)
    lines: list[str] = []
    recipe = check_recipe({**TINY, **changed})
    early, fresh = open_graph(recipe, tmp_path, say=lines.append)
    assert fresh.is_done(early.step("encode"))
    assert any("looks at latents, so first: autoencoder, encode" in line for line in lines)


# ---- an existing pipeline


def test_a_latent_pipeline_brings_its_autoencoder(tmp_path: Path) -> None:
    source = pipeline(tmp_path / "pipeline", scaling_factor=0.5)
    model, base = {"from": str(source)}, {"num_images": 0, "batch_size": 32}
    found = graph(autoencoder=None, model=model, base=base)
    assert found.base.latents is not None
    assert found.step("autoencoder").action == "take_autoencoder"
    given = graph(autoencoder={"from": str(source)}, model=model, base=base)
    assert given.base.network == found.base.network


@pytest.mark.parametrize(
    ("source", "section", "message"),
    [
        ({}, {"scaling_factor": 0.9}, r"autoencoder.scaling_factor: 0.9, the network in model.from has learned .* 0.5"),
        (
            {"channels": 3, "latent_channels": 3},
            {"from": "other"},
            "its latents have 2 channels, the network .* takes 3",
        ),
        ({"size": 8}, {}, r"its latents are 4x4, 2 times smaller .* made for 8x8; set data.image_size: 16"),
        ({}, {"from": "shifted"}, "shift_factor or latents_mean and latents_std differ"),
    ],
)
def test_an_autoencoder_that_is_not_the_denoisers_is_refused(
    tmp_path: Path, source: dict[str, Any], section: dict[str, Any], message: str
) -> None:
    channels, size = source.pop("channels", 2), source.pop("size", 4)
    folder = pipeline(tmp_path / "pipeline", channels, size, scaling_factor=0.5, **source)
    autoencoder(tmp_path / "other", scaling_factor=0.5)
    autoencoder(tmp_path / "shifted", scaling_factor=0.5, shift_factor=0.1)
    section = {"from": str(tmp_path / section["from"]) if "from" in section else str(folder)} | {
        key: value for key, value in section.items() if key != "from"
    }
    recipe = {**TINY, "autoencoder": section, "model": {"from": str(folder)}, "base": {"num_images": 0}}
    with pytest.raises(SettingError, match=message):
        build_graph(check_recipe(recipe))


def test_other_weights_of_the_same_kind_are_noted(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "pipeline", scaling_factor=0.5)
    torch.manual_seed(3)
    other: Any = AutoencoderKL.from_pretrained(folder / "vqvae")
    with torch.no_grad():
        other.encoder.conv_in.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    recipe = {**TINY, "autoencoder": {"from": str(tmp_path / "other")}, "model": {"from": str(folder)}}
    assert any(
        "other weights than those of model.from" in note for note in build_graph(check_recipe(recipe)).base.notes
    )


def test_prune_and_sample_commands_take_latent_pipelines(tmp_path: Path) -> None:
    source = pipeline(tmp_path / "pipeline", scaling_factor=0.5)
    recipe = check_recipe({key: value for key, value in TINY.items() if key != "autoencoder"})
    prune_model(source, 0.7, tmp_path / "small", "taylor", recipe, (0, 40), 0)
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "small")) is LDMPipeline
    drawn = images_of(tmp_path / "small", 3, None, 2, 0, 2, 0.0)
    assert drawn.shape == (3, 1, 8, 8)
    (tmp_path / "images").mkdir()
    for i in range(20):
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    colour = check_recipe({**TINY, "data": {"kind": "folder", "folder": str(tmp_path / "images")}})
    with pytest.raises(SettingError, match="data: images of 3 channels, the autoencoder"):
        prune_model(source, 0.7, tmp_path / "more", "taylor", colour, (0, 40), 0)


# ---- what is refused, and the training itself


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"autoencoder": {"block_out_channels": [8, 8, 8, 8, 8]}},
            r"data.image_size: .* 8 pixels .* factor 16 does not",
        ),
        ({"autoencoder": {"norm_num_groups": 5}}, "autoencoder: diffusers refuses this network"),
        ({"autoencoder": {"kl_weight": -1}}, "autoencoder.kl_weight: -1 given"),
        ({"autoencoder": {"latent_chanels": 3}}, "autoencoder.latent_chanels: unknown setting; did you mean"),
        ({"autoencoder": {"from": "none", "num_images": 3}}, "autoencoder.num_images: unknown setting"),
        (
            {"schedule": {"kind": "flow"}, "sample": {"scheduler": "flow-euler"}},
            "does not run in diffusers' LDMPipeline",
        ),
    ],
)
def test_settings_that_cannot_be_used(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        graph(**change)


def test_an_image_size_that_the_factor_does_not_divide(tmp_path: Path) -> None:
    section = {"from": autoencoder(tmp_path / "coder")}
    with pytest.raises(SettingError, match=r"data.image_size: .* 9 pixels .* set data.image_size to 8 or 10"):
        graph(data={"image_size": 9}, autoencoder=section)


def test_a_new_autoencoder_and_an_existing_denoiser_do_not_go_together(tmp_path: Path) -> None:
    source = pipeline(tmp_path / "pipeline")
    recipe = {**TINY, "model": {"from": str(source)}, "base": {"num_images": 0}}
    with pytest.raises(SettingError, match=r"autoencoder.kind: kl trains a new autoencoder"):
        build_graph(check_recipe(recipe))


def test_training_an_autoencoder_resumes_and_scales_its_latents(tmp_path: Path) -> None:
    from noisewise.data import load_data
    from noisewise.training.settings import TrainSettings

    images = load_data(check_recipe(TINY).data).train
    settings = TrainSettings(num_images=96, batch_size=32, checkpoint_images=32)  # type: ignore[call-arg]  # defaults

    def fresh() -> Any:
        torch.manual_seed(0)
        return AutoencoderKL.from_config(AutoencoderKL.load_config(autoencoder(tmp_path / "coder")))

    def run(model: Any, workspace: Path, **options: Any) -> None:
        train_autoencoder(
            model, images, settings, latent_shape=(2, 4, 4), kl_weight=1e-6, seed=0, workspace=workspace, **options
        )

    class StopError(Exception):
        pass

    def stop(step: Any) -> None:
        if step.images_seen >= 64:
            raise StopError

    whole, resumed = fresh(), fresh()
    run(whole, tmp_path / "whole")
    with pytest.raises(StopError):
        run(resumed, tmp_path / "cut", log=stop)
    resumed = fresh()
    run(resumed, tmp_path / "cut")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert whole.config.scaling_factor == pytest.approx(1 / latent_deviation(whole, images, 0))
    coder = Autoencoder(whole)
    latents, std = coder.encode(images.batch(slice(None))[0])
    assert std is not None
    assert (latents + std * torch.randn_like(std)).std().item() == pytest.approx(1, abs=0.05)
