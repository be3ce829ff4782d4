"""The training loop learns, counts images, draws where it should, and says clearly what it refuses."""

from __future__ import annotations

import copy
import json
import resource
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from noisewise.data.images import Images
from noisewise.errors import SettingError, TrainingError
from noisewise.files import load_tensors
from noisewise.objectives import Objective
from noisewise.schedule import NoiseSchedule
from noisewise.training.loop import TrainResult, train
from noisewise.training.settings import TrainSettings

SCHEDULE = NoiseSchedule.named("linear", 100)
OBJECTIVE = Objective(SCHEDULE)


def tiny_unet(seed: int = 0, channels: int = 1, out_channels: int = 1, **settings: object) -> UNet2DModel:
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DModel(in_channels=channels, out_channels=out_channels, **{**sizes, **blocks, **settings})


def stripes(num_images: int = 64, labels: bool = False) -> Images:
    """Left half dark, right half bright, a little different each: easy to learn, and mirroring shows."""
    pixels = np.random.default_rng(0).integers(0, 40, (num_images, 1, 8, 8), dtype=np.uint8)
    pixels[..., 4:] += 200
    classes = (np.arange(num_images) % 3) if labels else None
    return Images.from_pixels(pixels, classes, ("a", "b", "c") if labels else None)


def settings(num_images: int = 64, **more: object) -> TrainSettings:
    return TrainSettings(**{"num_images": num_images, "batch_size": 16, "learning_rate": 2e-3, **more})


