"""Experts folded back into one network: the base plus a weighted sum of task vectors (DeMe, arXiv:2410.06664).

An expert's task vector is what its training changed: its weights less the base's. Experts have to be of the base's
architecture, as those of unpruned TDC are.

Shapes: N = groups with an expert.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from noisewise.errors import SettingError

if TYPE_CHECKING:
    from diffusers import ModelMixin

START_STEP = 0.25  # edge of Nelder-Mead's first simplex, in weights


class TaskVectors:
    """A base network and the directions its experts went, kept as two flat lists of tensors.

    Memory: the base, one network to evaluate, and N task vectors.
    """

    def __init__(self, base: ModelMixin, experts: Sequence[ModelMixin]) -> None:
        if not experts:
            raise SettingError("merge: there are no experts")
        before = base.state_dict()
        for i, expert in enumerate(experts):
            _check_same(before, expert.state_dict(), i)
        self.base = {name: tensor.detach().clone() for name, tensor in before.items()}
        self.vectors = [
            {
                name: tensor.detach() - self.base[name]
                for name, tensor in expert.state_dict().items()
                if tensor.is_floating_point()
            }
            for expert in experts
        ]
        self.model = copy.deepcopy(base)

    @torch.no_grad()
    def merged(self, weights: Sequence[float] | np.ndarray) -> ModelMixin:
        """The network base + sum of weights[i] (expert i - base): always the same object, its weights changed.

        Args:
            weights: [N].
        """
        if len(weights) != len(self.vectors):
            raise SettingError(f"merge: {len(weights)} weights for {len(self.vectors)} experts")
        for name, tensor in self.model.state_dict().items():
            tensor.copy_(self.base[name])
            if tensor.is_floating_point():
                for weight, vector in zip(weights, self.vectors, strict=True):
                    tensor.add_(vector[name], alpha=float(weight))
        return self.model


def _check_same(base: dict[str, torch.Tensor], expert: dict[str, torch.Tensor], index: int) -> None:
    for name in {**base, **expert}:
        shapes = [None if name not in state else list(state[name].shape) for state in (base, expert)]
        if shapes[0] != shapes[1]:
            raise SettingError(
                f"merge: expert {index} has {name} of shape {shapes[1]}, the base {shapes[0]}; only experts of the "
                "base's own shape (unpruned ones) can be merged"
            )


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    weights: tuple[float, ...]
    score: float
    num_evaluations: int
    trace: tuple[tuple[tuple[float, ...], float], ...]  # every evaluation in turn


def search_weights(
    score: Callable[[np.ndarray], float],
    num_weights: int,
    num_evaluations: int,
    rng: np.random.Generator,
    log: Callable[[int, float], Any] = lambda done, best: None,
) -> Found:
    """Weights of least score: a few starts, then Nelder-Mead from the best of them.

    The base itself (all weights 0), the experts' mean and their sum are among the starts, so that the result is no
    worse than any of them.

    Args:
        score: of weights [N]; lower is better.
        num_evaluations: how often ``score`` may be called; at least 8.
        rng: for the random starts.
        log: told after each evaluation how many there were and the best score so far.
    """
    from scipy.optimize import minimize

    if num_evaluations < 8:
        raise SettingError(f"merge.num_evaluations: {num_evaluations} is below 8")
    trace: list[tuple[tuple[float, ...], float]] = []

    def evaluate(weights: np.ndarray) -> float:
        if len(trace) >= num_evaluations:  # Nelder-Mead may ask for some more to finish its step
            return float("inf")
        value = float(score(weights))
        trace.append((tuple(float(w) for w in weights), value))
        log(len(trace), min(value for _, value in trace))
        return value

    fixed = [np.full(num_weights, share) for share in (0.0, 1 / num_weights, 1.0)]
    for weights in [*fixed, *(rng.dirichlet(np.ones(num_weights)) for _ in range(2))]:
        evaluate(weights)
    start = np.array(min(trace, key=lambda pair: pair[1])[0])
    simplex = np.vstack([start, start + START_STEP * np.eye(num_weights)])  # [N + 1, N]
    options = {"maxfev": num_evaluations - len(trace), "initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-7}
    minimize(evaluate, start, method="Nelder-Mead", options=options)
    best, value = min(trace, key=lambda pair: pair[1])
    return Found(best, value, len(trace), tuple(trace))
