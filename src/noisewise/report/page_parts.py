"""What the page shows besides tables and figures: groups, routes, timing, pictures and text, ready to print."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisewise.report.columns import MISSING
from noisewise.report.results import Recovered, Results, Timing

_REAL = "samples/real.png"


@dataclass(frozen=True)
class Picture:
    """A grid of images, embedded."""

    label: str
    note: str
    uri: str
    alt: str


@dataclass(frozen=True)
class GroupLine:
    """A group of the plan as the page lists it."""

    index: int
    start: str
    stop: str
    timesteps: str
    limit: str
    achieved: str
    steps: int
    is_empty: bool
    recovery: tuple[str, str]  # loss right after pruning, and after recovery
    is_recovered: bool
    time: str | None  # measured, as a share of the base's; None where the limit is one of MACs


@dataclass(frozen=True)
class RouteSpan:
    """Neighbouring sampling steps that one group serves."""

    first: int
    last: int
    t_first: str
    t_last: str
    group: int
    steps: int
    cost: str
    total: str


@dataclass(frozen=True)
class KindOfStep:
    """Steps that differ only in their group or row."""

    name: str
    number: int
    seconds: float
    cached: int


def number(value: float | None, pattern: str = ",.4g") -> str:
    """A number of the text: 1,437, 12,346 or 0.653; unknown ones as a dash."""
    if value is None:
        return MISSING
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    shown = format(value, pattern)
    return shown if "e+" not in shown else f"{value:,.0f}"  # 12,346 and not 1.235e+04


def duration(seconds: float | None) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def flattened(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    if isinstance(value, Mapping):
        return [
            pair for key, inner in value.items() for pair in flattened(inner, f"{name}.{key}" if name else str(key))
        ]
    if isinstance(value, list):
        return [(name, ", ".join(str(inner) for inner in value))]
    return [(name, "not given" if value is None else str(value))]


def group_lines(results: Results) -> list[GroupLine]:
    """The plan's groups with what pruning achieved and how many sampling steps each serves."""
    achieved = {expert.group: expert.achieved for expert in results.widths if expert is not None}
    recovered = {expert.group: _recovery(expert.recovery) for expert in results.widths if expert and expert.recovery}
    timed = {expert.group: share(expert.time.achieved) for expert in results.widths if expert and expert.time}
    widths_given = results.method == "multi-decoder" and "decoders" in (results.recipe.get("multi_decoder") or {})
    if results.method == "multi-decoder":
        achieved = dict(enumerate(results.group_costs))
    lines = []
    for i, group in enumerate(results.groups):
        steps = sum(step.group == i for step in results.routes)
        kept = achieved.get(i)
        limit = MISSING if widths_given else f"{group.cost_limit:.3f}"
        lines.append(GroupLine(i, number(group.t_start), number(group.t_stop), number(group.num_timesteps),
                               limit, share(kept), steps,
                               group.is_empty, recovered.get(i, (MISSING, MISSING)), i in recovered,
                               timed.get(i, MISSING) if timed else None))  # fmt: skip
    return lines


def _recovery(recovery: Recovered) -> tuple[str, str]:
    return number(recovery.loss_before), number(recovery.loss_after) + ("" if recovery.applied else " (not kept)")


def share(value: float | None) -> str:
    """A share of the base's cost."""
    return MISSING if value is None else f"{value:.3f}"


def moment(text: str) -> str:
    """``2030-01-31T12:00:05Z`` as ``2030-01-31 12:00 UTC``; other spellings as they are."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:[\d.]+)?(Z|\+00:00)$", r"\1 \2 UTC", text)


def route_spans(results: Results) -> list[RouteSpan]:
    """The route table with neighbouring steps of one group in one line."""
    runs: list[list[Any]] = []
    for step in results.routes:
        if runs and runs[-1][-1].group == step.group and runs[-1][-1].cost == step.cost:
            runs[-1].append(step)
        else:
            runs.append([step])
    return [
        RouteSpan(run[0].step, run[-1].step, number(run[0].t), number(run[-1].t), run[0].group, len(run),
                  share(run[0].cost), share(None if run[0].cost is None else run[0].cost * len(run)))
        for run in runs
    ]  # fmt: skip


def kinds_of_steps(results: Results) -> list[KindOfStep]:
    """Timing by kind of step: ``finetune[0]`` and ``finetune[1]`` together."""
    kinds: dict[str, list[Timing]] = {}
    for step in results.timing:
        kinds.setdefault(step.step.split("[")[0], []).append(step)
    return [
        KindOfStep(name, len(steps), sum(step.seconds or 0 for step in steps), sum(step.cached for step in steps))
        for name, steps in kinds.items()
    ]


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def pictures(results: Results, run_folder: Path) -> list[Picture]:
    """The rows' sample grids that exist, each from the same seeds, and real images last."""
    named = [(row.name, row.note or "", row.samples) for row in results.rows if row.samples]
    known = {path for _, _, path in named}
    if "samples/base.png" not in known:
        named.insert(0, ("Base", "before anything else was trained", "samples/base.png"))
    asked = [*named, ("Real images", "of the held-out part", _REAL)]
    return [picture for each in asked if (picture := _picture(run_folder, *each)) is not None]


def reconstructions(results: Results, run_folder: Path) -> Picture | None:
    """Held-out images, each row above its reconstructions; None where networks learned pixels."""
    if results.autoencoder is None or results.autoencoder.samples is None:
        return None
    note = "held-out images, each row above what the autoencoder makes of it"
    return _picture(run_folder, "Reconstructions", note, results.autoencoder.samples)


def _picture(run_folder: Path, label: str, note: str, path: str) -> Picture | None:
    """A grid embedded; None where there is no such file in the run's folder."""
    file = (run_folder / path).resolve()
    if not file.is_file() or not file.is_relative_to(run_folder.resolve()):
        return None
    return Picture(label, note, data_uri("image/png", file.read_bytes()), f"Grid of images: {label}")


def whole_groups(results: Results) -> list[int]:
    """Groups that have timesteps but were not pruned, in a run that pruned others."""
    pruned = {expert.group for expert in results.widths if expert is not None}
    return [i for i, group in enumerate(results.groups) if not group.is_empty and i not in pruned]


def verdict_of(results: Results) -> list[str]:
    """The verdict's answer, then its reasons."""
    if not results.verdict:
        return ["This run has no verdict: there were not enough rows to compare."]
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", results.verdict.strip(), maxsplit=1)
