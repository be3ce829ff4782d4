"""Does it pay? In plain words, from the rows' KID intervals; where they overlap no difference is claimed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

Relation = Literal["better", "worse", "no difference shown"]
SAME_COST = 1.02  # rows whose cost per image is at most this many times the method's count as equally cheap


def relation(row: dict[str, Any], rival: dict[str, Any]) -> Relation:
    """Of two rows, by 95 % intervals that do not overlap: stricter than a 5 % test, since both share a reference."""
    if row["kid"]["high"] < rival["kid"]["low"]:
        return "better"
    if row["kid"]["low"] > rival["kid"]["high"]:
        return "worse"
    return "no difference shown"


def verdict(rows: Sequence[dict[str, Any]], method: str) -> str:
    """One answer, then one clause per rival."""
    by_id = {row["id"]: row for row in rows}
    own = by_id[method]
    rivals = [row for row in rows if row["id"] != method and not _is_context(row, own)]
    if not rivals:
        return f"{own['label']} was compared with nothing; `compare` names rows to compare with."
    cheap = [row for row in rivals if row["macs_per_image"] <= own["macs_per_image"] * SAME_COST]
    against_all = {row["id"]: relation(own, row) for row in rivals}
    at_cost = [against_all[row["id"]] for row in cheap]
    clauses = "; ".join(_clause(own, row, against_all[row["id"]]) for row in rivals)
    return f"{_answer(own, at_cost, list(against_all.values()))} Against each: {clauses}."


def _is_context(row: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether a row is the base on its way, which saw fewer images: no rival, but what was there before."""
    return row["id"] == "base" and row["training_images"] < own["training_images"]


def _answer(own: dict[str, Any], at_cost: list[Relation], against_all: list[Relation]) -> str:
    name = own["label"]
    if not at_cost:
        shown = "better" in against_all and "worse" not in against_all
        return f"No rival at {name}'s cost per image was measured; {'it is better than' if shown else 'see'} the rest."
    if all(found == "better" for found in at_cost):
        return f"{name} wins: at its cost per image it is better than every rival."
    if "worse" in at_cost:
        return f"{name} does not win: at its cost per image or less, a rival is better."
    if "better" in at_cost:
        return f"{name} does not win outright: at its cost per image it is shown to be better than some rivals only."
    return f"No win shown: at {name}'s cost per image no difference from its rivals is shown."


def _clause(own: dict[str, Any], rival: dict[str, Any], found: Relation) -> str:
    cost = own["macs_per_image"] / rival["macs_per_image"]
    return (
        f"{rival['label']}: {found} (Fréchet distance {own['frechet']:.4g} against {rival['frechet']:.4g}, "
        f"at {cost:.2f} of its MACs per image)"
    )