def run(model: UNet2DModel, given: TrainSettings, objective: Objective = OBJECTIVE, **more: object) -> TrainResult:
    return train(model, objective, more.pop("data", stripes()), given, **{"seed": 0, **more})


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def record_calls(model: UNet2DModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record(_: object, args: tuple[()], called: dict[str, torch.Tensor]) -> None:
        calls.append((called["sample"].clone(), called["timestep"].clone()))

    model.register_forward_pre_hook(record, with_kwargs=True)
    return calls


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_training_lowers_the_error_on_images_it_has_not_seen(prediction_type: str) -> None:
    objective = Objective(SCHEDULE, prediction_type)
    model, held_out = tiny_unet(), stripes(96).subset(range(64, 96))
    draws = objective.fixed_draws(held_out, 64, ("held out",), (20, 100))
    before = torch.cat([objective.error(model, draw) for draw in draws]).mean()
    result = run(model, settings(1536, learning_rate=5e-3), objective)
    after = torch.cat([objective.error(result.model, draw) for draw in draws]).mean()

    assert after < 0.5 * before
    assert result.num_images == 1536
    assert result.curve[-1].loss < 0.5 * result.curve[0].loss
    assert not result.model.training


def test_budgets_are_images_and_the_last_batch_is_smaller(tmp_path: Path) -> None:
    model = tiny_unet()
    calls = record_calls(model)
    result = run(model, settings(70), workspace=tmp_path, snapshots=(30, 70))

    assert [len(x) for x, _ in calls] == [16, 16, 16, 16, 6]
    assert result.curve[-1].images_seen == 70
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [16, 32, 48, 64, 70]
    assert all(len(line["bins"]) == 20 for line in lines)
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["30.safetensors", "70.safetensors"]
    assert equal(load_tensors(tmp_path / "snapshots" / "70.safetensors"), weights(result.model))


def test_loss_bins_average_to_the_loss() -> None:
    result = run(tiny_unet(), settings(16), timesteps=(10, 20))
    step = result.curve[0]

    assert result.bin_edges == tuple(range(10, 21))
    present = [loss for loss in step.bins if loss is not None]
    assert min(present) <= step.loss <= max(present)


def test_a_group_sees_only_its_timesteps_and_the_share_of_all() -> None:
    model = tiny_unet()
    calls = record_calls(model)
    run(model, settings(256), timesteps=(10, 20))
    t = torch.cat([t for _, t in calls])
    assert t.min() >= 10
    assert t.max() < 20

    calls.clear()
    result = run(model, settings(256, all_timesteps_share=0.5), timesteps=(10, 20))
    t = torch.cat([t for _, t in calls])
    inside = ((t >= 10) & (t < 20)).float().mean()
    assert 0.43 < inside < 0.67  # 0.55 expected, standard deviation 0.03
    assert result.bin_edges[-1] == 100


def test_flips_mirror_about_half_of_the_images() -> None:
    model = tiny_unet()
    calls = record_calls(model)
    run(model, settings(128), timesteps=(0, 1), horizontal_flip=True)
    x = torch.cat([x for x, _ in calls])
    mirrored = (x[..., :4].mean((1, 2, 3)) > x[..., 4:].mean((1, 2, 3))).float().mean()
    assert 0.3 < mirrored < 0.7

    calls.clear()
    run(model, settings(32), timesteps=(0, 1))
    x = torch.cat([x for x, _ in calls])
    assert (x[..., :4].mean((1, 2, 3)) < x[..., 4:].mean((1, 2, 3))).all()


def test_names_and_seed_change_what_is_drawn() -> None:
    drawn = []
    for seed, names in ((0, ("base",)), (0, ("base",)), (1, ("base",)), (0, ("finetune", 3))):
        model = tiny_unet()
        calls = record_calls(model)
        run(model, settings(16), seed=seed, names=names)
        drawn.append(calls[0][0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])


def test_distillation_pulls_the_student_to_its_teacher() -> None:
    teacher = tiny_unet(1)
    draw = OBJECTIVE.fixed_draws(stripes(), 32, ("distance",))[0]

    def distance(model: UNet2DModel) -> float:
        with torch.no_grad():
            return float((model(draw.x_t, draw.t).sample - teacher(draw.x_t, draw.t).sample).square().mean())

    kept = weights(teacher)
    plain, taught = tiny_unet(), tiny_unet()
    run(plain, settings(384))
    run(taught, settings(384, distill_weight=100.0), teacher=teacher)
    assert distance(taught) < 0.3 * distance(plain)
    assert equal(kept, weights(teacher))


def test_class_conditional_models_with_learned_variance_and_a_teacher() -> None:
    objective = Objective(SCHEDULE, variance="learned_range")
    model, teacher = tiny_unet(out_channels=2, num_class_embeds=3), tiny_unet(1, out_channels=2, num_class_embeds=3)
    before = weights(model)
    run(model, settings(64, distill_weight=1.0), objective, teacher=teacher, data=stripes(labels=True))
    assert not torch.equal(before["class_embedding.weight"], model.state_dict()["class_embedding.weight"])

    with pytest.raises(SettingError, match="no labels"):
        run(model, settings(), objective)
    run(tiny_unet(), settings(32), data=stripes(labels=True))  # labels are left alone by a model without classes


def test_mixed_precision_leaves_no_trace_on_the_model() -> None:
    model = tiny_unet()
    attributes = set(vars(model))
    run(model, settings(32, mixed_precision="bf16"))
    run(model, settings(32))
    assert set(vars(model)) == attributes
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    copy.deepcopy(model)(torch.zeros(1, 1, 8, 8), 0)
    if not torch.cuda.is_available():
        with pytest.raises(SettingError, match="mixed_precision: fp16"):
            run(model, settings(32, mixed_precision="fp16"))


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    model = tiny_unet()
    num_calls = 0

    def spoil(_: object, args: tuple[()], called: dict[str, torch.Tensor]) -> tuple[tuple[()], dict[str, torch.Tensor]]:
        nonlocal num_calls
        num_calls += 1
        return args, {**called, "sample": called["sample"] * float("nan")} if num_calls > 5 else called

    model.register_forward_pre_hook(spoil, with_kwargs=True)
    with pytest.raises(TrainingError, match=r"after 96 images.*checkpoint is in .*lower learning_rate") as error:
        run(model, settings(1600, checkpoint_images=32), workspace=tmp_path)
    assert str(tmp_path / "checkpoint") in str(error.value)
    kept = load_tensors(tmp_path / "checkpoint" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["images_seen"] == 64


def test_a_full_disk_is_one_line_and_leaves_no_half_written_file(tmp_path: Path) -> None:
    run(tiny_unet(), settings(16), workspace=tmp_path / "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(SettingError, match="cannot be written"):
            run(tiny_unet(), settings(16), workspace=tmp_path / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        ({"distill_weight": 1.0}, {}, "distill_weight: 1.0 given without a teacher"),
        ({}, {"timesteps": (5, 5)}, r"\[5, 5\)"),
        ({}, {"timesteps": (0, 101)}, r"\[0, 101\)"),
        ({}, {"snapshots": (99,), "workspace": Path("unused")}, "snapshots: 99"),
        ({}, {"snapshots": (9,)}, "need a workspace"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, object], more: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        run(tiny_unet(), settings(**given), **more)


def test_what_would_be_ignored_warns() -> None:
    with pytest.warns(UserWarning, match="teacher is ignored"):
        run(tiny_unet(), settings(16), teacher=tiny_unet(1))
    with pytest.warns(UserWarning, match="all_timesteps_share is ignored"):
        run(tiny_unet(), settings(16, all_timesteps_share=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tiny_unet(), settings(16))
    with pytest.raises(ValueError, match="warmup_images: 65"):
        settings(64, warmup_images=65)


def test_log_is_called_seldom_and_at_the_end() -> None:
    steps = []
    run(tiny_unet(), settings(320), log=steps.append)
    assert steps[-1].images_seen == 320
    assert len(steps) <= 10
    assert steps[-1].images_per_second > 0
