"""Settings of the language-model proposer. Ceilings hold for one search: one group of a run."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from noisewise.pruning.settings import SearchSettings

# how the server is reached: moving it changes nothing that was made before
CONNECTION = {"base_url", "api_key_env", "timeout_seconds", "retry_seconds"}
# and what else is of no account once the replies are known
ASKING = {*CONNECTION, "kind", "model", "temperature", "seed", "replay"}
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


class LlmSettings(SearchSettings):
    """A language model behind any OpenAI-compatible server; needs the extra `llm`."""

    hints: ClassVar[tuple[Literal["taylor", "magnitude"], ...]] = ("taylor", "magnitude")
    beside_identity: ClassVar[Set[str]] = frozenset(CONNECTION)

    kind: Literal["llm"] = "llm"

    rounds: int = Field(default=5, ge=1)
    """Rounds of proposals; each sees the losses of those before."""

    candidates: int = Field(default=3, ge=1, le=20)
    """Proposals per round."""

    base_url: str | None = None
    """The server's address up to and with its version, e.g. http://127.0.0.1:8080/v1."""

    model: str | None = Field(default=None, min_length=1)
    """The model's name, as the server knows it."""

    api_key_env: str | None = None
    """Environment variable that holds the key, e.g. OPENAI_API_KEY; by default no key is sent."""

    temperature: float | None = Field(default=0.7, ge=0, le=2)
    """How freely the model chooses; null sends none."""

    seed: int | None = Field(default=0, ge=0, lt=2**31)
    """Seed of the model's choices, where its server honours one; null sends none."""

    max_prompt_tokens: int = Field(default=8000, ge=1000)
    """Most tokens of one prompt, by a cautious estimate; networks whose table is longer are summarised by block."""

    max_reply_tokens: int = Field(default=4096, ge=64)
    """Most tokens of one reply, a reasoning model's thoughts included."""

    attempts: int = Field(default=3, ge=1)
    """Replies asked for per round; what is missing then comes from the default proposer."""

    max_retries: int = Field(default=3, ge=0)
    """Repeats of a request that failed on the way: no answer, too many requests (429), a server's error (5xx)."""

    retry_seconds: float = Field(default=1.0, gt=0, le=600)
    """Wait before the first repeat; doubles with each, and a server may ask for longer (up to two minutes)."""

    timeout_seconds: float = Field(default=120.0, gt=0)
    """Longest wait for one whole answer."""

    max_requests: int = Field(default=40, ge=1)
    """Ceiling of requests, repeats included, per search."""

    max_total_tokens: int = Field(default=500_000, ge=1)
    """Ceiling of tokens, prompts and replies, per search."""

    max_cost: float | None = Field(default=None, gt=0)
    """Ceiling of cost per search, in the currency of the prices; needs both prices."""

    prompt_price: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens."""

    reply_price: float | None = Field(default=None, ge=0)
    """Price of a million reply tokens."""

    replay: Path | None = None
    """A transcript to replay instead of asking a server."""

    @field_validator("base_url")
    @classmethod
    def _address_without_secrets(cls, value: str | None) -> str | None:
        """Settings are written into artefacts; messages here do not repeat what was given."""
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("no address of a server, e.g. http://127.0.0.1:8080/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("holds more than an address; name the variable that holds the key by api_key_env")
        return value

    @field_validator("api_key_env", mode="before")
    @classmethod
    def _name_of_a_variable(cls, value: Any) -> Any:
        if value is not None and not (isinstance(value, str) and VARIABLE.fullmatch(value)):
            # what was given may be the key itself, so it is not repeated
            raise ValueError("not the name of an environment variable (capital letters, digits, underscores)")
        return value

    @model_validator(mode="after")
    def _complete(self) -> LlmSettings:
        missing = [name for name in ("base_url", "model") if getattr(self, name) is None]
        if missing and self.replay is None:
            raise ValueError(f"kind `llm` needs {' and '.join(missing)}, or a transcript to replay")
        prices = (self.prompt_price, self.reply_price)
        if self.max_cost is not None and None in prices:
            raise ValueError("max_cost needs prompt_price and reply_price")
        return self

    def cost(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """What so many tokens cost; None where no prices are given."""
        if self.prompt_price is None or self.reply_price is None:
            return None
        return (prompt_tokens * self.prompt_price + reply_tokens * self.reply_price) / 1e6

    def deciding(self) -> dict[str, Any]:
        """Settings, as JSON, that decide what a search makes of given replies."""
        values = self.model_dump(mode="json", context={"identity": True})
        return {name: value for name, value in values.items() if name not in ASKING}

    def check_ready(self) -> None:
        from noisewise.pruning.llm.check import check_ready

        check_ready(self)
