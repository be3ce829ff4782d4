"""The steps of the multi-stage framework (method B): the multi-decoder's joint training, and separate networks.

All from-scratch networks share section `base` and the same total of training images: the joint training sees them
all, separate networks split them in the proportion in which the joint training draws its groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from noisewise.workflow.rows import RowId
from noisewise.workflow.store import StepSpec
from noisewise.workflow.trainings import Trainings

HELD_OUT = 20  # one training image in so many decides when to stop early
SNAPSHOTS = 10  # evenly spaced weights that early stopping chooses from


@dataclass
class Stages:
    """Makes the steps of method B's networks."""

    trainings: Trainings

    @property
    def base(self) -> Any:
        return self.trainings.base

    @property
    def settings(self) -> Any:
        return self.trainings.recipe.multi_decoder

    def shares(self) -> dict[int, float]:
        """Share of the joint training's images that each group sees."""
        groups = self.base.trained_groups
        if self.settings.group_draws != "host":
            return dict.fromkeys(groups, 1 / len(groups))
        found = {group: self.base.objective.share(self.trainings.timesteps(group)) for group in groups}
        return {group: share / sum(found.values()) for group, share in found.items()}

    def split(self, num_images: int) -> dict[int, int]:
        """Training images of each separate network, by the largest remainders; at least one each."""
        shares = self.shares()
        found = {group: max(1, int(share * num_images)) for group, share in shares.items()}
        by_remainder = sorted(shares, key=lambda group: found[group] - shares[group] * num_images)
        for group in by_remainder[: max(0, num_images - sum(found.values()))]:
            found[group] += 1
        return found

    # ---- the multi-decoder

    def joint(self) -> StepSpec:
        """One training for all groups."""
        t, shares = self.trainings, self.shares()
        more = self.draws()
        if self.settings.start == "base":
            macs = sum(share * self.base.macs * self.base.plan.groups[g].cost_limit for g, share in shares.items())
            return t.train("joint", t.continued_images(), ("joint",), source=self.decoders(), macs=macs, **more)
        decoders = self.base.decoders
        macs = sum(share * decoders.macs[group] for group, share in shares.items())
        more |= {"network": decoders.network(), "snapshots": t.snapshot_images()}
        return t.train("joint", t.scratch(t.total_images), ("joint",), macs=macs, **more)

    def draws(self) -> dict[str, Any]:
        """How the joint training draws groups, as a training's settings."""
        shares = self.shares()
        return {
            "groups": list(shares),
            "ranges": [self.trainings.timesteps(group) for group in shares],
            "shares": list(shares.values()),
            "group_draws": self.settings.group_draws,
        }

    def same_draws(self) -> StepSpec:
        """The single network on the joint training's draws: what of the gain is theirs and not the decoders'."""
        t = self.trainings
        return t.train(
            "base-same-draws", t.scratch(t.total_images), ("base",), network=self.base.network, **self.draws()
        )

    def decoders(self) -> StepSpec:
        """The trained base's encoder, and its decoder pruned to each group's cost limit."""
        t = self.trainings
        settings = {
            "prune": t.recipe.prune,
            **t.learning(None, ("decoders",)),
            "plan": self.base.plan_facts,
            "share_bottleneck": self.settings.share_bottleneck,
        }
        groups = [self.base.plan.groups[group] for group in self.base.trained_groups if self.base.is_pruned(group)]
        macs = sum(self.base.prune_macs(t.recipe, group.num_timesteps) for group in groups)
        return t.once(
            StepSpec("decoders", "decoders", settings, {"source": t.stage_1(), **self.base.learned_inputs}, macs=macs)
        )

    def shapes(self) -> dict[str, StepSpec]:
        """What must be known before the multi-decoder's cost is: nothing, unless its decoders are pruned."""
        return {"decoders": self.decoders()} if self.settings.start == "base" else {}

    # ---- separate networks

    def separate(self, row_id: RowId) -> StepSpec:
        """A network per group, assembled."""
        counts = self.split(self.trainings.total_images)
        make = self.picked if row_id.endswith("early-stopped") else self.own
        experts = {group: make(row_id, group, counts[group]) for group in self.base.trained_groups}
        return self.trainings.assemble(row_id, experts)

    def own(self, row_id: RowId, group: int, num_images: int, **more: Any) -> StepSpec:
        """A group's own network, from scratch: shaped as the base, or tailored as the multi-decoder is."""
        t = self.trainings
        names = ("separate", group)  # the same draws for every kind of separate network
        kind = (f"{row_id}[{group}]", t.scratch(num_images), names, t.timesteps(group))
        if "tailored" not in row_id:
            return t.train(*kind, network=self.base.network, **more)
        if self.settings.start == "base":
            macs = self.base.macs * self.base.plan.groups[group].cost_limit
            return t.train(*kind, shape=self.decoders(), expert=group, macs=macs, **more)
        decoders = self.base.decoders
        return t.train(*kind, macs=decoders.macs[group], network=decoders.network(group), **more)

    def picked(self, row_id: RowId, group: int, num_images: int) -> StepSpec:
        """The snapshot of a group's network that does best on training images it was not trained on."""
        t = self.trainings
        counts = sorted({num_images * (i + 1) // SNAPSHOTS for i in range(SNAPSHOTS)} - {0})
        training = self.own(row_id, group, num_images, snapshots=counts, held_out=HELD_OUT)
        settings = {
            **t.learning(t.timesteps(group), ("separate", group)),
            "snapshots": counts,
            "held_out": HELD_OUT,
            "evaluate": t.recipe.evaluate.model_dump(mode="json", include={"num_loss_images", "num_threads"}),
        }
        return t.once(
            StepSpec(f"pick[{row_id}.{group}]", "pick", settings, {"source": training, **self.base.learned_inputs})
        )
