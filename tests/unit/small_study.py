"""A study of three arms on a handful of digits."""

from __future__ import annotations

import copy
from typing import Any

from noisewise.workflow.recipe import Recipe
from noisewise.workflow.store import Store
from noisewise.workflow.study.definition import Arm, Paper, Study
from noisewise.workflow.study.layout import Layout, lay_out

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "sklearn-digits", "num_train": 64, "num_test": 64},
    "model": {"kind": "unet2d", "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 8},
    "base": {"num_images": 64, "batch_size": 32, "num_snapshots": 1, "num_threads": 1},
    "plan": {"num_groups": 2},
    "prune": {"timestep_stride": 400, "proposer": {"kind": "importance", "rounds": 1, "candidates": 1}},
    "finetune": {"num_images": 32, "batch_size": 32, "num_threads": 1},
    "sample": {"num_images": 40, "num_inference_steps": 2, "num_threads": 1},
    "evaluate": {"num_loss_images": 8, "num_timing_images": 2, "num_threads": 1},
    "seed": 5,
}


def three_arms(recipe: Recipe) -> list[Arm]:
    return [
        Arm("one network", "base-continued", paper=("4.08",)),
        Arm("an expert per group", "unpruned", paper=("3.52",), x=2.0),
        Arm("the base", "base", x=1.0),
    ]


SMALL = Study("small", "Small <study>", "Does it run?", "any recipe", three_arms, "one network",
              Paper("a paper", ("FID",), "nothing compares", effect=0.1), axis="groups",
              figures=("differences", "cost", "axis", "images", "training"), cost_to_match=True)  # fmt: skip


def laid_out(study: Study = SMALL, num_seeds: int = 1, store: Store | None = None, **changes: Any) -> Layout:
    return lay_out(study, copy.deepcopy(TINY) | changes, num_seeds, store, 30)
