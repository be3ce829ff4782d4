"""Only the expert that works lies on the device, and, with prefetching, the one that works next.

A switch copies weights to the device and drops those that are done with; nothing is copied back, since sampling does
not change weights. The experts' own tensors stay where they are, in host memory.

On CUDA the next expert is copied from page-locked memory by a stream of its own while the current one computes. On
other devices the copy is an ordinary one, made ahead of the switch all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from noisewise.errors import SettingError

Slot = tuple[int, str]  # of a tensor: its module's id and its name there


class ExpertOffload:
    """Keeps the experts of a router on the host and brings the one that is needed to ``device``.

    Args:
        experts: [N]; None for the expert of an empty group.
        device: where forward passes run.
        prefetch: copy the expert that samplers visit next, the one nearer the data (after the last the first), while
            the current one runs.
    """

    def __init__(self, experts: nn.ModuleList, device: torch.device, prefetch: bool) -> None:
        self.experts, self.device, self.prefetch = experts, device, prefetch
        self.active: int | None = None
        self.ahead: int | None = None
        self._host: dict[Slot, torch.Tensor] = {}  # the experts' own tensors
        self._pinned: dict[Slot, torch.Tensor] = {}
        self._copies: dict[Slot, torch.Tensor] = {}  # on the device
        self._placed: dict[Slot, tuple[nn.Module, str]] = {}  # those that stand in for the experts' own
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: Any = None  # event: the expert ahead is whole

    def bring(self, index: int) -> nn.Module:
        """The expert on the device; the one that was there leaves."""
        expert = self.experts[index]
        if index == self.active:
            return expert
        slots = dict(_slots(expert))
        if self._copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self._copied)
            self._copied = None
        self._restore(self._placed.keys() - slots.keys())
        for slot in self._copies.keys() - slots.keys():
            del self._copies[slot]
        self._copy(slots)
        for slot, (module, name) in slots.items():
            if slot not in self._placed:
                _put(module, name, self._copies[slot])
                self._placed[slot] = (module, name)
        self.active, self.ahead = index, None
        if self.prefetch:
            self._fetch_ahead(self._next(index))
        return expert

    def _next(self, index: int) -> int:
        """The expert that a sampler, which comes from the noise, visits after this one."""
        num = len(self.experts)
        return next(i % num for i in range(index - 1, index - num - 1, -1) if self.experts[i % num] is not None)

    def _fetch_ahead(self, index: int) -> None:
        if index == self.active:
            return
        slots = dict(_slots(self.experts[index]))
        if self._stream is None:
            self._copy(slots)
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            self._copy(slots, self._stream)
            self._copied = self._stream.record_event()
        self.ahead = index

    def _copy(self, slots: dict[Slot, tuple[nn.Module, str]], stream: Any = None) -> None:
        """Copy what is not on the device yet.

        Memory is taken from the current stream's pool also where another stream fills it: whoever uses it waits for
        the copy first, so that it may be given back without asking that stream.
        """
        for slot, (module, name) in slots.items():
            if slot in self._copies:
                continue
            host = self._host.setdefault(slot, _get(module, name))
            copy = torch.empty_like(host, device=self.device)
            with torch.no_grad():
                if stream is None:
                    copy.copy_(host)
                else:
                    with torch.cuda.stream(stream):
                        copy.copy_(self._page_locked(slot, host), non_blocking=True)
            self._copies[slot] = copy

    def _page_locked(self, slot: Slot, host: torch.Tensor) -> torch.Tensor:
        """The same numbers in memory that a device can read by itself; made once and kept."""
        if slot not in self._pinned:
            self._pinned[slot] = host.detach().pin_memory()
        return self._pinned[slot]

    def _restore(self, slots: set[Slot]) -> None:
        for slot in slots:
            module, name = self._placed.pop(slot)
            _put(module, name, self._host[slot])

    def stop(self) -> None:
        """Every expert has its own tensors again; nothing is left on the device."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        self._restore(set(self._placed))
        self._copies.clear()
        self._pinned.clear()
        self.active = self.ahead = self._copied = None

    def resident(self) -> int:
        """Bytes of weights on the device now."""
        return sum(copy.numel() * copy.element_size() for copy in self._copies.values())


def _slots(expert: nn.Module) -> Iterator[tuple[Slot, tuple[nn.Module, str]]]:
    """Where the expert keeps its tensors; a module that two experts share has the same slots in both."""
    for module in expert.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    yield (id(module), name), (module, name)


def _get(module: nn.Module, name: str) -> torch.Tensor:
    tensor: torch.Tensor | None = module._parameters.get(name)
    tensor = module._buffers[name] if tensor is None else tensor
    assert tensor is not None
    return tensor


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Replace a tensor; its own parameter object comes back as it was."""
    if name in module._parameters:
        parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
        module._parameters[name] = parameter
    else:
        module._buffers[name] = tensor


def check_device(device: torch.device | str | None) -> torch.device:
    """The device to work on: the one named, or the accelerator that is there."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    raise SettingError("device: there is no accelerator here; name the device that experts are brought to")
