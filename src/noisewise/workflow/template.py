"""A recipe to start from, written from the settings' own definitions: every setting, what it means, its value."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

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

"""


def template(name: str = "recipe.yaml") -> str:
    """A whole recipe for scikit-learn's digits, with comments."""
    return HEAD.format(name=name) + "\n".join(_section(check_recipe(START), 0)) + "\n"


def _section(section: BaseModel, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        yield from _comment(field, indent)
        key = field.alias or name
        if isinstance(value, BaseModel):
            yield f"{indent}{key}:"
            yield from _section(value, depth + 1)
        elif value is None:
            yield f"{indent}# {key}:"
        else:
            yield f"{indent}{key}: {one_line(_plain(value))}"
        if depth == 0:
            yield ""


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) else str(value)


def _comment(field: FieldInfo, indent: str) -> Iterator[str]:
    """The setting's help, with what is allowed where its type or limits say so."""
    words = " ".join((field.description or "").split())
    if allowed := allowed_values(field):
        words = f"{words} [{allowed}]"
    yield from textwrap.wrap(words, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ")


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
