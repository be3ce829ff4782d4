"""One denoiser per range of noise levels, each as large as its task deserves, as an ordinary diffusers model.

The public names load on first use, so that the command line starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisewise.models.cost import count_macs
    from noisewise.models.experts import ExpertDenoiser
    from noisewise.models.multi_decoder import MultiDecoderUNet2DModel
    from noisewise.models.networks.dit import ShapedDiTTransformer2DModel
    from noisewise.models.networks.sd3 import ShapedSD3Transformer2DModel
    from noisewise.models.networks.unet2d import ShapedUNet2DModel
    from noisewise.models.networks.unet2d_condition import ShapedUNet2DConditionModel
    from noisewise.planning.plan import Plan
    from noisewise.pruning.prune import prune_to_budget
    from noisewise.sampling.dpm_solver import DPMSolver3Scheduler
    from noisewise.sampling.edm_heun import EDMHeunScheduler
    from noisewise.schedule import NoiseSchedule

__version__ = "0.1.0"
__all__ = [
    "DPMSolver3Scheduler",
    "EDMHeunScheduler",
    "ExpertDenoiser",
    "MultiDecoderUNet2DModel",
    "NoiseSchedule",
    "Plan",
    "ShapedDiTTransformer2DModel",
    "ShapedSD3Transformer2DModel",
    "ShapedUNet2DConditionModel",
    "ShapedUNet2DModel",
    "count_macs",
    "prune_to_budget",
]

_HOMES = {
    "DPMSolver3Scheduler": "noisewise.sampling.dpm_solver",
    "EDMHeunScheduler": "noisewise.sampling.edm_heun",
    "ExpertDenoiser": "noisewise.models.experts",
    "ModelMixin": "diffusers",  # diffusers looks for these two beside a component's class when it loads a pipeline
    "MultiDecoderUNet2DModel": "noisewise.models.multi_decoder",
    "NoiseSchedule": "noisewise.schedule",
    "Plan": "noisewise.planning.plan",
    "SchedulerMixin": "diffusers",
    "ShapedDiTTransformer2DModel": "noisewise.models.networks.dit",
    "ShapedSD3Transformer2DModel": "noisewise.models.networks.sd3",
    "ShapedUNet2DConditionModel": "noisewise.models.networks.unet2d_condition",
    "ShapedUNet2DModel": "noisewise.models.networks.unet2d",
    "count_macs": "noisewise.models.cost",
    "prune_to_budget": "noisewise.pruning.prune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'noisewise' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
