"""Joint training of all groups' experts on shared modules: draws over groups, tied weights on disk, exact resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noisewise import MultiDecoderUNet2DModel, NoiseSchedule, Plan
from noisewise.data.images import Images
from noisewise.errors import SettingError
from noisewise.files import load_tensors
from noisewise.objectives import Draw, Objective
from noisewise.training.levels import Levels
from noisewise.training.loop import TrainResult, train
from noisewise.training.settings import TrainSettings

VP = NoiseSchedule.named("linear", 100)
EDM = NoiseSchedule.edm(0.002, 80.0)
SIZES = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "dropout": 0.2,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}


def plan(schedule: NoiseSchedule = VP) -> Plan:
    return Plan.equal_width(schedule, 3)


def ranges(schedule: NoiseSchedule = VP) -> list[tuple[float, float]]:
    return [(group.t_start, group.t_stop) for group in plan(schedule).groups]


def network(schedule: NoiseSchedule = VP, **changed: Any) -> MultiDecoderUNet2DModel:
    torch.manual_seed(0)
    return MultiDecoderUNet2DModel.build(plan(schedule), (1.5, 1, 0.5), **{**SIZES, **changed})


def images() -> Images:
    pixels = np.random.default_rng(0).integers(0, 40, (64, 1, 8, 8), dtype=np.uint8)
    pixels[..., 4:] += 200
    return Images.from_pixels(pixels)


class Recording(Objective):
    """Keeps every draw and its losses; interrupts the training at its n-th loss."""

    def __init__(self, schedule: NoiseSchedule = VP, stop_after: int = 10**9) -> None:
        super().__init__(schedule)
        object.__setattr__(self, "seen", [])
        object.__setattr__(self, "stop_after", stop_after)

    def loss(self, model: object, draw: Draw, **more: object) -> torch.Tensor:
        if len(self.seen) >= self.stop_after:
            raise InterruptedError
        loss = super().loss(model, draw, **more)
        self.seen.append((draw, loss.detach()))
        return loss


def go(model: MultiDecoderUNet2DModel, objective: Objective, num_images: int = 128, **more: Any) -> TrainResult:
    schedule = objective.schedule
    settings = {"num_images": num_images, "batch_size": 8, "learning_rate": 2e-3, **more.pop("settings", {})}
    given = {"seed": 3, "ranges": ranges(schedule), "group_draws": "uniform", **more}
    return train(model, objective, images(), TrainSettings(**settings), **given)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def is_tied(model: MultiDecoderUNet2DModel) -> bool:
    first, *others = model.experts
    return all(expert.down_blocks is first.down_blocks for expert in others)


@pytest.mark.parametrize("schedule", [VP, EDM], ids=["vp", "edm"])
def test_joint_training_lowers_every_groups_error(schedule: NoiseSchedule) -> None:
    model, objective = network(schedule, dropout=0.0), Objective(schedule)

    @torch.no_grad()
    def errors() -> torch.Tensor:
        draws = [objective.fixed_draws(images(), 64, ("errors",), timesteps)[0] for timesteps in ranges(schedule)]
        return torch.stack([objective.loss(model, draw).mean() for draw in draws])

    model.eval()
    before = errors()
    result = go(model, objective, 512, settings={"learning_rate": 1e-2, "batch_size": 16})
    assert (errors() < 0.95 * before).all()
    assert result.model is model
    assert is_tied(model)


@pytest.mark.parametrize("group_draws", ["host", "uniform", "balanced"])
def test_groups_are_drawn_as_asked(group_draws: str) -> None:
    objective = Recording(EDM)
    result = go(network(EDM), objective, 1600, settings={"batch_size": 400}, group_draws=group_draws)
    t = torch.cat([draw.t for draw, _ in objective.seen])
    counts = torch.bincount(plan(EDM).group_of(t), minlength=3) / len(t)
    shares = torch.tensor([objective.share(timesteps) for timesteps in ranges(EDM)])
    expected = shares if group_draws == "host" else torch.full((3,), 1 / 3)
    assert (counts - expected).abs().max() < 0.06  # standard deviation 0.012

    loss = torch.cat([loss for _, loss in objective.seen])
    weight = torch.ones(len(t))
    if group_draws == "balanced":
        weight = 3 * shares.float()[plan(EDM).group_of(t)]
        torch.testing.assert_close(torch.cat([draw.weight for draw, _ in objective.seen]), weight)
    recorded = sum(step.loss for step in result.curve) / len(result.curve)  # equal batches, one record each
    per_batch = [loss[i : i + 400].sum() / weight[i : i + 400].sum() for i in range(0, 1600, 400)]
    assert recorded == pytest.approx(float(torch.stack(per_batch).mean()), rel=1e-4)


def test_recorded_losses_tell_the_groups_apart() -> None:
    bounds = [(0, 10), (10, 90), (90, 100)]
    result = go(network(), Objective(VP), 64, ranges=bounds)
    assert {0, 10, 90, 100} <= set(result.bin_edges)
    assert list(result.bin_edges) == sorted(result.bin_edges)
    assert len(result.bin_edges) == 21
    assert len(result.loss_bins) == 20

    edges = Levels(ranges=tuple(ranges(EDM))).bin_edges(Objective(EDM), 0.0)
    assert {start for start, _ in ranges(EDM)} <= set(edges)
    widths = np.diff(np.log(edges))
    assert widths.max() < 1.6 * widths.min()  # of about equal width in log sigma
    apart = Levels(ranges=((0, 20), (60, 100))).bin_edges(Objective(VP), 0.0)
    assert apart == Levels().bin_edges(Objective(VP), 0.0)


def test_a_group_without_draws_keeps_its_weights() -> None:
    model = network()
    before = weights(model)
    go(model, Objective(VP), 32, ranges=ranges()[:2])
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not [name for name in changed if name.startswith("experts.2.")]
    assert [name for name in changed if name.startswith("experts.1.up_blocks.")]
    assert [name for name in changed if name.startswith("experts.0.down_blocks.")]


@pytest.mark.parametrize("schedule", [VP, EDM], ids=["vp", "edm"])
def test_a_snapshot_reloads_to_the_averaged_weights(schedule: NoiseSchedule, tmp_path: Path) -> None:
    given = {"ema_halflife_images": 200, "ema_rampup": None}
    result = go(network(schedule), Objective(schedule), 48, settings=given, workspace=tmp_path, snapshots=(24, 48))
    averaged = weights(result.model)
    other = network(schedule)
    kept = load_tensors(tmp_path / "snapshots" / "48.safetensors")
    assert sum(tensor.numel() for tensor in kept.values()) == result.model.resident_parameters()
    other.load_state_dict(kept)
    assert equal(weights(other), averaged)
    assert is_tied(other)
    model = load_tensors(tmp_path / "checkpoint" / "model.safetensors")  # not averaged
    assert not torch.equal(model["experts.0.conv_in.weight"], averaged["experts.0.conv_in.weight"])

    halfway = load_tensors(tmp_path / "snapshots" / "24.safetensors")
    assert not torch.equal(halfway["experts.0.conv_in.weight"], averaged["experts.0.conv_in.weight"])


@pytest.mark.parametrize(("group_draws", "stop_after"), [("uniform", 2), ("balanced", 6)])
def test_interrupted_and_continued_equals_uninterrupted_to_the_bit(
    group_draws: str, stop_after: int, tmp_path: Path
) -> None:
    more: dict[str, Any] = {
        "group_draws": group_draws,
        "snapshots": (12,),
        "settings": {"batch_size": 1, "checkpoint_images": 2, "num_threads": 1},  # some groups have had no sample yet
    }
    whole = go(network(), Objective(VP), 16, workspace=tmp_path / "whole", **more)
    with pytest.raises(InterruptedError):
        go(network(), Recording(VP, stop_after), 16, workspace=tmp_path / "cut", **more)
    moments = load_tensors(tmp_path / "cut" / "checkpoint" / "optimizer.safetensors")
    assert len({name[: len("experts.0")] for name in moments if ".up_blocks." in name}) <= stop_after
    continued = go(network(), Objective(VP), 16, workspace=tmp_path / "cut", **more)
    assert continued.resumed_at == stop_after
    assert equal(weights(whole.model), weights(continued.model))
    assert [step.bins for step in whole.curve] == [step.bins for step in continued.curve]
    kept = [load_tensors(tmp_path / name / "snapshots" / "12.safetensors") for name in ("whole", "cut")]
    assert equal(*kept)
    assert is_tied(continued.model)


def test_other_groups_are_another_training(tmp_path: Path) -> None:
    go(network(), Objective(VP), 16, workspace=tmp_path)
    with pytest.raises(SettingError, match="group_draws differ"):
        go(network(), Objective(VP), 16, workspace=tmp_path, group_draws="host")
    with pytest.raises(SettingError, match="ranges differ"):
        go(network(), Objective(VP), 16, workspace=tmp_path, ranges=[(0, 50), (50, 100)])
    state = json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    assert state["fingerprint"]["ranges"] == [list(timesteps) for timesteps in ranges()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"group_draws": "evenly"}, "group_draws: 'evenly' is not one of host, uniform, balanced"),
        ({"ranges": None}, "group_draws: uniform needs the ranges"),
        ({"ranges": []}, "ranges: given without any"),
        ({"timesteps": (0, 10)}, "ranges: given together with timesteps"),
        ({"ranges": [(0, 10), (10, 200)]}, r"\[10, 200\)"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        go(network(), Objective(VP), **given)
