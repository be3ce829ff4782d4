"""From a recipe to its graph of steps: every step's settings hold what decides its result, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from noisewise.evaluation.cost import TRAINING_FACTOR
from noisewise.training.settings import TrainSettings
from noisewise.workflow.foundation import Foundation, lay_foundation
from noisewise.workflow.graph import Graph, Row
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.settings import RowId
from noisewise.workflow.store import StepSpec, Store


def build_graph(recipe: Recipe, store: Store | None = None, data_required: bool = True) -> Graph:
    """The steps of a recipe. Reads the data (through the store's cache) for its fingerprint and size."""
    return _Builder(recipe, lay_foundation(recipe, store, data_required)).graph()


LABELS: dict[RowId, tuple[str, str]] = {
    "base": ("base, stage 1 alone", "for context: fewer training images than the others"),
    "base-continued": ("base, trained on", "one network for all timesteps, the images of stage 2 included"),
    "base-fewer-steps": (
        "base, fewer steps",
        "the base trained on, in as many steps as {rival}'s cost allows",
    ),
    "unpruned": ("TDC without pruning", "an expert per group, each as large as the base"),
    "uniform": ("uniformly pruned", "one pruned network for all timesteps, at {rival}'s cost per image"),
    "tdc": ("TDC", "an expert per group, pruned to the group's cost limit and fine-tuned"),
    "distilled": ("TDC, distilled", "TDC whose fine-tuning also follows the base's predictions"),
    "single-stage": ("single stage", "an expert per group from scratch, at the same total of training images"),
}


@dataclass
class _Builder:
    """Makes steps; equal ones are made once."""

    recipe: Recipe
    base: Foundation
    made: dict[str, StepSpec] = field(default_factory=dict)

    def graph(self) -> Graph:
        reference = self.reference()
        rows = tuple(self.row(row_id, reference) for row_id in self.recipe.rows)
        inputs = {f"{kind}[{row.id}]": getattr(row, kind) for row in rows for kind in ("model", "sample")}
        settings = {**self.sampling(), "timing": self.evaluating("num_timing_images", "num_threads")}
        timing = StepSpec("timing", "timing", settings, inputs, exclusive=True)
        return Graph(self.recipe, self.base, rows, self.snapshots(reference), reference, timing)

    def once(self, step: StepSpec) -> StepSpec:
        return self.made.setdefault(step.name, step)

    # ---- networks

    def timesteps(self, group: int) -> tuple[int, int]:
        """The group's half-open range; a variance-preserving schedule's bounds are whole."""
        g = self.base.plan.groups[group]
        return int(g.t_start), int(g.t_stop)

    def learning(self, timesteps: tuple[int, int] | None, names: tuple[object, ...]) -> dict[str, Any]:
        """Settings that every step which looks at losses shares."""
        return {
            "objective": self.recipe.objective,
            "schedule": self.base.schedule.to_dict(),
            "data": self.base.data.fingerprint,
            "timesteps": timesteps,
            "names": names,
            "seed": self.recipe.seed,
        }

    def train(
        self,
        name: str,
        train: TrainSettings,
        names: tuple[object, ...],
        timesteps: tuple[int, int] | None = None,
        source: StepSpec | None = None,
        macs: float | None = None,
        **more: Any,
    ) -> StepSpec:
        """A training, of ``source``'s network or of a new one (``more``: network, fresh, num_snapshots, teacher)."""
        inputs = {"source": source} if source else {}
        if teacher := more.pop("teacher", None):
            inputs["teacher"] = teacher
        per_image = TRAINING_FACTOR * (self.base.macs if macs is None else macs) + (self.base.macs if teacher else 0)
        settings = {
            "train": train,
            **self.learning(timesteps, names),
            "horizontal_flip": self.recipe.horizontal_flip,
            **more,
        }
        return self.once(
            StepSpec(name, "train", settings, inputs, num_images=train.num_images, macs=per_image * train.num_images)
        )

    def stage_1(self) -> StepSpec:
        settings = self.recipe.base
        if settings.num_images == 0:
            return self.once(StepSpec("base", "take", {"network": self.base.network}))
        # a plain TrainSettings, so that the number of snapshots is said once
        train = TrainSettings.model_validate(settings.model_dump(exclude={"num_snapshots"}))
        return self.train(
            "base", train, ("base",), network=self.base.network, snapshots=[*self.snapshot_images()]
        )  # fmt: skip

    def snapshot_images(self) -> list[int]:
        num = self.recipe.base.num_snapshots
        return [self.recipe.base.num_images * (i + 1) // (num + 1) for i in range(num)]

    def pruned(self, group: int) -> StepSpec:
        """The group's network before fine-tuning: the base itself where its limit is the base's cost."""
        limit = self.base.plan.groups[group].cost_limit
        if limit >= 1:
            return self.stage_1()
        return self.prune(f"prune[{group}]", self.stage_1(), limit, self.timesteps(group), group)

    def prune(
        self, name: str, source: StepSpec, budget: float | None, timesteps: tuple[int, int] | None, group: object,
        match: StepSpec | None = None,
    ) -> StepSpec:  # fmt: skip
        settings = {
            "prune": self.recipe.prune,
            **self.learning(timesteps, ("prune", group)),
            "budget": budget,
        }
        inputs = {"source": source, **({"match": match} if match else {})}
        start, stop = timesteps or (0, self.base.schedule.num_train_timesteps)
        macs = self.base.prune_macs(self.recipe, stop - start)
        return self.once(StepSpec(name, "prune", settings, inputs, macs=macs))

    def expert(self, group: int, pruned: bool, distilled: bool = False) -> StepSpec:
        """A group's fine-tuned network."""
        g = self.base.plan.groups[group]
        source = self.pruned(group) if pruned else self.stage_1()
        weight = self.recipe.finetune.distill_weight if distilled else 0.0
        train = self.recipe.finetune.model_copy(update={"distill_weight": weight})
        kind = "distil" if distilled else "finetune" if source.action == "prune" else "unpruned"
        macs = self.base.macs * (g.cost_limit if source.action == "prune" else 1)
        teacher = self.stage_1() if distilled else None
        more = {"teacher": teacher} if teacher else {}
        names = ("finetune", group)
        return self.train(f"{kind}[{group}]", train, names, self.timesteps(group), source, macs, **more)

    def from_scratch(self, group: int) -> StepSpec:
        """A group's network of the single-stage method."""
        g = self.base.plan.groups[group]
        groups = self.base.trained_groups
        total = self.recipe.base.num_images + len(groups) * self.recipe.finetune.num_images
        train = TrainSettings.model_validate(
            {**self.recipe.base.model_dump(exclude={"num_snapshots"}), "num_images": total // len(groups)}
        )
        timesteps, names = self.timesteps(group), ("single-stage", group)
        if self.recipe.single_stage.architecture == "base" or g.cost_limit >= 1:
            return self.train(f"scratch[{group}]", train, names, timesteps, network=self.base.network)
        untrained = self.once(
            StepSpec("untrained", "untrained", {"network": self.base.network, "seed": self.recipe.seed})
        )
        shape = self.prune(f"shape[{group}]", untrained, g.cost_limit, timesteps, group)
        macs = self.base.macs * g.cost_limit
        return self.train(f"scratch[{group}]", train, names, timesteps, shape, macs, fresh=True)

    def experts(self, row_id: RowId) -> dict[int, StepSpec]:
        make = {
            "tdc": lambda group: self.expert(group, pruned=True),
            "distilled": lambda group: self.expert(group, pruned=True, distilled=True),
            "unpruned": lambda group: self.expert(group, pruned=False),
            "single-stage": self.from_scratch,
        }[row_id]
        return {group: make(group) for group in self.base.trained_groups}

    def continued_images(self) -> TrainSettings:
        """Stage 2's settings for one network of all timesteps: the images of all groups."""
        train = self.recipe.finetune
        num_groups = len(self.base.trained_groups)
        more = {} if train.warmup_images is None else {"warmup_images": train.warmup_images}
        return train.model_copy(update={"num_images": train.num_images * num_groups, "distill_weight": 0.0, **more})

    def cost_of_rival(self) -> StepSpec:
        """What an image costs by the method of the recipe; rows at equal cost wait for it, not for its training."""
        shapes = {g: self.pruned(g) for g in self.base.trained_groups}
        if self.recipe.method == "single-stage":
            scratch = {g: self.from_scratch(g) for g in self.base.trained_groups}
            shapes = {g: step.inputs.get("source", step) for g, step in scratch.items()}
        inputs = {f"expert[{g}]": step for g, step in shapes.items()}
        settings = {"plan": self.base.plan.to_dict(), **self.sampler()}
        return self.once(StepSpec("cost", "cost", settings, inputs))

    def model(self, row_id: RowId) -> StepSpec:
        if row_id == "base":
            return self.stage_1()
        if row_id in ("base-continued", "base-fewer-steps"):
            return self.train("base-continued", self.continued_images(), ("continued",), source=self.stage_1())
        if row_id == "uniform":
            small = self.prune("prune[uniform]", self.stage_1(), None, None, "uniform", match=self.cost_of_rival())
            macs = self.base.macs * self.base.mean_limit
            return self.train("uniform", self.continued_images(), ("continued",), source=small, macs=macs)
        inputs = {f"expert[{group}]": step for group, step in self.experts(row_id).items()}
        settings = {"plan": self.base.plan.to_dict()}
        return self.once(StepSpec(f"assemble[{row_id}]", "assemble", settings, inputs))

    # ---- measurements

    def sampler(self) -> dict[str, Any]:
        """What decides which timesteps sampling visits."""
        sample = self.recipe.sample
        return {
            "scheduler": sample.scheduler,
            "num_inference_steps": sample.num_inference_steps,
            "schedule": self.base.schedule.to_dict(),
            "prediction_type": self.recipe.objective.prediction_type,
            "variance": self.recipe.objective.variance,
        }

    def sampling(self) -> dict[str, Any]:
        return {
            **self.sampler(),
            "sample": self.recipe.sample.model_dump(mode="json", exclude={"scheduler", "num_inference_steps"}),
            "shape": self.base.data.shape,
            "num_classes": self.base.data.num_classes,
        }

    def row(self, row_id: RowId, reference: StepSpec) -> Row:
        model = self.model(row_id)
        macs = self.base.image_macs if row_id in ("base", "base-continued", "unpruned") else self.base.rival_macs
        inputs = {"model": model}
        if row_id == "base-fewer-steps":
            inputs["match"] = self.cost_of_rival()
        n = self.recipe.sample.num_images
        sample = self.once(StepSpec(f"sample[{row_id}]", "sample", self.sampling(), inputs, macs=macs * n))
        evaluate = self.once(self.evaluation(row_id, sample, reference))
        label, note = LABELS[row_id]
        rival = LABELS[self.recipe.method][0]
        return Row(row_id, label, note.format(rival=rival), model, sample, evaluate, self.loss(model, row_id))

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
        return self.once(StepSpec("reference", "reference", settings))

    def evaluation(self, name: str, sample: StepSpec, reference: StepSpec) -> StepSpec:
        inputs = {"sample": sample, "reference": reference}
        return StepSpec(f"evaluate[{name}]", "evaluate", self.features(), inputs)

    def loss(self, model: StepSpec, row_id: RowId) -> StepSpec:
        settings = {
            "evaluate": self.evaluating("num_loss_images", "num_threads"),
            **self.learning(None, ("test loss",)),
            "plan": self.base.plan.to_dict(),
        }
        name = "base-continued" if row_id == "base-fewer-steps" else row_id
        return self.once(StepSpec(f"loss[{name}]", "loss", settings, {"model": model}))

    def snapshots(self, reference: StepSpec) -> dict[int, StepSpec]:
        found = {}
        for images in self.snapshot_images():
            settings = {**self.sampling(), "snapshot": images}
            macs = self.base.image_macs * self.recipe.sample.num_images
            name = f"base@{images}"
            sample = StepSpec(f"sample[{name}]", "sample", settings, {"model": self.stage_1()}, macs=macs)
            found[images] = self.evaluation(name, sample, reference)
        return found
