from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler
from sklearn.datasets import load_digits

from noisewise.data import Images
from noisewise.errors import SettingError
from noisewise.objectives import Objective
from noisewise.optimal import OptimalDenoiser
from noisewise.optimal.posterior import Distances
from noisewise.planning.levels import even_levels
from noisewise.sampling.sampler import sample_images
from noisewise.schedule import NoiseSchedule

VP, EDM, FLOW = NoiseSchedule.vp(), NoiseSchedule.edm(), NoiseSchedule.flow()
SCHEDULES = pytest.mark.parametrize("schedule", [VP, EDM, FLOW], ids=["vp", "edm", "flow"])
DIGITS = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[:, None]  # [1797, 1, 8, 8]


def as_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).double() / 127.5 - 1


def brute_force(x_0: torch.Tensor, noise: torch.Tensor, sigma: float, y: torch.Tensor) -> torch.Tensor:
    """E[x_0 | x_0 + sigma eps] from distances, nothing rearranged, in float64: [B, ...] like ``x_0``."""
    z = (x_0.double() + sigma * noise.double()).flatten(1)
    distances = (z[:, None] - y.flatten(1)).square().sum(-1)  # [B, n]
    return (torch.softmax(-distances / (2 * sigma**2), 1) @ y.flatten(1)).reshape(x_0.shape)


def draws(pixels: np.ndarray, num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_0 = as_images(pixels)[torch.randperm(len(pixels), generator=generator)[:num]].float()
    return x_0, torch.randn(x_0.shape, generator=generator)


# ---- closed forms


@SCHEDULES
def test_one_image_is_the_answer_to_everything(schedule: NoiseSchedule) -> None:
    denoiser = OptimalDenoiser(DIGITS[:1], schedule)
    x_t = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 10

    for t in schedule.grid()[[0, 300, 700, 999]]:
        torch.testing.assert_close(denoiser.x_0(x_t, float(t)), as_images(DIGITS[:1]).float().expand(5, -1, -1, -1))


@SCHEDULES
def test_two_images_weigh_as_the_logistic_function_says(schedule: NoiseSchedule) -> None:
    """w = logistic((|z - b|^2 - |z - a|^2) / (2 sigma^2)), z = x_t / signal, is the weight of image a."""
    a, b = torch.tensor([0.3, -0.2]), torch.tensor([-0.5, 0.1])
    denoiser = OptimalDenoiser(torch.stack([a, b])[:, :, None, None], schedule)
    x_t = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))

    for t in schedule.grid()[[200, 500, 900]].tolist():
        sigma = denoiser.sigma([t])[0]
        z = x_t.double() / schedule.signal(t)
        w = torch.special.expit(((z - b).square().sum(1) - (z - a).square().sum(1)) / (2 * sigma**2))[:, None]
        found = denoiser.x_0(x_t[:, :, None, None], t)[:, :, 0, 0]
        torch.testing.assert_close(found.double(), w * a + (1 - w) * b, rtol=0, atol=2e-6)


