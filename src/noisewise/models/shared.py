"""Modules that several experts have in common: one object in memory, stored once.

Experts share a module by holding the same object at the same path. Every module that walks over parameters then finds
each of them once (torch counts an object once), under the name it has in the first expert.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import nn

from noisewise.errors import SettingError


def tie(experts: Sequence[nn.Module | None], paths: Sequence[str]) -> None:
    """Put the first expert's modules at ``paths`` into the experts after it, in place of their own.

    Args:
        experts: ``None`` stands for the expert of an empty group.
        paths: module paths, e.g. "down_blocks"; shapes have to be the same in all experts.
    """
    for i, path in enumerate(paths):
        if any(_within(path, [other]) for other in [*paths[:i], *paths[i + 1 :]]):
            raise SettingError(f"shared_modules.{i}: {path} lies within another one of {', '.join(paths)}")
    present = [(i, expert) for i, expert in enumerate(experts) if expert is not None]
    for path in paths:
        first = _module(*present[0], path)
        shapes = _shapes(first)
        for i, expert in present[1:]:
            own = _shapes(_module(i, expert, path))
            if own and own != shapes:  # a module left empty when the expert was loaded is just filled
                name = next(name for name in {**shapes, **own} if shapes.get(name) != own.get(name))
                raise SettingError(
                    f"shared_modules: {path}.{name} of expert {i} has shape {own.get(name)}, "
                    f"of expert {present[0][0]} {shapes.get(name)}; only equal modules can be shared"
                )
            expert.set_submodule(path, first)


def without(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """The model, sharing everything with ``model``, but with nothing at ``paths``: for writing, not for running."""
    light = copy.copy(model)
    light._modules = dict(model._modules)
    for path in paths:
        head, _, rest = path.partition(".")
        child = light._modules[head]
        assert child is not None, "shared modules exist"
        light._modules[head] = without(child, [rest]) if rest else nn.Module()
    return light


Ties = dict[int, dict[str, int]]  # expert -> module path ("": all of it) -> the expert before it that has it, too


def found_ties(experts: Sequence[nn.Module | None]) -> Ties:
    """Modules with tensors that an expert has in common with one before it: the largest ones, by path."""
    seen: dict[tuple[int, str], int] = {}
    ties: Ties = {}
    for i, expert in enumerate(experts):
        if expert is None:
            continue
        found: dict[str, int] = {}
        _visit(expert, "", seen, found)
        if found:
            ties[i] = found
        for path, module in expert.named_modules():
            seen.setdefault((id(module), path), i)
    return ties


def _visit(module: nn.Module, path: str, seen: Mapping[tuple[int, str], int], found: dict[str, int]) -> None:
    if (id(module), path) in seen:
        if module.state_dict():
            found[path] = seen[id(module), path]
        return
    for name, child in module.named_children():
        _visit(child, f"{path}.{name}" if path else name, seen, found)


def tie_equal(experts: nn.ModuleList) -> Ties:
    """Put modules of equal experts' configuration that hold equal tensors into one place, the first expert's.

    Experts whose configurations differ are left alone: equal tensors may mean different things there.

    Returns:
        What was put together.
    """
    present = [(i, expert) for i, expert in enumerate(experts) if expert is not None]
    for place, (i, expert) in enumerate(present):
        for _, other in present[:place]:
            if other is not expert and type(other) is type(expert) and _settings(other) == _settings(expert):
                if _equal(other, expert):
                    experts[i] = other
                    break
                _tie_children(other, expert)
    return found_ties(list(experts))


def _tie_children(other: nn.Module, module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        twin = other.get_submodule(name)
        if twin is child or not child.state_dict():
            continue
        if _equal(twin, child):
            module._modules[name] = twin
        else:
            _tie_children(twin, child)


def _equal(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(_same(mine[name], theirs[name]) for name in mine)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.dtype == other.dtype and one.device == other.device and torch.equal(one, other))


def _settings(expert: nn.Module) -> dict[str, object]:
    config: Mapping[str, object] = expert.config  # type: ignore[assignment]
    return {name: value for name, value in config.items() if not name.startswith("_")}


def aliases(module: nn.Module) -> dict[str, str]:
    """Second and further names of tensors that are held more than once -> the first name, as parameters have it."""
    first: dict[int, str] = {}
    found = {}
    named = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    for name, tensor in named:
        original = first.setdefault(id(tensor), name)
        if original != name:
            found[name] = original
    return found


def drop_aliases(module: nn.Module, state: dict[str, torch.Tensor], prefix: str = "") -> None:
    """Leave each tensor once in a state dict of ``module``, under its first name."""
    for name in aliases(module):
        state.pop(prefix + name, None)


def add_aliases(module: nn.Module, state: dict[str, torch.Tensor], prefix: str = "") -> None:
    """The reverse of ``drop_aliases``; names that are there already stay."""
    for name, original in aliases(module).items():
        if prefix + original in state:
            state.setdefault(prefix + name, state[prefix + original])


def _within(path: str, others: Sequence[str]) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in others)


def _module(index: int, expert: nn.Module, path: str) -> nn.Module:
    try:
        return expert.get_submodule(path)
    except AttributeError:
        raise SettingError(f"shared_modules: expert {index} has no module {path}") from None


def _shapes(module: nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
