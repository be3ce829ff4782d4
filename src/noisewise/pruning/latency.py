"""A network's latency as a function of its widths: measured once per network and machine, and kept.

Some dozens of networks with random legal widths, cut from the one at hand, are run for real, and the time of each layer
within these passes is fitted, with coefficients that are not negative, by

    conv, linear     a + b in + c out + d in out
    norm             a + b width
    attention        a + b width                    (its two products; its projections are linear layers)
    all the rest     a + b activations              (what norms read, summed over the network: additions, activations
                                                     and concatenations go with it)

with in and out the channels a layer reads and writes. These are the terms the budget solver knows, in picoseconds so
that costs stay whole numbers. Kernels work in blocks of channels: the fit holds for aligned widths, such as the solver
chooses from by default.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import nnls

from noisewise.errors import SettingError
from noisewise.files import read_json, write_json
from noisewise.models.cost import CostModel, Product, quadratic_form
from noisewise.models.networks.wiring import Wiring
from noisewise.pruning.latency_samples import Sample, measure

if TYPE_CHECKING:
    from diffusers import ModelMixin

PICOSECONDS = 1e12
FORMAT = 1
NUM_FITTED, NUM_CHECKED = 20, 6  # networks to fit on, and others to check on
REST = ""  # path of what no timed module does


@dataclass(frozen=True)
class LatencyModel:
    """Latency as a form in the widths: what the solver takes for a cost, in picoseconds.

    ``prediction_error`` is the median, over networks that were not fitted, of |predicted / measured - 1| of their share
    of the base's time; ``largest_error`` the largest of these.
    """

    cost: CostModel  # whose "MACs" are picoseconds
    base_seconds: float
    prediction_error: float
    largest_error: float

    @property
    def wiring(self) -> Wiring:
        return self.cost.wiring

    @property
    def constant(self) -> float:
        return self.cost.constant

    @property
    def linear(self) -> np.ndarray:
        return self.cost.linear

    @property
    def bilinear(self) -> np.ndarray:
        return self.cost.bilinear

    def parameters(self, widths: Mapping[str, int]) -> int:
        return self.cost.parameters(widths)

    def seconds(self, widths: Mapping[str, int]) -> float:
        """Predicted time of a forward pass; an axis that is missing keeps its full width."""
        return self.cost.macs(widths) / PICOSECONDS

    def share(self, widths: Mapping[str, int]) -> float:
        """Predicted time as a share of the full network's."""
        return self.cost.macs(widths) / self.cost.macs({})


def latency_of(
    model: ModelMixin, inputs: Mapping[str, Any], *, cache: Path | None = None, seed: int = 0
) -> LatencyModel:
    """The latency model of a network for inputs of this shape on the device where it lies.

    Args:
        inputs: forward's keywords, at the batch size that counts.
        cache: folder of measured tables; `cache_folder()` by default. A network of the same shape, at the same device,
            dtype, batch, number of threads and version of torch, is not measured again.
    """
    cost = CostModel.of(model, inputs)
    key = key_of(model, inputs)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = (cache or cache_folder()) / f"{digest}.json"
    table = _known(path, key)
    if table is None:
        samples, areas = measure(model, inputs, NUM_FITTED + NUM_CHECKED + 1, seed=seed)
        table = {"key": key, **fit(cost.wiring, samples[:-NUM_CHECKED], areas), "areas": areas}
        table |= check(modelled(cost, table), samples[0], samples[-NUM_CHECKED:])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, table)
    return modelled(cost, table)


def cache_folder() -> Path:
    """Where measured latencies are kept: noisewise/latency in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "noisewise" / "latency"


def key_of(model: ModelMixin, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """All that a table depends on, as JSON."""
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    shapes = {
        name: [list(value.shape), str(value.dtype)] for name, value in inputs.items() if isinstance(value, torch.Tensor)
    }
    key = {
        "format": FORMAT,
        "network": [type(model).__name__, config],
        "inputs": shapes,
        "device": [device.type, name],
        "dtype": str(model.dtype),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    plain: dict[str, Any] = json.loads(json.dumps(key, default=str))
    return plain


def _processor() -> str:
    """The processor's name where the system says it."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _known(path: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    table: dict[str, Any] = read_json(path, "latency table")
    needed = {"key", "coefficients", "areas", "base_seconds", "prediction_error", "largest_error"}
    if not needed <= table.keys() or table["key"] != key:
        raise SettingError(f"{path}: is no latency table of this network; delete it to measure anew")
    return table


