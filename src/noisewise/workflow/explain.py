"""Pydantic's complaints as one line in the user's words: dotted path, what was given, what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
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
    return f"{line} (and {others} more mistake{'s' if others > 1 else ''})" if others else line


def _explain_one(complaint: Mapping[str, Any], model: type[BaseModel]) -> str:
    path = _dotted(complaint, model)
    kind, given, context = complaint["type"], complaint["input"], complaint.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(path, complaint["loc"], model)
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
    if kind in ("tuple_type", "list_type"):
        return f"{path}: {_short(given)} given; it should be a list, e.g. [{given}]"
    rule = re.sub(r"^(Input|Tuple|String) (?=should|is)", "it ", complaint["msg"])
    return f"{path or 'the recipe'}: {_short(given)} given; {rule}"


def _unknown(path: str, loc: Sequence[str | int], model: type[BaseModel]) -> str:
    """One line for a key that does not belong where it stands, with where it would."""
    allowed, key = allowed_keys(model, loc[:-1]), str(loc[-1])
    said = unknown_setting(path, allowed)
    is_guess = "did you mean" in said
    parent, tag = path.rpartition(".")[0], loc[-2] if len(loc) > 1 else None
    if tag == "from" and not is_guess:
        return f"{said}; --set '{parent}={{from: ...}}' replaces the whole section"
    siblings = [found for found in _resolve(model, loc[:-2]) if key in found.model_fields]
    if siblings and tag in [kind for found in _resolve(model, loc[:-2]) for kind in kinds_of(found)]:
        kinds = " or ".join(kind for found in siblings for kind in kinds_of(found))
        return f"{path}: belongs to {parent}.kind {kinds}; {tag} given"
    if elsewhere := [place for place in _places(model) if place.rpartition(".")[2] == key]:
        return f"{path}: unknown setting; did you mean {' or '.join(elsewhere)}?"
    return said


def _places(model: type[BaseModel]) -> Iterator[str]:
    """Dotted names of all settings below ``model`` whose section is of one kind only."""
    for name, field in model.model_fields.items():
        yield field.alias or name
        below = settings_classes(field.annotation)
        if len(below) == 1:
            yield from (f"{field.alias or name}.{place}" for place in _places(below[0]))


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


def settings_classes(annotation: Any) -> list[type[BaseModel]]:
    """All settings classes named in an annotation, however deep in unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in settings_classes(part)]


def _below(candidates: list[type[BaseModel]], item: str | int) -> tuple[list[type[BaseModel]], bool]:
    """Classes that may stand one item of an error's path further down, and whether the item is a setting's name."""
    tagged = [candidate for candidate in candidates if len(candidates) > 1 and item in kinds_of(candidate)]
    fields = [field for c in candidates for name, field in c.model_fields.items() if item in (name, field.alias)]
    if tagged or not fields:
        return tagged or candidates, False
    return [found for field in fields for found in settings_classes(field.annotation)], True


def _resolve(model: type[BaseModel], loc: Sequence[str | int]) -> list[type[BaseModel]]:
    """Classes that may stand at the end of an error's path."""
    candidates: list[type[BaseModel]] = [model]
    for item in loc:
        candidates, _ = _below(candidates, item)
    return candidates


def kinds_of(model: type[BaseModel]) -> tuple[str, ...]:
    """What a union may call this class: the values of its `kind`, or its only aliases (`from`)."""
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind else tuple(f.alias for f in model.model_fields.values() if f.alias)


def allowed_keys(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Keys that exist where an unknown one was given."""
    return [field.alias or name for found in _resolve(model, loc) for name, field in found.model_fields.items()]


def _tags(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    return [tag for found in _resolve(model, loc) for tag in kinds_of(found)]


def _hint(model: type[BaseModel], loc: Sequence[str | int]) -> str:
    for found in _resolve(model, loc[:-1]):
        for name, field in found.model_fields.items():
            if loc[-1] in (name, field.alias) and field.description:
                return f"; {' '.join(field.description.split())}"
    return ""
