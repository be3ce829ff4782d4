"""Two checkpoints as one: the command, its numbers against independent ones, resuming, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel

from noisewise import ExpertDenoiser, NoiseSchedule, count_macs
from noisewise.cli import main
from noisewise.data.load import load_data
from noisewise.data.settings import DigitsSettings
from noisewise.errors import SettingError
from noisewise.evaluation.losses import loss_per_timestep
from noisewise.models.loading import load_denoiser, save_pipeline
from noisewise.models.stitch import stitch
from noisewise.objectives import Objective
from noisewise.planning.plan import Plan
from noisewise.sampling.sampler import sample_images
from noisewise.workflow.single import sampler_for
from noisewise.workflow.stitching.run import mark_best

FEW = [
    "--set", "sample.num_images=16", "--set", "sample.num_inference_steps=5", "--set", "evaluate.num_loss_images=16",
    "--progress", "lines",
]  # fmt: skip
DIGITS = ["--data", "{kind: sklearn-digits}"]


def network(width: int, seed: int = 0, **changed: Any) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(
        **{
            "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (width, 2 * width),
            "layers_per_block": 1, "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D"), **changed,
        }
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A small and a large pipeline."""
    folder = tmp_path_factory.mktemp("models")
    save_pipeline(network(4, 1), DDIMScheduler(), folder / "small")
    save_pipeline(network(8, 2), DDIMScheduler(), folder / "large")
    return str(folder / "small"), str(folder / "large")


@pytest.fixture(scope="module")
def swept(folders: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of runs with one finished sweep, and the pipeline it saved."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["stitch", *folders, *DIGITS, *FEW, "--num-switch-points", "4", "--at", "700", "--runs", str(runs)]
    assert main([*words, "--save", str(runs / "chosen")]) == 0
    return runs


def results_of(runs: Path, name: str = "stitch") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / name / "stitch.json").read_text())
    return found


def test_every_switch_point_with_its_exact_cost(swept: Path, folders: tuple[str, str]) -> None:
    results = results_of(swept)
    visited = [800, 600, 400, 200, 0]  # DDIM's five timesteps
    assert [point["t"] for point in results["points"]] == [None, 800, 700, 600, 400, 200, None]
    macs = [count_macs(load_denoiser(f)[0], {"sample": torch.zeros(1, 1, 8, 8), "timestep": 1}) for f in folders]
    for point in results["points"]:
        start = point["t"] if point["t"] is not None else (0 if point["small_calls"] else 1000)
        small = sum(t >= start for t in visited)
        assert point["small_calls"] == small
        assert point["macs_per_image"] == small * macs[0] + (5 - small) * macs[1]
        assert point["cost"] == pytest.approx(point["macs_per_image"] / (5 * macs[1]))
    costs = [point["cost"] for point in results["points"]]
    assert costs[0] == 1
    assert costs == sorted(costs, reverse=True)


def test_held_out_losses_are_the_stitched_networks_own(swept: Path, folders: tuple[str, str]) -> None:
    results = results_of(swept)
    (small, scheduler), (large, _) = (load_denoiser(folder) for folder in folders)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    bounds = Plan.from_bounds(schedule, [200, 400, 600, 700, 800])
    images = load_data(DigitsSettings(kind="sklearn-digits")).test
    for point in results["points"]:
        model: Any = small if point["small_calls"] else large
        if point["t"] is not None:
            model = stitch(small, large, schedule, point["t"])
        losses = loss_per_timestep(
            model, Objective(schedule), images, plan=bounds, num_bins=1, num_images=16, num_images_per_bin=1
        )
        sizes = [group.num_timesteps for group in bounds.groups]
        mean = sum(n * loss.mean for n, loss in zip(sizes, losses.groups, strict=True) if loss) / 1000
        assert point["loss"] == pytest.approx(mean, rel=1e-4)


def test_the_saved_pipeline_makes_the_images_that_were_measured(swept: Path) -> None:
    point = next(point for point in results_of(swept)["points"] if point["t"] == 700)
    pipe = DiffusionPipeline.from_pretrained(swept / "chosen")
    assert isinstance(pipe.unet, ExpertDenoiser)
    assert [group.t_start for group in pipe.unet.plan.groups] == [0, 700]
    assert pipe.unet.plan.groups[0].cost_limit == 1 > pipe.unet.plan.groups[1].cost_limit
    images = sample_images(pipe.unet, sampler_for("ddim", pipe.scheduler), 16, num_inference_steps=5)
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    assert point["provenance"]["samples"]["data_fingerprint"] == digest
    card = (swept / "chosen" / "README.md").read_text()
    assert "changes at timestep 700" in card
    assert "| 700 |" in card


