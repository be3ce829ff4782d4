"""How a server is spoken to, and what follows from an answer: repeat, put it more simply, or stop asking.

The rungs of the ladder, from what constrains a reply most to what any server takes:

    json_schema   the reply is constrained by a strict JSON schema
    json_object   the reply is constrained to be JSON; the schema stands in the prompt
    text          nothing is constrained; the first JSON object of the reply is read

A server goes down a rung when it refuses the parameters, or when it took them and replied with something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from noisewise.pruning.llm.client import Answer
from noisewise.pruning.llm.settings import LlmSettings

Rung = Literal["json_schema", "json_object", "text"]
RUNGS: tuple[Rung, ...] = ("json_schema", "json_object", "text")
REFUSED = (400, 404, 415, 422, 500, 501)  # with these, servers refuse parameters; 404 and 500 only if they say which
LATER = (408, 409, 425, 429)  # besides all of 500 and above: worth repeating
FORMAT_WORDS = ("response_format", "json_schema", "json_object", "schema", "grammar", "guided")
CONTEXT_WORDS = ("context_length", "context length", "context size", "context window", "maximum context")
UNKNOWN_WORDS = ("not found", "not exist", "unknown", "no such", "invalid model", "not available")
LONGEST_WAIT = 120.0  # seconds


@dataclass(frozen=True)
class Dialect:
    """What a server is known to take."""

    rung: Rung = "json_schema"
    token_parameter: str = "max_tokens"
    left_out: tuple[str, ...] = ()  # parameters that it refuses

    def body(
        self, settings: LlmSettings, text: str, schema: Mapping[str, Any] | None, max_tokens: int
    ) -> dict[str, Any]:
        """Fields of a request for one reply to ``text``."""
        fields: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": "user", "content": text}],
            self.token_parameter: max_tokens,
            "temperature": settings.temperature,
            "seed": settings.seed,
        }
        if schema is not None and self.rung == "json_schema":
            strict = {"name": "candidates", "strict": True, "schema": dict(schema)}
            fields["response_format"] = {"type": "json_schema", "json_schema": strict}
        if schema is not None and self.rung == "json_object":
            fields["response_format"] = {"type": "json_object"}
        return {name: value for name, value in fields.items() if value is not None and name not in self.left_out}

    def lower(self) -> Dialect | None:
        """One rung down; None from the last."""
        below = RUNGS[RUNGS.index(self.rung) + 1 :]
        return replace(self, rung=below[0]) if below else None

    def without(self, complaint: str) -> Dialect | None:
        """What to try after a server refused parameters: without those it names, else one after the other."""
        complaint = complaint.lower()
        if "max_tokens" in complaint and self.token_parameter == "max_tokens":
            return replace(self, token_parameter="max_completion_tokens")
        for name in ("temperature", "seed"):
            if name in complaint and name not in self.left_out:
                return replace(self, left_out=(*self.left_out, name))
        lower = self.lower()
        if lower is not None:
            return lower
        rest = [name for name in ("seed", "temperature") if name not in self.left_out]
        return replace(self, left_out=(*self.left_out, rest[0])) if rest else None


@dataclass(frozen=True)
class Decision:
    """What follows from an answer."""

    action: Literal["read", "repeat", "adapt", "fail", "stop"]  # fail: this reply is lost; stop: ask no more
    said: str  # for the record
    dialect: Dialect | None = None  # with adapt
    wait: float = 0.0  # seconds, with repeat


def decide(answer: Answer, dialect: Dialect, repeats: int, settings: LlmSettings) -> Decision:
    """What to do about an answer, the ``repeats``-th repeat of its request."""
    if answer.reply is not None:
        return Decision("read", "read")
    complaint = f"{answer.fault} {answer.error}".lower()
    if answer.fault == "body":
        return Decision("fail", "the answer cannot be read")
    if any(word in complaint for word in CONTEXT_WORDS):
        return Decision("stop", "the prompt is too long for the server; lower max_prompt_tokens or max_reply_tokens")
    about_form = any(word in complaint for word in FORMAT_WORDS)
    named = about_form or any(word in complaint for word in ("max_tokens", "temperature", "seed"))
    refused = answer.status in REFUSED and (named or (answer.status in (400, 415, 422) and not unknown_model(answer)))
    if refused:
        simpler = dialect.lower() if about_form else dialect.without(complaint)
        if simpler is not None:
            return Decision("adapt", f"the server refuses the parameters; {_change(dialect, simpler)}", simpler)
        return Decision("stop", "the server refuses every form of the request")
    if answer.status is None or answer.status in LATER or answer.status >= 500:
        if "insufficient_quota" in complaint:
            return Decision("stop", "the quota is used up")
        if repeats < settings.max_retries:
            wait = max(settings.retry_seconds * 2**repeats, answer.retry_after or 0.0)
            return Decision("repeat", "repeated", wait=min(wait, LONGEST_WAIT))
        # a server that answers may have time for the next round; one that does not has gone
        return Decision("stop" if answer.status is None else "fail", f"given up after {repeats + 1} requests")
    return Decision("stop", "the server refuses the request")


def unknown_model(answer: Answer) -> bool:
    """Whether a server's complaint is about the model's name."""
    complaint = f"{answer.fault} {answer.error}".lower()
    unknown = any(word in complaint for word in UNKNOWN_WORDS)
    return "model_not_found" in complaint or ("model" in complaint and unknown)


def _change(before: Dialect, after: Dialect) -> str:
    """In words, what is put more simply."""
    if after.rung != before.rung:
        return f"from now on {after.rung}"
    if after.token_parameter != before.token_parameter:
        return f"from now on {after.token_parameter}"
    return f"from now on without {after.left_out[-1]}"
