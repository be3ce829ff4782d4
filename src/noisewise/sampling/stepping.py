"""What noisewise's own schedulers share: a list of the network's calls, used up one a ``step``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from diffusers import ConfigMixin, SchedulerMixin

from noisewise.errors import SettingError

Call = TypeVar("Call")


class CallScheduler(SchedulerMixin, ConfigMixin, Generic[Call]):
    """A diffusers scheduler with an entry of ``timesteps`` and one call prepared for each evaluation of the network.

    The samples it hands around are the network's inputs, so that pipelines that do not ask schedulers to scale inputs
    (`DDPMPipeline`) run it as well as those that do.
    """

    order = 1  # entries of ``timesteps`` that ``step`` uses up
    timesteps: torch.Tensor
    num_inference_steps: int | None

    def _begin(self, calls: Sequence[Call], num_inference_steps: int | None = None) -> None:
        """Make ready for the first of ``calls``."""
        self.num_inference_steps = num_inference_steps
        self._calls = calls
        self._index = 0

    def _next_call(self, timestep: torch.Tensor | float) -> Call:
        """The call whose turn it is; an error for what its place in the list cannot serve."""
        if self._index >= len(self._calls):
            reason = "all timesteps are used" if len(self._calls) else "there are no timesteps yet"
            raise SettingError(f"scheduler: {reason}; call set_timesteps before sampling")
        if self._index == 0 and not math.isclose(float(timestep), float(self.timesteps[0]), rel_tol=1e-2):
            raise SettingError(
                f"scheduler: the first step is at {float(timestep):g}, not at {float(self.timesteps[0]):g}; "
                f"{type(self).__name__} cannot start in the middle of its timesteps"
            )
        self._index += 1
        return self._calls[self._index - 1]

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """``sample``: it is the network's input already."""
        return sample

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)
