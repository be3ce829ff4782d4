"""One encoder, several decoders: tied in memory, stored once, and an expert router in every other way."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file, save_file
from unet_zoo import settings

from noisewise import ExpertDenoiser, MultiDecoderUNet2DModel, NoiseSchedule, Plan, ShapedUNet2DModel
from noisewise.errors import SettingError
from noisewise.models.cost import CostModel, count_macs, count_parameters
from noisewise.models.loading import load_denoiser
from noisewise.models.networks import describe
from noisewise.models.surgery import cut

SCHEDULE = NoiseSchedule.from_scheduler(DDPMScheduler())
PLAN = Plan.equal_width(SCHEDULE, num_groups=3)
SMALL = settings("attention", block_out_channels=(8, 16), norm_num_groups=4, in_channels=1, out_channels=1)
ENCODER = ["conv_in", "time_proj", "time_embedding", "down_blocks"]


def build(plan: Plan = PLAN, decoders: object = (1.5, 1.0, (4, 8)), **changed: object) -> MultiDecoderUNet2DModel:
    torch.manual_seed(0)
    return MultiDecoderUNet2DModel.build(plan, decoders, **{**SMALL, **changed}).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def images(pipe: DiffusionPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.as_tensor(pipe(batch_size=2, generator=generator, num_inference_steps=4, output_type="np").images)


def stored(folder: Path) -> int:
    """Numbers in all weight files below a folder."""
    return sum(tensor.numel() for file in folder.rglob("*.safetensors") for tensor in load_file(file).values())


def is_tied(model: ExpertDenoiser) -> bool:
    first, *others = (expert for expert in model.experts if expert is not None)
    return all(
        expert.get_submodule(path) is first.get_submodule(path)
        for path in model.config.shared_modules
        for expert in others
    )


def test_decoders_have_their_own_widths_on_one_encoder() -> None:
    model = build()
    assert is_tied(model)
    assert model.config.shared_modules == [*ENCODER, "mid_block"]
    widths = [[block.resnets[-1].conv2.out_channels for block in expert.up_blocks] for expert in model.experts]
    assert widths == [[24, 12], [16, 8], [8, 4]]  # the lowest resolution comes first in a decoder
    heads = [expert.up_blocks[0].attentions[0].heads for expert in model.experts]
    assert heads == [3, 2, 1]
    shared = sum(count_parameters(model.experts[0].get_submodule(path)) for path in model.config.shared_modules)
    assert model.resident_parameters() == sum(model.active_parameters()) - 2 * shared
    for expert in model.experts:  # the cost model of the pruner holds for every expert
        inputs = describe(expert).example_inputs(expert)
        assert CostModel.of(expert, inputs).macs({}) == count_macs(expert, inputs)


def test_the_bottleneck_is_shared_or_not() -> None:
    model = build(share_bottleneck=False)
    assert model.config.shared_modules == ENCODER
    bottlenecks = [expert.mid_block for expert in model.experts]
    assert len({id(bottleneck) for bottleneck in bottlenecks}) == 3
    assert len({count_parameters(bottleneck) for bottleneck in bottlenecks}) == 1
    assert build(mid_block_type=None).config.shared_modules == ENCODER


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "classes", "fourier", "scale_shift", "resnet"])
def test_a_mixed_batch_equals_its_groups_run_apart(kind: str) -> None:
    changed = {
        "plain": {},
        "classes": {"num_class_embeds": 5},
        "fourier": {"time_embedding_type": "fourier"},
        "scale_shift": {"resnet_time_scale_shift": "scale_shift", "decoders": (2, 1, 0.5)},
        "resnet": {"downsample_type": "resnet", "upsample_type": "resnet"},
    }[kind]
    model = build(**changed)
    assert is_tied(model)
    t, x = torch.tensor([999, 1, 500, 20, 980, 400]), noise(6, 1, 8, 8)
    labels = torch.arange(6) % 5 if kind == "classes" else None
    together = model(x, t, labels).sample
    for group in range(3):
        rows = PLAN.group_of(t) == group
        alone = model.experts[group](x[rows], t[rows], None if labels is None else labels[rows]).sample
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-5)


def test_edm_routes_by_what_the_network_is_given() -> None:
    schedule = NoiseSchedule.edm(0.002, 80.0)
    plan = Plan.equal_width(schedule, num_groups=3)
    model = build(plan)
    sigmas = torch.tensor([0.002, 0.5 * (plan.groups[1].t_start + plan.groups[1].t_stop), 79.0], dtype=torch.float64)
    called: list[int] = []
    for i, expert in enumerate(model.experts):
        expert.register_forward_hook(lambda *_, i=i: called.append(i))
    for c_noise in schedule.to_model_timestep(sigmas):
        assert model(noise(1, 1, 8, 8), c_noise.float()).sample.isfinite().all()
    assert called == [0, 1, 2]


@pytest.mark.parametrize("pipeline", [DDPMPipeline, DDIMPipeline])
def test_stock_pipelines_run_save_and_reload_it(pipeline: type[DiffusionPipeline], tmp_path: Path) -> None:
    model = build()
    pipe = pipeline(unet=model, scheduler=DDPMScheduler() if pipeline is DDPMPipeline else DDIMScheduler())
    before = images(pipe)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["unet"] == ["noisewise", "MultiDecoderUNet2DModel"]
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["shared_modules"] == [*ENCODER, "mid_block"]
    assert stored(tmp_path) == model.resident_parameters()

    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again.unet) is MultiDecoderUNet2DModel
    assert [type(expert) for expert in again.unet.experts] == [ShapedUNet2DModel] * 3
    assert is_tied(again.unet)
    assert again.unet.resident_parameters() == model.resident_parameters()
    assert torch.equal(images(again), before)
    assert is_tied(load_denoiser(tmp_path)[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"torch_dtype": torch.float16}, {"low_cpu_mem_usage": False}, {"device_map": "cpu"},
     {"device_map": {"": "cpu"}}, {"disable_mmap": True}],
)  # fmt: skip
def test_loading_options_reach_tied_experts(
    options: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build()
    model.save_pretrained(tmp_path, variant="ema", max_shard_size="20KB")
    assert len(list((tmp_path / "expert_1").glob("*.safetensors"))) > 1
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        again = MultiDecoderUNet2DModel.from_pretrained(tmp_path, variant="ema", **options)
    finally:
        logger.removeHandler(caplog.handler)
    assert "newly initialized" not in caplog.text
    assert is_tied(again)
    dtype = options.get("torch_dtype", torch.float32)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].to(dtype), theirs[name]) for name in ours)
    x = noise(3, 1, 8, 8).to(dtype)
    assert again(x, torch.tensor([0, 500, 999])).sample.dtype == dtype


def test_a_missing_tensor_is_still_an_error(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    weights = tmp_path / "expert_2" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    assert not [name for name in tensors if name.split(".")[0] in (*ENCODER, "mid_block")]
    save_file({name: tensor for name, tensor in tensors.items() if name != "conv_out.bias"}, weights, {"format": "pt"})
    with pytest.raises(SettingError, match=r"expert_2.*missing keys, first conv_out\.bias"):
        MultiDecoderUNet2DModel.from_pretrained(tmp_path)
    with pytest.raises(SettingError, match=r"missing keys, first .*this expert shares conv_in, .*load .* instead"):
        load_denoiser(tmp_path / "expert_1")
    assert isinstance(load_denoiser(tmp_path / "expert_0")[0], ShapedUNet2DModel)  # the first is whole
    with pytest.raises(SettingError, match="holds MultiDecoderUNet2DModel, not ExpertDenoiser"):
        ExpertDenoiser.from_pretrained(tmp_path)


def test_a_state_dict_holds_each_tensor_once_and_loads_strictly() -> None:
    model, other = build(), build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    state = model.state_dict()
    assert len(state) == len(list(model.named_parameters()))
    assert sum(tensor.numel() for tensor in state.values()) == model.resident_parameters()
    assert not [name for name in state if name.startswith("experts.1.down_blocks.")]
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    other.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    assert is_tied(other)
    assert other.resident_parameters() == model.resident_parameters()
    with pytest.raises(RuntimeError, match=r"conv_in\.bias"):
        other.load_state_dict({name: tensor for name, tensor in state.items() if name != "experts.0.conv_in.bias"})

    outer = torch.nn.Sequential(model)  # as part of another module
    assert outer.state_dict().keys() == {f"0.{name}" for name in state}
    torch.nn.Sequential(other).load_state_dict(outer.state_dict())


def test_copies_and_moves_stay_tied() -> None:
    model = build()
    twin = copy.deepcopy(model)
    assert is_tied(twin)
    assert twin.experts[0].conv_in is not model.experts[0].conv_in
    assert is_tied(model.to(torch.bfloat16))
    assert model.experts[2].conv_in.weight.dtype == torch.bfloat16


def test_gradients_of_the_encoder_are_the_sum_over_groups() -> None:
    model, t, x = build().train(), torch.tensor([999, 0]), noise(2, 1, 8, 8)

    def gradients(rows: slice) -> list[torch.Tensor | None]:
        model.zero_grad()
        model(x[rows], t[rows]).sample.square().sum().backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    both, one, two = gradients(slice(0, 2)), gradients(slice(0, 1)), gradients(slice(1, 2))
    parts = [[g for g in pair if g is not None] for pair in zip(one, two, strict=True)]
    assert {len(pair) for pair in parts} == {0, 1, 2}  # the middle decoder, the two others, the encoder
    for whole, pair in zip(both, parts, strict=True):
        assert (whole is None) == (not pair)
        if whole is not None:
            torch.testing.assert_close(whole, sum(pair), rtol=1e-4, atol=1e-4)

    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    for whole, again in zip(both, gradients(slice(0, 2)), strict=True):
        assert (whole is None) == (again is None)
        if whole is not None:
            torch.testing.assert_close(again, whole)


def test_from_a_trained_network() -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(**SMALL).eval()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    small = cut(unet, {"up_blocks.1.resnets.0": torch.arange(4)})
    model = MultiDecoderUNet2DModel.from_unet(unet, PLAN, [None, small, None]).eval()
    assert is_tied(model)
    x = noise(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x, 0).sample, unet(x, 0).sample)
        assert torch.equal(model(x, 999).sample, unet(x, 999).sample)
        assert torch.equal(model(x, 500).sample, small(x, 500).sample)
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in unet.state_dict().items())
    assert MultiDecoderUNet2DModel.from_unet(unet, PLAN).active_parameters() == [count_parameters(unet)] * 3

    narrow = cut(unet, {"conv_in": torch.arange(4)})
    with pytest.raises(SettingError, match=r"conv_in\.weight of expert 1 has shape \(4,.*equal modules"):
        MultiDecoderUNet2DModel.from_unet(unet, PLAN, [None, narrow, None])


def test_empty_groups_and_any_experts(tmp_path: Path) -> None:
    plan = Plan.from_snr(NoiseSchedule.named("cosine", 1000), num_groups=10)
    filled = [not group.is_empty for group in plan.groups]
    assert not all(filled)
    model = build(plan, [1 if full else None for full in filled])
    model.save_pretrained(tmp_path)
    again = MultiDecoderUNet2DModel.from_pretrained(tmp_path)
    assert [expert is not None for expert in again.experts] == filled
    assert is_tied(again)

    experts = [UNet2DModel(**SMALL) for _ in range(3)]
    tied = ExpertDenoiser(experts, PLAN, ["conv_in", "down_blocks.0"])  # any modules of any experts
    assert experts[2].down_blocks[0] is experts[0].down_blocks[0]
    assert experts[2].down_blocks[1] is not experts[0].down_blocks[1]
    tied.save_pretrained(tmp_path / "tied")
    assert stored(tmp_path / "tied") == tied.resident_parameters()
    assert is_tied(ExpertDenoiser.from_pretrained(tmp_path / "tied"))


@pytest.mark.parametrize(
    ("decoders", "message"),
    [
        ((1, 1), "decoders: 2 given, the plan has 3 groups"),
        ((1, None, 1), r"decoders\.1: None given; this group needs"),
        ((1, 0, 1), r"decoders\.1: 0 is no positive factor"),
        ((1, 1, 0.25), r"decoders\.2: 4 channels are not a multiple of 8 .*nearest are 8$"),
        ((1, 1, 1.25), r"decoders\.2: 20 channels are not a multiple of 8 .*nearest are 16 and 24"),
        ((1, (8, 16, 32), 1), r"decoders\.1: \[8, 16, 32\] given; the network has 2 resolutions"),
        ((1, (6, 16), 1), r"decoders\.1: 6 channels are not a multiple of 4"),
    ],
)
def test_decoders_that_cannot_be_built(decoders: tuple[object, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build(decoders=decoders)


def test_modules_that_cannot_be_shared() -> None:
    def experts() -> list[UNet2DModel]:
        return [UNet2DModel(**SMALL) for _ in range(3)]

    with pytest.raises(SettingError, match="expert 0 has no module encoder"):
        ExpertDenoiser(experts(), PLAN, ["encoder"])
    with pytest.raises(SettingError, match=r"shared_modules\.1: down_blocks\.0 lies within"):
        ExpertDenoiser(experts(), PLAN, ["down_blocks", "down_blocks.0"])
    plan = Plan.from_snr(NoiseSchedule.named("cosine", 1000), num_groups=10)
    empty = next(group.index for group in plan.groups if group.is_empty)
    with pytest.raises(SettingError, match=rf"decoders\.{empty}: 1 given; this group is empty"):
        build(plan, [1] * 10)
