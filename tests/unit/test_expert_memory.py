"""Experts that load when used, that leave the device when idle, and that are held once where they are the same."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel
from torch import nn

from noisewise import ExpertDenoiser, NoiseSchedule, Plan
from noisewise.errors import SettingError
from noisewise.models.cost import count_parameters
from noisewise.sampling.sampler import trajectory

BOUNDS = (250, 500, 750)


def plan(bounds: tuple[int, ...] = BOUNDS) -> Plan:
    return Plan.from_bounds(NoiseSchedule.named("linear"), bounds)


def network(seed: int, width: int = 4) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(width, 2 * width), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def router() -> ExpertDenoiser:
    """Four experts, one of them wider."""
    return ExpertDenoiser([network(0), network(1, 8), network(2), network(3)], plan()).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    DDIMPipeline(router(), DDIMScheduler()).save_pretrained(path)
    return path


def images(pipe: DiffusionPipeline, steps: int = 8) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.as_tensor(pipe(2, generator, num_inference_steps=steps, output_type="np").images)


# ---- loading


def test_an_expert_is_built_when_its_group_is_first_called(folder: Path) -> None:
    model = ExpertDenoiser.from_pretrained(folder / "unet")
    assert model.experts.loaded == [False, False, False, True]  # samplers begin with the last
    x, own = torch.zeros(1, 1, 8, 8), router()
    with torch.no_grad():
        for t, loaded in ((999, [0, 0, 0, 1]), (510, [0, 0, 1, 1]), (3, [1, 0, 1, 1]), (300, [1, 1, 1, 1])):
            assert torch.equal(model(x, t).sample, own(x, t).sample)
            assert model.experts.loaded == [bool(each) for each in loaded]


WALKS: dict[str, Callable[[ExpertDenoiser], object]] = {
    "parameters": lambda model: list(model.parameters()),
    "state dict": lambda model: model.state_dict(),
    "train": lambda model: model.train(),
    "double": lambda model: model.to(torch.float64),
    "copy": copy.deepcopy,
    "iterate": lambda model: list(model.experts),
    "children": lambda model: list(model.experts.named_children()),
    "count": lambda model: model.active_parameters(),
}


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
def test_whoever_walks_over_the_model_sees_all_experts(folder: Path, walk: Callable[..., object]) -> None:
    model = ExpertDenoiser.from_pretrained(folder / "unet")
    walked = walk(model)
    assert model.experts.loaded == [True] * 4
    assert len(model.experts) == 4
    own = router()
    for result in (model, walked):
        if isinstance(result, ExpertDenoiser):
            assert result.resident_parameters() == count_parameters(own)
            assert [name for name, _ in result.named_parameters()] == [name for name, _ in own.named_parameters()]
            for ours, theirs in zip(result.parameters(), own.parameters(), strict=True):
                assert torch.equal(ours.float(), theirs)


@torch.no_grad()
def test_a_part_of_the_list_and_copies_for_other_processes(folder: Path) -> None:
    model, x, t = (
        ExpertDenoiser.from_pretrained(folder / "unet"),
        torch.ones(4, 1, 8, 8),
        torch.tensor([0, 300, 600, 9]),
    )
    expected = router()(x, t).sample
    assert torch.equal(pickle.loads(pickle.dumps(model))(x, t).sample, expected)
    assert torch.equal(copy.deepcopy(model)(x, t).sample, expected)
    part = ExpertDenoiser.from_pretrained(folder / "unet").experts[1:3]
    assert torch.equal(part[0](x, 300).sample, router().experts[1](x, 300).sample)
    assert len(part) == 2


def test_device_and_dtype_are_known_without_building_experts(folder: Path) -> None:
    model = ExpertDenoiser.from_pretrained(folder / "unet", torch_dtype=torch.float16)
    assert (model.device.type, model.dtype, model.training) == ("cpu", torch.float16, False)
    assert model.experts.loaded == [False, False, False, True]
    assert model.experts[0].dtype == torch.float16
    assert not model.experts[0].training


def test_stock_pipelines_run_what_is_still_to_be_built(folder: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipe.unet, ExpertDenoiser)
    assert sum(pipe.unet.experts.loaded) < 4
    assert torch.equal(images(pipe), images(DDIMPipeline(router(), DDIMScheduler())))
    assert pipe.unet.experts.loaded == [True] * 4


def test_an_expert_that_fails_to_load_fails_again(folder: Path, tmp_path: Path) -> None:
    router().save_pretrained(tmp_path)
    network(0, 8).save_pretrained(tmp_path / "expert_0")
    config = json.loads((tmp_path / "expert_2" / "config.json").read_text())
    (tmp_path / "expert_0" / "config.json").write_text(json.dumps(config))  # of narrower layers than the weights
    model = ExpertDenoiser.from_pretrained(tmp_path)
    for _ in range(2):
        with pytest.raises(SettingError, match=r"expert_0 (cannot be loaded|does not fit)"):
            model(torch.zeros(1, 1, 8, 8), 0)
    model(torch.zeros(1, 1, 8, 8), 999)


def test_a_folder_can_be_saved_over_itself(tmp_path: Path) -> None:
    """The files that experts are mapped from must not be cut short under them."""
    router().save_pretrained(tmp_path)
    model = ExpertDenoiser.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again = ExpertDenoiser.from_pretrained(tmp_path)
    for ours, mapped, theirs in zip(again.parameters(), model.parameters(), router().parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(mapped, theirs)
    assert sorted(path.name for path in tmp_path.glob("*expert*")) == [f"expert_{i}" for i in range(4)]


# ---- off the device


def place_of(expert: nn.Module) -> str:
    (place,) = {tensor.device.type for tensor in [*expert.parameters(), *expert.buffers()]}
    return place


@torch.no_grad()
@pytest.mark.parametrize("prefetch", [False, True])
def test_only_the_expert_at_work_lies_on_the_device(prefetch: bool) -> None:
    """Where each expert lies is the same on every device; meta has no values, the next test has."""
    model = router()
    before = [parameter.clone() for parameter in model.parameters()]
    own = list(model.parameters())
    sizes = [4 * count_parameters(expert) for expert in model.experts]
    model.enable_expert_offload("meta", prefetch)
    assert model.device.type == "meta"
    offload = model._offload
    x = torch.zeros(2, 1, 8, 8, device="meta")
    for t, group in ((999, 3), (800, 3), (600, 2), (300, 1), (0, 0), (999, 3), (100, 0)):
        assert model(x, t).sample.device.type == "meta"
        assert [place_of(expert) == "meta" for expert in model.experts] == [i == group for i in range(4)]
        following = 3 if group == 0 else group - 1
        assert offload.ahead == (following if prefetch else None)
        assert offload.resident() == sizes[group] + (sizes[following] if prefetch else 0)
    model.disable_expert_offload()
    assert offload.resident() == 0
    for parameter, original, value in zip(model.parameters(), own, before, strict=True):
        assert parameter is original  # an optimiser would still know it
        assert torch.equal(parameter, value)


@pytest.mark.parametrize("prefetch", [False, True])
def test_images_are_the_same_by_copies_on_the_device(prefetch: bool) -> None:
    pipe = DDIMPipeline(router(), DDIMScheduler())
    expected = images(pipe)
    pipe.unet.enable_expert_offload("cpu", prefetch)
    assert pipe.to("cpu") is pipe  # what users call out of habit
    assert torch.equal(images(pipe), expected)
    offload, own = pipe.unet._offload, router().experts
    assert offload.active == 0
    host = {tensor.data_ptr() for tensor in offload._host.values()}
    for ours, theirs in zip(pipe.unet.experts[0].parameters(), own[0].parameters(), strict=True):
        assert ours.data_ptr() not in host  # a copy
        assert torch.equal(ours, theirs)
    assert torch.equal(images(pipe), expected)
    pipe.unet.disable_expert_offload()
    assert torch.equal(images(pipe), expected)


@torch.no_grad()
def test_sampling_runs_where_experts_are_brought() -> None:
    model = router()
    model.enable_expert_offload("meta")
    step = next(trajectory(model, DDIMScheduler(), [0], num_inference_steps=2))
    assert step.x.device.type == "meta"


def test_a_batch_of_mixed_noise_levels_brings_one_expert_after_the_other() -> None:
    model, t = router(), torch.tensor([999, 0, 300])
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = model(x, t).sample
    model.enable_expert_offload("cpu")
    assert torch.equal(model(x, t).sample, expected)


@torch.no_grad()
def test_what_experts_share_stays_on_the_device_while_they_change() -> None:
    model = ExpertDenoiser([network(i) for i in range(4)], plan(), ["down_blocks", "conv_in"])
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = [model(x, t).sample for t in (999, 600, 300, 0)]
    model.enable_expert_offload("cpu", prefetch=True)
    kept: set[int] = set()
    for t, prediction in zip((999, 600, 300, 0), expected, strict=True):
        assert torch.equal(model(x, t).sample, prediction)
        group = model.plan.group_of(t)
        kept.add(model.experts[group].down_blocks[0].resnets[0].conv1.weight.data_ptr())
    assert len(kept) == 1
    one, shared = model.active_parameters()[0], count_parameters(model.experts[0].down_blocks)
    shared += count_parameters(model.experts[0].conv_in)
    assert model._offload.resident() == 4 * (2 * one - shared)


def test_loading_and_offloading_together(folder: Path) -> None:
    model, x = ExpertDenoiser.from_pretrained(folder / "unet"), torch.zeros(1, 1, 8, 8)
    model.enable_expert_offload("cpu", prefetch=False)
    with torch.no_grad():
        assert torch.equal(model(x, 600).sample, router()(x, 600).sample)
        assert model.experts.loaded == [False, False, True, True]
        model.enable_expert_offload("cpu", prefetch=True)
        model(x, 600)
    assert model.experts.loaded == [False, True, True, True]
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.unet.enable_expert_offload("cpu")
    assert torch.equal(images(pipe), images(DDIMPipeline(router(), DDIMScheduler())))


def test_what_offloading_refuses() -> None:
    model = router()
    model.enable_expert_offload("cpu")
    with pytest.raises(SettingError, match=r"disable_expert_offload\(\) before moving them"):
        model.to("meta")
    with pytest.raises(SettingError, match="before moving them"):
        model.half()
    with pytest.raises(SettingError, match="for sampling"):
        model.train()(torch.zeros(1, 1, 8, 8), 0)
    with pytest.raises(SettingError, match="before loading weights"):  # they would be lost at the next switch
        model.load_state_dict(router().state_dict())
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        with pytest.raises(SettingError, match="there is no accelerator here"):
            model.enable_expert_offload()


def test_saving_while_offloaded_writes_every_expert(tmp_path: Path) -> None:
    model = router()
    model.enable_expert_offload("cpu")
    with torch.no_grad():
        model(torch.zeros(1, 1, 8, 8), 600)
    model.save_pretrained(tmp_path)
    again = ExpertDenoiser.from_pretrained(tmp_path)
    for ours, theirs in zip(again.parameters(), router().parameters(), strict=True):
        assert torch.equal(ours, theirs)


# ---- held once


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def test_the_same_expert_in_two_groups_is_stored_and_held_once(tmp_path: Path) -> None:
    base, other = network(0), network(1)
    model = ExpertDenoiser([base, other, base, base], plan())
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("expert_*")) == ["expert_0", "expert_1"]
    again = ExpertDenoiser.from_pretrained(tmp_path)
    assert again.experts[0] is again.experts[2] is again.experts[3]
    assert again.experts[1] is not again.experts[0]
    assert again.resident_parameters() == 2 * count_parameters(base)
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["ties"] == {"2": {"": 0}, "3": {"": 0}}


def test_equal_parts_of_experts_are_put_together(tmp_path: Path) -> None:
    base = network(0)
    tuned = copy.deepcopy(base)  # only its last layer was trained
    with torch.no_grad():
        tuned.conv_out.weight.add_(1)
    model = ExpertDenoiser([base, tuned, copy.deepcopy(base), network(3, 8)], plan()).eval()
    x, t = torch.zeros(4, 1, 8, 8), torch.tensor([0, 300, 600, 900])
    expected = model(x, t).sample
    model.save_pretrained(tmp_path / "before")

    ties = model.tie_equal_experts()
    assert ties[2] == {"": 0}
    assert "conv_out" not in ties[1]
    assert {"conv_in", "down_blocks", "mid_block", "up_blocks"} <= ties[1].keys()
    assert 3 not in ties  # another configuration
    assert torch.equal(model(x, t).sample, expected)
    own = sum(count_parameters(module) for module in (base, base.conv_out, model.experts[3]))
    assert model.resident_parameters() == own

    model.save_pretrained(tmp_path / "after")
    saved = size_of(tmp_path / "before") - size_of(tmp_path / "after")
    assert saved > 1.9 * size_of(tmp_path / "before" / "expert_0")
    again = ExpertDenoiser.from_pretrained(tmp_path / "after")
    assert torch.equal(again(x, t).sample, expected)
    assert again.resident_parameters() == own
    assert again.experts[1].down_blocks is again.experts[0].down_blocks
    assert again.experts[1].conv_out is not again.experts[0].conv_out


def test_equal_tensors_of_other_settings_stay_apart() -> None:
    one = network(0)
    settings = {**one.config, "norm_num_groups": 2}  # the same shapes, another function
    other = UNet2DModel.from_config(settings)
    other.load_state_dict(one.state_dict())
    model = ExpertDenoiser([one, other], plan((500,)))
    assert model.tie_equal_experts() == {}


def test_ties_that_cannot_be_are_refused(tmp_path: Path) -> None:
    model = ExpertDenoiser([network(0)] * 2, plan((500,)))
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    written = json.loads(config.read_text())
    for ties in ({"1": {"": 1}}, {"0": {"": 1}}, {"1": {"": "x"}}, [3], {"1": {"": -1}}):
        config.write_text(json.dumps({**written, "ties": ties}))
        with pytest.raises(SettingError, match="says of ties what cannot be"):
            ExpertDenoiser.from_pretrained(tmp_path)
