"""Pydantic's complaints as one line in the user's words: dotted path, what was given, what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first complaint in one line, and of how many other settings there are more.

    Args:
        model: what the settings were validated as.
    """
    complaints = error.errors(include_url=False)
    # an unknown key explains a missing one better than the other way round
    first = min(complaints, key=lambda complaint: complaint["type"] != "extra_forbidden")
    line, others = _explain_one(first, model), len({_dotted(complaint, model) for complaint in complaints}) - 1
    return f"{line} (and {others} more)" if others else line


def _explain_one(complaint: Mapping[str, Any], model: type[BaseModel]) -> str:
    path = _dotted(complaint, model)
    kind, given, context = complaint["type"], complaint["input"], complaint.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_setting(path, allowed_keys(model, complaint["loc"][:-1]))
    if kind == "missing":
        return f"{path}: missing{_hint(model, complaint['loc'])}"
    if kind == "union_tag_not_found":
        key = str(context.get("discriminator", "'kind'")).strip("'")
        return f"{path}.{key}: missing; allowed: {', '.join(_tags(model, complaint['loc']))}"
    if kind == "union_tag_invalid":
        allowed = [tag.strip().strip("'") for tag in str(context["expected_tags"]).split(",")]
        key = str(context["discriminator"]).strip("'")
        return f"{path}.{key}: {context['tag']!r} is unknown; allowed: {', '.join(allowed)}" + did_you_mean(
            str(context["tag"]), allowed
        )
    if kind == "literal_error":
        allowed = [word.strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(", ")]
        return f"{path}: {given!r} given; allowed: {', '.join(allowed)}" + did_you_mean(str(given), allowed)
    if kind == "value_error":
        message = str(context["error"])
        return message if message.startswith(f"{path}:") or not path else f"{path}: {message}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{path or 'the recipe'}: {_short(given)} given; it should be a mapping of settings (`key: value`)"
    if kind == "string_pattern_mismatch":
        return f"{path}: {given!r} given{_hint(model, complaint['loc'])}"
    rule = re.sub(r"^(Input|Tuple|String) (?=should|is)", "it ", complaint["msg"])
    return f"{path or 'the recipe'}: {_short(given)} given; {rule}"


def unknown_setting(path: str, allowed: Sequence[str]) -> str:
    """One line for a key nobody knows, with the nearest one that exists."""
    parent, _, key = path.rpartition(".")
    prefix = f"{parent}." if parent else ""
    close = difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
    if close:
        return f"{path}: unknown setting; did you mean {prefix}{close[0]}?"
    return f"{path}: unknown setting; allowed: {', '.join(allowed) or 'none'}"


def did_you_mean(given: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dotted(complaint: Mapping[str, Any], model: type[BaseModel]) -> str:
    """An error's path without the union tags that pydantic puts into it, and list positions as `[i]`."""
    path, candidates = "", [model]
    for position, item in enumerate(complaint["loc"], start=1):
        is_unknown = complaint["type"] == "extra_forbidden" and position == len(complaint["loc"])
        candidates, is_key = _below(candidates, item)
        if isinstance(item, int):
            path += f"[{item}]"
        elif is_key or is_unknown:
            path += f".{item}" if path else item
    return path


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All settings classes named in an annotation, however deep in unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models(part)]


def _below(candidates: list[type[BaseModel]], item: str | int) -> tuple[list[type[BaseModel]], bool]:
    """Classes that may stand one item of an error's path further down, and whether the item is a setting's name."""
    tagged = [candidate for candidate in candidates if len(candidates) > 1 and item in _kinds(candidate)]
    fields = [field for c in candidates for name, field in c.model_fields.items() if item in (name, field.alias)]
    if tagged or not fields:
        return tagged or candidates, False
    return [found for field in fields for found in _models(field.annotation)], True


def _resolve(model: type[BaseModel], loc: Sequence[str | int]) -> list[type[BaseModel]]:
    """Classes that may stand at the end of an error's path."""
    candidates: list[type[BaseModel]] = [model]
    for item in loc:
        candidates, _ = _below(candidates, item)
    return candidates


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """What a union may call this class: the values of its `kind`, or its only aliases (`from`)."""
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind else tuple(f.alias for f in model.model_fields.values() if f.alias)


def allowed_keys(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Keys that exist where an unknown one was given."""
    return [field.alias or name for found in _resolve(model, loc) for name, field in found.model_fields.items()]


def _tags(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    return [tag for found in _resolve(model, loc) for tag in _kinds(found)]


def _hint(model: type[BaseModel], loc: Sequence[str | int]) -> str:
    for found in _resolve(model, loc[:-1]):
        for name, field in found.model_fields.items():
            if loc[-1] in (name, field.alias) and field.description:
                return f"; {' '.join(field.description.split())}"
    return ""
