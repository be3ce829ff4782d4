"""Latency models from tables of times, budgets in seconds aimed at with made-up clocks, the cache, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from unet_zoo import two_levels

from noisewise import NoiseSchedule, count_macs, prune_to_budget
from noisewise.cli import main
from noisewise.errors import SettingError
from noisewise.models.cost import CostModel
from noisewise.models.networks import describe
from noisewise.models.surgery import cut, kept_widths
from noisewise.objectives import Objective
from noisewise.pruning import latency as latency_module
from noisewise.pruning import time_budget
from noisewise.pruning.importance import importance
from noisewise.pruning.latency import cache_folder, check, fit, key_of, latency_of, modelled
from noisewise.pruning.latency_samples import Sample
from noisewise.pruning.proposers import RandomSettings
from noisewise.pruning.search import AIM, search
from noisewise.pruning.settings import TimingSettings
from noisewise.pruning.solver import SolverError
from noisewise.pruning.stopwatch import PassTimes, Ratio
from noisewise.pruning.time_budget import TimeBudgetError, batched, budget_of

INPUTS = 4  # images


@pytest.fixture(scope="module")
def model() -> UNet2DModel:
    return two_levels()


@pytest.fixture(scope="module")
def inputs(model: UNet2DModel) -> dict[str, Any]:
    return dict(describe(model).example_inputs(model, INPUTS))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def widths_at(model: UNet2DModel, seed: int) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    return {name: int(rng.integers(1, 5)) * width // 4 for name, width in kept_widths(model).items()}


class Machine:
    """Times that follow the latency model's own law, or, ``bend`` away from 1, another one."""

    def __init__(self, model: UNet2DModel, bend: float = 1.0, noise: float = 0.0) -> None:
        self.net, self.bend, self.noise = describe(model).wiring(model), bend, noise
        self.areas = {layer.path: 100 for layer in self.net.layers if layer.kind == "norm"}
        self.rng = np.random.default_rng(1)

    def times(self, widths: Mapping[str, int]) -> PassTimes:
        own = {}
        for layer in self.net.layers:
            read, written = self.net.width(layer.inputs, widths), self.net.width(layer.outputs, widths)
            if layer.kind == "norm":
                own[layer.path] = 1e-5 + 2e-6 * read
            elif layer.kind != "embedding":
                own[layer.path] = 1e-5 + 1e-7 * read + 3e-7 * written + 4e-7 * read * written
        for spec in self.net.attentions:
            own[spec.path] = 2e-5 + 1e-6 * self.net.width((spec.axis,), widths)
        volume = sum(100 * self.net.width(layer.inputs, widths) for layer in self.net.layers if layer.kind == "norm")
        jitter = 1 + self.noise * self.rng.standard_normal(len(own))
        own = {path: seconds * factor for (path, seconds), factor in zip(own.items(), jitter, strict=True)}
        return PassTimes(own, 5e-4 + 1e-8 * volume)

    def sample(self, widths: Mapping[str, int]) -> Sample:
        return Sample(widths, self.times(widths))

    def table(self, model: UNet2DModel, number: int = 24) -> dict[str, Any]:
        samples = [self.sample({}), *(self.sample(widths_at(model, i)) for i in range(number))]
        return {**fit(self.net, samples, self.areas), "areas": self.areas}

    def ratio(self, small: Any, base: Any, inputs: Any, accuracy: float, clock: str = "wall") -> Ratio:
        """In place of two networks taking turns."""
        share = (self.times(kept_widths(small)).total / self.times(kept_widths(base)).total) ** self.bend
        return Ratio(share, (share - 0.01, share + 0.01), 0.005, share, 1.0, 7)


