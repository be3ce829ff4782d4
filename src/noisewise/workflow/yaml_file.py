"""YAML as people mean it: `1e-3` is a number, `no` is a word, a key given twice is a mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from noisewise.errors import SettingError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans: PyYAML follows 1.1, where `1e-3` is a string and `no` is false."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, source: str) -> Any:
    """Parse one YAML document; ``source`` names it in the error's single line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise SettingError(f"{source}{place}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 45th of a month, say
        raise SettingError(f"{source}: not YAML: {' '.join(str(error).split())}") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping of settings."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingError(f"{path}: no such recipe; `noisewise init` writes one to start from") from None
    except IsADirectoryError:
        hint = f"; did you mean {path / 'recipe.yaml'}?" if (path / "recipe.yaml").is_file() else ""
        raise SettingError(f"{path}: is a folder, a recipe is a YAML file{hint}") from None
    except UnicodeDecodeError:
        raise SettingError(f"{path}: not YAML: not a text file") from None
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror})") from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise SettingError(f"{path}: a recipe is a mapping of settings (`name: ...`), this is {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return {type(None): "empty", list: "a list", str: "text", dict: "a mapping with keys that are no words"}.get(
        type(value), f"a {type(value).__name__}"
    )


def one_line(value: Any) -> str:
    """A value as YAML on one line, to stand behind a key."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("...\n").strip()
    )


def to_yaml(value: Any) -> str:
    """Settings as YAML, in their own order; inner lists on one line."""
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
