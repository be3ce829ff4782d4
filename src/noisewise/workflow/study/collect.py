"""All numbers of a study in one place: `results.json`, from the steps' records."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from noisewise.workflow import provenance
from noisewise.workflow.results import fallbacks
from noisewise.workflow.store import Store, closure, utc_now
from noisewise.workflow.study.cells import Layout
from noisewise.workflow.study.collect_sampled import (
    INTERVALS,
    arm_facts,
    cell_facts,
    groups_of,
    groups_table,
    study_facts,
)
from noisewise.workflow.study.definition import Arm, Own
from noisewise.workflow.study.sampled import SampledLayout
from noisewise.workflow.study.statistics import Spread
from noisewise.workflow.study.timing import timing

FORMAT = 1


def collect(layout: Layout, store: Store, commands: Mapping[str, float]) -> dict[str, Any]:
    """`results.json` of a finished study.

    Args:
        commands: seconds of this command's own work outside steps, by what it was.
    """
    study, own = layout.study, layout.study.own
    cells = [_cell(layout, cell, own, store) for cell in layout.cells]
    judged = own.judge(layout, store) if own is not None else {}
    arms = [_arm(layout, arm, [cell for cell in cells if cell["arm"] == arm.key], judged, store) for arm in layout.arms]
    return {
        "format": FORMAT,
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "created": utc_now(),
        "command": provenance.command(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "recipe": layout.recipe.to_dict(),
        "data": _data(layout),
        "seeds": list(layout.seeds),
        "reference": layout.reference.key,
        "compared": _compared(own) if own is not None and not study.sampled else FRECHET,
        "paper": {"source": study.paper.source, "columns": list(study.paper.columns), "limits": study.paper.limits,
                  "others": [list(other) for other in study.paper.others]},
        "axis": study.axis,
        "log_axis": study.log_axis,
        "figures": list(study.figures),
        "columns": [asdict(column) for column in own.columns] if own is not None else [],
        "arms": arms,
        "cells": cells,
        **study_facts(layout, cells, store),
        "timing": timing(layout.steps, store, commands),
        **_gathered(layout, own, store),
        "warnings": _warnings(layout, cells, store),
    }  # fmt: skip


def _gathered(layout: Layout, own: Own | None, store: Store) -> dict[str, Any]:
    """Further tables of the page and lists with a CSV file each: the study's own, and the sizes of groups."""
    found: dict[str, Any] = {"tables": [], "lists": {}}
    if own is not None:
        found |= own.gather(layout, store)
    if isinstance(layout, SampledLayout) and (groups := groups_of(layout, store)):
        found["lists"] = {**found["lists"], "groups": groups}
        found["tables"] = [*found["tables"], groups_table(groups)]
    return found


FRECHET = {"name": "frechet", "title": "Fréchet distance", "higher_is_better": False}


def _compared(own: Own) -> dict[str, Any]:
    return {"name": own.compared, "title": own.quantity, "higher_is_better": own.higher_is_better}


def _warnings(layout: Layout, cells: Sequence[Mapping[str, Any]], store: Store) -> list[str]:
    """What plans, data and metrics had to say, and where a proposer needed help."""
    notes = {note for cell in layout.cells for note in cell.graph.base.notes}
    notes |= {flag for cell in cells for flag in cell.get("flags", ())}
    for cell in layout.cells:
        prunings = [step for step in closure(cell.ends) if step.action == "prune"]
        notes |= {f"{cell.arm.label}, seed {cell.seed}: {said}" for said in fallbacks(store, prunings)}
    return sorted(notes)


def _data(layout: Layout) -> dict[str, Any]:
    data = layout.cells[0].graph.data
    names = ("name", "num_train", "num_test", "size", "channels", "num_classes", "fingerprint")
    return {name: getattr(data, name) for name in names}


def _cell(layout: Layout, cell: Any, own: Own | None, store: Store) -> dict[str, Any]:
    """The numbers of one arm with one seed."""
    facts = cell_facts(layout, cell, store) if isinstance(layout, SampledLayout) else {}
    return {
        "arm": cell.arm.key,
        "label": cell.arm.label,
        "seed": cell.seed,
        "row": cell.arm.row,
        **facts,
        "own": dict(own.numbers(cell, store)) if own is not None else {},
        "own_steps": {role: step.id for role, step in cell.own.items()},
    }


def _arm(
    layout: Layout, arm: Arm, cells: Sequence[Mapping[str, Any]], judged: Mapping[str, Mapping[str, Any]], store: Store
) -> dict[str, Any]:
    """An arm's numbers over its seeds, and its difference from the arm it is compared with."""
    spreads = {name: _spread([cell["own"][name] for cell in cells]) for name in cells[0]["own"]}
    more = judged.get(arm.key, {})
    return {
        "key": arm.key,
        "label": arm.label,
        "note": arm.note,
        "row": arm.row,
        "overrides": dict(arm.overrides),
        "paper": list(arm.paper),
        "x": arm.x,
        "line": arm.line,
        "against": layout.against(arm).key,
        "difference": None,
        **(arm_facts(layout, arm, cells, store) if isinstance(layout, SampledLayout) else {}),
        **more,
        "own": {**spreads, **more.get("own", {})},
    }


def _spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    return vars(Spread.of(known)) if len(known) == len(values) else None


def csv_of_cells(cells: Sequence[Mapping[str, Any]]) -> str:
    """One line per cell; groups' losses and the ends of intervals in columns of their own."""
    lines = [_flat(cell) for cell in cells]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(cell: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in cell.items():
        if name in INTERVALS:
            flat |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        elif name == "group_test_loss":
            flat |= {f"test_loss_group_{i}": loss for i, loss in enumerate(value)}
        elif name == "active_parameters":
            flat[name] = " ".join(str(count) for count in value)
        elif name == "own":
            flat |= value
        elif name == "steps":
            flat |= {f"{kind}_step": step for kind, step in value.items()}
        elif name not in ("flags", "own_steps"):
            flat[name] = value
    return flat
