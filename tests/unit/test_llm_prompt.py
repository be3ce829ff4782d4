"""The prompt: word for word, within its token limit, summarised where it must be; replies held against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from noisewise import NoiseSchedule
from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.objectives import Objective
from noisewise.pruning.brief import Brief, checksum, identity_of, snr_range
from noisewise.pruning.llm.prompt import Told, build_prompt, estimated_tokens
from noisewise.pruning.llm.reply import check_reply, find_json
from noisewise.pruning.llm.slots import MOST_VALUES
from noisewise.pruning.memory import REPEATED, MemoryBank, Record
from noisewise.pruning.proposers import Context, RandomProposer
from noisewise.pruning.prune import space_of

GOLDEN = Path(__file__).parents[1] / "golden" / "llm_prompt.txt"
SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}
CIFAR_10 = {
    **SMALL,
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}


def context_of(config: dict[str, Any]) -> Context:
    """A network with importances that are the same everywhere."""
    with torch.device("meta"):
        model = UNet2DModel(**config)
    space = space_of(model, describe(model).example_inputs(model), 0.7)
    widths = {name: axis.width for name, axis in space.wiring.axes.items()}
    steps = {name: torch.arange(1, width + 1, dtype=torch.float64) for name, width in widths.items()}
    taylor = {name: scores * (i % 5 + 1) for i, (name, scores) in enumerate(steps.items())}
    levels = snr_range(Objective(NoiseSchedule.named("linear", 1000)), (139, 493))
    brief = Brief({"taylor": taylor, "magnitude": steps}, levels, {}, None)
    return Context(space, taylor, 1, (139, 493), (0, "prune", 1), brief)


@pytest.fixture(scope="module")
def small() -> Context:
    return context_of(SMALL)


@pytest.fixture(scope="module")
def large() -> Context:
    return context_of(CIFAR_10)


def bank_of(context: Context, num: int) -> MemoryBank:
    """Measured candidates, the third of which came to nothing."""
    bank = MemoryBank()
    for i, proposal in enumerate(RandomProposer().propose(context, bank, num)):
        solution, moved = context.project(proposal)
        cost = solution.macs / context.space.base_macs
        failed = i == 2
        loss = None if failed else 0.1 / (i + 1)
        reason = "its loss is not finite" if failed else ""
        bank.add(Record(1, 0, i, "llm", solution.widths, cost, loss, loss, moved, not failed, reason))
    return bank


def test_the_prompt_word_for_word(small: Context) -> None:
    bank = bank_of(small, 4)
    told = Told((bank.records[0].widths,), (REPEATED,), "it holds no JSON object")
    text = build_prompt(small, bank, told, 2, 8000).text
    assert text == GOLDEN.read_text(), "where the change is meant, write the new prompt to tests/golden/llm_prompt.txt"


def test_results_are_told_from_worst_to_best(small: Context) -> None:
    lines = build_prompt(small, bank_of(small, 6), Told(), 3, 8000).text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Measured so far"))
    losses = [float(line.split(" | ")[0]) for line in lines[start + 1 : start + 6]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 5


@pytest.mark.parametrize("limit", [8000, 5000, 3000, 2000, 1500, 1000])
def test_large_networks_are_summarised_to_keep_within_the_limit(limit: int, large: Context) -> None:
    bank = bank_of(large, 12)
    prompt = build_prompt(large, bank, Told((), (REPEATED,) * 9, "x" * 400), 3, limit)
    assert prompt.tokens <= limit
    axes = [name for slot in prompt.slots for name in slot.widths]
    assert sorted(axes) == sorted(name for name, legal in large.widths.items() if len(legal) > 1)
    assert all(2 <= len(slot.menu) <= MOST_VALUES for slot in prompt.slots)
    assert all(f"{slot.id} | {slot.place} |" in prompt.text for slot in prompt.slots)
    assert json.dumps(prompt.schema, separators=(",", ":")) in prompt.text
    if limit <= 3000:
        assert len(prompt.slots) < len(axes)


def test_a_summarised_network_is_proposed_for_by_share_of_width(large: Context) -> None:
    prompt = build_prompt(large, MemoryBank(), Told(), 1, 1000)
    assert {len(slot.widths) > 1 for slot in prompt.slots} == {True, False}
    for slot in prompt.slots:
        assert slot.proposal(slot.menu[-1]) == dict(slot.widths)
        assert slot.value(slot.widths) == slot.menu[-1]
    shared = next(slot for slot in prompt.slots if slot.in_percent)
    assert shared.proposal(50) == {name: width / 2 for name, width in shared.widths.items()}


def test_menus_hold_legal_widths_from_the_smallest_to_the_whole(small: Context) -> None:
    for slot in build_prompt(small, MemoryBank(), Told(), 1, 8000).slots:
        ((name, width),) = slot.widths.items()
        assert set(slot.menu) <= set(small.widths[name])
        assert (slot.menu[0], slot.menu[-1]) == (small.widths[name][0], width)


def test_ranks_and_shares(small: Context) -> None:
    slots = build_prompt(small, MemoryBank(), Told(), 1, 8000).slots
    for kind in ("taylor", "magnitude"):
        assert sorted(slot.ranks[kind] for slot in slots) == list(range(1, len(slots) + 1))
    assert all(0 < slot.macs < 1 and 0 < slot.parameters < 1 for slot in slots)
    attention = [slot for slot in slots if "attentions" in next(iter(slot.widths))]
    assert max(slot.macs for slot in attention) < max(slot.macs for slot in slots)


def test_a_limit_that_no_prompt_keeps(large: Context) -> None:
    with pytest.raises(SettingError, match=r"max_prompt_tokens: 100 given; the shortest prompt .* needs \d+"):
        build_prompt(large, MemoryBank(), Told(), 3, 100)


def test_signs_that_are_not_ascii_do_not_break_the_count(small: Context) -> None:
    prompt = build_prompt(small, MemoryBank(), Told(problem="größer \N{GRINNING FACE}"), 1, 8000)
    assert "could not be used: gr??er ?" in prompt.text


def test_estimates_are_cautious() -> None:
    assert estimated_tokens("the cat sat on the mat") == 6
    assert estimated_tokens("128 96 | 3.5") >= 9


def test_a_checksum_tells_networks_apart() -> None:
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert checksum(first) != checksum(second)
    second.load_state_dict(first.state_dict())
    assert checksum(first) == checksum(second) != checksum(first.double())
    assert identity_of(first, timesteps=(1, 2))["timesteps"] == [1, 2]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', ({"a": 1}, True)),
        (' {"a": 1}\n', ({"a": 1}, True)),
        ('Sure: {"a": {"b": 2}} {"c": 3}', ({"a": {"b": 2}}, False)),
        ('```json\n{"a": 1}\n```', ({"a": 1}, False)),
        ('<think>{"a": 0}</think>{"a": 1}', ({"a": 1}, True)),
        ('{oops} {"a": 1}', ({"a": 1}, False)),
        ("[1, 2]", (None, False)),
        ('{"a": ', (None, False)),
        ("", (None, False)),
    ],
)
def test_the_first_object_of_a_text(text: str, found: Any) -> None:
    assert find_json(text) == found


def test_replies_are_held_against_the_menus(small: Context) -> None:
    slots = build_prompt(small, MemoryBank(), Told(), 2, 8000).slots
    right = {slot.id: slot.menu[0] for slot in slots}
    whole = {**right, "a1": float(right["a1"])}
    checked = check_reply({"candidates": [right, whole, {"not": "read"}]}, slots, 2)
    assert checked.candidates == (right, right)
    assert checked.problem == ""
    short = {name: value for name, value in right.items() if name != "a2"}
    checked = check_reply({"candidates": [right, {**short, "b": 1}]}, slots, 3)
    assert checked.candidates == (right,)
    assert checked.problem == 'candidate 2: there is no part "b", a2 is missing; 2 of 3 candidates are there'
