"""The prompt: what a language model is told of network, group, budget and earlier results, within a token limit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.pruning.llm.reply import reply_schema
from noisewise.pruning.llm.slots import DETAILS, Slot, slots_of
from noisewise.pruning.memory import MemoryBank

if TYPE_CHECKING:
    from jinja2 import Template

    from noisewise.pruning.proposers import Brief, Context

# results and rejections told, fewer where the limit is tight
MEMORY = ((12, 4), (6, 3), (3, 2), (1, 1), (0, 0))
TEMPLATE_TOKENS = 64  # what servers put around a message: its role, marks, a system prompt of their own
# one token each, in the most wasteful of common tokenizers: a word, a digit, a blank before a digit, a sign
TOKEN = re.compile(r"[A-Za-z]{1,12}|[0-9]|\s(?=[0-9])|\n|[^\sA-Za-z0-9]")


@dataclass(frozen=True)
class Prompt:
    """A prompt and the table that its reply refers to."""

    text: str
    slots: tuple[Slot, ...]
    num: int  # candidates asked for

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def tokens(self) -> int:
        return estimated_tokens(self.text) + TEMPLATE_TOKENS

    @property
    def schema(self) -> dict[str, Any]:
        return reply_schema(self.slots, self.num)


@dataclass(frozen=True)
class Told:
    """What a search knows besides its memory bank."""

    taken: tuple[Mapping[str, int], ...] = ()  # widths of this round that are not measured yet
    refused: tuple[str, ...] = ()  # candidates of earlier rounds that were not measured, and why
    problem: str = ""  # what was wrong with the last reply; empty where this is a round's first prompt


def estimated_tokens(text: str) -> int:
    """Tokens of a text, rather too many than too few: tokenizers differ, and a server's own is not at hand."""
    return len(TOKEN.findall(text))


def build_prompt(context: Context, bank: MemoryBank, told: Told, num: int, limit: int) -> Prompt:
    """The most detailed prompt that keeps within ``limit`` tokens.

    First the table is told as finely as fits, then as much of the memory bank as still fits.

    Args:
        num: candidates to ask for.

    Raises:
        SettingError: where not even the shortest one fits.
    """
    fewest = 0
    for detail in DETAILS:
        slots = slots_of(context.space, _brief(context).hints, detail)
        results = _results(bank, slots)
        rejected = list(dict.fromkeys([*_unmeasured(bank, slots), *told.refused]))
        for num_results, num_rejected in MEMORY:
            shown = results[max(len(results) - num_results, 0) :], rejected[max(len(rejected) - num_rejected, 0) :]
            prompt = Prompt(_text(context, slots, *shown, told, num), tuple(slots), num)
            if prompt.tokens <= limit:
                return prompt
        fewest = prompt.tokens
    raise SettingError(
        f"prune.proposer.max_prompt_tokens: {limit} given; the shortest prompt for this network needs {fewest}"
    )


def _brief(context: Context) -> Brief:
    assert context.brief is not None  # search gathers it for settings with hints
    return context.brief


def _values(slots: Sequence[Slot], widths: Mapping[str, int]) -> str:
    return " ".join(str(slot.value(widths)) for slot in slots)


def _results(bank: MemoryBank, slots: Sequence[Slot]) -> list[str]:
    """Measured candidates from worst to best, equal lines once."""
    return list(
        dict.fromkeys(
            f"{record.loss:.4g} | {100 * (record.cost or 0):.1f} | {_values(slots, record.widths)}"
            for record in reversed(bank.best(len(bank)))
        )
    )


def _unmeasured(bank: MemoryBank, slots: Sequence[Slot]) -> list[str]:
    records = [record for record in bank.records if not record.accepted]
    return [f"{_values(slots, r.widths)}: {r.reason}" if r.widths else r.reason for r in records]


def _text(
    context: Context, slots: Sequence[Slot], results: Sequence[str], rejected: Sequence[str], told: Told, num: int
) -> str:
    space, brief = context.space, _brief(context)
    text = _template().render(
        timesteps=_timesteps(context),
        snr_db=[f"{value:.1f}" for value in brief.snr_db],
        budget=f"{100 * space.budget:.4g}",
        lowest=f"{100 * space.budget * (1 - space.tolerance):.4g}",
        kinds=list(brief.hints),
        slots=slots,
        depth=any(0 in slot.menu for slot in slots),
        results=results,
        rejected=rejected,
        taken=[_values(slots, widths) for widths in told.taken],
        problem=told.problem,
        num=num,
        schema=json.dumps(reply_schema(slots, num), separators=(",", ":")),
    )
    return text.encode("ascii", "replace").decode()  # tokens can be counted on for ASCII only


def _timesteps(context: Context) -> str:
    if context.timesteps is None:
        return "all timesteps"
    start, stop = context.timesteps
    return f"timesteps {start} to {stop - 1}" if isinstance(stop, int) else f"levels {start:.4g} to {stop:.4g}"


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    source = files("noisewise.pruning.llm").joinpath("prompt.jinja").read_text(encoding="utf-8")
    return Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True).from_string(source)
