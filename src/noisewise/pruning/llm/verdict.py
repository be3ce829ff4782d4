"""What is made of an answer: read, checked, projected, held against what was tried before, and put on record."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from noisewise.pruning.llm.client import Answer
from noisewise.pruning.llm.ladder import Decision, Dialect
from noisewise.pruning.llm.prompt import Prompt, estimated_tokens
from noisewise.pruning.llm.reply import LONGEST_PROBLEM, check_reply, find_json
from noisewise.pruning.llm.settings import LlmSettings
from noisewise.pruning.llm.transcript import Exchange, Tried
from noisewise.pruning.memory import MemoryBank
from noisewise.pruning.proposers import Context, Proposal

CUT_OFF = "length"  # a server's finish_reason for a reply that met its token limit


@dataclass
class Round:
    """A round under way."""

    number: int
    num: int
    found: dict[tuple[int, ...], Proposal] = field(default_factory=dict)  # by widths after projection
    num_exchanges: int = 0
    problem: str = ""  # what the model is told of its last reply
    why: str = ""  # the last thing that went wrong, for the user
    is_over: bool = False  # nothing more is asked

    @property
    def missing(self) -> int:
        return self.num - len(self.found)


@dataclass(frozen=True)
class Judged:
    """A reply held against schema, memory bank and round."""

    parsed: dict[str, Any] | None
    is_pure: bool  # nothing but JSON
    tried: tuple[Tried, ...]
    problem: str


def judge(context: Context, bank: MemoryBank, round_: Round, answer: Answer, prompt: Prompt) -> Judged:
    """Read, check and project a reply; what is new of it goes into the round."""
    if answer.reply is None:
        return Judged(None, True, (), "")
    parsed, is_pure = find_json(answer.reply)
    checked = check_reply(parsed, prompt.slots, prompt.num)
    problems, tried = [checked.problem] if checked.problem else [], []
    for values in checked.candidates:
        proposal = {name: width for slot in prompt.slots for name, width in slot.proposal(values[slot.id]).items()}
        solution, moved = context.project(proposal)
        key = tuple(solution.widths.values())
        problem = ""
        if key in round_.found or bank.find(solution.widths) is not None:
            told = " ".join(str(values[slot.id]) for slot in prompt.slots)
            problem = f"within the budget, {told} is the same as a candidate before"
            problems.append(problem)
        else:
            round_.found[key] = proposal
        tried.append(Tried(widths=solution.widths, moved=moved, problem=problem))
    if answer.finish_reason == CUT_OFF and parsed is None:
        problems.insert(0, "it was cut off: it has to be shorter")
    elif parsed is None:
        problems.append(f"it begins: {' '.join(answer.reply[:200].split())}")
    return Judged(parsed, is_pure, tuple(tried), "; ".join(problems)[: 2 * LONGEST_PROBLEM])


def looser(decision: Decision, dialect: Dialect, judged: Judged, answer: Answer) -> Decision:
    """A server whose reply is not what its parameters promise does not honour them: later requests do without."""
    kept = judged.is_pure and not (dialect.rung == "json_schema" and judged.problem and not judged.tried)
    lower = dialect.lower()
    if kept or lower is None or answer.finish_reason == CUT_OFF:
        return decision
    return Decision("read", f"read; the server did not keep to {dialect.rung}, from now on {lower.rung}", lower)


def exchange_of(
    settings: LlmSettings, round_: Round, attempt: int, prompt: Prompt, dialect: Dialect, answer: Answer,
    judged: Judged, decision: Decision,
) -> Exchange:  # fmt: skip
    """The record; tokens that a server did not count are estimated, the most where nobody knows."""
    counted = answer.prompt_tokens is not None and answer.reply_tokens is not None
    guess = (0, 0) if answer.status is not None else (prompt.tokens, settings.max_reply_tokens)
    if answer.reply is not None:
        guess = (prompt.tokens, estimated_tokens(answer.reply))
    return Exchange(
        round=round_.number,
        attempt=attempt,
        prompt_sha256=prompt.sha256,
        model=settings.model,
        rung=dialect.rung,
        token_parameter=dialect.token_parameter,
        left_out=dialect.left_out,
        reply=answer.reply,
        error=answer.error,
        status=answer.status,
        fault=answer.fault,
        retry_after=answer.retry_after,
        finish_reason=answer.finish_reason,
        served_model=answer.served_model,
        prompt_tokens=guess[0] if answer.prompt_tokens is None else answer.prompt_tokens,
        reply_tokens=guess[1] if answer.reply_tokens is None else answer.reply_tokens,
        tokens_estimated=not counted,
        seconds=answer.seconds,
        parsed=judged.parsed,
        candidates=judged.tried,
        problem=judged.problem,
        decision=decision.said,
    )


def dialect_of(known: Exchange) -> Dialect:
    return Dialect(known.rung, known.token_parameter, known.left_out)


def answer_of(known: Exchange, prompt: Prompt) -> Answer:
    """A recorded answer; where the model was told something else than would be told now, that is said."""
    if known.prompt_sha256 != prompt.sha256:
        warnings.warn(
            f"transcript: the prompt of round {known.round} was another: losses measured then and now differ",
            stacklevel=4,
        )
    return Answer(
        reply=known.reply,
        error=known.error,
        status=known.status,
        fault=known.fault,
        retry_after=known.retry_after,
        finish_reason=known.finish_reason,
        served_model=known.served_model,
        prompt_tokens=known.prompt_tokens,
        reply_tokens=known.reply_tokens,
        seconds=known.seconds,
    )
