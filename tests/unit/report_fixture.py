"""A made-up run, as complete as a real one: its numbers follow no training and mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from noisewise.sampling.grids import sample_grid

NUM_TRAIN_TIMESTEPS = 1000
STARTS, LIMITS = [0, 139, 493, 785, 1000], [0.625, 0.75, 0.875, 1.0]
BASE_MACS, STEPS = 7.43e6, 50
IDS = {
    "base": ("Base", "150,000 images, before anything else"),
    "base-continued": ("Base, trained on", "all timesteps, the same images as TDC"),
    "unpruned": ("TDC without pruning", "an expert per group, base architecture"),
    "tdc": ("TDC", "an expert per group, pruned to its limit"),
    "uniform": ("Uniformly pruned", "one model for all timesteps at TDC's cost"),
    "base-fewer-steps": ("Base, fewer steps", "costs nothing to train, TDC's MACs per image"),
}


def made_up_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    frechet = dict(zip(IDS, [41.3271, 38.8124, 37.9056, 31.2043, 45.5178, 40.9342], strict=True))
    rows = []
    for row_id, (label, note) in IDS.items():
        share = 0.829 if row_id in ("tdc", "uniform") else 1.0
        steps = 41 if row_id == "base-fewer-steps" else STEPS
        images = 150_000 if row_id in ("base", "base-fewer-steps") else 250_000
        kid = frechet[row_id] * 4.1e-4 - 0.0061
        experts = row_id in ("tdc", "unpruned")
        sizes = [181_203, 214_112, 251_870, 287_105] if row_id == "tdc" else [287_105] * 4
        rows.append(
            {
                "id": row_id,
                "label": label,
                "note": note,
                "frechet": frechet[row_id],
                "kid": {"value": kid, "low": kid - 0.00093, "high": kid + 0.00101},
                "group_test_loss": [x * float(rng.uniform(0.985, 1.015)) for x in (0.3208, 0.0855, 0.0074, 0.0004)],
                "test_loss": 0.07716 * float(rng.uniform(0.985, 1.015)),
                "macs_per_image": BASE_MACS * steps * share,
                "num_inference_steps": steps,
                "active_parameters": sizes,
                "resident_parameters": sum(sizes) if experts else sizes[0],
                "seconds_per_image": 0.0131 * steps / STEPS * (0.9 if row_id == "tdc" else 1.0),
                "training_images": images,
                "training_macs": BASE_MACS * 3 * images * (0.93 if row_id == "tdc" else 1.0),
                "samples": f"samples/{row_id}.png",
                "provenance": {"sampler": "ddim", "num_inference_steps": steps, "seed": 0, "weights": {"ema": True}},
            }
        )
    return rows


def made_up_results(seed: int = 0) -> dict[str, Any]:
    """`results.json` of a run that never took place, with every part filled in."""
    rng = np.random.default_rng(seed)
    t = np.arange(NUM_TRAIN_TIMESTEPS)
    alphas_cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, NUM_TRAIN_TIMESTEPS))
    snr_db = 10 * np.log10(alphas_cumprod / (1 - alphas_cumprod))
    cost = 0.5 + 0.5 * (snr_db.max() - snr_db) / (snr_db.max() - snr_db.min())
    group = np.searchsorted(STARTS[1:-1], t, side="right")
    bins = (np.arange(40) + 0.5) * 25
    loss = 0.32 * np.exp(-bins / 145) + 3e-4
    visited = np.arange(STEPS)[::-1] * 20 + 1
    axes = [f"{place}_blocks.{i}.{part}" for place in ("down", "up") for i in range(2)
            for part in ("resnets.0.inner", "resnets.0", "attentions.0", "downsamplers.0")]  # fmt: skip
    return {
        "format": 1,
        "name": "digits",
        "created": "2000-01-01 00:00",
        "recipe": {
            "name": "digits",
            "data": {"kind": "sklearn-digits"},
            "plan": {"method": "snr", "num_groups": 4, "min_cost": 0.5, "big_model_at": "noise"},
            "seed": 0,
        },
        "versions": {"noisewise": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1", "python": "3.11.2"},
        "machine": "2 cores, CPU",
        "command": "noisewise run recipes/digits.yaml",
        "data": {"name": "sklearn-digits", "num_train": 1437, "num_test": 360, "size": 8, "channels": 1,
                 "fingerprint": "made-up-" + "0f" * 28},
        "metric": {"name": "fd_efficientnet_lite0_block10", "floor": 5.6021, "n": 898,
                   "kid_floor": {"value": 0.00012, "low": -0.0004, "high": 0.0007},
                   "provenance": {"extractor": {"name": "efficientnet_lite0", "sha256": "ab" * 32}, "resize": 64}},
        "rows": made_up_rows(rng),
        "verdict": "TDC wins (made-up numbers): at its cost per image it is better than every rival. Against each: "
        "Base, trained on: better (FD 31.2 against 38.81, at 0.83 of its MACs per image); Uniformly pruned: better "
        "(Fréchet distance 31.2 against 45.52, at 1.00 of its MACs per image).",
        "plan": {"coordinate": "timestep", "num_train_timesteps": NUM_TRAIN_TIMESTEPS, "notes": [], "settings": {},
                 "groups": [{"t_start": a, "t_stop": b, "cost_limit": c, "num_timesteps": b - a}
                            for a, b, c in zip(STARTS[:-1], STARTS[1:], LIMITS, strict=True)]},
        "difficulty": {"t": t.tolist(), "snr_db": snr_db.tolist(), "cost": cost.tolist(),
                       "cost_limit": [LIMITS[i] for i in group]},
        "routes": [{"step": i, "t": int(x), "group": int(group[x]), "cost": LIMITS[group[x]] * 0.991}
                   for i, x in enumerate(visited)],
        "loss_per_timestep": {
            "t": bins.tolist(),
            **{row_id: (loss * rng.uniform(0.97, 1.03, 40) * (0.98 if row_id == "tdc" else 1)).tolist()
               for row_id in ("base", "base-continued", "unpruned", "tdc", "uniform")},
        },
        "training_curves": {
            step: [{"images": k * 2_500, "loss": level * (1 + 3 / (1 + k)) * float(rng.uniform(0.96, 1.04)),
                    "bins": [level] * 10}
                   for k in range(1, num + 1)]
            for step, level, num in [
                ("base", 0.08, 60), ("base-continued", 0.075, 40), ("uniform", 0.081, 40),
                *((f"{kind}[{i}]", level, 10) for kind in ("finetune", "unpruned")
                  for i, level in enumerate((0.31, 0.085, 0.0073, 0.00035))),
            ]
        },
        "widths": [
            {"group": i, "budget": limit, "achieved": limit * 0.991,
             "axes": {axis: [int(full * min(1, limit + 0.25 * rng.uniform(-1, 0.6)) // 2 * 2), full]
                      for j, axis in enumerate(axes) for full in [16 if j < 4 else 32]}}
            for i, limit in enumerate(LIMITS[:-1])
        ] + [None],
        "memory_bank": [
            {"group": g, "round": r, "candidate": c, "proposer": "evolution", "cost": LIMITS[g] * 0.99,
             "loss": level * (1.3 - 0.05 * r + 0.06 * float(rng.uniform())), "accepted": c != 3 or r != 1}
            for g, level in enumerate((0.31, 0.085, 0.0073, 0.00035)) for r in range(3) for c in range(4)
        ],
        "quality_against_images": [
            {"strategy": strategy, "training_images": n, "frechet": start * (n / 50_000) ** -0.35}
            for strategy, start, counts in [("base-continued", 66, (50_000, 100_000, 150_000, 200_000, 250_000)),
                                            ("tdc", 55, (175_000, 200_000, 250_000)),
                                            ("single-stage", 90, (100_000, 250_000))]
            for n in counts
        ],
        "timing": [{"step": "base", "seconds": 61.2, "cached": True},
                   {"step": "reference", "seconds": 2.0, "cached": False},
                   {"step": "prune[0]", "seconds": 6.4, "cached": False}, {"step": "finetune[0]", "seconds": 14.9,
                    "cached": False}, {"step": "evaluate", "seconds": 41.0, "cached": False}],
        "warnings": ["data.horizontal_flip: not used by sklearn-digits"],
    }  # fmt: skip


def write_run(folder: Path, results: dict[str, Any]) -> Path:
    """A run folder with ``results`` and sample grids of noise."""
    (folder / "samples").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    rng = np.random.default_rng(1)
    for row in [*results["rows"], {"id": "real"}]:
        images = rng.integers(0, 255, (64, 1, 8, 8), dtype=np.uint8)
        sample_grid(images, columns=8, scale=4).save(folder / "samples" / f"{row['id']}.png")
    return folder
