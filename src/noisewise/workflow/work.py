"""Steps to be done, read from a file, so that every process that reads it has the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noisewise.files import read_json
from noisewise.workflow.store import StepSpec, Store


@dataclass(frozen=True)
class Work:
    """Steps, inputs first, the images they look at, and what to call them (by id; by default their names)."""

    steps: tuple[StepSpec, ...]
    data: Any
    titles: Mapping[str, str] = field(default_factory=dict)


def load_work(path: Path, store: Store) -> Work:
    """The steps of a recipe (YAML), or of a study (JSON, as the study's folder holds it)."""
    if path.suffix == ".json":
        from noisewise.workflow.study.layout import from_description

        layout = from_description(read_json(path, "study"), store)
        return Work(layout.steps, layout.recipe.data, layout.titles)
    from noisewise.workflow.builder import build_graph
    from noisewise.workflow.recipe import load_recipe

    recipe = load_recipe(path)
    return Work(build_graph(recipe, store).steps, recipe.data)
