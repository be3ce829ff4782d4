"""A reply's form: the schema it is asked for, the JSON found in it, and what is wrong with that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisewise.pruning.llm.slots import Slot

MOST_STARTS = 100  # braces that are tried as the start of an object
LONGEST_PROBLEM = 400  # characters
KEY = "candidates"


def reply_schema(slots: Sequence[Slot], num: int) -> dict[str, Any]:
    """JSON schema of ``num`` candidates, in what servers honour of it: all required, nothing else, enumerations."""
    candidate = {
        "type": "object",
        "properties": {slot.id: {"type": "integer", "enum": list(slot.menu)} for slot in slots},
        "required": [slot.id for slot in slots],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {KEY: {"type": "array", "minItems": num, "maxItems": num, "items": candidate}},
        "required": [KEY],
        "additionalProperties": False,
    }


def find_json(text: str) -> tuple[dict[str, Any] | None, bool]:
    """The first JSON object in a text, and whether the text is nothing but that object.

    What a reasoning model thought aloud (up to ``</think>``) is passed over.
    """
    text = text.rpartition("</think>")[2].strip()
    decoder = json.JSONDecoder()
    start = -1
    for _ in range(MOST_STARTS):
        start = text.find("{", start + 1)
        if start < 0:
            break
        try:
            value, stop = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):  # ValueError also for a number of thousands of digits
            continue
        return value, start == 0 and stop == len(text)
    return None, False


@dataclass(frozen=True)
class Checked:
    """The candidates of a reply that name an allowed value for every slot, and what is wrong with the rest."""

    candidates: tuple[dict[str, int], ...]  # slot's id -> value
    problem: str


def check_reply(value: dict[str, Any] | None, slots: Sequence[Slot], num: int) -> Checked:
    """Hold a reply against the schema; candidates beyond ``num`` are left aside."""
    if value is None:
        return Checked((), "it holds no JSON object")
    found = value.get(KEY)
    if not isinstance(found, list):
        keys = ", ".join(_short(key) for key in list(value)[:5]) or "nothing"
        return Checked((), f'it should have one key "{KEY}" with a list; it has {keys}')
    candidates, problems = [], []
    for i, candidate in enumerate(found[:num], start=1):
        wrong = _wrong(candidate, slots)
        if wrong:
            problems.append(f"candidate {i}: {wrong}")
        else:
            candidates.append({slot.id: int(candidate[slot.id]) for slot in slots})
    if len(found) < num:
        problems.append(f"{len(found)} of {num} candidates are there")
    return Checked(tuple(candidates), "; ".join(problems)[:LONGEST_PROBLEM])


def _wrong(candidate: Any, slots: Sequence[Slot]) -> str:
    """The first things wrong with one candidate; empty where it is right."""
    if not isinstance(candidate, dict):
        return f"{_short(candidate)} is no object of parts and values"
    known = {slot.id for slot in slots}
    wrong = [f"there is no part {_short(key)}" for key in candidate if key not in known]
    for slot in slots:
        if slot.id not in candidate:
            wrong.append(f"{slot.id} is missing")
            continue
        value = candidate[slot.id]
        if isinstance(value, bool) or not isinstance(value, int | float) or value not in slot.menu:
            wrong.append(f"{slot.id}: {_short(value)} is not one of the numbers {', '.join(map(str, slot.menu))}")
    more = f" and {len(wrong) - 2} more" if len(wrong) > 2 else ""
    return ", ".join(wrong[:2]) + more


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 40 else f"{text[:37]}..."
