"""One request to an OpenAI-compatible server: always answered, within a time, and without the key in the answer.

Whatever a server does, `ask` returns an `Answer`; what to do about it is the ladder's business.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError

if TYPE_CHECKING:
    from noisewise.pruning.llm.settings import LlmSettings

LONGEST_REPLY = 100_000  # characters kept of a reply; no table of parts needs as many
LONGEST_BODY = 8_000_000  # bytes read of an answer
LONGEST_ERROR = 300  # characters kept of what a server complains about
SHORTEST_SECRET = 8  # characters; a shorter key ("none", "EMPTY") is a word to please a server, and stays
NO_KEY = "none"  # the package insists on one; its own default, OPENAI_API_KEY, is not for any server


@dataclass(frozen=True)
class Answer:
    """What came of one request. ``reply`` is None where there is none, and ``error`` says why."""

    reply: str | None
    error: str = ""
    status: int | None = None  # of HTTP; None where no answer arrived
    fault: str = ""  # a server's own word for its error, e.g. context_length_exceeded, or the setting it refuses
    retry_after: float | None = None  # seconds
    finish_reason: str = ""
    served_model: str = ""
    prompt_tokens: int | None = None
    reply_tokens: int | None = None
    seconds: float = 0.0


def require_openai() -> ModuleType:
    """The client package; an extra, since only this proposer needs it."""
    try:
        import openai
    except ImportError:
        raise SettingError(
            "prune.proposer.kind: llm needs the openai package; install it with pip install 'noisewise[llm]'"
        ) from None
    return openai


def key_of(settings: LlmSettings) -> str | None:
    """The key, read now; None where the settings name no variable."""
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise SettingError(
            f"prune.proposer.api_key_env: the environment variable {settings.api_key_env} is not set; "
            "it should hold the key of the language model's server"
        )
    return key


def ask(settings: LlmSettings, body: Mapping[str, Any]) -> Answer:
    """Send one chat completion request, once.

    Args:
        body: the request's fields, messages included.

    Raises:
        SettingError: where the key's variable is not set.
    """
    key = key_of(settings)
    started = time.perf_counter()
    answer = _in_time(lambda: _request(settings, key, body), settings.timeout_seconds)
    seconds = round(time.perf_counter() - started, 3)
    return Answer(**{**vars(answer), "seconds": seconds}) if key is None else _scrubbed(answer, key, seconds)


def model_names(settings: LlmSettings) -> list[str]:
    """Names of the models that a server lists; none where it does not say."""
    key = key_of(settings)

    def listed() -> Answer:
        with contextlib.closing(_client(settings, key)) as client:
            return Answer("\n".join(str(model.id) for model in client.models.list().data))

    answer = _in_time(lambda: _caught(listed), settings.timeout_seconds)
    return _scrubbed(answer, key or "", 0.0).reply.splitlines() if answer.reply else []  # type: ignore[union-attr]


def _client(settings: LlmSettings, key: str | None) -> Any:
    return require_openai().OpenAI(
        base_url=settings.base_url, api_key=key or NO_KEY, timeout=settings.timeout_seconds, max_retries=0
    )


def _in_time(work: Callable[[], Answer], seconds: float) -> Answer:
    """The answer of ``work``, or that there was none in time, even of a server that sends a byte now and then."""
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(work()), daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return Answer(None, f"no whole answer within {seconds:g} s", fault="timeout")


def _request(settings: LlmSettings, key: str | None, body: Mapping[str, Any]) -> Answer:
    def requested() -> Answer:
        with (
            contextlib.closing(_client(settings, key)) as client,
            client.chat.completions.with_streaming_response.create(**body) as response,
        ):
            return _read(response.status_code, b"".join(_bounded(response.iter_bytes())))

    return _caught(requested)


def _bounded(chunks: Iterator[bytes]) -> Iterator[bytes]:
    num_bytes = 0
    for chunk in chunks:
        num_bytes += len(chunk)
        if num_bytes > LONGEST_BODY:
            raise ValueError(f"an answer of more than {LONGEST_BODY:,} bytes")
        yield chunk


def _caught(work: Callable[[], Answer]) -> Answer:
    """Faults of server and network as answers."""
    openai = require_openai()
    try:
        return work()
    except openai.APIStatusError as error:
        detail = error.body.get("error", error.body) if isinstance(error.body, dict) else None
        said = detail.get("message") if isinstance(detail, dict) else detail
        # what a server says about a key may repeat it
        told = "" if error.status_code in (401, 403) else _line(said if isinstance(said, str) else error.message)
        faults = [str(value) for value in (error.code, error.param, error.type) if value]
        return Answer(
            None,
            f"HTTP {error.status_code}{f': {told}' if told else ''}",
            status=error.status_code,
            fault=_line(" ".join(faults)),
            retry_after=_seconds(error.response.headers.get("retry-after")),
        )
    except openai.APITimeoutError:
        return Answer(None, "no answer in time", fault="timeout")
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        return Answer(None, f"no connection: {_line(str(cause) or type(cause).__name__)}", fault="connection")
    except Exception as error:  # a library's way to say that a server breaks its protocol; a search outlives that
        return Answer(None, f"{type(error).__name__}: {_line(str(error))}", fault="connection")


def _read(status: int, raw: bytes) -> Answer:
    """The reply in a body, which may be anything at all."""
    try:
        body = json.loads(raw)
        choice = body["choices"][0]
        message = choice["message"]
        content = message.get("content") or message.get("refusal") or ""
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        begins = _line(raw[:80].decode("utf-8", "replace"))
        return Answer(None, f"not the JSON of a chat completion; it begins {begins!r}", status=status, fault="body")
    if isinstance(content, list):  # parts, as some servers send them
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        _clean(str(content))[:LONGEST_REPLY],
        status=status,
        finish_reason=_line(str(choice.get("finish_reason") or "")),
        served_model=_served(body.get("model")),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        reply_tokens=_count(usage.get("completion_tokens")),
    )


def _scrubbed(answer: Answer, key: str, seconds: float) -> Answer:
    """The answer without the key: some servers repeat what they were sent."""

    def clean(value: Any) -> Any:
        return value.replace(key, "[key]") if isinstance(value, str) and len(key) >= SHORTEST_SECRET else value

    return Answer(**{**{name: clean(value) for name, value in vars(answer).items()}, "seconds": seconds})


def _clean(text: str) -> str:
    """Without lone surrogates, which no file takes."""
    return text.encode("utf-8", "replace").decode()


def _line(text: str) -> str:
    return _clean(" ".join(text.split()))[:LONGEST_ERROR]


def _served(name: Any) -> str:
    """The model's name by the server; local servers give the file's path, whose folder is nobody's business."""
    told = _line(name) if isinstance(name, str) else ""
    return told.rpartition("/")[2] if told.startswith("/") else told


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else None


def _seconds(header: str | None) -> float | None:
    """A Retry-After in seconds; one that is a date is left aside."""
    try:
        seconds = float(header or "nan")
    except ValueError:
        return None
    return seconds if 0 <= seconds < 10**6 else None
