"""Experts folded back into one network: known answers, the command on a real run, the row of the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel

from noisewise import NoiseSchedule
from noisewise.cli import main
from noisewise.errors import SettingError
from noisewise.models.loading import load_denoiser
from noisewise.models.merge import TaskVectors, search_weights
from noisewise.objectives import Objective
from noisewise.workflow.recipe import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"
SMALL = {
    "name": "tiny",
    "model.block_out_channels": "[8, 16]",
    "model.norm_num_groups": "4",
    "base.num_images": "256",
    "base.num_snapshots": "0",
    "finetune.num_images": "128",
    "plan.num_groups": "2",
    "prune.importance": "magnitude",
    "prune.proposer": "{kind: importance}",
    "sample.num_images": "16",
    "sample.num_inference_steps": "3",
    "evaluate.num_loss_images": "16",
    "evaluate.num_timing_images": "2",
    "merge.num_evaluations": "12",
    "merge.num_images": "16",
    "compare": "[unpruned]",
}


def network(seed: int = 0, width: int = 4) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(width, 2 * width), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def test_weights_of_known_task_vectors_are_found() -> None:
    """The target lies at known weights of the task vectors, so that the search has one right answer."""
    base = network()
    vectors = TaskVectors(base, [network(seed) for seed in (1, 2, 3)])
    wanted = (0.7, -0.1, 0.35)
    target = {name: tensor.clone() for name, tensor in vectors.merged(wanted).state_dict().items()}

    def distance(weights: np.ndarray) -> float:
        state = vectors.merged(weights).state_dict()
        return sum(float((state[name] - target[name]).square().sum()) for name in target)

    found = search_weights(distance, 3, 150, np.random.default_rng(0))
    assert found.weights == pytest.approx(wanted, abs=0.01)
    assert found.num_evaluations <= 150
    assert found.score == min(score for _, score in found.trace)
    again = search_weights(distance, 3, 150, np.random.default_rng(0))
    assert again.weights == found.weights


def test_an_expert_that_mends_the_base_gets_all_the_weight() -> None:
    """The base's noise is off by a constant; expert 0 is right, expert 1 is the base with a worse constant."""
    base, right, worse = network(), network(), network()
    with torch.no_grad():
        for model, bias in ((base, 0.5), (right, 0.0), (worse, 0.8)):
            model.conv_out.weight.zero_()
            model.conv_out.bias.fill_(bias)
    objective = Objective(NoiseSchedule.named("linear"))
    draws = objective.fixed_draws(torch.zeros(64, 1, 8, 8), 64, ("oracle",))
    eps = torch.cat([draw.noise for draw in draws]).mean()
    vectors = TaskVectors(base, [right, worse])

    def loss(weights: np.ndarray) -> float:
        with torch.no_grad():
            model = vectors.merged(weights)
            return float(torch.cat([objective.error(model, draw) for draw in draws]).mean())

    found = search_weights(loss, 2, 60, np.random.default_rng(0))
    bias = 0.5 - 0.5 * found.weights[0] + 0.3 * found.weights[1]
    assert bias == pytest.approx(float(eps), abs=0.01)  # the least square error is at the mean
    assert found.score < loss(np.array([0.0, 0.0])) - 0.2


def test_merged_weights_are_the_weighted_sum() -> None:
    base, one, two = network(0), network(1), network(2)
    vectors = TaskVectors(base, [one, two])
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), vectors.merged([0, 0]).parameters(), strict=True))
    for weights, source in (([1, 0], one), ([0, 1], two)):
        merged = vectors.merged(weights)
        for ours, theirs in zip(merged.parameters(), source.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    merged = vectors.merged([0.5, 0.25])
    for ours, b, x, y in zip(merged.parameters(), base.parameters(), one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(ours, b + 0.5 * (x - b) + 0.25 * (y - b))


def test_only_experts_of_the_bases_shape_can_be_merged() -> None:
    with pytest.raises(SettingError, match=r"merge: expert 1 has .* only experts of the base's own shape"):
        TaskVectors(network(), [network(1), network(2, width=8)])
    with pytest.raises(SettingError, match="there are no experts"):
        TaskVectors(network(), [])
    with pytest.raises(SettingError, match="1 weights for 2 experts"):
        TaskVectors(network(), [network(1), network(2)]).merged([1.0])
    with pytest.raises(SettingError, match=r"merge\.num_evaluations: 3 is below 8"):
        search_weights(lambda weights: 0.0, 2, 3, np.random.default_rng(0))


def command(runs: Path, **changes: str) -> list[str]:
    sets = [word for name, value in {**SMALL, **changes}.items() for word in ("--set", f"{name}={value}")]
    return ["run", str(RECIPE), "--runs", str(runs), "--progress", "lines", *sets]


def test_a_run_is_merged_by_the_command_and_gets_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path)) == 0
    run = tmp_path / "tiny"
    before = (run / "results.json").read_bytes()
    capsys.readouterr()
    assert main(["merge", str(run), "--progress", "lines"]) == 0
    said = capsys.readouterr().out
    assert "merge: started" in said
    assert "12 evaluations, 384 forward passes on 449 other held-out images" in said
    assert said.rstrip().endswith(str(run / "merged"))
    assert (run / "results.json").read_bytes() == before  # the row was not asked for

    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("store/merge-*/artefact.json"))
    result = record["result"]
    losses = result["losses"]
    assert [len(values) for values in losses.values()] == [2, 2, 2]
    shares = np.array([g["num_timesteps"] for g in json.loads((run / "plan.json").read_text())["groups"]]) / 1000
    assert result["mean_losses"]["merged"] == pytest.approx(float(shares @ losses["merged"]))
    assert min(score for _, score in result["trace"]) <= result["trace"][0][1]  # the first is the base

    pipe = DiffusionPipeline.from_pretrained(run / "merged")
    assert type(pipe.unet) is UNet2DModel
    base = load_denoiser(next(tmp_path.glob("store/base-*")) / "model")[0].state_dict()
    experts = [
        load_denoiser(next(tmp_path.glob(f"store/unpruned-{g}-*")) / "model")[0].state_dict() for g in result["groups"]
    ]
    for name, tensor in pipe.unet.state_dict().items():
        expected = base[name] + sum(
            w * (expert[name] - base[name]) for w, expert in zip(result["weights"], experts, strict=True)
        )
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6)

    assert main(["merge", str(run)]) == 2
    assert f"--out {run / 'merged'}: exists" in capsys.readouterr().err

    assert main(command(tmp_path, compare="[unpruned, merged]")) == 0
    said = capsys.readouterr().out
    assert "merge: started" not in said  # the command's step is the run's
    rows = {row["id"]: row for row in json.loads((run / "results.json").read_text())["rows"]}
    assert rows["merged"]["macs_per_image"] == rows["unpruned"]["macs_per_image"]
    assert rows["merged"]["resident_parameters"] * 2 == rows["unpruned"]["resident_parameters"]
    assert rows["merged"]["training_images"] == rows["unpruned"]["training_images"] == 512
    assert "unpruned, merged" in (run / "report.html").read_text()


def test_runs_without_unpruned_experts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, change in (("pruned", "compare=[]"), ("other", "method=single-stage")):
        (tmp_path / name).mkdir()
        words = [f"{key}={value}" for key, value in SMALL.items()]
        recipe = load_recipe(RECIPE, [*words, f"name={name}", change])
        (tmp_path / name / "recipe.yaml").write_text(recipe.to_yaml())
    cases = {"pruned": "has no base yet", "other": "is a run of method single-stage", ".": "is no run's folder"}
    for name, said in cases.items():
        assert main(["merge", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
