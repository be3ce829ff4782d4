"""Prompts in turn, as the denoiser of a text-to-image pipeline is told them."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.workflow.machine import device

if TYPE_CHECKING:
    from noisewise.models.text import TextEncoder

SETTING = "prompts"
CAPTIONS = "metadata.csv"  # beside sampled images: which prompt each is of, as data sets of images have it
WIDEST_GRID = 8


def read_prompts(path: Path) -> tuple[str, ...]:
    """A file's lines, one prompt each; empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise SettingError(f"--prompts-from: {path} cannot be read ({reason})") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise SettingError(f"--prompts-from: {path} has no prompts; one a line is needed")
    return found


def in_turn(prompts: Sequence[str], num_images: int) -> list[str]:
    """[num_images]: image i is of prompt i modulo their number."""
    return [prompts[i % len(prompts)] for i in range(num_images)]


def told_prompts(folder: Path, model: Any, prompts: Sequence[str] | None) -> dict[str, Any]:
    """What `sample_images` tells the denoiser of prompts in turn, and of none: nothing where it is told no text.

    Args:
        folder: of the pipeline that ``model`` is the denoiser of; its text encoders are moved to the device.
        prompts: of image i the one at i modulo their number; None: none are given.
    """
    from noisewise.models.text import TextEncoder, reads_text

    needed = text_arguments(model)
    if prompts is None and not needed:
        return {}
    if not reads_text(folder):
        if prompts is None:
            raise SettingError(f"{SETTING}: the network in {folder} is told {needed}, and there is no text encoder")
        raise SettingError(f"{SETTING}: {len(prompts)} given; the pipeline in {folder} has no text encoder")
    if prompts is None:
        raise SettingError(
            f'{SETTING}: missing; the pipeline in {folder} makes images of text (--prompts "a cat" "a dog"; in a '
            "recipe data.caption_column)"
        )
    if not needed:
        raise SettingError(f"{SETTING}: {len(prompts)} given; the network in {folder} takes no text")
    if not prompts:
        raise SettingError(f"{SETTING}: none given; one or more are needed")
    encoder = TextEncoder.from_pretrained(folder)
    encoder.check_denoiser(single_network(model).config)
    _warn_of_long(encoder, prompts)
    encoder.to(device())
    return {
        "conditions": lambda rows: encoder.encode([prompts[i % len(prompts)] for i in rows]),
        "null_conditions": encoder.null(),
    }


def text_arguments(model: Any) -> str:
    """Which of forward's arguments hold text; empty for networks of images alone."""
    from noisewise.models.networks import known_network

    network = known_network(model)
    return "" if network is None else " and ".join(network.conditions)


def single_network(model: Any) -> Any:
    """The network, or the first of a router's."""
    return next((expert for expert in getattr(model, "experts", ()) if expert is not None), model)


def _warn_of_long(encoder: TextEncoder, prompts: Sequence[str]) -> None:
    beyond = [prompt for prompt, num in zip(prompts, encoder.num_tokens(prompts), strict=True) if num > encoder.length]
    if beyond:
        what = f"{SETTING}: {len(beyond)} of {len(prompts)} exceed {encoder.length} tokens and are cut off"
        warnings.warn(f"{what}, first {beyond[0][:60]!r}", stacklevel=3)


# ---- files


def grid_columns(num_prompts: int) -> int:
    """How many images of prompts in turn stand side by side: whole turns, so that a column is of one prompt."""
    return num_prompts * max(1, WIDEST_GRID // num_prompts)


def captions_file(names: Sequence[str], prompts: Sequence[str]) -> str:
    """A table of image files and what each is of, as folders of captioned images have it."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("file_name", "text"))
    table.writerows(zip(names, prompts, strict=True))
    return text.getvalue()
