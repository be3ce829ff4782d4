"""Importances against what they mean: the change of the loss when a channel goes."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel

from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.models.networks.wiring import Axis, Layer, Wiring
from noisewise.objectives import Objective
from noisewise.pruning.importance import ImportanceKind, _Batches, accumulated_gradients, channel_sums, importance
from noisewise.schedule import NoiseSchedule

KINDS = ("taylor", "diff-pruning", "magnitude", "random")


@pytest.fixture(scope="module")
def model() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=None,
        resnet_time_scale_shift="scale_shift",
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


@pytest.fixture(scope="module")
def objective() -> Objective:
    return Objective(NoiseSchedule.named("linear", 100))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_slices_of_concatenations_and_doubled_axes_reach_their_axis() -> None:
    wiring = Wiring(
        {name: Axis(name, width, 1, "inner", "") for name, width in (("a", 2), ("b", 3))},
        (
            Layer("conv", "conv", ("a", "b"), ("b",)),  # [3, 5, 1, 1]
            Layer("time", "linear", (), ("b", "b")),  # [6, 1]: scale, then shift
            Layer("norm", "norm", ("a", "b"), ("a", "b")),  # [5]
        ),
    )
    conv = torch.arange(15.0).reshape(3, 5, 1, 1)
    tensors = {
        "conv.weight": conv,
        "conv.bias": torch.tensor([100.0, 200.0, 300.0]),
        "time.bias": torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0, 30.0]),
        "norm.weight": torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]),
    }
    sums = channel_sums(wiring, tensors, lambda x: x)
    reads, writes = conv.sum((0, 2, 3)), conv.sum((1, 2, 3))
    torch.testing.assert_close(sums["a"], (reads[:2] + torch.tensor([0.1, 0.2])).double())
    expected = reads[2:] + writes + torch.tensor([111.3, 222.4, 333.5])
    torch.testing.assert_close(sums["b"], expected.double())


@pytest.mark.parametrize("kind", KINDS)
def test_every_axis_has_a_finite_score_per_channel(
    kind: str, model: UNet2DModel, objective: Objective, images: torch.Tensor
) -> None:
    before = {name: p.clone() for name, p in model.state_dict().items()}
    model.requires_grad_(False).train()
    scores = importance(model, kind, objective=objective, images=images, timestep_stride=20)  # type: ignore[arg-type]
    again = importance(model, kind, objective=objective, images=images, timestep_stride=20)  # type: ignore[arg-type]
    assert model.training
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    wiring = describe(model).wiring(model)
    assert tuple(scores) == wiring.prunable
    for name, score in scores.items():
        assert score.shape == (wiring.axes[name].width,)
        assert score.dtype == torch.float64
        assert torch.isfinite(score).all()
        assert (score >= 0).all()
        assert score.std() > 0
        assert torch.equal(score, again[name])
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_taylor_is_the_derivative_of_the_loss_along_a_channels_weights(
    model: UNet2DModel, objective: Objective, images: torch.Tensor
) -> None:
    """Scaling all weights tied to a channel by 1 - h changes the loss by -h times the signed sum."""
    name = "down_blocks.0.resnets.0.inner"
    scores = importance(model, "taylor", objective=objective, images=images, timesteps=(30, 31))
    wiring = describe(model).wiring(model)
    draw = objective.draw(*_batch(images, 30))

    @torch.no_grad()
    def loss(scale: float) -> float:
        state = {key: value.clone().double() for key, value in model.state_dict().items()}
        for layer in wiring.layers:
            for dim, parts in ((0, layer.outputs), (1, layer.inputs)):
                for suffix in ("weight", "bias"):
                    key = f"{layer.path}.{suffix}"
                    if key not in state or (dim == 1 and (suffix == "bias" or layer.kind == "norm")):
                        continue
                    offset = 0
                    for part in parts:
                        if part == name:
                            state[key].select(dim, offset + 1).mul_(scale)  # channel 1
                        offset += wiring.axes[part].width
        twin = type(model).from_config(model.config).double().eval()
        twin.load_state_dict(state)
        x_t, t, noise = draw.x_t.double(), draw.t, draw.noise.double()
        return float((twin(x_t, t).sample - noise).square().mean())

    h = 1e-5
    slope = (loss(1 + h) - loss(1 - h)) / (2 * h)
    assert float(scores[name][1]) == pytest.approx(abs(slope), rel=2e-3)


def _batch(images: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Generator, tuple[int, int]]:
    """The images and noise that the importance draws at ``t`` with seed 0."""
    x_0, _, generator = _Batches(images, None, 64, 0).at(t, torch.device("cpu"))
    return x_0, generator, (t, t + 1)


def test_groups_get_scores_of_their_own(model: UNet2DModel, objective: Objective, images: torch.Tensor) -> None:
    low = importance(model, "taylor", objective=objective, images=images, timesteps=(0, 10), timestep_stride=5)
    high = importance(model, "taylor", objective=objective, images=images, timesteps=(90, 100), timestep_stride=5)
    assert any(not torch.allclose(low[name], high[name], rtol=0.1) for name in low)


def test_diff_pruning_bounds_taylor_and_stops_where_the_loss_is_small(
    model: UNet2DModel, objective: Objective, images: torch.Tensor
) -> None:
    settings = {"objective": objective, "images": images, "timesteps": (0, 40), "timestep_stride": 10}
    taylor, full = importance(model, "taylor", **settings), importance(model, "diff-pruning", threshold=0.0, **settings)  # type: ignore[arg-type]
    assert all((full[name] >= taylor[name] - 1e-12).all() for name in full)  # |sum| <= sum ||

    visited: list[int] = []

    class Falling(Objective):
        def loss(self, model, draw, **kwargs):  # type: ignore[no-untyped-def]
            visited.append(int(draw.t[0]))
            return super().loss(model, draw) * (1.0 if draw.t[0] < 15 else 1e-3)

    settings["objective"] = Falling(objective.schedule)
    stopped = importance(model, "diff-pruning", **settings)  # type: ignore[arg-type]
    assert visited == [0, 10, 20]
    settings["timesteps"] = (0, 20)
    only = importance(model, "diff-pruning", **settings)  # type: ignore[arg-type]
    assert all(torch.equal(stopped[name], only[name]) for name in only)


@pytest.mark.parametrize("schedule", [NoiseSchedule.edm(), NoiseSchedule.flow()], ids=["edm", "flow"])
@pytest.mark.parametrize("kind", ["taylor", "diff-pruning"])
def test_groups_of_sigma_and_of_flow_time_get_scores(
    kind: ImportanceKind, schedule: NoiseSchedule, model: UNet2DModel, images: torch.Tensor
) -> None:
    objective = Objective(schedule)
    start, stop = schedule.span
    middle = float(schedule.grid()[500])
    low, again, high = (
        importance(model, kind, objective=objective, images=images, timesteps=timesteps, timestep_stride=100)
        for timesteps in ((start, middle), (start, middle), (middle, stop))
    )
    assert all(torch.isfinite(score).all() and score.sum() > 0 for score in low.values())
    assert all(torch.equal(low[name], again[name]) for name in low)
    assert any(not torch.allclose(low[name], high[name], rtol=0.1) for name in low)


def test_a_continuous_group_is_scored_on_the_points_of_its_grid(model: UNet2DModel, images: torch.Tensor) -> None:
    """The gradients are those of the training loss at each of its levels, added up."""
    objective = Objective(NoiseSchedule.edm(num_train_timesteps=40))
    timesteps = (0.05, 5.0)
    sigmas = objective.levels(timesteps)
    assert len(sigmas) in (17, 18)
    seen: list[float] = []

    class Watched(Objective):
        def loss(self, model, draw, **kwargs):  # type: ignore[no-untyped-def]
            seen.append(float(draw.t[0]))
            return super().loss(model, draw)

    scores = importance(model, "taylor", objective=Watched(objective.schedule), images=images, timesteps=timesteps)
    assert seen == sigmas
    total = accumulated_gradients(model, objective, _Batches(images, None, 64, 0), sigmas, 0.0)
    wiring = describe(model).wiring(model)
    products = {name: p.detach() * total[name] for name, p in model.named_parameters()}
    expected = channel_sums(wiring, products, lambda x: x)
    assert all(torch.equal(scores[name], expected[name].abs()) for name in scores)


def test_magnitude_prefers_larger_channels_and_is_one_on_average(model: UNet2DModel) -> None:
    twin = UNet2DModel.from_config(model.config)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        twin.down_blocks[0].resnets[0].conv1.weight[3].mul_(10)
    scores = importance(twin, "magnitude")
    assert scores["down_blocks.0.resnets.0.inner"].argmax() == 3
    assert all(float(score.mean()) == pytest.approx(1.0) for score in scores.values())


def test_clear_refusals(model: UNet2DModel, objective: Objective, images: torch.Tensor) -> None:
    with pytest.raises(SettingError, match=r"prune\.importance: taylor needs"):
        importance(model, "taylor")
    with pytest.raises(SettingError, match=r"prune\.importance: 'tailor' is not one of"):
        importance(model, "tailor")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="no images"):
        importance(model, "taylor", objective=objective, images=images[:0])
    with pytest.raises(SettingError, match=r"prune\.timestep_stride"):
        importance(model, "taylor", objective=objective, images=images, timestep_stride=-1)
