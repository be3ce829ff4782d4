"""What a forward pass costs, in multiply-accumulates (MACs), and how that depends on the widths of the axes.

Counted are the products of convolutions, linear layers and attention, as in the papers; norms, activations and
additions are not. Papers of this field print MACs as "FLOPs" and leave out the two matrix products inside attention:
``attention=False`` gives their numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.models.networks.wiring import Wiring


def count_macs(model: nn.Module, example_inputs: Mapping[str, Any], *, attention: bool = True) -> int:
    """MACs of one forward pass at the inputs' batch size, counted on the meta device without computing anything.

    Args:
        model: any module; it is neither moved nor changed.
        example_inputs: forward's keywords.
        attention: count the two matrix products inside attention too.
    """
    return sum(macs for path, macs in layer_macs(model, example_inputs).items() if attention or _is_layer(model, path))


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, each counted once however many modules share it."""
    return sum(parameter.numel() for parameter in model.parameters())


def layer_macs(model: nn.Module, example_inputs: Mapping[str, Any]) -> dict[str, int]:
    """MACs by path of the module that spends them: layers with weights, and attentions for their two products."""
    shadow = _on_meta(model)
    inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), dict(example_inputs))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(**inputs)
    root = type(shadow).__name__
    totals = {
        name.removeprefix(root).removeprefix("."): sum(flops.values()) // 2  # 2 flops are 1 MAC
        for name, flops in counter.get_flop_counts().items()
        if name != "Global"
    }
    own = dict(totals)
    for path, macs in totals.items():
        parent = _parent(path, totals)
        if parent is not None:
            own[parent] -= macs
    return {path: macs for path, macs in own.items() if macs}


def _parent(path: str, paths: Mapping[str, int]) -> str | None:
    """The nearest module around ``path`` that was called itself (a ModuleList never is)."""
    while path:
        path = path.rpartition(".")[0]
        if path in paths:
            return path
    return None


def _is_layer(model: nn.Module, path: str) -> bool:
    """Whether the products at ``path`` are with weights of the module itself."""
    return next(model.get_submodule(path).parameters(recurse=False), None) is not None


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of the modules with tensors that have a shape and no storage."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {}
    for tensor in tensors:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    shadow = copy.deepcopy(model, memo).eval()
    for module in shadow.modules():  # a hook is somebody else's business: it may count, move or record things
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return shadow


@dataclass(frozen=True)
class Product:
    """A term ``coefficient * width(inputs) * width(outputs)``; without outputs it is linear in the inputs' width.

    It is there as long as the axis ``removed_with`` has any width: a block that is left out takes along the norms and
    biases of the streams it read and wrote. For MACs this says nothing new, their products vanish with that width.
    """

    path: str
    coefficient: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    removed_with: str = ""


@dataclass(frozen=True)
class CostModel:
    """MACs and parameters as functions of the widths, exact for every width of every axis, and for blocks left out.

    ``names`` are the axes that may be cut, A of them, and with w [A] their widths

        macs(w) = constant + linear·w + ½ w·bilinear·w

    where ``linear`` is [A] and ``bilinear`` [A, A] and symmetric, in float64 (exact below 2**53).
    """

    wiring: Wiring
    mac_terms: tuple[Product, ...]
    parameter_terms: tuple[Product, ...]
    fixed_macs: int
    fixed_parameters: int
    names: tuple[str, ...]
    constant: float
    linear: np.ndarray
    bilinear: np.ndarray

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Mapping[str, Any], *, attention: bool = True) -> CostModel:
        """The cost model of a network that `describe` knows, at the inputs' batch size and resolution."""
        net = describe(model).wiring(model)
        mac_terms, fixed_macs = _mac_terms(model, net, layer_macs(model, example_inputs), attention)
        parameter_terms = _parameter_terms(model, net)
        fixed_parameters = count_parameters(model) - _evaluate(net, parameter_terms, {})
        arrays = quadratic_form(net, mac_terms, fixed_macs)
        return cls(net, mac_terms, parameter_terms, fixed_macs, fixed_parameters, net.prunable, *arrays)

    def macs(self, widths: Mapping[str, int]) -> int:
        """MACs of one forward pass at these widths; an axis that is missing keeps its full width."""
        self._check(widths)
        return self.fixed_macs + _evaluate(self.wiring, self.mac_terms, widths)

    def parameters(self, widths: Mapping[str, int]) -> int:
        """Number of parameters at these widths; an axis that is missing keeps its full width."""
        self._check(widths)
        return self.fixed_parameters + _evaluate(self.wiring, self.parameter_terms, widths)

    def _check(self, widths: Mapping[str, int]) -> None:
        for name in widths:
            if name not in self.wiring.axes:
                raise SettingError(f"widths.{name}: the network has no such axis")


def _mac_terms(
    model: nn.Module, net: Wiring, macs: Mapping[str, int], attention: bool
) -> tuple[tuple[Product, ...], int]:
    """One product per layer, one linear term per attention; what no axis touches is the fixed rest."""
    rest = {path: value for path, value in macs.items() if attention or _is_layer(model, path)}
    terms = []
    for layer in net.layers:
        if layer.path in rest:
            area = net.width(layer.inputs, {}) * net.width(layer.outputs, {})
            terms.append(Product(layer.path, rest.pop(layer.path) // area, layer.inputs, layer.outputs))
    for spec in net.attentions:
        if spec.path in rest:
            terms.append(Product(spec.path, rest.pop(spec.path) // net.axes[spec.axis].width, (spec.axis,)))
    return tuple(terms), sum(rest.values())


def _parameter_terms(model: nn.Module, net: Wiring) -> tuple[Product, ...]:
    terms = []
    for layer in net.layers:
        module: Any = model.get_submodule(layer.path)
        block = net.removed_with(layer.path)
        if layer.kind in ("conv", "linear"):
            area = net.width(layer.inputs, {}) * net.width(layer.outputs, {})
            terms.append(Product(layer.path, module.weight.numel() // area, layer.inputs, layer.outputs, block))
            if module.bias is not None:
                terms.append(Product(layer.path, 1, layer.outputs, removed_with=block))
        elif layer.kind in ("norm", "layer-norm"):
            tensors = sum(1 for _ in module.parameters())  # scale and shift, the scale alone, or neither
            terms.append(Product(layer.path, tensors, layer.inputs, removed_with=block))
    return tuple(terms)


def _evaluate(net: Wiring, terms: tuple[Product, ...], widths: Mapping[str, int]) -> int:
    total = 0
    for term in terms:
        if term.removed_with and widths.get(term.removed_with) == 0:
            continue
        outputs = net.width(term.outputs, widths) if term.outputs else 1
        total += term.coefficient * net.width(term.inputs, widths) * outputs
    return total


def quadratic_form(net: Wiring, terms: tuple[Product, ...], fixed_macs: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Constant, linear part [A] and bilinear part [A, A]: the products spread over the pairs of axes they consist of.

    Fixed axes become constants.
    """
    index = {name: i for i, name in enumerate(net.prunable)}
    constant, linear = float(fixed_macs), np.zeros(len(index))
    bilinear = np.zeros((len(index), len(index)))
    for term in terms:
        for a in term.inputs:
            for b in term.outputs or (None,):
                factor, free = float(term.coefficient), []
                for name in (a, b):
                    if name in index:
                        free.append(index[name])
                    elif name is not None:
                        factor *= net.axes[name].width
                if not free:
                    constant += factor
                elif len(free) == 1:
                    linear[free[0]] += factor
                else:
                    i, j = free
                    bilinear[i, j] += factor
                    bilinear[j, i] += factor
    return constant, linear, bilinear