def test_table_figure_and_samples_lie_beside_the_numbers(swept: Path) -> None:
    folder = swept / "stitch"
    assert (folder / "stitch.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "stitch.svg").read_text()
    table = (folder / "stitch.md").read_text()
    assert table.count("\n|") == 8  # heading and 7 rows below the first line
    for point in results_of(swept)["points"]:
        assert (folder / point["samples"]).is_file()


def test_the_same_command_does_nothing_again_and_more_points_reuse_what_is_there(
    swept: Path, folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stitch", *folders, *DIGITS, *FEW, "--runs", str(swept)]
    before = (swept / "stitch" / "stitch.json").read_bytes()
    assert main([*words, "--num-switch-points", "4", "--at", "700"]) == 0
    said = capsys.readouterr().out
    assert "nothing to do" in said
    assert "started" not in said
    assert (swept / "stitch" / "stitch.json").read_bytes() == before

    # 9 switch points, and no more than 6 ways to share five calls: none is new
    assert main([*words, "--num-switch-points", "9", "--name", "fine"]) == 0
    said = capsys.readouterr().out
    assert "sample[" not in said
    assert len(results_of(swept, "fine")["points"]) == 11


def test_the_small_network_at_the_data(swept: Path, folders: tuple[str, str]) -> None:
    words = ["stitch", *folders, *DIGITS, *FEW, "--runs", str(swept), "--name", "reverse"]
    assert main([*words, "--num-switch-points", "1", "--small-at", "data"]) == 0
    whole, middle, alone = results_of(swept, "reverse")["points"]
    assert (middle["t"], middle["small_calls"], alone["small_calls"]) == (500, 3, 5)
    losses = results_of(swept, "reverse")["losses"]
    expected = 0.5 * losses["small"][0]["mean"] + 0.5 * losses["large"][1]["mean"]
    assert middle["loss"] == pytest.approx(expected)
    assert whole["frechet"] == results_of(swept)["points"][0]["frechet"]


def test_flow_matching_switches_at_a_flow_time(tmp_path: Path) -> None:
    for name, width in (("small", 4), ("large", 8)):
        save_pipeline(network(width), FlowMatchEulerDiscreteScheduler(), tmp_path / name)
    words = ["stitch", str(tmp_path / "small"), str(tmp_path / "large"), *DIGITS, *FEW, "--runs", str(tmp_path)]
    assert main([*words, "--num-switch-points", "1", "--at", "0.25", "--save", str(tmp_path / "out")]) == 0
    assert [point["t"] for point in results_of(tmp_path)["points"]] == [None, 0.5, 0.25, None]
    model, scheduler = load_denoiser(tmp_path / "out")
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    assert [model.plan.group_of_model_timestep(t) for t in (249.9, 250.0)] == [0, 1]


def test_saving_alone_needs_no_images(folders: tuple[str, str], tmp_path: Path) -> None:
    words = ["stitch", *folders, "--save", str(tmp_path / "out"), "--at", "300", "--small-at", "data"]
    assert main(words) == 0
    model, _ = load_denoiser(tmp_path / "out")
    assert [expert.config.block_out_channels for expert in model.experts] == [[4, 8], [8, 16]]
    assert [group.t_start for group in model.plan.groups] == [0, 300]


def test_bare_models_take_the_sweeps_schedule(tmp_path: Path) -> None:
    for name, width in (("small", 4), ("large", 8)):
        network(width).save_pretrained(tmp_path / name)
    words = ["stitch", str(tmp_path / "small"), str(tmp_path / "large"), *DIGITS, *FEW, "--runs", str(tmp_path)]
    words += ["--set", "schedule.kind=cosine", "--num-switch-points", "0", "--at", "500", "--save", str(tmp_path / "o")]
    assert main(words) == 0
    _, scheduler = load_denoiser(tmp_path / "o")
    assert scheduler.config.beta_schedule == "squaredcos_cap_v2"


def test_what_is_refused(folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, large = folders
    save_pipeline(network(8, in_channels=3, out_channels=3), DDIMScheduler(), tmp_path / "colour")
    save_pipeline(network(8), DDIMScheduler(num_train_timesteps=500), tmp_path / "shorter")
    save_pipeline(network(8), DDIMScheduler(prediction_type="v_prediction"), tmp_path / "v")
    network(8).save_pretrained(tmp_path / "bare")
    network(4).save_pretrained(tmp_path / "bare small")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    new = ["--save", str(tmp_path / "new"), "--at", "500"]
    cases = [
        ([small, large], "nothing to do"),
        ([small, large, "--save", str(tmp_path / "new")], "--save: name the switch point by --at"),
        ([large, small, *new], "give them the other way round"),
        ([small, str(tmp_path / "colour"), *new], "in_channels of SMALL is 1, of LARGE 3"),
        ([small, str(tmp_path / "shorter"), *new], "made for 500, given 1000"),
        ([small, str(tmp_path / "v"), *new], "SMALL predicts epsilon, LARGE v_prediction"),
        ([str(tmp_path / "bare small"), str(tmp_path / "bare"), *new], "neither folder has a scheduler"),
        ([small, large, "--save", str(tmp_path / "new"), "--at", "1000"], "--at: 1000 given; a whole number between"),
        ([small, large, "--save", str(tmp_path / "new"), "--at", "10.5"], "--at: 10.5 given; a whole number between"),
        ([small, large, "--save", str(taken), "--at", "500"], f"--save {taken}: exists"),
        ([small, large, *new, "--set", "sample.num_images=4"], "--set: without --data"),
        ([small, large, "--data", "{kind: sklearn-digts}"], "data"),
        ([small, large, *DIGITS, "--set", "sample.num_images=5000"], "sample.num_images: 5000 given; at most 898"),
        ([small, large, *DIGITS, "--set", "data.image_size=16"], "do not fit"),
        ([small, large, *DIGITS, "--name", "store"], "--name store"),
        ([small, large, *DIGITS, "--num-switch-points", "-1"], "--num-switch-points: -1 given"),
    ]
    for words, said in cases:
        assert main(["stitch", *words, "--runs", str(tmp_path / "runs")]) == 2, words
        error = capsys.readouterr().err
        assert said in error, error
        assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()

    model, _ = load_denoiser(small)
    experts = ExpertDenoiser([model], Plan.single(NoiseSchedule.named("linear")))
    with pytest.raises(SettingError, match="LARGE consists of experts already"):
        stitch(model, experts, NoiseSchedule.named("linear"), 500)


def test_the_best_points_are_those_that_nothing_beats() -> None:
    pairs = [(10, 5.0), (8, 5.0), (6, 7.0), (4, 6.0), (2, 9.0), (2, 9.5)]
    marked = mark_best([{"macs_per_image": macs, "frechet": distance} for macs, distance in pairs])
    assert [point["best"] for point in marked] == [False, True, False, True, True, False]
