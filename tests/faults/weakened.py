"""The engine of this library without one of its rules: what the harness has to find out, too.

A rule is either a step of the store or a step of the refresher. Those of the store are the ones
that the model lacks in turn; those of the refresher are it with one method changed. Nothing else
differs: the same store, the same endpoint, the same processes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flask_atm.grants.answers import Tokens
from flask_atm.grants.control import Begun, Control, Outcome
from flask_atm.grants.refresh import Refresher
from flask_atm.grants.stores import SQLiteStore
from flask_atm.grants.user_tokens import UserTokens
from flask_atm.protocols import AtomicGrantStore
from flask_atm.state import State
from tests.faults.driver import Engine, Get
from tests.faults.engines import FlaskATM
from tests.model.rules import Rules

__all__ = [
    "AnswersPass",
    "AnswersRevoked",
    "ClearsAfterTheWrite",
    "Interrupted",
    "Weakened",
    "WithoutSecondRead",
    "WithoutWait",
    "WithoutWindow",
]


class RuledStore(SQLiteStore):
    """A store whose steps are those of some rules."""

    rules = Rules()

    def begin(self, key: str, **arguments: Any) -> Begun:
        begun: Begun = self._step(key, _on(self.rules.begin, arguments))
        return begun

    def commit(self, key: str, sealed: bytes, **arguments: Any) -> Outcome:
        return self._step(key, _on(self.rules.commit, arguments), sealed)

    def update(self, key: str, sealed: bytes, *, index: Any = None, **arguments: Any) -> Outcome:
        return self._step(key, _on(self.rules.update, arguments), sealed, index)

    def abort(self, key: str, **arguments: Any) -> None:
        def step(control: Control | None, now: float) -> tuple[None, Control | None]:
            return None, self.rules.abort(control, now, **arguments)

        self._step(key, step)


def _on(rule: Callable[..., Any], arguments: dict[str, Any]) -> Callable[..., Any]:
    return lambda control, now: rule(control, now, **arguments)


@dataclass(frozen=True, kw_only=True)
class Weakened(FlaskATM):
    """Lacks what its rules or its refresher lack.

    :param rules: the steps of its store.
    :param refresher: makes its attempts.
    """

    rules: Rules = field(default_factory=Rules)
    refresher: type[Refresher] = Refresher

    def store(self) -> AtomicGrantStore:
        path = self.setup.config["ATM_STORE"].removeprefix("sqlite:///")
        store = RuledStore(path, clock=self.setup.clock)
        store.rules = self.rules
        return store

    def tokens(self, state: State) -> UserTokens:
        tokens = FlaskATM.tokens(self, state)
        # All that it has been made with stays; only what it does is another thing.
        tokens.engine.refresher.__class__ = self.refresher
        return tokens


class WithoutWindow(Refresher):
    """However late it is, the request is written."""

    def _hold(self, attempt: Any) -> None:
        attempt.window = math.inf
        super()._hold(attempt)


class ClearsAfterTheWrite(Refresher):
    """An exception clears the intent, also after the first byte."""

    def _abort(self, attempt: Any, *, clear_intent: bool, **more: Any) -> None:
        # Whoever knows what the answer means says more than that.
        super()._abort(attempt, clear_intent=clear_intent or not more, **more)


class AnswersPass(Refresher):
    """A version that moved means that somebody else has won: the answer is thrown away."""

    otherwise: Literal["passed", "gone"] = "passed"

    def _commit(self, attempt: Any, *answer: Any) -> Literal["stored", "passed", "gone"]:
        stored = self._store.read(attempt.key)
        if stored is None or stored.control.version != attempt.begun.version:
            return self.otherwise
        return super()._commit(attempt, *answer)


class AnswersRevoked(AnswersPass):
    """And what came is revoked, also while the grant is there (which is looked at once more)."""

    otherwise = "gone"

    def _discard(self, attempt: Any, tokens: Tokens) -> None:
        assert tokens.refresh_token is not None
        endpoint = attempt.renewal.owner.endpoint
        endpoint.revoke(tokens.refresh_token.reveal(), token_type_hint="refresh_token")


class WithoutWait(Refresher):
    """In doubt it reads once more at once."""

    def _may_send_in_doubt(self, attempt: Any) -> bool:
        self._parameters = replace(self._parameters, doubt_wait=1e-9)
        return super()._may_send_in_doubt(attempt)


class WithoutSecondRead(Refresher):
    """In doubt it waits, and then sends whatever has landed. For slots without a token."""

    def _may_send_in_doubt(self, attempt: Any) -> bool:
        super()._may_send_in_doubt(attempt)
        return True


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """Any engine, interrupted as by a signal when the answer is there."""

    engine: Engine

    def __call__(self, checkpoint: Callable[[str], None]) -> Get:
        def interrupt(point: str) -> None:
            checkpoint(point)
            if point == "answered":
                raise KeyboardInterrupt

        get = self.engine(interrupt)

        def interrupted(grant_id: str) -> str:
            try:
                return get(grant_id)
            except KeyboardInterrupt:
                return "interrupted"

        return interrupted
