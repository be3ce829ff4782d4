"""Network x operation, each done for real at tiny size; docs/networks.md repeats what came out.

``NOISEWISE_WRITE_DOCS=1 pytest tests/unit/test_support_matrix.py`` writes the rows into the page.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from network_zoo import SDXL, condition_unet, random_inputs, sd3
from network_zoo import dit as dit_network
from stock_pipelines import (
    ddim,
    dit,
    images,
    reload_options,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    with_labels,
)  # fmt: skip
from torch.utils._pytree import tree_map_only
from unet_zoo import build as build_unet2d

from noisewise import ExpertDenoiser, NoiseSchedule, Plan, prune_to_budget
from noisewise.models.calls import denoise
from noisewise.models.cost import CostModel, count_macs
from noisewise.models.networks import NAMES, describe
from noisewise.models.surgery import cut
from noisewise.objectives import Objective
from noisewise.pruning.decoders import prune_decoders
from noisewise.training.loop import train
from noisewise.training.settings import TrainSettings

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
COLUMNS = (
    "plan, cost", "`prune_to_budget`", "leaving out blocks", "fine-tuning", "`ExpertDenoiser`", "save, reload",
    "stock pipeline",
)  # fmt: skip
TABLE = f"| network | layout | {' | '.join(COLUMNS)} |\n{'|---' * (2 + len(COLUMNS))}|\n"
END = "\n\n"  # of the table
NUM_IMAGES = 8
SHARED = "one encoder, a decoder per group"


@dataclass(frozen=True)
class Case:
    """A network at tiny size."""

    layout: str
    build: Callable[[], Any]
    pipeline: Callable[[Any], tuple[Any, dict[str, Any]]]
    scheduler: Callable[[], Any] = DDIMScheduler


CASES = {
    case.layout: case
    for case in (
        Case("unconditional", lambda: build_unet2d("heads"), ddim),
        Case("class labels", lambda: build_unet2d("classes"), with_labels),
        Case(SHARED, lambda: build_unet2d("heads"), ddim),
        Case("Stable Diffusion 1.x", condition_unet, stable_diffusion),
        Case(
            "Stable Diffusion 2.x",
            lambda: condition_unet(use_linear_projection=True, attention_head_dim=(2, 4)),
            stable_diffusion,
            lambda: DDIMScheduler(prediction_type="v_prediction"),
        ),
        Case("SDXL", lambda: condition_unet(**SDXL), stable_diffusion_xl),
        Case("DiT", lambda: dit_network(out_channels=4), dit),
        Case("Stable Diffusion 3", sd3, stable_diffusion_3, FlowMatchEulerDiscreteScheduler),
        Case(
            "Stable Diffusion 3.5",
            lambda: sd3(qk_norm="rms_norm", dual_attention_layers=(0,)),
            stable_diffusion_3,
            FlowMatchEulerDiscreteScheduler,
        ),
    )
}


class Told:
    """Random images [N, C, H, W] with what the network is told of each."""

    def __init__(self, model: Any) -> None:
        network = describe(model)
        inputs = random_inputs(model, NUM_IMAGES)
        self.images = inputs.pop(network.image)
        del inputs["timestep"]
        self.conditions = inputs

    def __len__(self) -> int:
        return NUM_IMAGES

    def batch(self, indices: torch.Tensor, device: Any) -> tuple[torch.Tensor, Any]:
        return self.images[indices], tree_map_only(torch.Tensor, lambda tensor: tensor[indices], self.conditions)


def planned(case: Case, model: Any) -> Plan:
    schedule = NoiseSchedule.from_scheduler(case.scheduler())
    plan = Plan.from_snr(schedule, num_groups=3, min_cost=0.6)
    assert len(plan.groups) == 3
    inputs = describe(model).example_inputs(model)
    assert CostModel.of(model, inputs).macs({}) == count_macs(model, inputs) > 0
    return plan


def objective_of(case: Case) -> Objective:
    scheduler = case.scheduler()
    prediction = scheduler.config.get("prediction_type")
    return Objective(
        NoiseSchedule.from_scheduler(scheduler), **({} if prediction is None else {"prediction_type": prediction})
    )


def pruned(case: Case, model: Any, budget: float, **settings: Any) -> Any:
    """Met within 2 %, by importances that ask for the loss and thus for the conditions."""
    small, info = prune_to_budget(
        model, random_inputs(model, 1), budget, "taylor",
        objective=objective_of(case), images=Told(model), timestep_stride=500, **settings,
    )  # fmt: skip
    assert 0.98 * budget <= info.achieved <= budget
    assert type(small) is describe(model).shaped
    return small


def tuned(case: Case, model: Any, data: Told) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = train(
        model, objective_of(case), data, TrainSettings(num_images=8, batch_size=4, ema_halflife_images=0), seed=0
    )
    assert all(step.loss > 0 for step in result.curve)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(changed) > len(before) / 2


def check_routes(router: ExpertDenoiser) -> None:
    """Every sample gets its own expert's answer, alone or in a batch of several groups."""
    plan, experts = router.eval().plan, router.experts
    data = Told(experts[0])
    t = torch.tensor([1.0 if plan.schedule.kind == "flow" else 1, 500, 999])
    with torch.no_grad():
        x, told = data.batch(torch.arange(3), "cpu")
        labels = told.pop("class_labels", None)
        together = denoise(router, x, t, labels, told)
        for i in range(3):
            one = tree_map_only(torch.Tensor, lambda tensor, i=i: tensor[i : i + 1], told)
            label = None if labels is None else labels[i : i + 1]
            group = int(plan.group_of_model_timestep(float(t[i])))
            alone = denoise(experts[group], x[i : i + 1], t[i : i + 1], label, one)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
            scalar = denoise(router, x[i : i + 1], t[i], label, one)
            torch.testing.assert_close(scalar, alone, rtol=0, atol=1e-5)


