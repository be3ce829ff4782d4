"""The samplers by name: which schedules each is for, and how often it calls the network.

Light to import, for settings and the command line; `schedulers` builds what is named here.
"""

from __future__ import annotations

from typing import Literal, get_args

from noisewise.errors import SettingError

SchedulerKind = Literal[
    "ddpm",
    "ddim",
    "pndm",
    "dpm++",
    "unipc",
    "heun",
    "euler",
    "dpm-solver-3",
    "edm-heun",
    "edm-euler",
    "edm-dpm++",
    "flow-euler",
    "flow-heun",
]

KINDS: tuple[str, ...] = get_args(SchedulerKind)
TWO_CALLS_A_STEP = ("heun", "edm-heun", "flow-heun")  # but for the last step, which ends without noise
PNDM_FIRST_STEPS = 4  # it starts with Runge-Kutta steps, and needs this many


def family(kind: SchedulerKind) -> str:
    """The kind of noise schedule that ``kind`` samples: "vp", "edm" or "flow"."""
    check_kind(kind)
    start = kind.split("-")[0]
    return start if start in ("edm", "flow") else "vp"


def kinds_of(schedule_kind: str) -> list[str]:
    """The samplers for one kind of noise schedule."""
    return [kind for kind in KINDS if family(kind) == schedule_kind]  # type: ignore[arg-type]


def num_evaluations(kind: SchedulerKind, num_inference_steps: int) -> int:
    """How often one image calls the network; what ``num_inference_steps`` counts is the sampler's own matter.

    DPM-Solver-3 counts evaluations, the others their steps: EDM's 18 steps of Heun are 35 evaluations.
    """
    check_kind(kind)
    least = PNDM_FIRST_STEPS if kind == "pndm" else 1
    if num_inference_steps < least:
        raise SettingError(f"sample.num_inference_steps: {num_inference_steps} is below {least}, {kind}'s least")
    if kind == "pndm":
        return num_inference_steps + 9
    return 2 * num_inference_steps - 1 if kind in TWO_CALLS_A_STEP else num_inference_steps


def steps_within(kind: SchedulerKind, evaluations: int) -> int:
    """The most ``num_inference_steps`` that call the network at most ``evaluations`` times, `num_evaluations`' inverse.

    An even number is out of reach for two calls a step; one evaluation is then left over.
    """
    check_kind(kind)
    steps = evaluations - 9 if kind == "pndm" else (evaluations + 1) // 2 if kind in TWO_CALLS_A_STEP else evaluations
    least = PNDM_FIRST_STEPS if kind == "pndm" else 1
    if steps < least:
        raise SettingError(
            f"sample.num_inference_steps: {kind} needs {num_evaluations(kind, least)} evaluations or more, "
            f"given {evaluations}"
        )
    return steps


def check_kind(kind: str) -> None:
    """Raise unless ``kind`` names a sampler."""
    if kind not in KINDS:
        raise SettingError(f"sample.scheduler: {kind!r} is not one of {', '.join(KINDS)}")
