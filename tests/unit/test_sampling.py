"""An image depends on its number and the seed alone; every scheduler runs; a perfect denoiser gives its data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from noisewise.errors import SettingError
from noisewise.models.experts import ExpertDenoiser
from noisewise.planning.plan import Plan
from noisewise.sampling.sampler import sample_images, to_uint8, trajectory
from noisewise.sampling.schedulers import CLASSES, build_scheduler
from noisewise.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.named("linear", 1000)
Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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


def ideal_denoiser(mean: torch.Tensor, std: float, prediction_type: str = "epsilon") -> Denoiser:
    """The exact answer where the data are normal with this mean [C, H, W] and standard deviation."""

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal, noise = SCHEDULE.signal(float(t)), SCHEDULE.noise(float(t))
        gain = signal * std**2 / (signal**2 * std**2 + noise**2)
        x_0 = mean + gain * (x_t - signal * mean)
        epsilon = (x_t - signal * x_0) / noise
        return {"epsilon": epsilon, "sample": x_0, "v_prediction": signal * epsilon - noise * x_0}[prediction_type]

    return predict


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", list(CLASSES))
def test_every_scheduler_samples_the_data_of_an_ideal_denoiser(kind: str, prediction_type: str) -> None:
    if prediction_type == "sample" and kind in ("pndm", "heun"):
        with pytest.raises(SettingError, match=r"sample\.scheduler"):
            build_scheduler(kind, SCHEDULE, prediction_type)
        return
    mean = torch.linspace(-0.5, 0.5, 12).reshape(3, 2, 2)
    scheduler = build_scheduler(kind, SCHEDULE, prediction_type)
    steps = list(
        trajectory(
            ideal_denoiser(mean, 0.1, prediction_type),
            scheduler,
            range(600),
            num_inference_steps=200 if kind == "ddpm" else 60,
            sample_shape=(3, 2, 2),
        )
    )
    x = steps[-1].x
    assert [step.index for step in steps] == list(range(steps[0].num_steps))
    torch.testing.assert_close(x.mean(0), mean, atol=0.03, rtol=0)
    assert 0.08 < x.std(0).mean() < 0.125


@pytest.mark.parametrize("kind", list(CLASSES))
def test_an_image_does_not_depend_on_its_batch(kind: str) -> None:
    model = tiny_unet()
    scheduler = build_scheduler(kind, SCHEDULE)
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


@pytest.mark.parametrize("kind", list(CLASSES))
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
    plan = Plan.from_snr(SCHEDULE, num_groups=4)
    experts = ExpertDenoiser([model] * 4, plan)
    for kind in CLASSES:
        scheduler = build_scheduler(kind, SCHEDULE)
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
        for kind in CLASSES:
            built = build_scheduler(kind, schedule)
            torch.testing.assert_close(
                built.alphas_cumprod.double(), torch.from_numpy(schedule.alphas_cumprod.copy()), atol=1e-5, rtol=1e-4
            )
    swapped = build_scheduler("dpm++", DDIMScheduler(beta_schedule="scaled_linear", num_train_timesteps=100))
    assert swapped.config.beta_schedule == "scaled_linear"
    assert swapped.config.num_train_timesteps == 100


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(SettingError, match=r"sample\.scheduler: 'dimm' is not one of ddpm, ddim"):
        build_scheduler("dimm", SCHEDULE)
    with pytest.raises(SettingError, match="variance-preserving"):
        build_scheduler("ddim", NoiseSchedule.flow())
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