def reloaded(router: ExpertDenoiser, folder: Path) -> None:
    router.save_pretrained(folder)
    before, after = router.state_dict(), type(router).from_pretrained(folder).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def in_pipeline(case: Case, router: ExpertDenoiser, folder: Path) -> str:
    """The stock pipeline's images with experts, the same after saving and loading it."""
    pipe, call = case.pipeline(router)
    first = images(pipe, call)
    assert first.shape == (1, 8, 8, 3)
    pipe.save_pretrained(folder)
    again = DiffusionPipeline.from_pretrained(folder, **reload_options(pipe))
    assert type(again) is type(pipe)
    assert (images(again, call) == first).all()
    return f"`{type(pipe).__name__}`"


def row(case: Case, folder: Path) -> str:
    """The page's row of a network, whole and cut in two ways: everything in it was done just now."""
    torch.manual_seed(0)
    model = case.build().eval()
    plan = planned(case, model)
    small = pruned(case, model, 0.7)
    shallow = pruned(case, model, 0.6, depth=True)
    tuned(case, small, Told(model))
    router = ExpertDenoiser([small, shallow, cut(model, {})], plan)
    return finished(case, describe(model).name, router, folder)


def multi_decoder_row(case: Case, folder: Path) -> str:
    """The same of one encoder with several decoders, which are pruned and trained together."""
    model = case.build().eval()
    plan, inputs = planned(case, model), random_inputs(model, 1)
    network, infos = prune_decoders(model, plan, inputs, "magnitude", budgets=[0.85, 0.9, 1.0])
    shallow, _ = prune_decoders(model, plan, inputs, "magnitude", budgets=[0.85, 0.9, 1.0], depth=True)
    for expert, info, limit in zip(network.experts, infos, (0.85, 0.9), strict=False):
        assert info is not None
        assert 0.98 * limit * info.base_macs <= count_macs(expert, inputs) <= limit * info.base_macs
    assert count_macs(shallow.experts[0], inputs) < count_macs(model, inputs)
    tuned(case, network, Told(model))
    return finished(case, type(network).__name__, network, folder)


def finished(case: Case, name: str, router: ExpertDenoiser, folder: Path) -> str:
    check_routes(router)
    reloaded(router, folder / "experts")
    cells = ["yes"] * 6 + [in_pipeline(case, router, folder / "pipeline")]
    return f"| `{name}` | {case.layout} | {' | '.join(cells)} |"


def rows_on_the_page() -> list[str]:
    return PAGE.read_text().partition(TABLE)[2].partition(END)[0].splitlines()


@pytest.mark.parametrize("layout", CASES)
def test_every_operation_on(layout: str, tmp_path: Path) -> None:
    found = (multi_decoder_row if layout == SHARED else row)(CASES[layout], tmp_path)
    if os.environ.get("NOISEWISE_WRITE_DOCS"):
        write(layout, found)
    assert found in rows_on_the_page()


def write(layout: str, found: str) -> None:
    rows = {line.split(" | ")[1]: line for line in rows_on_the_page()} | {layout: found}
    head, _, rest = PAGE.read_text().partition(TABLE)
    PAGE.write_text(
        head + TABLE + "\n".join(rows[name] for name in CASES if name in rows) + END + rest.partition(END)[2]
    )


def test_the_page_lists_these_networks_and_no_others() -> None:
    rows = rows_on_the_page()
    assert [line.split(" | ")[1] for line in rows] == list(CASES)
    assert {line.split("`")[1] for line in rows} == {*NAMES, "MultiDecoderUNet2DModel"}
