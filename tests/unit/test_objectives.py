"""What is drawn, what is learned, and how it is weighted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from noisewise.data.images import Images
from noisewise.errors import SettingError
from noisewise.models.calls import denoise, takes_class_labels
from noisewise.objectives import Draw, Objective
from noisewise.schedule import NoiseSchedule
from noisewise.streams import stream

SCHEDULE = NoiseSchedule.named("linear", 1000)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def images(num: int = 6, channels: int = 3) -> torch.Tensor:
    return torch.rand(num, channels, 4, 4, generator=stream("images")) * 2 - 1


def some_draw(objective: Objective, t: list[int]) -> Draw:
    x_0 = images(len(t))
    return objective.noised(x_0, torch.randn(x_0.shape, generator=stream("noise")), torch.tensor(t))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("weighting", ["uniform", "min-snr", "p2"])
def test_the_right_answer_costs_nothing(prediction_type: str, weighting: str) -> None:
    objective = Objective(SCHEDULE, prediction_type, weighting=weighting)
    draw = some_draw(objective, [0, 1, 500, 999])
    target = objective.target(draw)
    assert objective.loss(lambda x_t, t: target, draw).tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(objective.epsilon(target, draw), draw.noise, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(objective.x_0(target, draw), draw.x_0, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_error_is_that_of_the_noise_whatever_is_predicted(prediction_type: str) -> None:
    epsilon = Objective(SCHEDULE)
    draw = some_draw(epsilon, [20, 300, 700, 999])
    wrong = draw.noise + 0.1 * torch.randn(draw.noise.shape, generator=stream("wrong"))
    expected = (wrong - draw.noise).square().flatten(1).mean(1)
    x_0 = epsilon.x_0(wrong, draw)
    signal = SCHEDULE.signal(draw.t).reshape(-1, 1, 1, 1)
    noise = SCHEDULE.noise(draw.t).reshape(-1, 1, 1, 1)
    answer = {"epsilon": wrong, "sample": x_0, "v_prediction": signal * wrong - noise * x_0}[prediction_type]
    error = Objective(SCHEDULE, prediction_type, weighting="p2").error(lambda x_t, t: answer, draw)
    torch.testing.assert_close(error, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("weighting", ["min-snr", "p2"])
def test_weights_mean_the_same_in_every_prediction_space(weighting: str) -> None:
    """A wrong x_0 costs the same whether it was told as noise, velocity or image."""
    t = [20, 300, 700, 990]
    losses = []
    for prediction_type in PREDICTIONS:
        objective = Objective(SCHEDULE, prediction_type, weighting=weighting)
        draw = some_draw(objective, t)
        x_0 = draw.x_0 + 0.3
        signal, noise = (f(draw.t).reshape(-1, 1, 1, 1) for f in (SCHEDULE.signal, SCHEDULE.noise))
        epsilon = (draw.x_t - signal * x_0) / noise
        answer = {"epsilon": epsilon, "sample": x_0, "v_prediction": signal * epsilon - noise * x_0}[prediction_type]
        losses.append(objective.loss(lambda x_t, t, answer=answer: answer, draw))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-3, atol=1e-7)


def test_weights_match_the_papers_formulas() -> None:
    t = torch.tensor([0, 100, 500, 999])
    snr = torch.from_numpy(SCHEDULE.alphas_cumprod / (1 - SCHEDULE.alphas_cumprod))[t].float()
    capped = snr.clamp(max=5.0)
    expected = {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}
    for prediction_type, weight in expected.items():
        torch.testing.assert_close(Objective(SCHEDULE, prediction_type, weighting="min-snr").weight(t), weight)
    p2 = Objective(SCHEDULE, weighting="p2", p2_gamma=0.5, p2_k=2.0)
    torch.testing.assert_close(p2.weight(t), (2 + snr) ** -0.5)


def test_weights_stay_finite_at_zero_terminal_snr() -> None:
    betas = np.linspace(1e-4, 0.2, 50)
    schedule = NoiseSchedule.from_betas(np.append(betas, 1.0))
    for weighting in ("uniform", "min-snr", "p2"):
        objective = Objective(schedule, "v_prediction", weighting=weighting)
        draw = some_draw(objective, [50, 50])
        assert objective.loss(lambda x_t, t: torch.zeros_like(x_t), draw).isfinite().all()


def test_draws_stay_in_their_range_and_depend_on_the_generator_alone() -> None:
    objective = Objective(SCHEDULE)
    x_0 = images(500)
    draw = objective.draw(x_0, stream("a"), (10, 13))
    assert sorted(draw.t.unique().tolist()) == [10, 11, 12]
    again = objective.draw(x_0, stream("a"), (10, 13))
    assert torch.equal(draw.x_t, again.x_t)
    assert not torch.equal(draw.noise, objective.draw(x_0, stream("b"), (10, 13)).noise)
    signal, noise = (f(draw.t).reshape(-1, 1, 1, 1) for f in (SCHEDULE.signal, SCHEDULE.noise))
    torch.testing.assert_close(draw.x_t, signal * x_0 + noise * draw.noise)
    share = objective.draw(x_0, stream("a"), (10, 13), all_timesteps_share=0.3).t
    assert 0.2 < ((share < 10) | (share >= 13)).float().mean() < 0.4


@pytest.mark.parametrize("timesteps", [(-1, 5), (5, 5), (6, 5), (0, 1001)])
def test_ranges_beyond_the_schedule_are_refused(timesteps: tuple[int, int]) -> None:
    with pytest.raises(SettingError, match=r"within \[0, 1000\)"):
        Objective(SCHEDULE).draw(images(), stream("a"), timesteps)


def test_fixed_draws_are_paired_stratified_and_batch_free() -> None:
    objective = Objective(SCHEDULE)
    data = Images.from_pixels(
        np.random.default_rng(0).integers(0, 256, (10, 3, 4, 4), dtype=np.uint8), np.arange(10), tuple("abcdefghij")
    )
    draws = objective.fixed_draws(data, 25, ("score", 1), (100, 200), batch_size=8)
    assert [len(draw) for draw in draws] == [8, 8, 8, 1]
    t = torch.cat([draw.t for draw in draws])
    assert torch.histc(t.float(), bins=5, min=100, max=200).tolist() == [5] * 5  # a fifth of the draws each
    labels = torch.cat([draw.class_labels for draw in draws])
    assert set(labels.bincount().tolist()) == {2, 3}  # images repeat only when all were used

    again = objective.fixed_draws(data, 25, ("score", 1), (100, 200), batch_size=8)
    assert all(torch.equal(a.x_t, b.x_t) for a, b in zip(draws, again, strict=True))
    other = objective.fixed_draws(data, 25, ("score", 2), (100, 200), batch_size=8)
    assert not torch.equal(draws[0].x_t, other[0].x_t)

    whole = objective.fixed_draws(data, 25, ("score", 1), (100, 200), batch_size=25)[0]
    assert torch.equal(whole.noise, torch.cat([draw.noise for draw in draws]))
    tensors = objective.fixed_draws(
        data.batch(range(10))[0], 25, ("score", 1), (100, 200), torch.arange(10), batch_size=8
    )
    assert all(torch.equal(a.x_t, b.x_t) for a, b in zip(draws, tensors, strict=True))


def test_the_mean_learns_nothing_from_the_variational_term() -> None:
    objective = Objective(SCHEDULE, variance="learned_range")
    draw = some_draw(objective, [0, 3, 400, 999])
    output = torch.randn(4, 6, 4, 4, generator=stream("output")).requires_grad_()
    objective.loss(lambda x_t, t: output, draw).sum().backward()
    gradient = output.grad
    simple = torch.autograd.grad((output[:, :3] - draw.noise).square().flatten(1).mean(1).sum(), output)[0]
    torch.testing.assert_close(gradient[:, :3], simple[:, :3])
    assert (gradient[:, 3:].flatten(1).abs().sum(1) > 0).all()


def test_a_teacher_adds_its_distance() -> None:
    objective = Objective(SCHEDULE)
    draw = some_draw(objective, [5, 500])
    student, teacher = torch.zeros_like(draw.x_0), torch.ones_like(draw.x_0)
    plain = objective.loss(lambda x_t, t: student, draw)
    taught = objective.loss(lambda x_t, t: student, draw, teacher=lambda x_t, t: teacher, distill_weight=0.25)
    torch.testing.assert_close(taught - plain, torch.full((2,), 0.25))


def test_class_labels_reach_only_models_that_take_them() -> None:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    sizes = {"sample_size": 4, "norm_num_groups": 4, "layers_per_block": 1}
    plain, conditional = UNet2DModel(**blocks, **sizes), UNet2DModel(num_class_embeds=2, **blocks, **sizes)
    x_t, t, labels = images(2), torch.tensor([1, 2]), torch.tensor([0, 1])
    assert not takes_class_labels(plain)
    assert takes_class_labels(conditional)
    assert denoise(plain, x_t, t, labels).shape == x_t.shape
    assert denoise(conditional, x_t, t, labels).shape == x_t.shape
    with pytest.raises(SettingError, match="no labels"):
        denoise(conditional, x_t, t)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(SettingError, match=r"objective\.prediction_type: 'eps' is not one of epsilon"):
        Objective(SCHEDULE, "eps")
    with pytest.raises(
        SettingError, match=r"objective\.prediction_type: 'epsilon' is not one of velocity \(under a flow"
    ):
        Objective(NoiseSchedule.flow(), "epsilon")
    with pytest.raises(SettingError, match="min_snr_gamma 0"):
        Objective(SCHEDULE, min_snr_gamma=0)
    learned = Objective(SCHEDULE, variance="learned_range")
    draw = some_draw(learned, [1])
    with pytest.raises(SettingError, match="needs a model with 6 output channels, this one has 3"):
        learned.loss(lambda x_t, t: x_t, draw)
    with pytest.raises(SettingError, match="needs a model with 3 output channels, this one has 6"):
        Objective(SCHEDULE).loss(lambda x_t, t: torch.cat([x_t, x_t], 1), draw)


def test_every_choice_is_in_its_json() -> None:
    values = Objective(SCHEDULE, "sample", weighting="p2", p2_gamma=0.5).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["schedule"] == SCHEDULE.to_dict()
    assert (values["prediction_type"], values["p2_gamma"]) == ("sample", 0.5)
