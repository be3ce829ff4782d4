"""Experts that are built when they are first used.

Weights in safetensors are mapped into memory rather than read, so that a tensor costs nothing before its first use;
what is left to save is building the modules, which takes longer than mapping the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

Loader = Callable[[], nn.Module]


class LazyExperts(nn.ModuleList):
    """A list of experts, each made by its loader when something first asks for it.

    To anything that walks over modules, parameters or a state dict it is an ordinary list whose entries appear as the
    walk reaches them; once all are there it holds nothing else.

    Args:
        loaders: [N]; None stands for the expert of an empty group. A loader may look at entries of lower index.
    """

    def __init__(self, loaders: list[Loader | None]) -> None:
        super().__init__()
        self._modules = _Pending({str(i): loader for i, loader in enumerate(loaders)})

    def __getitem__(self, index: Any) -> Any:
        """An expert; of a slice a plain list of experts, which are built."""
        return nn.ModuleList(list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

    @property
    def loaded(self) -> list[bool]:
        """[N] whether each expert has been built."""
        modules = self._modules
        pending = modules.loaders if isinstance(modules, _Pending) else {}
        return [name not in pending for name in modules]


class _Pending(dict[str, Any]):
    """Modules by name, some of which are still to be made: every way to read one makes it."""

    def __init__(self, loaders: Mapping[str, Loader | None]) -> None:
        super().__init__(dict.fromkeys(loaders))
        self.loaders = {name: loader for name, loader in loaders.items() if loader is not None}

    def __getitem__(self, name: str) -> Any:
        if name in self.loaders:
            dict.__setitem__(self, name, self.loaders[name]())
            del self.loaders[name]  # not before: a loader that fails will fail again, with the same message
        return dict.__getitem__(self, name)

    def __setitem__(self, name: str, module: Any) -> None:
        self.loaders.pop(name, None)
        dict.__setitem__(self, name, module)

    def __reduce__(self) -> Any:
        return dict, (list(self.items()),)  # a copy, or what another process is sent, is of modules that are there

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if dict.__contains__(self, name) else default

    def values(self) -> Any:
        return _View(self, lambda name: self[name])

    def items(self) -> Any:
        return _View(self, lambda name: (name, self[name]))


class _View:
    """What `values` and `items` give: entries one after the other, as they are asked for."""

    def __init__(self, names: dict[str, Any], entry: Callable[[str], Any]) -> None:
        self.names, self.entry = names, entry

    def __iter__(self) -> Iterator[Any]:
        return (self.entry(name) for name in list(self.names))

    def __len__(self) -> int:
        return len(self.names)
