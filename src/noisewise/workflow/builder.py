"""From a recipe to its graph: which networks make up the table's rows, and the steps that measure each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from noisewise.workflow.conditioning import BESIDE_SAMPLE, guidance_of, guidance_settings, guided_routes
from noisewise.workflow.foundation import Foundation, lay_foundation
from noisewise.workflow.graph import Graph, Row
from noisewise.workflow.networks import check_cacheable
from noisewise.workflow.plans import Say
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.rows import SEPARATE, RowId, label_of
from noisewise.workflow.stages import Stages
from noisewise.workflow.store import StepSpec, Store
from noisewise.workflow.text_scores import text_score_step
from noisewise.workflow.trainings import Trainings

IDEAL_LEVELS, IDEAL_DRAWS = 40, 512  # of the optimal denoiser's loss, drawn as the floor under the measured ones
AT_BASE_COST = (
    "base", "base-continued", "base-same-draws", "unpruned", "merged", "separate", "separate-early-stopped",
)  # fmt: skip


def build_graph(
    recipe: Recipe, store: Store | None = None, data_required: bool = True, say: Say | None = None
) -> Graph:
    """The steps of a recipe. Reads the data (through the store's cache) for its fingerprint and size.

    Args:
        say: told what a plan that looks at the data will cost, before it is made.
    """
    return _Builder.of(recipe, lay_foundation(recipe, store, data_required, say)).graph()


@dataclass
class _Builder:
    """Lays out rows and measurements; networks come from `Trainings` and `Stages`."""

    recipe: Recipe
    base: Foundation
    trainings: Trainings
    stages: Stages

    @classmethod
    def of(cls, recipe: Recipe, base: Foundation) -> _Builder:
        trainings = Trainings(recipe, base)
        return cls(recipe, base, trainings, Stages(trainings))

    def graph(self) -> Graph:
        reference = self.reference()
        rows = tuple(self.row(row_id, reference) for row_id in self.recipe.rows)
        inputs = {f"{kind}[{row.id}]": getattr(row, kind) for row in rows for kind in ("model", "sample")}
        settings = {**self.sampling(), "timing": self.evaluating("num_timing_images", "num_threads")}
        timing = StepSpec("timing", "timing", settings, inputs, exclusive=True)
        coverage = self.coverage(reference, rows)
        snapshots = self.snapshots(reference)
        latents = self.base.latents
        quality = None if latents is None else self.trainings.once(latents.quality(reference, self.features()))
        return Graph(
            self.recipe, self.base, rows, snapshots, reference, timing, coverage, self.ideal_loss(), quality,
            text_score_step(self.recipe, self.base, {row.id: row.sample for row in rows}),
        )  # fmt: skip

    # ---- networks

    def model(self, row_id: RowId) -> StepSpec:
        t = self.trainings
        if row_id == "base":
            return t.stage_1()
        if row_id in ("base-continued", "base-fewer-steps", "deepcache"):
            return t.continued()
        if row_id == "uniform":
            return t.uniform(self.cost_of_rival())
        if row_id == "merged":
            return t.merged()
        if row_id == "multi-decoder":
            return self.stages.joint()
        if row_id == "base-same-draws":
            return self.stages.same_draws()
        if row_id in SEPARATE:
            return self.stages.separate(row_id)
        return t.assemble(row_id, t.experts(row_id))

    def cost_of_rival(self) -> StepSpec:
        """What an image costs by the method of the recipe; rows at equal cost wait for it, not for its training."""
        t, method = self.trainings, self.recipe.method
        settings = {"plan": self.base.plan_facts, **self.sampler(), "base_macs": self.base.macs}
        if method == "multi-decoder":
            inputs = self.stages.shapes()
            if self.base.decoders is not None:
                settings["macs"] = self.base.decoders.macs
        else:
            shapes = {g: t.pruned(g) for g in self.base.trained_groups}
            if method == "single-stage":
                scratch = {g: t.from_scratch(g) for g in self.base.trained_groups}
                shapes = {g: step.inputs.get("shape", step.inputs.get("source", step)) for g, step in scratch.items()}
            inputs = {f"expert[{g}]": step for g, step in shapes.items()}
        return t.once(StepSpec("cost", "cost", settings, inputs))

    def image_macs(self, row_id: RowId) -> float:
        """Predicted cost of an image of a row."""
        if row_id in AT_BASE_COST:
            return self.base.image_macs
        decoders = self.base.decoders
        like_multi_decoder = row_id == "multi-decoder" or "tailored" in row_id
        if decoders is None or not (like_multi_decoder or self.recipe.method == "multi-decoder"):
            return self.base.rival_macs
        steps = self.recipe.sample.num_inference_steps
        routes = self.base.plan.routes(self.base.scheduler, steps, decoders.macs)
        found = guided_routes(routes, guidance_of(self.sampler())).total
        return found if like_multi_decoder or row_id == "base-fewer-steps" else self.base.rival_macs

    # ---- measurements

    def sampler(self) -> dict[str, Any]:
        """What decides which timesteps sampling visits."""
        sample = self.recipe.sample
        return {
            "scheduler": sample.scheduler,
            "num_inference_steps": sample.num_inference_steps,
            "schedule": self.base.schedule.to_dict(),
            "prediction_type": self.base.objective.prediction_type,
            "variance": self.recipe.objective.variance,
            **({} if self.base.latents is None else {"latent": True}),
            **guidance_settings(sample.guidance_scale, self.base.plan_facts),
        }

    def sampling(self) -> dict[str, Any]:
        return {
            **self.sampler(),
            "sample": self.recipe.sample.model_dump(mode="json", exclude=BESIDE_SAMPLE),
            "shape": self.base.seen.shape,
            "num_classes": self.base.data.num_classes,
            **({} if self.base.latents is None else {"decode_batch": self.base.latents.settings.encode_batch_size}),
        }

    @property
    def decode_macs(self) -> int:
        """Of one image, on top of what its latents cost."""
        return 0 if self.base.latents is None else self.base.latents.decode_macs

    def row(self, row_id: RowId, reference: StepSpec) -> Row:
        model = self.model(row_id)
        settings, inputs = self.sampling(), {"model": model, **self.base.image_inputs}
        if row_id in ("base-fewer-steps", "deepcache"):
            inputs["match"] = self.cost_of_rival()
        if row_id == "deepcache":
            check_cacheable(self.base.network)
            settings["deepcache"] = True
        macs = (self.image_macs(row_id) + self.decode_macs) * self.recipe.sample.num_images
        sample = self.trainings.once(StepSpec(f"sample[{row_id}]", "sample", settings, inputs, macs=macs))
        evaluate = self.trainings.once(self.evaluation(row_id, sample, reference))
        label, note = label_of(row_id, self.recipe.method, self.recipe.finetune is not None)
        return Row(row_id, label, note, model, sample, evaluate, self.loss(model, row_id))

    def evaluating(self, *names: str) -> dict[str, Any]:
        """Some settings of the evaluation, so that changing one redoes only what it touches."""
        return self.recipe.evaluate.model_dump(mode="json", include=set(names))

    def features(self) -> dict[str, Any]:
        return {
            "evaluate": self.evaluating("features", "tap", "inception_path", "num_threads"),
            "checksum": self.base.features_checksum,
        }

    def reference(self) -> StepSpec:
        settings = {
            **self.features(),
            "data": self.base.data.fingerprint,
            "num_images": self.recipe.sample.num_images,
            "seed": self.recipe.sample.seed,
        }
        return self.trainings.once(StepSpec("reference", "reference", settings))

    def coverage(self, reference: StepSpec, rows: Sequence[Row]) -> StepSpec:
        """Precision and recall of all rows, and distances per class where there are classes."""
        num_classes = self.base.data.num_classes
        settings = {**reference.settings, **({"num_classes": num_classes} if num_classes else {})}
        inputs = {"reference": reference, **{f"evaluate[{row.id}]": row.evaluate for row in rows}}
        return StepSpec("coverage", "coverage", settings, inputs)

    def evaluation(self, name: str, sample: StepSpec, reference: StepSpec) -> StepSpec:
        inputs = {"sample": sample, "reference": reference}
        return StepSpec(f"evaluate[{name}]", "evaluate", self.features(), inputs)

    def loss(self, model: StepSpec, row_id: RowId) -> StepSpec:
        name = model.name if model.name in ("base", "base-continued") else row_id
        return self.trainings.loss(model, name)

    def ideal_loss(self) -> StepSpec | None:
        """The optimal denoiser's loss: for recipes that compare networks per group, or plan by it."""
        if not self.recipe.has_method_b and self.recipe.plan.method != "optimal-denoiser":
            return None
        settings = {
            "objective": self.base.objective_settings,
            "schedule": self.base.schedule.to_dict(),
            "data": self.base.data.fingerprint,
            "seed": self.recipe.seed,
            "num_levels": IDEAL_LEVELS,
            "num_draws": IDEAL_DRAWS,
            "evaluate": self.evaluating("num_threads"),
        }
        size = self.base.seen.num_train * self.base.seen.shape[0] * self.base.seen.size**2
        macs = float(size * IDEAL_DRAWS * (IDEAL_LEVELS + 2))
        return StepSpec("ideal-loss", "ideal_loss", settings, self.base.learned_inputs, macs=macs)

    def snapshots(self, reference: StepSpec) -> dict[int, StepSpec]:
        found = {}
        for images in self.trainings.snapshot_images():
            settings = {**self.sampling(), "snapshot": images}
            macs = (self.base.image_macs + self.decode_macs) * self.recipe.sample.num_images
            name = f"base@{images}"
            inputs = {"model": self.trainings.stage_1(), **self.base.image_inputs}
            sample = StepSpec(f"sample[{name}]", "sample", settings, inputs, macs=macs)
            found[images] = self.evaluation(name, sample, reference)
        return found
