"""Pairs of experts as diffusers' Wan 2.2 pipelines hold them: the same boundary, the same files."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from stock_pipelines import wan_transformer

from noisewise import ExpertDenoiser, NoiseSchedule, Plan
from noisewise.errors import SettingError
from noisewise.models.pairs import from_pair, load_pair, save_pair, to_pair

SCHEDULERS = {
    "UniPC, flow": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    "Euler, flow": FlowMatchEulerDiscreteScheduler(shift=5.0),
    "DDIM": DDIMScheduler(),
    "DDIM, 777 steps": DDIMScheduler(num_train_timesteps=777),
}
RATIOS = (0.875, 0.9, 0.5, 1 / 3, 0.417, 0.123456789)


class Rule:
    """The two lines of diffusers' WanPipeline that choose a transformer, run as they stand in its source."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("diffusers")
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).parent / "pipelines" / "wan" / "pipeline_wan.py"
        nodes = list(ast.walk(ast.parse(source.read_text())))
        (boundary,) = [
            node.value
            for node in nodes
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "boundary_timestep"
            and isinstance(node.value, ast.BinOp)
        ]  # fmt: skip
        (choice,) = [
            node
            for node in nodes
            if isinstance(node, ast.If) and "boundary_timestep" in ast.unparse(node.test)
            and "current_model" in ast.unparse(node.body[0])
        ]  # fmt: skip
        assert ast.unparse(choice.body[0]) == "current_model = self.transformer"
        self.boundary = compile(ast.Expression(boundary), "boundary", "eval")
        self.test = compile(ast.Expression(choice.test), "choice", "eval")

    def takes_first(self, t: torch.Tensor, ratio: float, scheduler: Any) -> bool:
        self_ = SimpleNamespace(config=SimpleNamespace(boundary_ratio=ratio), scheduler=scheduler)
        boundary = eval(self.boundary, {}, {"self": self_})
        return bool(eval(self.test, {}, {"boundary_timestep": boundary, "t": t}))


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_boundary_is_diffusers_own(scheduler: Any, ratio: float) -> None:
    rule, model = Rule(), from_pair(wan_transformer(0), wan_transformer(1), ratio, scheduler)
    T = scheduler.config.num_train_timesteps
    timesteps = [torch.tensor(t) for t in range(T)]
    for steps in (4, 25, 50):
        scheduler.set_timesteps(steps)
        timesteps += list(scheduler.timesteps)
    if not model.plan.schedule.is_discrete:  # fractional ones, down to the neighbours of the boundary
        edge = np.float32(ratio * T)
        near = [edge, np.nextafter(edge, np.float32(0)), np.nextafter(edge, np.float32(T))]
        timesteps += [torch.tensor(float(t), dtype=torch.float32) for t in near if float(t) != ratio * T]
        timesteps += [torch.tensor(ratio * T, dtype=torch.float64)]
    for t in timesteps:
        first = rule.takes_first(t, ratio, scheduler)
        if t.dtype == torch.float32 and float(t) < ratio * T and first:
            continue  # there torch compares in float32, whose nearest number to the boundary lies below it
        assert model.plan.group_of_model_timestep(t.item()) == int(first), t
    again = to_pair(model)
    assert [type(again.high), type(again.low)] == [WanTransformer3DModel] * 2
    for t in timesteps[:T]:
        assert rule.takes_first(t, again.boundary_ratio, scheduler) == rule.takes_first(t, ratio, scheduler)


@torch.no_grad()
def test_each_timestep_runs_the_transformer_it_belongs_to() -> None:
    high, low = wan_transformer(0), wan_transformer(1)
    model = from_pair(high, low, 0.875, SCHEDULERS["UniPC, flow"]).eval()
    x = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    call = {"hidden_states": x, "encoder_hidden_states": text, "return_dict": False}
    for t, expert in ((875, high), (874, low)):
        timestep = torch.tensor(t).expand(2)
        assert torch.equal(model(timestep=timestep, **call)[0], expert(timestep=timestep, **call)[0])
    mixed = torch.tensor([999, 10])
    together = model(timestep=mixed, **call)[0]
    for i, expert in enumerate((high, low)):
        alone = expert(x[i : i + 1], mixed[i : i + 1], text[i : i + 1]).sample
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
    with model.cache_context("cond"):  # what the pipelines open around a call
        pass
    assert tuple(model.config.patch_size) == (1, 2, 2)


