"""Recipes of captions: their steps, a whole run from a Stable Diffusion pipeline back to one, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from text_zoo import LENGTH, denoiser, saved, stable_diffusion, stable_diffusion_xl, text_encoder

from noisewise import ExpertDenoiser
from noisewise.errors import SettingError
from noisewise.report import write_report
from noisewise.workflow.builder import build_graph
from noisewise.workflow.executor import Runner, run_serial
from noisewise.workflow.graph import Graph
from noisewise.workflow.progress import Event
from noisewise.workflow.recipe import check_recipe
from noisewise.workflow.run import open_graph, run_recipe, write_pipeline
from noisewise.workflow.store import Store, closure
from noisewise.workflow.texts import telling

WORDS = ("red", "green", "blue", "grey")
COLOURS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (120, 120, 120))
NUM = 48


def images(folder: Path, captions: bool = True) -> Path:
    """Plain images with a little noise; of each colour's the same caption, two captions longer than the encoder's."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = ["file_name,text"]
    for i in range(NUM):
        pixels = np.clip(COLOURS[i % 4] + rng.normal(0, 12, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{'a very very long caption' if i in (0, 4) else f'a {WORDS[i % 4]}'}")
    if captions:
        (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("text")
    return {
        "images": images(place / "images"),
        "pipeline": saved(stable_diffusion(), place / "pipeline"),
        "runs": place,
    }


def raw(places: dict[str, Path], **changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "name": "text",
        "data": {"kind": "folder", "folder": str(places["images"]), "caption_column": "text", "test_fraction": 0.25},
        "conditioning": {"dropout": 0.2},
        "model": {"from": str(places["pipeline"])},
        "base": {"num_images": 16, "batch_size": 16, "num_threads": 1},
        "plan": {"num_groups": 2},
        "prune": {
            "timestep_stride": 500,
            "proposer": {"kind": "importance", "rounds": 1, "candidates": 2, "num_score_images": 8},
        },
        "finetune": {"num_images": 16, "batch_size": 16, "num_threads": 1},
        "sample": {"num_images": 8, "num_inference_steps": 2, "guidance_scale": [1.0, 3.0]},
        "evaluate": {"num_loss_images": 8, "num_timing_images": 1},
    }
    for name, value in changes.items():
        whole[name] = {**whole[name], **value} if isinstance(value, dict) and name in whole else value
    return whole


def graph(places: dict[str, Path], store: Store | None = None, **changes: Any) -> Graph:
    return build_graph(check_recipe(raw(places, **changes)), store)


def quiet(event: Event) -> None:
    pass


# ---- steps


@pytest.fixture(scope="module")
def planned(places: dict[str, Path]) -> Graph:
    return graph(places)


def test_every_step_that_learns_or_samples_is_told_captions(planned: Graph) -> None:
    for step in planned.steps:
        expected = step.action in ("train", "prune", "loss", "sample")
        assert ("text" in step.inputs) == expected, step.name
    assert planned.step("encode-text").macs > 0
    assert planned.step("base").settings["label_dropout"] == 0.2
    row = next(row for row in planned.rows if row.id == "tdc")
    assert "encode-text" not in {step.name for step in row.training}


def test_a_changed_caption_encodes_text_and_no_latents_anew(
    places: dict[str, Path], planned: Graph, tmp_path: Path
) -> None:
    other = images(tmp_path / "images")  # the same pixels
    metadata = other / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("a red", "something red"))
    before, after = ids(planned), ids(graph({**places, "images": other}))

    for name in ("encode-text", "base", "sample[tdc]"):
        assert before[name] != after[name]
    for name in ("autoencoder", "encode", "reference", "reconstruction"):
        assert before[name] == after[name]


def ids(found: Graph) -> dict[str, str]:
    return {step.name: step.id for step in found.steps}


# ---- a run


@pytest.fixture(scope="module")
def ran(places: dict[str, Path]) -> Path:
    recipe = check_recipe(raw(places))
    found, store = open_graph(recipe, places["runs"])
    assert run_recipe(found, store, places["runs"], quiet).changed
    again, store = open_graph(recipe, places["runs"])
    assert not run_recipe(again, store, places["runs"], quiet).changed
    return places["runs"] / "text"


def test_the_run_says_what_it_was_told(ran: Path, places: dict[str, Path]) -> None:
    results = json.loads((ran / "results.json").read_text())

    assert [row["id"] for row in results["rows"]] == [
        "base-continued", "base-fewer-steps", "unpruned", "uniform", "tdc"
    ]  # fmt: skip
    found = results["captions"]
    assert (found["num_captions"], found["num_cut_off"], found["length"]) == (5, 1, LENGTH)
    assert found["source"] == str(places["pipeline"])
    assert f"1 of 5 captions exceed the text encoder's {LENGTH} tokens and are cut off" in results["warnings"]
    assert results["autoencoder"]["factor"] == 2
    for row in results["rows"]:
        assert np.isfinite([row["frechet"], row["test_loss"]]).all()
    write_report(ran)


def test_the_result_is_the_same_pipeline_of_experts(ran: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(ran / "pipeline", safety_checker=None)

    assert type(pipe) is StableDiffusionPipeline
    assert isinstance(pipe.unet, ExpertDenoiser)
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, text_encoder().get_input_embeddings().weight)
    pipe.set_progress_bar_config(disable=True)

    def images(prompt: str) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        found: np.ndarray = pipe(
            prompt=prompt, num_inference_steps=4, guidance_scale=3.0, generator=generator, output_type="np"
        ).images
        return found

    assert images("a red").shape == (1, 16, 16, 3)
    assert not np.array_equal(images("a red"), images("a blue"))


def test_samples_have_the_captions_of_the_references_images(ran: Path, places: dict[str, Path]) -> None:
    from noisewise.models.text import TextEncoder
    from noisewise.workflow.measure import chosen

    found, store = open_graph(check_recipe(raw(places)), places["runs"])
    runner = Runner(store, quiet, found.recipe.data, 1)
    told = telling(next(row for row in found.rows if row.id == "tdc").sample, runner)
    captions = chosen(runner.dataset.test, 8, 0).captions or ()
    expected = TextEncoder.from_pretrained(places["pipeline"]).encode(captions)["encoder_hidden_states"]

    hidden = told["conditions"](range(2, 5))["encoder_hidden_states"]
    torch.testing.assert_close(hidden, expected[2:5], rtol=1e-3, atol=1e-3)
    assert torch.equal(
        told["conditions"](range(12, 13))["encoder_hidden_states"][0],
        told["conditions"](range(1))["encoder_hidden_states"][0],
    )
    assert told["null_conditions"]["encoder_hidden_states"].shape[0] == 1


# ---- refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"caption_column": None}, "conditioning": {"dropout": 0.0}, "sample": {"guidance_scale": 1.0}},
         "model.from: .* is told text, a UNet2DConditionModel takes encoder_hidden_states; set data.caption_column"),
        ({"data": {"conditional": True}}, "data: caption_column and conditional given"),
        ({"data": {"caption_column": "words"}}, "data.caption_column: .* has no column 'words'"),
        ({"data": {"caption_column": None}}, "conditioning.dropout: 0.2 given, and the images are used without labels"),
        ({"data": {"caption_column": None}, "conditioning": {"dropout": 0.0, "dtype": "bfloat16"},
          "sample": {"guidance_scale": 1.0}}, "conditioning.dtype: bfloat16 given; it is for captions"),
        ({"conditioning": {"dropout": 0.0}}, r"sample.guidance_scale: \[1.0, 3.0\] given, and no labels are dropped"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(places: dict[str, Path], change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        graph(places, **change)


def test_missing_captions_are_refused(places: dict[str, Path], tmp_path: Path) -> None:
    other = images(tmp_path / "images")
    lines = (other / "metadata.csv").read_text().splitlines()
    (other / "metadata.csv").write_text("\n".join(lines[:-2]) + "\n")

    with pytest.raises(SettingError, match=r"data.caption_column: 2 of 48 images have no caption .*: 46.png, 47.png"):
        graph({**places, "images": other})


def test_a_text_encoder_of_another_width_is_refused(places: dict[str, Path], tmp_path: Path) -> None:
    built = stable_diffusion(unet=denoiser(cross_attention_dim=12))
    with pytest.raises(SettingError, match="its text has width 8, the denoiser reads one of width 12"):
        graph({**places, "pipeline": saved(built, tmp_path)})


def test_captions_for_a_network_without_text_are_refused(places: dict[str, Path]) -> None:
    recipe = raw(places)
    recipe["model"] = {"kind": "unet2d", "block_out_channels": [8, 16], "norm_num_groups": 4}
    with pytest.raises(SettingError, match=r"data.caption_column: text given; a UNet2DModel takes no text"):
        build_graph(check_recipe(recipe))


def test_two_text_encoders(places: dict[str, Path], tmp_path: Path) -> None:
    """SDXL's layout: its denoiser is told the pooled text and the images' size too."""
    changed = {**places, "pipeline": saved(stable_diffusion_xl(), tmp_path / "pipeline"), "runs": tmp_path}
    recipe = check_recipe(raw(changed, compare=[], base={"num_images": 0}))
    found, store = open_graph(recipe, tmp_path)
    row, runner = found.rows[-1], Runner(store, quiet, recipe.data, 1)
    run_serial(closure([row.sample]), runner)  # all but what measures
    write_pipeline(row.model, row.sample, store, tmp_path / "written", found.base.network["from"])

    texts, _ = runner.texts(found.step("encode-text"))
    assert texts.at(torch.tensor([0]))["added_cond_kwargs"]["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]
    assert not texts.of_none()["encoder_hidden_states"].any()
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "written")
    assert isinstance(pipe, StableDiffusionXLPipeline)
    assert isinstance(pipe.unet, ExpertDenoiser)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red", num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
