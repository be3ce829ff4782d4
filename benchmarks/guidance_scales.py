"""What guidance does to quality: distances, precision and recall of one model's images at several scales.

    python benchmarks/guidance_scales.py runs/digits-classes/pipeline --recipe recipes/digits-classes.yaml
        --scales 0 1 1.5 2 3 [1,1.5,1.5]

Every scale has the same seeds and labels and is compared with the same held-out images; a list has one value per group
of the model, from data to noise. Prints a markdown table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from noisewise.models.loading import load_denoiser
from noisewise.sampling.guidance import Guidance
from noisewise.workflow.evaluating import evaluate_model
from noisewise.workflow.recipe import load_recipe
from noisewise.workflow.single import sampler_for


def calls_of(model: Path, scale: float | tuple[float, ...], kind: str, num_inference_steps: int) -> int:
    """Calls of the network that one image takes."""
    router, scheduler = load_denoiser(model)
    guidance = Guidance.of(scale, router.plan)
    visited = router.plan.schedule.visited(sampler_for(kind, scheduler), num_inference_steps)  # type: ignore[arg-type]
    return sum(guidance.calls_at(float(t)) for t in visited)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--scales", nargs="+", default=["0", "1", "1.5", "2", "3"])
    arguments = parser.parse_args()
    heads = ("scale", "calls an image", "Fréchet distance", "KID", "KID by class", "precision", "recall")
    print(f"| {' | '.join(heads)} |\n|:--|{'--:|' * (len(heads) - 1)}", flush=True)
    for scale in arguments.scales:
        recipe = load_recipe(arguments.recipe, [f"sample.guidance_scale={scale}"])
        found, sample = evaluate_model(arguments.model, recipe), recipe.sample
        values = [score["value"] for score in found["classes"]["values"]]
        if found["classes"]["kind"] != "kid":
            raise SystemExit(f"this table is for KID by class, and {found['classes']['why']}")
        calls = calls_of(arguments.model, sample.guidance_scale, sample.scheduler, sample.num_inference_steps)
        print(
            f"| {scale} | {calls} | {found['frechet']['value']:.1f} | {found['kid']['value']:.1f} | "
            f"{sum(values) / len(values):.1f} | {found['precision']:.3f} | {found['recall']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