@pytest.fixture
def machine(model: UNet2DModel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """A made-up machine that everything is measured on."""

    def install(bend: float = 1.0, noise: float = 0.0) -> Machine:
        made = Machine(model, bend, noise)

        def measured(model: Any, inputs: Any, number: int, *, seed: int = 0) -> tuple[list[Sample], dict[str, int]]:
            return [made.sample({}), *(made.sample(widths_at(model, seed + i)) for i in range(1, number))], made.areas

        monkeypatch.setattr(latency_module, "measure", measured)
        monkeypatch.setattr(time_budget, "time_ratio", made.ratio)
        return made

    return install


def test_times_that_follow_the_law_are_predicted_exactly(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    machine, cost = Machine(model), CostModel.of(model, inputs)
    latency = modelled(cost, machine.table(model))
    for seed in range(100, 110):
        widths = widths_at(model, seed)
        assert latency.seconds(widths) == pytest.approx(machine.times(widths).total, rel=1e-6)
    assert latency.base_seconds == pytest.approx(latency.seconds({}), rel=1e-6)
    assert latency.parameters({}) == cost.parameters({})


def test_the_solvers_form_is_the_prediction(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    latency = modelled(CostModel.of(model, inputs), Machine(model).table(model))
    for seed in range(5):
        widths = widths_at(model, seed)
        w = np.array([widths[name] for name in latency.cost.names], dtype=np.float64)
        form = latency.constant + w @ latency.linear + 0.5 * w @ latency.bilinear @ w
        assert form * 1e-12 == pytest.approx(latency.seconds(widths), rel=1e-9)


def test_a_block_that_is_left_out_takes_its_layers_time_along(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    latency = modelled(CostModel.of(model, inputs), Machine(model).table(model))
    axis = next(axis for axis in latency.wiring.axes.values() if axis.removes)
    least = latency.seconds({axis.name: 1})
    assert latency.seconds({axis.name: 0}) < least - 1e-6 * latency.wiring.axes[axis.name].unit


def test_noise_is_averaged_and_the_error_of_prediction_is_stated(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    noisy, exact = Machine(model, noise=0.1), Machine(model)
    latency = modelled(CostModel.of(model, inputs), noisy.table(model))
    others = [exact.sample(widths_at(model, seed)) for seed in range(50, 60)]
    errors = check(latency, exact.sample({}), others)
    assert 0 < errors["prediction_error"] <= errors["largest_error"] < 0.06
    worse = check(latency, exact.sample({}), [Sample({}, PassTimes({}, 1.0))])
    assert worse["largest_error"] > 0.5


def test_coefficients_are_never_negative(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    table = Machine(model, noise=0.8).table(model, number=8)
    assert all(value >= 0 for values in table["coefficients"].values() for value in values)
    latency = modelled(CostModel.of(model, inputs), table)
    assert (latency.linear >= 0).all()
    assert (latency.bilinear >= 0).all()


def test_a_network_is_measured_once(
    model: UNet2DModel, inputs: dict[str, Any], machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    first = latency_of(model, inputs)
    (path,) = cache_folder().iterdir()
    table = json.loads(path.read_text())
    assert table["key"] == key_of(model, inputs)
    assert {"network", "inputs", "device", "dtype", "threads", "torch"} <= table["key"].keys()

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(latency_module, "measure", never)
    again = latency_of(model, inputs)
    assert again.seconds({}) == first.seconds({})
    assert again.prediction_error == first.prediction_error
    for other in (dict(describe(model).example_inputs(model, 2)), {**inputs, "timestep": inputs["timestep"].int()}):
        with pytest.raises(AssertionError, match="measured again"):
            latency_of(model, other)
    smaller = cut(model, {"conv_in": torch.arange(4)})
    with pytest.raises(AssertionError, match="measured again"):
        latency_of(smaller, inputs)


@pytest.mark.parametrize("text", ["{}", '{"key": 1}', "nonsense"])
def test_a_damaged_table_is_named(
    model: UNet2DModel, inputs: dict[str, Any], machine: Callable[..., Machine], text: str
) -> None:
    machine()
    latency_of(model, inputs)
    (path,) = cache_folder().iterdir()
    path.write_text(text)
    with pytest.raises(SettingError, match=path.name):
        latency_of(model, inputs)


@pytest.mark.parametrize("share", [0.85, 0.6])
def test_a_budget_in_seconds_is_met_and_both_costs_are_told(
    model: UNet2DModel, inputs: dict[str, Any], machine: Callable[..., Machine], share: float
) -> None:
    made = machine()
    small, info = prune_to_budget(model, inputs, {"seconds": share}, "magnitude")
    measured = made.ratio(small, model, {}, 0).median
    assert info.budget_in == "seconds"
    assert info.asked == share
    assert info.achieved == measured == pytest.approx(share, rel=0.05)
    assert info.time is not None
    assert info.time.attempts == (measured,)
    assert info.time.predicted == pytest.approx(measured, rel=1e-3)
    assert info.time.batch_size == 64
    assert info.macs == count_macs(small, inputs) < info.base_macs == count_macs(model, inputs)
    assert info.to_dict()["time"]["threads"] == torch.get_num_threads()
    assert f"asked {share}" in str(info.time)


def test_what_was_missed_is_aimed_off_by(
    model: UNet2DModel, inputs: dict[str, Any], machine: Callable[..., Machine]
) -> None:
    machine(bend=0.6)  # half the predicted time is 0.66 of the measured one
    _, info = prune_to_budget(model, inputs, {"seconds": 0.7}, "magnitude", timing=TimingSettings(attempts=6))
    assert info.time is not None
    assert len(info.time.attempts) > 1
    assert abs(info.time.attempts[0] / 0.7 - 1) > 0.05
    assert info.achieved == info.time.attempts[-1] == pytest.approx(0.7, rel=0.05)
    assert info.time.predicted < info.achieved


def test_a_time_that_is_not_reached_fails_with_what_was(
    model: UNet2DModel, inputs: dict[str, Any], machine: Callable[..., Machine]
) -> None:
    machine(bend=0.6)
    with pytest.raises(
        TimeBudgetError, match=r"prune\.budget: 0\.7 of the model's time asked; measured were 0\.8"
    ) as e:
        prune_to_budget(model, inputs, {"seconds": 0.7}, "magnitude", timing=TimingSettings(attempts=1))
    assert e.value.reached[0] == pytest.approx(0.7**0.6, rel=0.03)
    latency = latency_of(model, batched(model, inputs, 64))
    least = latency.share({name: latency.wiring.axes[name].unit for name in latency.cost.names})
    with pytest.raises(SolverError, match=r"predicted time; the nearest .* measured so far"):
        prune_to_budget(model, inputs, {"seconds": 1.2 * least}, "magnitude", timing=TimingSettings(attempts=6))
    with pytest.raises(SolverError, match=r"of the model's predicted time; the nearest"):
        prune_to_budget(model, inputs, {"seconds": 0.01}, "magnitude")


def test_a_search_within_a_time(
    model: UNet2DModel, inputs: dict[str, Any], machine: Callable[..., Machine], tmp_path: Path
) -> None:
    made = machine(bend=0.8)
    settings = RandomSettings(rounds=2, candidates=2, num_score_images=8)
    looking: dict[str, Any] = {
        "objective": Objective(NoiseSchedule.named("linear", 100)),
        "images": torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1,
        "importance": importance(model, "magnitude"),
        "workspace": tmp_path,
    }
    found = search(model, inputs, {"seconds": 0.7}, settings, **looking)
    assert found.info.budget_in == "seconds"
    assert found.info.achieved == made.ratio(found.model, model, {}, 0).median == pytest.approx(0.7, rel=0.05)
    target = json.loads((tmp_path / AIM).read_text())["target"]
    assert target < 0.7
    assert all(0.98 * target - 1e-9 <= record.cost <= target for record in found.bank.records if record.cost)
    again = search(model, inputs, {"seconds": 0.7}, settings, **looking)
    assert again.bank.records == found.bank.records
    machine(bend=0.5)
    with pytest.raises(TimeBudgetError, match=r"measured were 0\.8"):
        search(model, inputs, {"seconds": 0.7}, settings, **looking)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"flops": 0.5}, r"prune\.budget: \{'flops': 0\.5\} given; one of macs and seconds"),
        ({"seconds": 0.5, "macs": 0.5}, r"one of macs and seconds"),
        ({}, r"one of macs and seconds"),
        ({"seconds": 1.5}, r"prune\.budget: 1\.5 is not in"),
        ({"macs": 0.0}, r"prune\.budget: 0\.0 is not in"),
    ],
)
def test_budgets_that_are_none(
    model: UNet2DModel, inputs: dict[str, Any], budget: dict[str, float], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        prune_to_budget(model, inputs, budget, "magnitude")


def test_macs_by_name_are_macs(model: UNet2DModel, inputs: dict[str, Any]) -> None:
    assert budget_of({"macs": 0.5}) == budget_of(0.5) == (0.5, "macs")
    _, by_name = prune_to_budget(model, inputs, {"macs": 0.6}, "magnitude")
    _, plain = prune_to_budget(model, inputs, 0.6, "magnitude")
    assert (by_name.widths, by_name.achieved, by_name.budget_in) == (plain.widths, plain.achieved, "macs")
    assert by_name.time is None


def test_the_command(
    model: UNet2DModel, machine: Callable[..., Machine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine()
    model.save_pretrained(tmp_path / "base")
    words = ["prune", str(tmp_path / "base"), "--out", str(tmp_path / "small"), "--budget"]
    for refused, message in (
        (["fast"], "--budget: fast given; a fraction such as 0.7, or seconds=0.7"),
        (["hours=1"], "--budget: hours=1 given"),
        (["0.7", "--batch-size", "8"], "--batch-size: belongs to --budget seconds"),
        (["seconds=0.7", "--batch-size", "0"], "--batch-size: 0 given"),
        (["seconds=1.7"], "prune.budget: 1.7"),
    ):
        assert main([*words, *refused]) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert main([*words, "seconds=0.7", "--batch-size", "8"]) == 0
    said = capsys.readouterr().out
    assert "of the MACs, " in said
    assert "of the time measured" in said
    assert "asked 0.7" in said
    found = json.loads((tmp_path / "small" / "pruning.json").read_text())
    assert found["budget_in"] == "seconds"
    assert found["time"]["batch_size"] == 8
