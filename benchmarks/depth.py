"""What depth is worth: loss right after pruning with widths alone, and with whole blocks left out beside them.

    python benchmarks/depth.py MODEL ... [--recipe recipes/digits.yaml] [--budgets 0.05 0.1 0.2 0.3 0.5 0.7 0.85]

Each MODEL is a trained base of the recipe, e.g. runs/store/base-.../model (several: trained from several seeds). It is
pruned to each budget by Taylor importance over all timesteps, as the solver answers without any search. Losses are the
mean noise error on the same 1,024 draws of the recipe's held-out images. Prints a markdown table, and the least cost
that widths alone and depth reach.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from noisewise.data.load import load_data
from noisewise.evaluation.losses import range_loss
from noisewise.models.loading import load_denoiser
from noisewise.models.networks import describe
from noisewise.pruning.importance import importance
from noisewise.pruning.prune import prune_to_budget, space_of
from noisewise.pruning.solver import SolverError
from noisewise.workflow.foundation import make_schedule
from noisewise.workflow.networks import make_objective
from noisewise.workflow.recipe import load_recipe

NUM_DRAWS = 1024


def least_cost(model: Any, inputs: dict[str, Any], depth: bool) -> float:
    """The least cost that any legal widths have, as a fraction of the model's MACs."""
    space = space_of(model, inputs, 0.9, alignment=1, min_width=0.0, depth=depth)
    return space.macs({name: legal[0] for name, legal in space.widths.items()}) / space.base_macs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/digits.yaml"))
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85])
    args = parser.parse_args()

    recipe = load_recipe(args.recipe)
    schedule = make_schedule(recipe.schedule, None)
    objective, data = make_objective(recipe.objective, schedule), load_data(recipe.data)
    everything = (0, schedule.num_train_timesteps)
    print(
        "| base | budget | loss of the base | widths alone | parameters | with depth | parameters | blocks left out |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for number, folder in enumerate(args.models):
        model, _ = load_denoiser(folder)
        inputs = describe(model).example_inputs(model)

        def loss(network: Any) -> float:
            return range_loss(network.eval(), objective, everything, NUM_DRAWS, data.test, seed=1).mean

        scores = importance(model, "taylor", objective=objective, images=data.train)
        base = loss(model)
        num_removable = len(describe(model).wiring(model).removable)
        for budget in args.budgets:
            cells = []
            for depth in (False, True):
                try:
                    small, info = prune_to_budget(model, inputs, budget, scores, depth=depth)
                except SolverError:
                    cells += ["not reached", ""]
                    continue
                cells += [f"{loss(small):.4f}", f"{info.parameters:,}"]
                if depth:
                    cells.append(f"{len(info.removed_blocks)} of {num_removable}")
            print(f"| {number} | {budget} | {base:.4f} | {' | '.join(cells)} |", flush=True)
    alone, deep = (least_cost(model, inputs, depth) for depth in (False, True))
    print(f"\nLeast cost: {alone:.4f} by widths alone, {deep:.4f} with depth.")


if __name__ == "__main__":
    main()
