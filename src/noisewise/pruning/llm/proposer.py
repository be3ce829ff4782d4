"""The language-model proposer: asks for a round's candidates, checks and projects them, fills up what is missing.

Everything it does follows from the search's settings and the exchanges, in their order. So a transcript replays a
search, and a stopped search goes on from its own transcript: exchanges that it holds are read instead of asked for.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

from noisewise.errors import SettingError
from noisewise.pruning.llm.client import Answer, ask, key_of, require_openai
from noisewise.pruning.llm.ladder import Dialect, decide
from noisewise.pruning.llm.prompt import Prompt, Told, build_prompt
from noisewise.pruning.llm.settings import LlmSettings
from noisewise.pruning.llm.transcript import TRANSCRIPT, Exchange, Transcript
from noisewise.pruning.llm.verdict import Round, answer_of, dialect_of, exchange_of, judge, looser
from noisewise.pruning.memory import MemoryBank, Record
from noisewise.pruning.proposers import Context, Credited, ImportanceProposer, ImportanceSettings, Proposal

LONGEST_WHY = 200  # characters of a reason in a warning
FALLBACK = ImportanceSettings.model_fields["kind"].default

# what servers were found to take: the groups of a run that this process goes through need not find out again
_known_dialects: dict[tuple[str | None, str | None], Dialect] = {}


class LlmProposer:
    """Proposals of a language model; of the default proposer where it gives none."""

    def __init__(self, settings: LlmSettings) -> None:
        self.settings = settings
        self._transcript: Transcript | None = None
        self._stopped = ""  # why this search asks no more
        if settings.replay is None:
            require_openai()
            key_of(settings)  # a missing one is said before any work

    def propose(self, context: Context, bank: MemoryBank, num: int) -> list[Proposal]:
        transcript = self._opened(context)
        round_ = Round(1 + max((record.round for record in bank.records), default=-1), num)
        for attempt in range(self.settings.attempts):
            if not round_.missing or round_.is_over:
                break
            told = Told(
                taken=tuple(dict(zip(context.widths, widths, strict=True)) for widths in round_.found),
                refused=tuple(
                    tried.problem
                    for exchange in transcript.exchanges
                    for tried in exchange.candidates
                    if exchange.round < round_.number and tried.problem
                ),
                problem=round_.problem,
            )
            prompt = build_prompt(context, bank, told, round_.missing, self.settings.max_prompt_tokens)
            self._one_reply(transcript, context, bank, round_, attempt, prompt)
        return [*round_.found.values(), *self._filled_up(context, bank, round_)]

    def close(self, context: Context) -> dict[str, Any]:
        """Numbers of the whole search, which close its transcript."""
        transcript = self._opened(context)
        exchanges = transcript.exchanges
        account = {
            "model": next((e.model for e in exchanges), self.settings.model),
            "requests": len(exchanges),
            "failed_requests": sum(e.reply is None for e in exchanges),
            "unusable_replies": sum(e.reply is not None and all(t.problem for t in e.candidates) for e in exchanges),
            "prompt_tokens": sum(e.prompt_tokens for e in exchanges),
            "reply_tokens": sum(e.reply_tokens for e in exchanges),
            "cost": self._cost(exchanges),
            "seconds": round(sum(e.seconds for e in exchanges), 3),
            "stopped": self._stopped,
        }
        transcript.close(account)
        return account

    # ---- one reply

    def _one_reply(
        self, transcript: Transcript, context: Context, bank: MemoryBank, round_: Round, attempt: int, prompt: Prompt
    ) -> None:
        """Ask until there is a reply to read or none is to be had; the round and the transcript learn what came."""
        repeats, wait = 0, 0.0
        while True:
            known = transcript.known(round_.number, round_.num_exchanges)
            if known is None:
                self._check_may_ask(transcript, round_, prompt)
                if self._stopped:
                    round_.is_over, round_.why = True, self._stopped
                    return
                time.sleep(wait)
            dialect = self._dialect if known is None else dialect_of(known)
            answer = self._asked(dialect, prompt) if known is None else answer_of(known, prompt)
            judged = judge(context, bank, round_, answer, prompt)
            decision = decide(answer, dialect, repeats, self.settings)
            if decision.action == "read":
                decision = looser(decision, dialect, judged, answer)
            transcript.add(
                known or exchange_of(self.settings, round_, attempt, prompt, dialect, answer, judged, decision),
                round_.num_exchanges,
            )
            round_.num_exchanges += 1
            self._dialect = decision.dialect or dialect
            if decision.action == "repeat":
                repeats, wait = repeats + 1, decision.wait
            elif decision.action == "adapt":
                wait = 0.0
            else:
                break
        round_.problem, round_.why, self._stopped = judged.problem, judged.problem, ""
        if answer.reply is None:
            round_.why = f"{decision.said} ({answer.error})"
            round_.is_over = answer.fault != "body"
            self._stopped = round_.why if decision.action == "stop" else ""

    @property
    def _dialect(self) -> Dialect:
        return _known_dialects.get((self.settings.base_url, self.settings.model), Dialect())

    @_dialect.setter
    def _dialect(self, dialect: Dialect) -> None:
        _known_dialects[self.settings.base_url, self.settings.model] = dialect

    def _asked(self, dialect: Dialect, prompt: Prompt) -> Answer:
        return ask(
            self.settings, dialect.body(self.settings, prompt.text, prompt.schema, self.settings.max_reply_tokens)
        )

    def _check_may_ask(self, transcript: Transcript, round_: Round, prompt: Prompt) -> None:
        """Stop the search before a request that might break one of its ceilings."""
        settings, exchanges = self.settings, transcript.exchanges
        tokens = prompt.tokens + settings.max_reply_tokens + sum(e.prompt_tokens + e.reply_tokens for e in exchanges)
        spent, worst = self._cost(exchanges), settings.cost(prompt.tokens, settings.max_reply_tokens)
        if len(exchanges) >= settings.max_requests:
            self._stopped = f"max_requests: {settings.max_requests} have been made"
        elif tokens > settings.max_total_tokens:
            self._stopped = f"max_total_tokens: one more request might exceed {settings.max_total_tokens}"
        elif settings.max_cost is not None and (spent or 0.0) + (worst or 0.0) > settings.max_cost:
            self._stopped = f"max_cost: one more request might exceed {settings.max_cost:g}"
        elif transcript.replay is not None and not self._stopped:
            raise SettingError(
                f"transcript: {settings.replay} holds no more of round {round_.number} (its search ends at line "
                f"{transcript.replay.last_line}), but here more is asked: the losses measured differ from its own"
            )

    def _cost(self, exchanges: list[Exchange]) -> float | None:
        return self.settings.cost(sum(e.prompt_tokens for e in exchanges), sum(e.reply_tokens for e in exchanges))

    # ---- around it

    def _opened(self, context: Context) -> Transcript:
        if self._transcript is None:
            assert context.brief is not None
            workspace = context.brief.workspace
            header = {**context.brief.identity, "settings": self.settings.deciding()}
            path = None if workspace is None else workspace / TRANSCRIPT
            self._transcript = Transcript(path, header, self.settings.replay)
            if self._transcript.exchanges:
                self._dialect = dialect_of(self._transcript.exchanges[-1])
        return self._transcript

    def _filled_up(self, context: Context, bank: MemoryBank, round_: Round) -> list[Proposal]:
        """The rest of a round by the default proposer, which is said."""
        if not round_.missing:
            return []
        known = MemoryBank()
        for record in bank.records:
            known.add(record)
        for candidate, proposal in enumerate(round_.found.values()):
            widths = context.project(proposal)[0].widths
            # not measured yet: there only so that it is not proposed again
            known.add(Record(context.group, round_.number, candidate, "llm", widths, None, None, None, None, False))
        rest = ImportanceProposer().propose(context, known, round_.missing)
        warnings.warn(
            f"group {context.group} round {round_.number}: the language model gave {len(round_.found)} of "
            f"{round_.num} candidates, the default proposer {len(rest)} ({round_.why[:LONGEST_WHY]})",
            stacklevel=2,
        )
        return [Credited(proposal, FALLBACK) for proposal in rest]
