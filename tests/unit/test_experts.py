"""Experts as one diffusers model: routing, pipelines, files, devices."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from network_zoo import condition_unet
from unet_zoo import settings

from noisewise import ExpertDenoiser, NoiseSchedule, Plan, ShapedUNet2DModel
from noisewise.errors import SettingError
from noisewise.models.cost import count_parameters
from noisewise.models.surgery import cut
from noisewise.sampling.sampler import sample_images

T = 1000


def make_plan(num_groups: int = 3) -> Plan:
    return Plan.from_snr(NoiseSchedule.from_scheduler(DDPMScheduler()), num_groups=num_groups)


def make_expert(seed: int, **changed: object) -> UNet2DModel:
    torch.manual_seed(seed)
    small = {"block_out_channels": (8, 16), "norm_num_groups": 4, "in_channels": 1, "out_channels": 1}
    return UNet2DModel(**settings("plain", **{**small, **changed})).eval()


def make_router(**changed: object) -> ExpertDenoiser:
    """Three experts of different shapes."""
    whole = [make_expert(seed, **changed) for seed in range(3)]
    return ExpertDenoiser([cut(whole[0], {"conv_in": torch.arange(4)}), whole[1], whole[2]], make_plan()).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def images(pipe: DiffusionPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.as_tensor(pipe(batch_size=2, generator=generator, num_inference_steps=4, output_type="np").images)


@torch.no_grad()
def test_each_sample_goes_to_its_own_expert() -> None:
    router = make_router()
    starts = [group.t_start for group in router.plan.groups]
    t = torch.tensor([T - 1, 0, starts[1], starts[1] - 1, starts[2], T])  # T: some schedulers start there
    x = noise(6, 1, 8, 8)
    together = router(x, t).sample
    for i, group in enumerate([2, 0, 1, 0, 2, 2]):
        assert router.plan.group_of(int(t[i])) == group
        alone = router.experts[group](x[i : i + 1], t[i : i + 1]).sample
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
    assert torch.equal(router(x, t, return_dict=False)[0], together)


@torch.no_grad()
@pytest.mark.parametrize("t", [10, 10.5, 999, torch.tensor(10), torch.tensor([500]), torch.tensor(412.3)])
def test_one_timestep_for_the_batch(t: float | torch.Tensor) -> None:
    router = make_router()
    x = noise(3, 1, 8, 8)
    expert = router.experts[router.plan.group_of(float(t))]
    assert torch.equal(router(x, t).sample, expert(x, t).sample)
    t_each = torch.as_tensor(t).reshape(-1).expand(3)
    assert torch.equal(router(x, t_each).sample, expert(x, t_each).sample)


def test_gradients_reach_exactly_the_experts_that_ran() -> None:
    router = make_router().train()
    router(noise(2, 1, 8, 8), torch.tensor([999, 0])).sample.sum().backward()
    ran = [any(parameter.grad is not None for parameter in expert.parameters()) for expert in router.experts]
    assert ran == [True, False, True]


@torch.no_grad()
def test_class_labels_go_along() -> None:
    router = make_router(num_class_embeds=4)
    x, t, labels = noise(3, 1, 8, 8), torch.tensor([999, 0, 999]), torch.tensor([1, 2, 3])
    together = router(x, t, class_labels=labels).sample
    for i in range(3):
        expert = router.experts[router.plan.group_of(int(t[i]))]
        alone = expert(x[i : i + 1], t[i : i + 1], labels[i : i + 1]).sample
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
    assert router.config.num_class_embeds == 4


@pytest.mark.parametrize("pipeline", [DDPMPipeline, DDIMPipeline])
def test_stock_pipelines_run_save_and_reload_it(pipeline: type[DiffusionPipeline], tmp_path: Path) -> None:
    scheduler = DDPMScheduler() if pipeline is DDPMPipeline else DDIMScheduler()
    pipe = pipeline(unet=make_router(), scheduler=scheduler)
    before = images(pipe)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["unet"] == ["noisewise", "ExpertDenoiser"]
    assert not [
        file for file in tmp_path.rglob("*") if file.is_file() and file.suffix not in (".json", ".safetensors", ".md")
    ]

    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(again, pipeline)
    assert isinstance(again.unet, ExpertDenoiser)
    assert not again.unet.training
    assert [type(expert) for expert in again.unet.experts] == [ShapedUNet2DModel, UNet2DModel, UNet2DModel]
    assert again.unet.plan.to_dict() == pipe.unet.plan.to_dict()
    assert torch.equal(images(again), before)


def test_a_router_of_equal_experts_is_the_model_in_a_pipeline() -> None:
    model = make_expert(0)
    router = ExpertDenoiser([model, model, model], make_plan())
    assert torch.equal(*(images(DDIMPipeline(unet=unet, scheduler=DDIMScheduler())) for unet in (model, router)))


@torch.no_grad()
@pytest.mark.parametrize(
    "kind",
    [DDPMScheduler, DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler,
     HeunDiscreteScheduler],
)  # fmt: skip
def test_any_scheduler_can_be_swapped_in(kind: type) -> None:
    router, scheduler = make_router(), kind.from_config(DDIMScheduler().config)
    called: list[int] = []
    for i, expert in enumerate(router.experts):
        expert.register_forward_hook(lambda *_, i=i: called.append(i))
    scheduler.set_timesteps(8)
    x = noise(1, 1, 8, 8) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(router(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    assert x.isfinite().all()
    assert called == [router.plan.group_of(float(t)) for t in scheduler.timesteps]
    assert len(set(called)) > 1


def test_devices_and_dtypes_move_as_for_any_module(tmp_path: Path) -> None:
    router = make_router().to(torch.bfloat16)
    assert router.dtype == torch.bfloat16
    assert router(noise(2, 1, 8, 8).bfloat16(), torch.tensor([0, 999])).sample.dtype == torch.bfloat16
    assert router.to("meta").device.type == "meta"
    make_router().save_pretrained(tmp_path)
    half = ExpertDenoiser.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}


def test_a_single_expert_loads_alone(tmp_path: Path) -> None:
    router = make_router()
    router.save_pretrained(tmp_path)
    x = noise(1, 1, 8, 8)
    small = ShapedUNet2DModel.from_pretrained(tmp_path / "expert_0")
    whole = UNet2DModel.from_pretrained(tmp_path, subfolder="expert_2")
    with torch.no_grad():
        assert torch.equal(small(x, 0).sample, router(x, 0).sample)
        assert torch.equal(whole(x, 999).sample, router(x, 999).sample)


def test_shards_and_variants(tmp_path: Path) -> None:
    router = make_router()
    router.save_pretrained(tmp_path, variant="ema", max_shard_size="20KB")
    assert len(list((tmp_path / "expert_1").glob("*.safetensors"))) > 1
    again = ExpertDenoiser.from_pretrained(tmp_path, variant="ema")
    for (name, a), b in zip(router.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ExpertDenoiser.from_pretrained(tmp_path, variant="ema", quantization_config="int8")
    assert any("quantization_config" in str(warning.message) for warning in caught)
    with pytest.raises(SettingError, match="pickles"):
        router.save_pretrained(tmp_path, safe_serialization=False)


@pytest.mark.parametrize("shard_size", ["10GB", "20KB"])
def test_variants_lie_side_by_side(shard_size: str, tmp_path: Path) -> None:
    make_router().save_pretrained(tmp_path, max_shard_size="20KB")
    make_router().save_pretrained(tmp_path, max_shard_size=shard_size)  # in place of the first, whole or in shards
    make_router().half().save_pretrained(tmp_path, variant="fp16")
    own = make_expert(1).state_dict()
    for variant, dtype in ((None, torch.float32), ("fp16", torch.float16)):
        found = ExpertDenoiser.from_pretrained(tmp_path, variant=variant, torch_dtype=dtype).experts[1].state_dict()
        assert all(torch.equal(tensor, own[name].to(dtype)) for name, tensor in found.items())
    whole = [file.name for file in (tmp_path / "expert_1").glob("*.safetensors") if "fp16" not in file.name]
    assert (len(whole) == 1) == (shard_size == "10GB")


def test_a_pipeline_of_one_variant_is_loaded_without_its_name(tmp_path: Path) -> None:
    """diffusers cannot be told it: it looks for the variant among names of files right in the component's folder."""
    pipe = DDIMPipeline(make_router().half(), DDIMScheduler())
    pipe.save_pretrained(tmp_path, variant="fp16")
    with pytest.warns(UserWarning, match="variant fp16 alone"):
        again = DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16)
    for ours, theirs in zip(pipe.unet.parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    make_router().save_pretrained(tmp_path)
    expert = tmp_path / "expert_0"
    before = sorted(expert.iterdir())
    make_router().save_pretrained(tmp_path, is_main_process=False)
    assert sorted(expert.iterdir()) == before


@torch.no_grad()
def test_what_all_samples_have_in_common_goes_to_every_expert() -> None:
    router, x, t = make_router(num_class_embeds=3), noise(3, 1, 8, 8), torch.tensor([3, 500, 999])
    one = router(x, t, class_labels=torch.tensor([2])).sample
    assert torch.equal(one, router(x, t, class_labels=torch.tensor([2, 2, 2])).sample)


def test_experts_in_evaluation_mode_make_a_router_in_evaluation_mode() -> None:
    experts = [make_expert(seed, dropout=0.5) for seed in range(3)]
    router = ExpertDenoiser(experts, make_plan())
    sample_images(router, DDIMScheduler(), 1, num_inference_steps=2)
    assert not any(module.training for module in router.modules())  # sampling leaves dropout off
    assert ExpertDenoiser([experts[0].train(), *experts[1:]], make_plan()).training


def test_settings_of_attention_and_blocks_reach_every_expert() -> None:
    router = ExpertDenoiser([condition_unet() for _ in range(3)], make_plan())
    expected = {f"experts.{i}.{name}" for i in range(3) for name in router.experts[0].attn_processors}
    assert router.attn_processors.keys() == expected
    router.set_attn_processor(AttnProcessor())
    assert {type(each) for each in router.attn_processors.values()} == {AttnProcessor}
    router.set_attention_slice("max")
    assert {type(each) for each in router.attn_processors.values()} == {SlicedAttnProcessor}
    router.set_default_attn_processor()
    assert {type(each) for each in router.attn_processors.values()} == {AttnProcessor}
    router.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert [expert.up_blocks[0].s1 for expert in router.experts] == [0.9] * 3
    assert not hasattr(make_router(), "enable_freeu")  # nor has a UNet2DModel


def test_empty_groups_have_no_expert(tmp_path: Path) -> None:
    schedule = NoiseSchedule.named("cosine", T)
    plan = Plan.from_snr(schedule, num_groups=10)
    empty = [group.index for group in plan.groups if group.is_empty]
    assert empty
    model = make_expert(0)
    router = ExpertDenoiser([None if group.is_empty else model for group in plan.groups], plan)
    assert [router.active_parameters()[i] for i in empty] == [0] * len(empty)
    assert router.resident_parameters() == count_parameters(model)  # one model, shared
    router.save_pretrained(tmp_path)
    again = ExpertDenoiser.from_pretrained(tmp_path)
    assert [expert is None for expert in again.experts] == [group.is_empty for group in plan.groups]
    with torch.no_grad():
        assert again(noise(T, 1, 8, 8)[:50], torch.arange(0, T, 20)).sample.isfinite().all()


def test_parameters_active_and_resident() -> None:
    router = make_router()
    assert router.active_parameters() == [count_parameters(expert) for expert in router.experts]
    assert router.resident_parameters() == sum(router.active_parameters())


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    router = make_router()

    def broken(name: str) -> Path:
        router.save_pretrained(tmp_path / name)
        return tmp_path / name

    folder = broken("cut short")
    weights = folder / "expert_1" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SettingError, match=r"expert_1 cannot be loaded"):
        ExpertDenoiser.from_pretrained(folder)

    folder = broken("weights gone")
    (folder / "expert_2" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(SettingError, match=r"expert_2 has no weights"):
        ExpertDenoiser.from_pretrained(folder)

    folder = broken("config gone")
    (folder / "expert_0" / "config.json").unlink()
    with pytest.raises(SettingError, match=r"expert_0 is no diffusers model folder"):
        ExpertDenoiser.from_pretrained(folder)

    folder = broken("foreign class")
    config = folder / "expert_0" / "config.json"
    config.write_text(config.read_text().replace("ShapedUNet2DModel", "os"))
    with pytest.raises(SettingError, match="asks for os"):
        ExpertDenoiser.from_pretrained(folder)

    with pytest.raises(SettingError, match="holds UNet2DModel"):
        ExpertDenoiser.from_pretrained(broken("not a router") / "expert_1")


def test_experts_have_to_fit_the_plan_and_each_other() -> None:
    one, two = make_expert(0), make_expert(1)
    with pytest.raises(SettingError, match="2 given, the plan has 3 groups"):
        ExpertDenoiser([one, two], make_plan())
    with pytest.raises(SettingError, match=r"experts\.1: none given"):
        ExpertDenoiser([one, None, two], make_plan())
    with pytest.raises(SettingError, match=r"experts\.2\.out_channels: 2 given"):
        ExpertDenoiser([one, two, make_expert(2, out_channels=2)], make_plan())