def fit(net: Wiring, samples: Sequence[Sample], areas: Mapping[str, int]) -> dict[str, Any]:
    """Coefficients in seconds by path of the module, and the full network's time."""
    coefficients = {}
    for path, features in _features(net, samples, areas).items():
        seconds = [sample.times.rest if path == REST else sample.times.own[path] for sample in samples]
        scale = np.abs(features).max(axis=0).clip(min=1e-300)
        found, _ = nnls(features / scale, np.array(seconds).clip(min=0.0))
        coefficients[path] = [float(value) for value in found / scale]
    return {"coefficients": coefficients, "base_seconds": samples[0].times.total}


def _features(net: Wiring, samples: Sequence[Sample], areas: Mapping[str, int]) -> dict[str, np.ndarray]:
    """What each module's time is linear in, for every sample: [samples, 2 or 4]."""
    timed = set(samples[0].times.own)

    def widths(parts: tuple[str, ...]) -> np.ndarray:
        return np.array([net.width(parts, sample.widths) for sample in samples], dtype=np.float64)  # [samples]

    ones = np.ones(len(samples))
    found = {}
    for layer in net.layers:
        if layer.path in timed:
            read, written = widths(layer.inputs), widths(layer.outputs)
            columns = [ones, read] if layer.path in areas else [ones, read, written, read * written]
            found[layer.path] = np.stack(columns, axis=1)
    for spec in net.attentions:
        if spec.path in timed:
            found[spec.path] = np.stack([ones, widths((spec.axis,))], axis=1)
    read = sum((area * widths(_norm(net, path)) for path, area in areas.items()), np.zeros(len(samples)))
    found[REST] = np.stack([ones, read], axis=1)
    return found


def _norm(net: Wiring, path: str) -> tuple[str, ...]:
    return next(layer.inputs for layer in net.layers if layer.path == path)


def modelled(cost: CostModel, table: Mapping[str, Any]) -> LatencyModel:
    """The form that a table of coefficients stands for."""
    net, coefficients = cost.wiring, table["coefficients"]
    axis_of = {spec.path: (spec.axis,) for spec in net.attentions}
    layers = {layer.path: layer for layer in net.layers}
    constant, terms = 0.0, []

    def term(path: str, value: float, inputs: tuple[str, ...], outputs: tuple[str, ...] = ()) -> None:
        if inputs and value:
            terms.append(Product(path, round(value * PICOSECONDS), inputs, outputs, net.removed_with(path)))

    for path, values in coefficients.items():
        constant += values[0]
        if path == REST:
            for norm, area in table["areas"].items():
                term(norm, values[1] * area, _norm(net, norm))
        elif len(values) == 2:
            term(path, values[1], axis_of.get(path) or layers[path].inputs)
        else:
            layer = layers[path]
            term(path, values[1], layer.inputs)
            term(path, values[2], layer.outputs)
            term(path, values[3], layer.inputs, layer.outputs)
    fixed = round(constant * PICOSECONDS)
    constant, linear, bilinear = quadratic_form(net, tuple(terms), fixed)
    form = replace(cost, mac_terms=tuple(terms), fixed_macs=fixed, constant=constant, linear=linear, bilinear=bilinear)
    errors = (table.get("prediction_error", 0.0), table.get("largest_error", 0.0))
    return LatencyModel(form, table["base_seconds"], *errors)


def check(latency: LatencyModel, base: Sample, others: Sequence[Sample]) -> dict[str, float]:
    """Errors of the predicted share of the base's time, on networks that were not fitted."""
    errors = [abs(latency.share(sample.widths) / (sample.times.total / base.times.total) - 1) for sample in others]
    return {"prediction_error": statistics.median(errors), "largest_error": max(errors)}