def test_samples_of_a_gaussian_give_its_posterior_mean() -> None:
    """For x_0 ~ N(m, s^2), E[x_0 | z] = m + (z - m) s^2 / (s^2 + sigma^2); more samples come nearer."""
    mean, deviation, sigma = 0.3, 0.5, 0.4
    noise = torch.randn(400, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    z = mean + noise * (deviation**2 + sigma**2) ** 0.5
    expected = mean + (z - mean) * deviation**2 / (deviation**2 + sigma**2)
    apart = []
    for num in (100, 30_000):
        samples = mean + deviation * torch.randn(num, 1, 1, 1, generator=torch.Generator().manual_seed(2))
        apart.append((OptimalDenoiser(samples, EDM).x_0(z, sigma) - expected).square().mean().sqrt())

    assert apart[1] < 0.01
    assert apart[1] < apart[0] / 5


# ---- float64 brute force


@SCHEDULES
@pytest.mark.parametrize("kind", ["pixels", "floats"])
def test_posterior_means_equal_those_in_float64_at_every_level(schedule: NoiseSchedule, kind: str) -> None:
    y = as_images(DIGITS)
    denoiser = OptimalDenoiser(DIGITS if kind == "pixels" else y.float(), schedule, chunk=500)
    x_0, noise = draws(DIGITS, 12)
    levels = even_levels(schedule, 25)[:-1]  # the last flow time has no signal
    means = denoiser.posterior_means(x_0, noise, levels)

    assert means.shape == (24, 12, 1, 8, 8)
    for mean, sigma in zip(means, denoiser.sigma(levels), strict=True):
        expected = brute_force(x_0, noise, float(sigma), y)
        apart = (mean - expected).abs().max()
        assert apart < min(5e-6, 2e-5 * sigma + 2e-7)  # of the noise 2e-5, but for the rounding of pixels


def test_both_ways_to_sum_are_used_and_agree_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = OptimalDenoiser(DIGITS, VP, chunk=500)
    x_0, noise = draws(DIGITS, 6)
    levels = even_levels(VP, 20)
    u = torch.from_numpy(1 / denoiser.sigma(levels)).float()[:, None].expand(-1, 6)
    distances = Distances(denoiser.rows, x_0.flatten(1), noise.flatten(1), 500)
    num_sparse = distances.num_sparse_levels(u)
    both = denoiser.posterior_means(x_0, noise, levels)

    assert 2 <= num_sparse <= 18
    for share in (-1.0, 1.1):  # all dense, all sparse
        monkeypatch.setattr("noisewise.optimal.posterior.SPARSE_BELOW", share)
        assert distances.num_sparse_levels(u) == (0 if share < 0 else 20)
        torch.testing.assert_close(denoiser.posterior_means(x_0, noise, levels), both, rtol=0, atol=5e-6)


def test_the_size_of_chunks_and_blocks_does_not_matter() -> None:
    x_0, noise = draws(DIGITS, 9)
    levels = even_levels(VP, 10)
    whole = OptimalDenoiser(DIGITS, VP)
    pieces = OptimalDenoiser(DIGITS, VP, chunk=97, working_memory=300_000)
    assert whole.cost(9, 10).passes == 2
    assert pieces.cost(9, 10).passes > 4
    assert pieces.cost(9, 10).working_bytes <= 300_000

    means = whole.posterior_means(x_0, noise, levels)
    torch.testing.assert_close(pieces.posterior_means(x_0, noise, levels), means, rtol=0, atol=1e-6)
    x_t = x_0 + 0.7 * noise
    torch.testing.assert_close(pieces.x_0(x_t, 300), whole.x_0(x_t, 300), rtol=0, atol=1e-6)


def test_near_copies_are_told_apart_far_below_float32_distances() -> None:
    """Images that differ by one step of one pixel: 6e-5 in squared distance, where 3072 float32 terms round by more."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    pixels[1] = pixels[0]
    pixels[1, 0, 0, 0] = pixels[0, 0, 0, 0] ^ 1
    x_0 = as_images(pixels[:1]).float().expand(200, -1, -1, -1)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))

    denoiser = OptimalDenoiser(pixels, EDM)
    for sigma in (0.002, 0.004, 0.01):
        found = denoiser.posterior_means(x_0, noise, [sigma / 2, sigma])[1, :, 0, 0, 0].double()
        step = as_images(pixels[1])[0, 0, 0] - as_images(pixels[0])[0, 0, 0]
        weight = torch.special.expit(noise[:, 0, 0, 0].double() * step / sigma - step**2 / (2 * sigma**2))
        expected = as_images(pixels[0])[0, 0, 0] + weight * step
        assert (found - expected).abs().max() < 1e-3 * step.abs()
        assert weight.max() > 0.3  # they do compete


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_a_query_far_from_the_data_neither_overflows_nor_vanishes(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(8, 1, 8, 8, generator=generator) * scale
    for sigma in (0.002, 1.0, 80.0):
        found = OptimalDenoiser(DIGITS, EDM).x_0(x_t, sigma)
        expected = brute_force(x_t, torch.zeros_like(x_t), sigma, as_images(DIGITS))
        assert (found - expected).abs().max() < 1e-4


# ---- identities


@SCHEDULES
def test_noise_error_is_image_error_over_sigma(schedule: NoiseSchedule) -> None:
    """eps*(x_t) - eps = (x_0 - xhat_0) / sigma, exactly."""
    denoiser = OptimalDenoiser(DIGITS, schedule)
    x_0, noise = draws(DIGITS, 8)
    for t in schedule.grid()[[100, 400, 800]].tolist():
        x_t = schedule.signal(t) * x_0 + schedule.noise(t) * noise
        off = (x_0 - denoiser.x_0(x_t, t)) / float(denoiser.sigma([t])[0])
        torch.testing.assert_close(denoiser.epsilon(x_t, t) - noise, off, rtol=0, atol=3e-5)


def test_a_level_without_signal_answers_with_the_mean() -> None:
    denoiser = OptimalDenoiser(DIGITS, FLOW)
    x_0, noise = draws(DIGITS, 3)

    mean = as_images(DIGITS).mean(0).float()
    torch.testing.assert_close(denoiser.mean_image, mean)
    torch.testing.assert_close(denoiser.x_0(noise, 1.0), mean.expand(3, -1, -1, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        denoiser.posterior_means(x_0, noise, [0.5, 1.0])[1], mean.expand(3, -1, -1, -1), rtol=0, atol=1e-6
    )


def test_every_sample_of_a_batch_may_have_a_level_of_its_own() -> None:
    denoiser = OptimalDenoiser(DIGITS, VP)
    x_0, noise = draws(DIGITS, 4)
    t = torch.tensor([900, 5, 400, 650])
    x_t = Objective(VP).noised(x_0, noise, t).x_t

    together = denoiser(x_t, t)
    apart = torch.cat([denoiser(x_t[i : i + 1], t[i]) for i in range(4)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)


def test_predictions_of_every_kind_stand_for_the_same_image() -> None:
    x_0, noise = draws(DIGITS, 4)
    t = torch.tensor([900, 100, 400, 650])
    draw = Objective(VP).noised(x_0, noise, t)
    expected = OptimalDenoiser(DIGITS, VP).x_0(draw.x_t, t)
    for kind in ("epsilon", "v_prediction", "sample"):
        answer = OptimalDenoiser(DIGITS, VP, prediction_type=kind)(draw.x_t, t)
        torch.testing.assert_close(Objective(VP, kind).x_0(answer, draw), expected, rtol=0, atol=1e-4)


def test_edm_network_output_turns_into_the_denoised_image() -> None:
    """D(x) = c_skip x + c_out F(c_in x, c_noise), arXiv:2206.00364, Eq. 7 and table 1, sigma_data 0.5."""
    denoiser = OptimalDenoiser(DIGITS, EDM)
    x_0, noise = draws(DIGITS, 4)
    for sigma in (0.1, 1.0, 20.0):
        x_t = x_0 + sigma * noise
        total = sigma**2 + 0.25
        answer = denoiser(x_t / total**0.5, torch.tensor(np.log(sigma) / 4))
        restored = 0.25 / total * x_t + sigma * 0.5 / total**0.5 * answer
        torch.testing.assert_close(restored, denoiser.x_0(x_t, sigma), rtol=0, atol=2e-5)


# ---- as a denoiser among others


def distance_to_the_data(images: torch.Tensor) -> torch.Tensor:
    """Largest pixel difference to the nearest training image: [N]."""
    difference = images.flatten(1).int()[:, None] - torch.from_numpy(DIGITS).flatten(1).int()  # [N, n, D]
    return difference.abs().amax(2).amin(1)


def test_ddim_with_it_returns_training_images() -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    denoiser = OptimalDenoiser(DIGITS, NoiseSchedule.from_scheduler(scheduler))
    images = sample_images(denoiser, scheduler, 12, num_inference_steps=50)

    assert images.shape == (12, 1, 8, 8)
    assert int(distance_to_the_data(images).max()) <= 1
    assert len(images.flatten(1).unique(dim=0)) > 6


def test_edm_euler_with_it_returns_training_images() -> None:
    scheduler = EDMEulerScheduler()
    denoiser = OptimalDenoiser(DIGITS, NoiseSchedule.from_scheduler(scheduler))
    images = sample_images(denoiser, scheduler, 6, num_inference_steps=30)

    assert int(distance_to_the_data(images).max()) <= 1


def test_euler_steps_along_its_velocity_return_training_images() -> None:
    denoiser = OptimalDenoiser(DIGITS, FLOW)
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for t, s in itertools.pairwise(np.linspace(1, 0, 41).tolist()):
        x = x + (s - t) * denoiser(x, 1000 * t)

    assert int(distance_to_the_data(((x.clamp(-1, 1) + 1) * 127.5).round()).max()) <= 1


def test_no_denoiser_has_a_lower_error_on_the_data_itself() -> None:
    objective = Objective(VP)
    images = Images.from_pixels(DIGITS)
    draw = objective.fixed_draws(images, 400, ("optimal",))[1]
    optimal = objective.error(OptimalDenoiser(images, VP), draw)  # [B]
    half = objective.error(OptimalDenoiser(DIGITS[::2], VP), draw)

    assert optimal.mean() < half.mean()
    assert optimal[draw.t < 60].max() < 1e-3  # it knows these images by heart


# ---- data


def test_images_stay_in_their_file(tmp_path: Path) -> None:
    np.save(tmp_path / "digits.npy", DIGITS)
    pixels = np.load(tmp_path / "digits.npy", mmap_mode="r")
    x_0, noise = draws(DIGITS, 3)
    denoiser = OptimalDenoiser(pixels, VP, chunk=100)

    assert denoiser.rows.data is pixels
    assert torch.equal(
        denoiser.posterior_means(x_0, noise, [100, 600]),
        OptimalDenoiser(DIGITS, VP, chunk=100).posterior_means(x_0, noise, [100, 600]),
    )


def test_duplicates_are_counted_and_weigh_twice() -> None:
    twice = np.concatenate([DIGITS[:2], DIGITS[:1]])
    assert OptimalDenoiser(DIGITS, VP).num_duplicates == 0
    for images in (twice, as_images(twice).float()):
        denoiser = OptimalDenoiser(images, FLOW)
        assert denoiser.num_duplicates == 1
        assert len(denoiser) == 3
        expected = as_images(DIGITS[:1]) * 2 / 3 + as_images(DIGITS[1:2]) / 3
        torch.testing.assert_close(denoiser.x_0(torch.zeros(1, 1, 8, 8), 1.0), expected.float())


def test_cost_is_said_first() -> None:
    denoiser = OptimalDenoiser(DIGITS, VP)
    cost = denoiser.cost(num_draws=100, num_levels=10)

    assert cost.macs == 100 * 1797 * 64 * 12  # ten levels and the two products behind them
    assert cost.data_bytes == DIGITS.nbytes
    assert str(cost).startswith("2 passes over 0.115 MB of images, at most 0.000138 TMACs")


def test_mistakes_are_named() -> None:
    denoiser = OptimalDenoiser(DIGITS, FLOW)
    with pytest.raises(SettingError, match=r"\[3, 8, 8\] given, the denoiser's data set has \[1, 8, 8\]"):
        denoiser.x_0(torch.zeros(1, 3, 8, 8), 0.5)
    with pytest.raises(SettingError, match="without noise"):
        denoiser.x_0(torch.zeros(1, 1, 8, 8), 0.0)
    with pytest.raises(SettingError, match="from data to noise"):
        denoiser.posterior_means(*draws(DIGITS, 2), [0.5, 0.2])
    with pytest.raises(SettingError, match=r"optimal.prediction_type: 'epsilon'; allowed .* velocity"):
        OptimalDenoiser(DIGITS, FLOW, prediction_type="epsilon")
    with pytest.raises(SettingError, match=r"optimal.chunk: 0 is below 1"):
        OptimalDenoiser(DIGITS, FLOW, chunk=0)
    with pytest.raises(SettingError, match=r"images: numbers of type torch\.int64"):
        OptimalDenoiser(torch.zeros(3, 1, 8, 8, dtype=torch.int64), FLOW)
    with pytest.raises(SettingError, match="not finite"):
        OptimalDenoiser(torch.full((3, 1, 8, 8), float("nan")), FLOW)
    with pytest.raises(SettingError, match="N of 1 or more"):
        OptimalDenoiser(DIGITS[:0], FLOW)
    with pytest.raises(SettingError, match="N of 1 or more"):
        OptimalDenoiser(torch.zeros(0, 1, 8, 8), FLOW)
