"""An image depends on its number and the seed alone; every scheduler runs; a perfect denoiser gives its data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)

from noisewise import DPMSolver3Scheduler, EDMHeunScheduler
from noisewise.errors import SettingError
from noisewise.models.experts import ExpertDenoiser
from noisewise.models.loading import load_denoiser, save_pipeline
from noisewise.planning.plan import Plan
from noisewise.sampling.kinds import KINDS, family, kinds_of, num_evaluations, steps_within
from noisewise.sampling.sampler import sample_images, to_uint8, trajectory
from noisewise.sampling.schedulers import PREDICTIONS, build_scheduler
from noisewise.schedule import NoiseSchedule
from noisewise.streams import stream

SCHEDULE = NoiseSchedule.named("linear", 1000)
SCHEDULES = {"vp": SCHEDULE, "edm": NoiseSchedule.edm(), "flow": NoiseSchedule.flow()}
SIGMA_DATA = 0.5
VP = kinds_of("vp")
Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build(kind: str, *args: Any, **options: Any) -> Any:
    """A sampler for the usual schedule of its kind."""
    return build_scheduler(kind, SCHEDULES[family(kind)], *args, **options)  # type: ignore[arg-type]


def tiny_unet(seed: int = 0, out_channels: int = 3, **settings: object) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=out_channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        **settings,
    ).eval()


def ideal_denoiser(mean: torch.Tensor, std: float, schedule: NoiseSchedule, prediction_type: str) -> Denoiser:
    """The exact answer where the data are normal with this mean [C, H, W] and standard deviation."""

    def predict(x_in: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = schedule.to_coordinate(float(t))
        signal, noise = schedule.signal(t), schedule.noise(t)
        size = (noise**2 + SIGMA_DATA**2) ** 0.5  # 1 / c_in
        x_t = x_in * size if schedule.kind == "edm" else x_in
        x_0 = mean + signal * std**2 / (signal**2 * std**2 + noise**2) * (x_t - signal * mean)
        epsilon = (x_t - signal * x_0) / noise
        return {
            "epsilon": epsilon,
            "sample": x_0,
            "v_prediction": signal * epsilon - noise * x_0,
            "edm": (x_0 - x_t * (SIGMA_DATA / size) ** 2) * size / (noise * SIGMA_DATA),
            "velocity": epsilon - x_0,
        }[prediction_type]

    return predict


CASES = [
    (kind, prediction_type)
    for kind in KINDS
    for prediction_type in PREDICTIONS[family(kind)]
    if (family(kind), prediction_type) != ("edm", "epsilon")  # another word for "edm"
]


@pytest.mark.parametrize(("kind", "prediction_type"), CASES)
def test_every_scheduler_samples_the_data_of_an_ideal_denoiser(kind: str, prediction_type: str) -> None:
    if prediction_type == "sample" and kind in ("pndm", "heun"):
        with pytest.raises(SettingError, match=r"sample\.scheduler"):
            build(kind, prediction_type)
        return
    mean = torch.linspace(-0.5, 0.5, 12).reshape(3, 2, 2)
    steps = list(
        trajectory(
            ideal_denoiser(mean, 0.1, SCHEDULES[family(kind)], prediction_type),
            build(kind, prediction_type),
            range(600),
            num_inference_steps=200 if kind == "ddpm" else 60,
            sample_shape=(3, 2, 2),
        )
    )
    x = steps[-1].x
    assert [step.index for step in steps] == list(range(steps[0].num_steps))
    torch.testing.assert_close(x.mean(0), mean, atol=0.03, rtol=0)
    assert 0.08 < x.std(0).mean() < 0.125


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_batch(kind: str) -> None:
    model, scheduler = tiny_unet(), build(kind)
    steps = 8
    together = sample_images(model, scheduler, 5, num_inference_steps=steps, seed=3, batch_size=5)
    apart = sample_images(model, scheduler, 5, num_inference_steps=steps, seed=3, batch_size=2)
    late = sample_images(model, scheduler, 2, num_inference_steps=steps, seed=3, first_image=3)

    assert together.shape == (5, 3, 8, 8)
    assert together.dtype == torch.uint8
    assert (together.int() - apart.int()).abs().max() <= 1
    assert (together[3:].int() - late.int()).abs().max() <= 1
    assert (together[0].int() - together[1].int()).abs().max() > 20
    other = sample_images(model, scheduler, 1, num_inference_steps=steps, seed=4)
    assert (together[0].int() - other[0].int()).abs().max() > 20


def test_fresh_noise_of_ddim_is_per_image_too() -> None:
    model, scheduler = tiny_unet(), build_scheduler("ddim", SCHEDULE)
    options = {"num_inference_steps": 8, "eta": 1.0}
    together = sample_images(model, scheduler, 4, batch_size=4, **options)
    apart = sample_images(model, scheduler, 4, batch_size=3, **options)
    plain = sample_images(model, scheduler, 4, num_inference_steps=8)
    assert (together.int() - apart.int()).abs().max() <= 1
    assert (together.int() - plain.int()).abs().max() > 20
    with pytest.warns(UserWarning, match=r"sample\.eta: 1\.0 is ignored by PNDMScheduler"):
        sample_images(model, build_scheduler("pndm", SCHEDULE), 1, **options)


@pytest.mark.parametrize("kind", VP)
def test_learned_variance_is_split_off_where_the_scheduler_has_no_use_for_it(kind: str) -> None:
    model = tiny_unet(out_channels=6)
    scheduler = build_scheduler(kind, SCHEDULE, variance="learned_range")
    learned = sample_images(model, scheduler, 2, num_inference_steps=6)

    def mean_only(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x_t, t).sample[:, :3]

    fixed = sample_images(mean_only, build_scheduler(kind, SCHEDULE), 2, num_inference_steps=6, sample_shape=(3, 8, 8))
    assert torch.equal(learned, fixed) == (kind != "ddpm")  # DDPM adds noise of the learned variance


def test_experts_and_their_base_give_the_same_images() -> None:
    model = tiny_unet()
    for kind in KINDS:
        scheduler = build(kind)
        experts = ExpertDenoiser([model] * 4, Plan.from_snr(SCHEDULES[family(kind)], num_groups=4))
        alone, routed = (sample_images(m, scheduler, 2, num_inference_steps=6) for m in (model, experts))
        assert torch.equal(alone, routed)


def test_class_labels_follow_their_images() -> None:
    model, scheduler = tiny_unet(num_class_embeds=3), build_scheduler("ddim", SCHEDULE)
    torch.nn.init.normal_(model.class_embedding.weight, std=20.0)
    labels = torch.tensor([0, 1, 2, 1])
    images = sample_images(model, scheduler, 4, num_inference_steps=4, class_labels=labels, batch_size=3)
    alone = sample_images(model, scheduler, 1, num_inference_steps=4, class_labels=labels[2:3], first_image=2)
    other = sample_images(model, scheduler, 1, num_inference_steps=4, class_labels=labels[1:2], first_image=2)
    assert (images[2].int() - alone[0].int()).abs().max() <= 1
    assert (images[2].int() - other[0].int()).abs().max() > 3
    with pytest.raises(SettingError, match="class_labels: 2 given for num_images 4"):
        sample_images(model, scheduler, 4, num_inference_steps=4, class_labels=labels[:2])


def test_sampling_leaves_scheduler_mode_and_global_random_state_alone() -> None:
    model, scheduler = tiny_unet(dropout=0.5).train(), build_scheduler("ddpm", SCHEDULE)
    before = torch.get_rng_state()
    fractions: list[float] = []
    first = sample_images(model, scheduler, 3, num_inference_steps=3, batch_size=2, progress=fractions.append)
    assert model.training
    assert scheduler.num_inference_steps is None
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, sample_images(model.eval(), scheduler, 3, num_inference_steps=3, batch_size=2))
    assert fractions == sorted(fractions)
    assert fractions[-1] == 3


def test_schedulers_share_the_schedule_they_are_built_from() -> None:
    given = NoiseSchedule.from_betas(torch.linspace(1e-3, 0.3, 20).numpy())
    for schedule in (SCHEDULE, NoiseSchedule.named("scaled_linear"), NoiseSchedule.named("cosine"), given):
        for kind in VP:
            built = build_scheduler(kind, schedule)  # type: ignore[arg-type]
            torch.testing.assert_close(
                built.alphas_cumprod.double(), torch.from_numpy(schedule.alphas_cumprod.copy()), atol=1e-5, rtol=1e-4
            )
    swapped = build_scheduler("dpm++", DDIMScheduler(beta_schedule="scaled_linear", num_train_timesteps=100))
    assert swapped.config.beta_schedule == "scaled_linear"
    assert swapped.config.num_train_timesteps == 100


def test_schedulers_say_what_they_were_built_for() -> None:
    schedules = [NoiseSchedule.vp(), NoiseSchedule.vp(0.05, 13.7, 200), NoiseSchedule.edm(0.01, 50.0, 300)]
    schedules += [NoiseSchedule.flow(500, shift=3.0), *SCHEDULES.values()]
    for schedule in schedules:
        for kind in kinds_of(schedule.kind):
            assert NoiseSchedule.from_scheduler(build_scheduler(kind, schedule)) == schedule  # type: ignore[arg-type]


def test_a_sampler_takes_over_the_settings_of_another() -> None:
    zero_snr = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    solver = build_scheduler("dpm-solver-3", zero_snr)
    assert solver.config.prediction_type == "v_prediction"
    assert solver.noise_schedule.snr_db(999) < -90
    levels = [NoiseSchedule.from_scheduler(scheduler).snr_db(500) for scheduler in (solver, zero_snr)]
    assert levels[0] == pytest.approx(levels[1], abs=1e-4)

    solver = build_scheduler("dpm-solver-3", NoiseSchedule.vp(), "sample")
    back = build_scheduler("ddim", solver)
    assert type(back) is DDIMScheduler
    assert back.config.prediction_type == "sample"
    assert NoiseSchedule.from_scheduler(back) == NoiseSchedule.vp()
    assert NoiseSchedule.from_scheduler(DDIMScheduler.from_config(solver.config)) == NoiseSchedule.vp()

    heun = build_scheduler("edm-heun", NoiseSchedule.edm(0.01, 50.0), sigma_data=1.0)
    euler = build_scheduler("edm-euler", heun)
    assert (euler.config.sigma_min, euler.config.sigma_max, euler.config.sigma_data) == (0.01, 50.0, 1.0)
    assert build_scheduler("edm-heun", dict(euler.config)).config.sigma_data == 1.0
    assert build_scheduler("flow-heun", FlowMatchEulerDiscreteScheduler(shift=2.0)).config.shift == 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_evaluations_are_counted_as_the_sampler_calls_the_network(kind: Any) -> None:
    scheduler, schedule = build(kind), SCHEDULES[family(kind)]
    for steps in (4, 5, 6, 18, 20):
        calls = sum(1 for _ in trajectory(lambda x, t: x, scheduler, [0], num_inference_steps=steps, sample_shape=[1]))
        assert num_evaluations(kind, steps) == len(schedule.visited(scheduler, steps)) == calls
        assert steps_within(kind, calls) == steps
        assert steps_within(kind, calls + 1) in (steps, steps + 1)
    assert num_evaluations("edm-heun", 18) == 35
    assert num_evaluations("dpm-solver-3", 20) == 20
    with pytest.raises(SettingError, match="evaluations or more, given 0"):
        steps_within(kind, 0)
    with pytest.raises(SettingError, match=r"sample\.num_inference_steps: 0"):
        num_evaluations(kind, 0)


@pytest.mark.parametrize(
    "kind", ["ddim", "dpm-solver-3", "euler", "edm-heun", "edm-euler", "edm-dpm++", "flow-euler", "flow-heun"]
)
def test_a_saved_pipeline_gives_the_same_images(kind: str, tmp_path: Path) -> None:
    model = tiny_unet()
    schedule = NoiseSchedule.vp() if family(kind) == "vp" else SCHEDULES[family(kind)]
    scheduler = build_scheduler(kind, schedule)  # type: ignore[arg-type]
    save_pipeline(model, scheduler, tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipeline.scheduler) is type(scheduler)
    assert NoiseSchedule.from_scheduler(pipeline.scheduler) == schedule
    for name, value in scheduler.config.items():
        assert name.startswith("_") or pipeline.scheduler.config[name] == value

    pipeline.set_progress_bar_config(disable=True)
    generators = [stream(3, "sample", i) for i in range(2)]
    theirs = pipeline(2, generator=generators, num_inference_steps=5, output_type="pt").images  # [2, C, H, W]
    ours = sample_images(model, scheduler, 2, num_inference_steps=5, seed=3)
    assert (theirs.mul(255).round().int() - ours.int()).abs().max() <= 1

    _, loaded = load_denoiser(tmp_path)
    assert type(loaded) is type(scheduler)


@pytest.mark.parametrize("kind", ["dpm-solver-3", "edm-heun"])
def test_half_precision_samples_stay_what_they_are(kind: str) -> None:
    scheduler = build(kind)
    start, results = torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2), []
    for dtype in (torch.float64, torch.bfloat16):
        scheduler.set_timesteps(5)
        x = start.to(dtype)
        for t in scheduler.timesteps:
            (x,) = scheduler.step(x / 2, t, x, return_dict=False)
            assert x.dtype == dtype
        results.append(x.double())
    torch.testing.assert_close(*results, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", ["dpm-solver-3", "edm-heun"])
def test_steps_are_taken_in_order(kind: str) -> None:
    scheduler, x = build(kind), torch.zeros(1, 1, 2, 2)
    with pytest.raises(SettingError, match="call set_timesteps before sampling"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_timesteps(4)
    with pytest.raises(SettingError, match="cannot start in the middle"):
        scheduler.step(x, scheduler.timesteps[2], x)
    for t in scheduler.timesteps:
        scheduler.step(x, t, x)
    with pytest.raises(SettingError, match="all timesteps are used"):
        scheduler.step(x, scheduler.timesteps[-1], x)
    scheduler.set_timesteps(4)
    scheduler.step(x, scheduler.timesteps[0], x)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(SettingError, match=r"sample\.scheduler: 'dimm' is not one of ddpm, ddim"):
        build_scheduler("dimm", SCHEDULE)
    with pytest.raises(SettingError, match=r"ddim is for vp .*, this one is flow; allowed: flow-euler, flow-heun"):
        build_scheduler("ddim", NoiseSchedule.flow())
    with pytest.raises(SettingError, match=r"ddim is for vp schedules, this one is edm; allowed: edm-heun"):
        build_scheduler("ddim", NoiseSchedule.edm(), "edm")
    with pytest.raises(SettingError, match="edm-heun is for edm schedules, this one is vp"):
        build_scheduler("edm-heun", DDIMScheduler())
    with pytest.raises(SettingError, match="predict velocity, given epsilon"):
        build_scheduler("flow-euler", NoiseSchedule.flow(), "epsilon")
    with pytest.raises(SettingError, match="use_dynamic_shifting"):
        build_scheduler("flow-heun", FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with pytest.raises(SettingError, match=r"c_noise, and it expects c-noise times 1000"):
        build_scheduler("edm-heun", CMStochasticIterativeScheduler())
    for kind in ("dpm-solver-3", "edm-heun"):
        with pytest.raises(SettingError, match=r"sample\.num_inference_steps: 0"):
            build(kind).set_timesteps(0)
    ddim = build_scheduler("ddim", SCHEDULE)
    with pytest.raises(SettingError, match=r"sample\.num_inference_steps: 0"):
        sample_images(tiny_unet(), ddim, 1, num_inference_steps=0)
    with pytest.raises(SettingError, match=r"sample\.num_inference_steps: 1001 is refused"):
        sample_images(tiny_unet(), ddim, 1, num_inference_steps=1001)
    with pytest.raises(SettingError, match="sample_shape"):
        sample_images(lambda x, t: x, ddim, 1, num_inference_steps=1)


def test_pixels_round_and_clip() -> None:
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]
    pixels = torch.arange(256)
    assert torch.equal(to_uint8(pixels / 127.5 - 1), pixels.to(torch.uint8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMSolver3Scheduler(beta_schedule="sigmoid"), "do not give 1000 betas"),
        (lambda: DPMSolver3Scheduler(trained_betas=[0.1, 0.2]), "do not give 1000 betas"),
        (lambda: DPMSolver3Scheduler(trained_betas=[2.0] * 1000), "do not give 1000 betas"),
        (lambda: DPMSolver3Scheduler(prediction_type="flow_prediction"), "prediction_type: 'flow_prediction'"),
        (lambda: DPMSolver3Scheduler(final_time=1e-4), "scheduler.final_time: 0.0001 is not from 0.001 to below 1"),
        (lambda: build_scheduler("dpm-solver-3", NoiseSchedule.vp(), final_time=1.0), "scheduler.final_time: 1.0"),
        (lambda: DPMSolver3Scheduler(lambda_min_clipped=9.0), "scheduler.lambda_min_clipped: 9.0 leaves nothing"),
        (lambda: EDMHeunScheduler(sigma_min=90.0), "scheduler.sigma_min: 90.0"),
        (lambda: EDMHeunScheduler(sigma_data=0.0), "sigma_data 0.0"),
        (lambda: EDMHeunScheduler(prediction_type="v_prediction"), "scheduler.prediction_type: 'v_prediction'"),
    ],
)
def test_settings_of_our_schedulers(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
