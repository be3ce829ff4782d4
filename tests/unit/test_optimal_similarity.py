from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from noisewise.errors import SettingError
from noisewise.objectives import Objective
from noisewise.optimal import OptimalDenoiser, ideal_loss, similarities
from noisewise.optimal.similarity import SimilarityDraws
from noisewise.planning.levels import even_levels
from noisewise.schedule import NoiseSchedule

VP = NoiseSchedule.vp()
DIGITS = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[:, None]  # [1797, 1, 8, 8]


def all_draws(denoiser: OptimalDenoiser, num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x_0, noise = next(SimilarityDraws(denoiser, num, seed).blocks(num))
    return x_0.double(), noise.double()


@pytest.mark.parametrize("schedule", [VP, NoiseSchedule.edm(), NoiseSchedule.flow()], ids=["vp", "edm", "flow"])
def test_similarities_equal_those_of_a_plain_double_loop(schedule: NoiseSchedule) -> None:
    eta = 0.02
    denoiser = OptimalDenoiser(DIGITS, schedule)
    levels = even_levels(schedule, 9)[:-1]
    found = similarities(denoiser, levels, 16, eta=eta, seed=3)
    x_0, noise = all_draws(denoiser, 16, seed=3)
    y = torch.from_numpy(DIGITS).double().flatten(1) / 127.5 - 1  # [n, D]

    def epsilon(t: float) -> torch.Tensor:
        """eps* from x_t and distances to every image, in float64."""
        signal, noisiness = schedule.signal(t), schedule.noise(t)
        x_t = (signal * x_0 + noisiness * noise).flatten(1)
        distances = (x_t[:, None] - signal * y).square().sum(-1)  # [B, n]
        return (x_t - signal * (torch.softmax(-distances / (2 * noisiness**2), 1) @ y)) / noisiness

    def alike(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
        return ((a - b).abs() <= eta).double().mean(1).numpy()

    one_pixel = 1.01 / 64  # a difference may fall on the other side of eta by rounding
    answers = [epsilon(float(t)) for t in levels]
    for i, (t, answer) in enumerate(zip(levels, answers, strict=True)):
        sigma = schedule.noise(float(t)) / schedule.signal(float(t))
        of_mean = noise.flatten(1) + (x_0.flatten(1) - y.mean(0)) / sigma
        assert np.abs(found.to_start[i] - alike(answer, noise.flatten(1))).max() <= one_pixel
        assert np.abs(found.to_end[i] - alike(answer, answers[-1])).max() <= one_pixel
        assert np.abs(found.to_mean[i] - alike(answer, of_mean)).max() <= one_pixel
        for j, other in enumerate(answers):
            assert abs(found.pairs[i, j] - alike(answer, other).mean()) <= one_pixel / 4
    assert 0.1 < found.pairs.min() < 0.9
    np.testing.assert_allclose(found.sigma, [schedule.noise(float(t)) / schedule.signal(float(t)) for t in levels])


def test_references_are_met_at_the_ends() -> None:
    found = similarities(OptimalDenoiser(DIGITS, VP), even_levels(VP, 100), 32)

    assert found.num_draws == 32
    assert (found.to_start[0] == 1).all()  # least noise: the image itself is recovered
    assert (found.to_end[-1] == 1).all()
    assert (found.to_mean[-1] == 1).all()
    assert found.to_start.mean(1).min() < 0.5
    assert (np.diag(found.pairs) == 1).all()
    assert (found.pairs == found.pairs.T).all()
    assert found.num_duplicates == 0


def test_draws_depend_on_the_seed_alone() -> None:
    levels = even_levels(VP, 6)
    whole = similarities(OptimalDenoiser(DIGITS, VP), levels, 20, seed=1)
    pieces = similarities(OptimalDenoiser(DIGITS, VP, chunk=97, working_memory=300_000), levels, 20, seed=1)
    fewer = similarities(OptimalDenoiser(DIGITS, VP), levels, 7, seed=1)
    other = similarities(OptimalDenoiser(DIGITS, VP), levels, 7, seed=2)

    assert np.abs(whole.to_start - pieces.to_start).max() <= 1.01 / 64
    assert np.abs(whole.pairs - pieces.pairs).max() <= 1 / 64
    np.testing.assert_array_equal(whole.to_end[:, :7], fewer.to_end)
    assert not np.array_equal(fewer.to_start, other.to_start)


def test_more_draws_than_images_take_them_again_with_other_noise() -> None:
    denoiser = OptimalDenoiser(DIGITS[:5], VP)
    x_0, noise = all_draws(denoiser, 12)
    assert len(x_0.flatten(1).unique(dim=0)) == 5
    assert len(noise.flatten(1).unique(dim=0)) == 12


def test_copies_of_an_image_do_not_change_the_limit_of_no_noise() -> None:
    twice = OptimalDenoiser(np.repeat(DIGITS[:40], 2, axis=0), VP)
    found = similarities(twice, [0, 10, 300, 999], 30)
    once = similarities(OptimalDenoiser(DIGITS[:40], VP), [0, 10, 300, 999], 30)

    assert (found.num_duplicates, once.num_duplicates) == (40, 0)
    assert (found.to_start[:2] == 1).all()
    assert (once.to_start[:2] == 1).all()


def test_mistakes_are_named() -> None:
    denoiser = OptimalDenoiser(DIGITS, VP)
    for arguments, message in (
        ({"levels": [5, 3], "num_draws": 2}, "from data to noise"),
        ({"levels": [5], "num_draws": 2}, "two or more noise levels"),
        ({"levels": [3, 5], "num_draws": 0}, "plan.num_draws: 0 is below 1"),
        ({"levels": [3, 5], "num_draws": 2, "eta": 0.0}, "plan.eta: 0.0 is not above 0"),
    ):
        with pytest.raises(SettingError, match=message):
            similarities(denoiser, **arguments)
    with pytest.raises(SettingError, match=r"evaluate.num_draws: 0 is below 1"):
        ideal_loss(denoiser, [5.0], 0)


def test_ideal_loss_of_gaussian_samples_is_the_gaussian_s() -> None:
    """For x_0 ~ N(0, s^2) the noise is known up to a variance of s^2 / (s^2 + sigma^2)."""
    deviation = 0.5
    samples = deviation * torch.randn(4_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    sigmas = [0.3, 1.0, 5.0]
    found = ideal_loss(OptimalDenoiser(samples, NoiseSchedule.edm()), sigmas, 2000)

    np.testing.assert_allclose(found, [deviation**2 / (deviation**2 + s**2) for s in sigmas], rtol=0.1)


def test_ideal_loss_is_the_error_an_objective_measures() -> None:
    denoiser = OptimalDenoiser(DIGITS, VP)
    levels = [100, 400, 800]
    x_0, noise = all_draws(denoiser, 50)
    objective = Objective(VP)
    found = ideal_loss(denoiser, levels, 50)

    for t, loss in zip(levels, found, strict=True):
        draw = objective.noised(x_0.float(), noise.float(), torch.full((50,), t))
        np.testing.assert_allclose(loss, float(objective.error(denoiser, draw).mean()), rtol=1e-3, atol=1e-7)
    assert found[0] < found[1]
