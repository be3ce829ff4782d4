"""A recipe to start from, written from the settings' own definitions: every setting, what it means, its value."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from noisewise.training.settings import TrainSettings
from noisewise.workflow.explain import kinds_of, settings_classes
from noisewise.workflow.recipe import check_recipe
from noisewise.workflow.yaml_file import one_line

WIDTH = 112
START: dict[str, Any] = {
    "name": "my-run",
    "data": {"kind": "sklearn-digits"},
    "schedule": {"kind": "linear", "num_train_timesteps": 1000},
    "model": {"kind": "unet2d", "block_out_channels": [16, 32]},
    "base": {"num_images": 240_000, "batch_size": 64, "learning_rate": 2e-3},
    "plan": {"method": "snr", "num_groups": 4, "min_cost": 0.5},
    "finetune": {"num_images": 30_000, "batch_size": 64, "learning_rate": 1e-3},
    "sample": {"num_images": 898},
}
HEAD = """\
# A noisewise recipe. Run it:        noisewise run {name}
# What it would do and cost:         noisewise run {name} --dry-run
# Change one setting for one run:    noisewise run {name} --set plan.num_groups=8
# Settings without a value are commented out; those at their defaults may be left out.
# "Instead, kind: ..." names what else a section may be, with the settings that come with it.

"""


def template(name: str = "recipe.yaml") -> str:
    """A whole recipe for scikit-learn's digits, with comments."""
    return HEAD.format(name=name) + "\n".join(_section(check_recipe(START), 0)) + "\n"


def _section(section: BaseModel, depth: int, choices: Sequence[type[BaseModel]] = ()) -> Iterator[str]:
    """Lines of a section; ``choices`` are all classes that may stand in its place."""
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        value, key, others = getattr(section, name), field.alias or name, settings_classes(field.annotation)
        if key == "kind" and len(choices) > 1:
            kinds = [kind for choice in choices if "kind" in choice.model_fields for kind in kinds_of(choice)]
            about = field.description or type(section).__doc__
            yield from _wrapped(f"{about} [{', '.join(kinds)}]", f"{indent}# ")
        else:
            yield from _wrapped(_help(field), f"{indent}# ")
        if isinstance(value, BaseModel):
            yield f"{indent}{key}:"
            yield from _section(value, depth + 1, others)
            yield from _instead(others, type(value), depth + 1)
        elif value is None:
            yield f"{indent}# {key}:"
            yield from _instead(others if len(others) > 1 else (), None, depth + 1)
        else:
            yield f"{indent}{key}: {one_line(_plain(value))}"
        if depth == 0:
            yield ""


def _instead(choices: Sequence[type[BaseModel]], present: type[BaseModel] | None, depth: int) -> Iterator[str]:
    """What else a section may be, as comments, with the settings that come with it."""
    start, word = "  " * depth + "# ", "With" if present is None else "Instead,"
    known = {*TrainSettings.model_fields, *(present.model_fields if present else ())} - {"kind"}
    for choice in choices:
        if choice is present:
            continue
        fields = {field.alias or name: field for name, field in choice.model_fields.items() if name not in known}
        if fields.pop("kind", None) is not None:
            yield from _wrapped(f"{word} kind: {kinds_of(choice)[0]}. {choice.__doc__}", start)
        else:
            yield from _wrapped(f"{word} from: FOLDER. {_help(fields.pop('from'))}", start)
        for name, field in fields.items():
            yield from _wrapped(f"{name}: {_help(field)}", f"{start}  ")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) else str(value)


def _wrapped(words: str, start: str) -> list[str]:
    """Lines of a comment; those after the first stand further in."""
    words = " ".join(words.split())
    return textwrap.wrap(words, WIDTH, initial_indent=start, subsequent_indent=f"{start}  ", break_on_hyphens=False)


def _help(field: FieldInfo) -> str:
    """What the setting means, with what is allowed where its type or limits say so."""
    allowed = allowed_values(field)
    return f"{field.description or ''} {f'[{allowed}]' if allowed else ''}"


def allowed_values(field: FieldInfo) -> str:
    """Words or limits of a setting, e.g. "linear, cosine" or "above 0, at most 1"; empty where anything goes."""
    literals = [word for word in _literals(field.annotation) if isinstance(word, str)]
    if literals:
        return ", ".join(literals)
    names = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    limits = [f"{names[key]} {getattr(item, key)}" for item in field.metadata for key in names if hasattr(item, key)]
    return ", ".join(limits)


def _literals(annotation: Any) -> list[Any]:
    """Values of every Literal in an annotation, settings classes aside."""
    found: list[Any] = []
    for part in get_args(annotation):
        if isinstance(part, type):
            continue
        found += _literals(part) if get_args(part) else [part]
    return found