def pipeline_folder(folder: Path, ratio: float | None = None, name: str = "WanPipeline") -> Path:
    """A pipeline's folder as diffusers writes it, with a stand-in for its text encoder."""
    folder.mkdir()
    index: dict[str, Any] = {
        "_class_name": name, "_diffusers_version": "0.42.1", "boundary_ratio": ratio, "expand_timesteps": False,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"], "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"], "transformer_2": [None, None], "vae": [None, None],
    }  # fmt: skip
    wan_transformer(5).save_pretrained(folder / "transformer")
    if ratio is not None:
        index["transformer_2"] = ["diffusers", "WanTransformer3DModel"]
        wan_transformer(6).save_pretrained(folder / "transformer_2")
    SCHEDULERS["UniPC, flow"].save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(b"words")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_pairs_come_from_and_go_to_a_pipelines_folder(tmp_path: Path) -> None:
    source = pipeline_folder(tmp_path / "wan", 0.9)
    model, scheduler = load_pair(source)
    assert isinstance(scheduler, UniPCMultistepScheduler)
    assert [model.plan.group_of_model_timestep(t) for t in (899, 900)] == [0, 1]
    for expert, seed in zip(model.experts, (6, 5), strict=True):  # the low one first
        for ours, theirs in zip(expert.parameters(), wan_transformer(seed).parameters(), strict=True):
            assert torch.equal(ours, theirs)

    changed = ExpertDenoiser([wan_transformer(8), wan_transformer(7)], Plan.from_bounds(model.plan.schedule, [0.8]))
    save_pair(changed, source, tmp_path / "new")
    index = json.loads((tmp_path / "new" / "model_index.json").read_text())
    assert index["boundary_ratio"] * 1000 == 800
    assert index["transformer_2"] == ["diffusers", "WanTransformer3DModel"]
    assert (tmp_path / "new" / "tokenizer" / "spiece.model").read_bytes() == b"words"
    again, _ = load_pair(tmp_path / "new")
    assert again.plan.to_dict()["groups"] == changed.plan.to_dict()["groups"]
    for ours, theirs in zip(again.parameters(), changed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(load_pair(source)[0].experts[1].proj_out.weight, wan_transformer(5).proj_out.weight)

    single = pipeline_folder(tmp_path / "single")  # a pipeline with one transformer takes a pair, too
    save_pair(changed, single, tmp_path / "two of one")
    assert load_pair(tmp_path / "two of one")[0].plan.groups[1].t_start == 0.8


def test_what_is_no_pair_is_refused(tmp_path: Path) -> None:
    schedule = NoiseSchedule.from_scheduler(SCHEDULERS["Euler, flow"])
    pair = ExpertDenoiser([wan_transformer(0), wan_transformer(1)], Plan.from_bounds(schedule, [0.5]))
    with pytest.raises(SettingError, match="a pair has two, this model has 3"):
        to_pair(ExpertDenoiser([wan_transformer(0)] * 3, Plan.from_bounds(schedule, [0.2, 0.5])))
    edm = NoiseSchedule.from_scheduler(EDMEulerScheduler())
    with pytest.raises(SettingError, match="told edm noise levels"):
        to_pair(ExpertDenoiser([wan_transformer(0)] * 2, Plan.from_bounds(edm, [1.0])))
    for ratio in (0.0, 1.0, float("nan")):
        with pytest.raises(SettingError, match=r"boundary_ratio: .* between 0 and 1"):
            from_pair(wan_transformer(0), wan_transformer(1), ratio, SCHEDULERS["DDIM"])
    single = pipeline_folder(tmp_path / "single")
    with pytest.raises(SettingError, match=r"holds no pair of experts \(it has no transformer_2\)"):
        load_pair(single)
    other = pipeline_folder(tmp_path / "other", name="SanaPipeline")
    with pytest.raises(SettingError, match="SanaPipeline takes no pair of experts; diffusers has WanPipeline"):
        save_pair(pair, other, tmp_path / "new")
    with pytest.raises(SettingError, match="exists already"):
        save_pair(pair, single, other)
    assert not (tmp_path / "new").exists()
