"""Pydantic's complaints as one line in the user's words: dotted path, what was given, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel], raw: Any) -> str:
    """The first complaint in one line, and how many more there are.

    Args:
        model: what ``raw`` was validated as.
        raw: the settings as the user wrote them; tells dictionary keys from the tags of unions in an error's path.
    """
    complaints = error.errors(include_url=False)
    # an unknown key explains a missing one better than the other way round
    first = min(complaints, key=lambda complaint: complaint["type"] != "extra_forbidden")
    line = _explain_one(first, model, raw)
    return line if len(complaints) == 1 else f"{line} (and {len(complaints) - 1} more)"


def _explain_one(complaint: Mapping[str, Any], model: type[BaseModel], raw: Any) -> str:
    path = _dotted(complaint["loc"], raw)
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
    rule = complaint["msg"].replace("Input should be", "it should be").replace("Input should", "it should")
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


def _dotted(loc: Sequence[str | int], raw: Any) -> str:
    """An error's path without the union tags that pydantic puts into it, and list positions as `[i]`."""
    path, current = "", raw
    for position, item in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(item, int):
            path += f"[{item}]"
            current = current[item] if isinstance(current, list | tuple) and item < len(current) else None
        elif isinstance(current, Mapping) and (last or isinstance(current.get(item), Mapping | list | tuple)):
            path += f".{item}" if path else item
            current = current.get(item)
    return path


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All settings classes named in an annotation, however deep in unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models(part)]


def _resolve(model: type[BaseModel], loc: Sequence[str | int]) -> list[type[BaseModel]]:
    """Classes that may stand at the end of an error's path."""
    candidates: list[type[BaseModel]] = [model]
    for item in loc:
        if isinstance(item, int):
            continue
        tagged = [candidate for candidate in candidates if len(candidates) > 1 and item in _kinds(candidate)]
        fields = [
            found
            for c in candidates
            for n, field in c.model_fields.items()
            if item in (n, field.alias)
            for found in _models(field.annotation)
        ]
        candidates = tagged or fields or candidates
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
