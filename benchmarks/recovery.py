"""What recovery is worth: loss right after pruning and after equal fine-tuning, with and without it, per group.

    python benchmarks/recovery.py MODEL [--recipe recipes/digits.yaml] [--set a.b=c] [--budgets 0.5 0.7]
        [--num-images 30000] [--seeds 1] [--inputs]

MODEL is a trained base of the recipe, e.g. runs/store/base-.../model. Each of the recipe's groups is pruned to each
budget by Taylor importance over its own timesteps, repaired or not, and fine-tuned with the recipe's settings on
``--num-images`` images (0: not at all). Losses are the mean noise error on 1,024 draws of the recipe's held-out images
in the group, the same for all; a seed changes importances' noise, recovery's draws and the fine-tuning's. Prints a
markdown table. ``--inputs`` compares instead, without fine-tuning, what the layers are fitted to: the inputs of the
network repaired so far against the full network's, and numbers of images and ridges.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from noisewise.data.load import load_data
from noisewise.evaluation.losses import range_loss
from noisewise.models.loading import load_denoiser
from noisewise.models.networks import describe
from noisewise.models.surgery import cut
from noisewise.objectives import Objective
from noisewise.planning.plan import Group
from noisewise.pruning.prune import prune_to_budget, resolve_importance, space_of
from noisewise.pruning.reconstruction import reconstruct
from noisewise.training.loop import train
from noisewise.workflow.foundation import make_schedule
from noisewise.workflow.networks import make_objective
from noisewise.workflow.plans import plan_of_schedule
from noisewise.workflow.recipe import load_recipe

NUM_DRAWS = 1024


@dataclass(frozen=True)
class Setting:
    """What every measurement shares."""

    model: Any
    objective: Objective
    data: Any
    finetune: Any
    groups: tuple[Group, ...]

    def loss(self, model: Any, group: Group) -> float:
        """Held-out loss of the group, on draws of their own."""
        timesteps = (group.t_start, group.t_stop)
        return range_loss(model.eval(), self.objective, timesteps, NUM_DRAWS, self.data.test, seed=1).mean

    def looking(self, group: Group) -> dict[str, Any]:
        return {
            "objective": self.objective,
            "images": self.data.train,
            "timesteps": (group.t_start, group.t_stop),
        }


def setting(args: argparse.Namespace) -> Setting:
    recipe = load_recipe(args.recipe, args.set)
    model, _ = load_denoiser(args.model)
    schedule = make_schedule(recipe.schedule, None)
    groups = plan_of_schedule(recipe.plan, schedule, list(range(schedule.num_train_timesteps))).groups
    finetune = recipe.stage_2.model_copy(update={"num_images": args.num_images})
    kept = tuple(group for group in groups if not group.is_empty)
    return Setting(model, make_objective(recipe.objective, schedule), load_data(recipe.data), finetune, kept)


def compare(s: Setting, budgets: list[float], seeds: int) -> None:
    """Loss of the base, as cut, repaired, and both after fine-tuning."""
    inputs = describe(s.model).example_inputs(s.model)
    print(
        "| budget | group | seed | base | as cut | recovered | as cut, fine-tuned | recovered, fine-tuned | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for budget in budgets:
        for group in s.groups:
            for seed in range(seeds):
                found, seconds = [], 0.0
                for kind in ("none", "least-squares"):
                    small, info = prune_to_budget(
                        s.model, inputs, budget, "taylor", recovery=kind, seed=seed, **s.looking(group)
                    )
                    right_after = s.loss(small, group)
                    found.append((right_after, tuned(s, small, group, seed)))
                    seconds = info.recovery.seconds if info.recovery else seconds
                losses = (s.loss(s.model, group), *(pair[i] for i in (0, 1) for pair in found))
                said = " | ".join("" if loss is None else f"{loss:.5f}" for loss in losses)
                print(f"| {budget} | {group.t_start}–{group.t_stop} | {seed} | {said} | {seconds:.1f} |", flush=True)


def tuned(s: Setting, small: Any, group: Group, seed: int) -> float | None:
    if s.finetune.num_images == 0:
        return None
    names, timesteps = ("finetune", group.index), (group.t_start, group.t_stop)
    trained = train(small, s.objective, s.data.train, s.finetune, seed=seed, names=names, timesteps=timesteps)
    return s.loss(trained.model, group)


def compare_inputs(s: Setting, budgets: list[float]) -> None:
    """Loss right after recovery by what the layers are fitted to."""
    inputs = describe(s.model).example_inputs(s.model)
    ways: list[tuple[str, dict[str, Any], int]] = [
        ("repaired network's inputs", {}, 256),
        ("full network's inputs", {"repaired_inputs": False}, 256),
        *((f"{number} images", {}, number) for number in (64, 1024)),
        *((f"ridge {ridge:g}", {"ridge": ridge}, 256) for ridge in (1e-5, 1e-1)),
    ]
    print("| budget | group | base | as cut | " + " | ".join(name for name, _, _ in ways) + " |")
    print("|---" * (4 + len(ways)) + "|", flush=True)
    for budget in budgets:
        for group in s.groups:
            scores = resolve_importance(s.model, "taylor", seed=0, **s.looking(group))
            space = space_of(s.model, inputs, budget)
            kept = space.kept(space.solve(scores).widths, scores)
            losses = [s.loss(s.model, group), s.loss(cut(s.model, kept), group)]
            for _, settings, number in ways:
                small: Any = cut(s.model, kept)
                draws = s.objective.fixed_draws(s.data.train, number, (0, "fit"), (group.t_start, group.t_stop))
                reconstruct(s.model, small, kept, s.objective, draws, **settings)
                losses.append(s.loss(small, group))
            said = " | ".join(f"{loss:.5f}" for loss in losses)
            print(f"| {budget} | {group.t_start}–{group.t_stop} | {said} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a trained base")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/digits.yaml"))
    parser.add_argument("--set", action="append", default=[], help="change a setting of the recipe")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--num-images", type=int, default=30_000, help="of fine-tuning, per network (default 30,000)")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--inputs", action="store_true", help="compare what layers are fitted to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("default")
    found = setting(args)
    if args.inputs:
        compare_inputs(found, args.budgets)
    else:
        compare(found, args.budgets, args.seeds)


if __name__ == "__main__":
    main()
