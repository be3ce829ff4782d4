"""The model card that an `ExpertDenoiser` is saved with: what it is, how to load it, its limits.

A card that a run has written, with measured results, comes along when the model is loaded and saved again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from noisewise.files import write_atomic

if TYPE_CHECKING:
    from noisewise.models.experts import ExpertDenoiser

CARD = "README.md"
FRONT = "---\nlibrary_name: diffusers\ntags:\n- diffusion\n- noisewise\n---\n"
MEASURED, LIMITS = "## Measured\n\n", "## Limits\n"  # headings between which results stand
COORDINATES = {"timestep": "training timestep", "sigma": "noise level sigma", "flow-time": "flow time"}


def write_card(model: ExpertDenoiser, folder: Path, card: str | None) -> None:
    """Write ``card``, or a new one, into the model's folder; one that is there already stays."""
    if not (folder / CARD).exists():
        write_atomic(folder / CARD, card or new_card(model))


def read_card(folder: Path) -> str | None:
    """The card in a model's folder."""
    return (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None


def with_results(card: str, table: str) -> str:
    """A model's card with another table of results."""
    head, _, rest = card.partition(MEASURED)
    _, limits, tail = rest.partition(LIMITS)
    return f"{head}{MEASURED}{table}\n\n{limits}{tail}" if limits else card


def new_card(model: ExpertDenoiser) -> str:
    """What is known of a model without any measurement."""
    name, plan = type(model).__name__, model.plan
    lines = ["| group | from | to | class | parameters |", "|--:|--:|--:|:--|--:|"]
    for group, kind, active in zip(
        plan.groups, model.config.expert_classes, model.active_parameters(), strict=True
    ):  # fmt: skip
        if kind is not None:
            lines.append(f"| {group.index} | {group.t_start:g} | {group.t_stop:g} | {kind} | {active:,} |")
    return "\n".join(
        [
            FRONT,
            f"# {name}\n",
            "A denoiser made of one expert per range of noise levels: every call is routed by its timestep. Ranges of "
            f"the {COORDINATES[plan.coordinate]}; {model.resident_parameters():,} parameters in all.\n",
            *lines,
            "\n## Load it\n",
            f'```python\nfrom noisewise import {name}\n\nmodel = {name}.from_pretrained("path/to/this/folder")\n```\n',
            "As part of a pipeline it loads by `DiffusionPipeline.from_pretrained` once `noisewise` is imported. "
            "Safetensors only, no remote code.\n",
            f"{MEASURED}Nothing was measured for this card; `noisewise evaluate` does, `noisewise run` writes its "
            "table into the card.\n",
            LIMITS,
            f"- Timesteps are those of the noise schedule it was made for ({plan.schedule.kind}, "
            f"{plan.num_train_timesteps:,} training timesteps); another schedule would send them to the wrong experts.",
            "- All experts have to be kept in memory, on the device or (`enable_expert_offload`) beside it.",
            "- It inherits the limits of the data and of the networks it was made from.\n",
        ]
    )
