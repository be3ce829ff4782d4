"""Before any long work: does the language model answer, and is a transcript to replay usable?"""

from __future__ import annotations

import time

from noisewise.errors import SettingError
from noisewise.pruning.llm.client import Answer, ask, key_of, model_names, require_openai
from noisewise.pruning.llm.ladder import Dialect, decide, unknown_model
from noisewise.pruning.llm.settings import LlmSettings
from noisewise.pruning.llm.transcript import read

QUESTION = "Reply with the one word: ready"
REPLY_TOKENS = 16  # the fewest that all servers take
MOST_NAMES = 8


def check_ready(settings: LlmSettings) -> None:
    """One short question to the server, with the model's name and the key; or a look at the whole transcript.

    Raises:
        SettingError: where no search could ask the model anything.
    """
    if settings.replay is not None:
        sections = read(settings.replay)
        if not sections:
            raise SettingError(f"transcript: {settings.replay} is empty")
        for section in sections:
            if not section.is_whole:
                raise SettingError(
                    f"transcript: {settings.replay} is cut short: the search that begins at line {section.line} "
                    f"ends at line {section.last_line}, without the closing line"
                )
        return
    require_openai()
    key_of(settings)
    answer = _answered(settings)
    if answer.reply is None:
        raise SettingError(_refusal(settings, answer))


def _answered(settings: LlmSettings) -> Answer:
    """The answer after what repeats and simpler requests there are; a server that says nothing is asked once."""
    dialect, repeats = Dialect(), 0
    while True:
        answer = ask(settings, dialect.body(settings, QUESTION, None, REPLY_TOKENS))
        decision = decide(answer, dialect, repeats, settings)
        if decision.action == "repeat" and answer.status is not None:
            repeats += 1
            time.sleep(decision.wait)
        elif decision.action == "adapt" and decision.dialect is not None:
            dialect = decision.dialect
        else:
            return answer


def _refusal(settings: LlmSettings, answer: Answer) -> str:
    where = f"prune.proposer.base_url: {settings.base_url}"
    if answer.status is None:
        return f"{where} does not answer ({answer.error}); is the server running there?"
    if answer.status in (401, 403):
        if settings.api_key_env is None:
            return (
                f"{where} wants a key ({answer.error}); name the variable that holds it by prune.proposer.api_key_env"
            )
        return f"prune.proposer.api_key_env: the server refuses the key in {settings.api_key_env} ({answer.error})"
    if unknown_model(answer):
        names = model_names(settings)
        listed = f"; it has {', '.join(names[:MOST_NAMES])}{' ...' if len(names) > MOST_NAMES else ''}" if names else ""
        return f"prune.proposer.model: the server does not know {settings.model!r} ({answer.error}){listed}"
    if answer.fault == "body" or answer.status == 404:
        return f"{where} is no OpenAI-compatible server ({answer.error}); is the path right, e.g. .../v1?"
    return f"{where} does not serve {settings.model!r} now ({answer.error})"
