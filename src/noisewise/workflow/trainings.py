"""The steps that make networks: stage 1, stage 2, pruning, and what they are compared with (method A).

Every step's settings hold what decides its result, and nothing else; a step that several rows need is made once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from noisewise.evaluation.cost import TRAINING_FACTOR
from noisewise.training.settings import TrainSettings
from noisewise.workflow.foundation import Foundation
from noisewise.workflow.recipe import Recipe
from noisewise.workflow.rows import RowId
from noisewise.workflow.store import StepSpec


@dataclass
class Trainings:
    """Makes the steps of method A's networks; equal ones are made once."""

    recipe: Recipe
    base: Foundation
    made: dict[str, StepSpec] = field(default_factory=dict)

    def once(self, step: StepSpec) -> StepSpec:
        return self.made.setdefault(step.name, step)

    # ---- what trainings share

    def timesteps(self, group: int) -> tuple[float, float]:
        """The group's half-open range in the schedule's coordinate; whole numbers where that is a timestep."""
        g = self.base.plan.groups[group]
        return (int(g.t_start), int(g.t_stop)) if self.base.schedule.is_discrete else (g.t_start, g.t_stop)

    def learning(self, timesteps: tuple[float, float] | None, names: tuple[object, ...]) -> dict[str, Any]:
        """Settings that every step which looks at losses shares."""
        return {
            "objective": self.base.objective_settings,
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
        timesteps: tuple[float, float] | None = None,
        source: StepSpec | None = None,
        macs: float | None = None,
        **more: Any,
    ) -> StepSpec:
        """A training, of ``source``'s network or of a new one (``more``: network, shape, teacher, ranges, ...)."""
        inputs = {**({"source": source} if source else {}), **self.base.learned_inputs}
        for role in ("teacher", "shape"):
            if step := more.pop(role, None):
                inputs[role] = step
        teacher = "teacher" in inputs
        per_image = TRAINING_FACTOR * (self.base.macs if macs is None else macs) + (self.base.macs if teacher else 0)
        settings = {
            "train": train,
            **self.learning(timesteps, names),
            "horizontal_flip": self.recipe.horizontal_flip and self.base.latents is None,  # latents of both are cached
            **({"label_dropout": dropout} if (dropout := self.recipe.conditioning.dropout) else {}),
            **more,
        }
        return self.once(
            StepSpec(name, "train", settings, inputs, num_images=train.num_images, macs=per_image * train.num_images)
        )

    @property
    def total_images(self) -> int:
        """Training images of every row (with a stage 2, of every row but the base)."""
        finetune = self.recipe.finetune
        later = 0 if finetune is None else len(self.base.trained_groups) * finetune.num_images
        return self.recipe.base.num_images + later

    def scratch(self, num_images: int) -> TrainSettings:
        """Section `base` for a network of ``num_images``; a warm-up that is given keeps its share of them."""
        base = self.recipe.base
        changed: dict[str, Any] = {"num_images": num_images}
        if base.warmup_images is not None and base.num_images:
            changed["warmup_images"] = base.warmup_images * num_images // base.num_images
        return TrainSettings.model_validate({**base.model_dump(exclude={"num_snapshots"}), **changed})

    # ---- stage 1

    def stage_1(self) -> StepSpec:
        settings = self.recipe.base
        if settings.num_images == 0:
            return self.once(StepSpec("base", "take", {"network": self.base.network}))
        # a plain TrainSettings, so that the number of snapshots is said once
        train = self.scratch(settings.num_images)
        return self.train("base", train, ("base",), network=self.base.network, snapshots=[*self.snapshot_images()])

    def snapshot_images(self) -> list[int]:
        num = self.recipe.base.num_snapshots
        return [self.recipe.base.num_images * (i + 1) // (num + 1) for i in range(num)]

    # ---- pruning

    def pruned(self, group: int) -> StepSpec:
        """The group's network before fine-tuning: the base itself where its limit is the base's cost."""
        limit = self.base.plan.groups[group].cost_limit
        if limit >= 1:
            return self.stage_1()
        return self.prune(f"prune[{group}]", self.stage_1(), limit, group, group)

    def prune(
        self, name: str, source: StepSpec, budget: float | None, group: int | None, label: object,
        match: StepSpec | None = None,
    ) -> StepSpec:  # fmt: skip
        """A pruning for one group's noise levels, or for all of them (None); ``label`` names its random streams."""
        timesteps = None if group is None else self.timesteps(group)
        prune = self.recipe.prune
        if source.action == "untrained":  # it has nothing that could be recovered
            prune = prune.model_copy(update={"recovery": "none"})
        settings = {"prune": prune, **self.learning(timesteps, ("prune", label)), "budget": budget}
        inputs = {"source": source, **({"match": match} if match else {}), **self.base.learned_inputs}
        groups = self.base.plan.groups
        levels = self.base.schedule.num_train_timesteps if group is None else groups[group].num_timesteps
        macs = self.base.prune_macs(self.recipe, levels)
        is_timed = prune.budget_in == "seconds" and budget is not None
        return self.once(StepSpec(name, "prune", settings, inputs, macs=macs, exclusive=is_timed))

    # ---- stage 2 and its rivals

    def expert(self, group: int, pruned: bool, distilled: bool = False) -> StepSpec:
        """A group's fine-tuned network."""
        g = self.base.plan.groups[group]
        source = self.pruned(group) if pruned else self.stage_1()
        weight = self.recipe.stage_2.distill_weight if distilled else 0.0
        train = self.recipe.stage_2.model_copy(update={"distill_weight": weight})
        kind = "distil" if distilled else "finetune" if source.action == "prune" else "unpruned"
        macs = self.base.macs * (g.cost_limit if source.action == "prune" else 1)
        teacher = self.stage_1() if distilled else None
        more = {"teacher": teacher} if teacher else {}
        names = ("finetune", group)
        return self.train(f"{kind}[{group}]", train, names, self.timesteps(group), source, macs, **more)

    def from_scratch(self, group: int) -> StepSpec:
        """A group's network of the single-stage method."""
        g, settings = self.base.plan.groups[group], self.recipe.single_stage
        train = self.scratch(settings.num_images or self.total_images // len(self.base.trained_groups))
        timesteps, names = self.timesteps(group), ("single-stage", group)
        if settings.architecture == "base" or g.cost_limit >= 1:
            return self.train(f"scratch[{group}]", train, names, timesteps, network=self.base.network)
        if settings.architecture == "experts":
            macs = self.base.macs * g.cost_limit
            return self.train(f"scratch[{group}]", train, names, timesteps, macs=macs, shape=self.pruned(group))
        untrained = self.once(
            StepSpec("untrained", "untrained", {"network": self.base.network, "seed": self.recipe.seed})
        )
        shape = self.prune(f"shape[{group}]", untrained, g.cost_limit, group, group)
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
        train = self.recipe.stage_2
        num_groups = len(self.base.trained_groups)
        more = {} if train.warmup_images is None else {"warmup_images": train.warmup_images}
        return train.model_copy(update={"num_images": train.num_images * num_groups, "distill_weight": 0.0, **more})

    def continued(self) -> StepSpec:
        """The network of all timesteps at the images of the other rows: the base, trained on where there is more."""
        if self.recipe.finetune is None:
            return self.stage_1()
        return self.train("base-continued", self.continued_images(), ("continued",), source=self.stage_1())

    def uniform(self, match: StepSpec) -> StepSpec:
        """One pruned network for all timesteps, at the cost per image that ``match`` knows."""
        small = self.prune("prune[uniform]", self.stage_1(), None, None, "uniform", match=match)
        macs = self.base.macs * min(1.0, self.base.mean_limit)
        return self.train("uniform", self.continued_images(), ("continued",), source=small, macs=macs)

    def assemble(self, row_id: str, experts: dict[int, StepSpec]) -> StepSpec:
        """The groups' networks as one."""
        inputs = {f"expert[{group}]": step for group, step in experts.items()}
        return self.once(StepSpec(f"assemble[{row_id}]", "assemble", {"plan": self.base.plan_facts}, inputs))

    def merged(self) -> StepSpec:
        """The unpruned experts folded into one network."""
        settings, groups = self.recipe.merge, self.base.trained_groups
        experts = {f"expert[{group}]": self.expert(group, pruned=False) for group in groups}
        passes = settings.num_evaluations * settings.num_images * len(groups)
        step = StepSpec(
            "merge",
            "merge",
            {"merge": settings, **self.learning(None, ("merge",)), "plan": self.base.plan_facts},
            {"base": self.stage_1(), **experts, **self.base.learned_inputs},
            macs=float(passes * self.base.macs),
        )
        return self.once(step)

    # ---- their losses

    def loss(self, model: StepSpec, name: str) -> StepSpec:
        """Held-out loss of a network by group and along t, on the draws that every network sees."""
        settings = {
            "evaluate": self.recipe.evaluate.model_dump(mode="json", include={"num_loss_images", "num_threads"}),
            **self.learning(None, ("test loss",)),
            "plan": self.base.plan_facts,
        }
        return self.once(StepSpec(f"loss[{name}]", "loss", settings, {"model": model, **self.base.learned_inputs}))
