"""The states that were used, each with what came of it: a code is sent once.

The browser of a double click, of the back button, or of an answer that came as a form brings the
same ``state`` again, at the same moment or later. The atomic store knows it by its hash.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Self

from flask_atm.grants.seal import Unreadable
from flask_atm.login.pending import LIFETIME, Pending
from flask_atm.state import Provider, State
from flask_atm.tokens import Secret

__all__ = ["Attempt", "Result", "claim", "find", "is_used", "settle", "wait"]

_PURPOSE: Final = "used state"
_POLL: Final = 0.05
_SLACK: Final = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """An attempt to sign in, as it comes back: everything about it but the answer."""

    state: State
    provider: Provider
    pending: Pending
    login_state: Secret

    @property
    def key(self) -> str:
        """The key of its record in the store."""
        return _key(self.login_state)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What came of a sign-in.

    :param grant_id: the new grant; empty: there is none.
    :param entered: whether a browser has gone in with it.
    :param switched: whether that browser had been signed in as somebody else.
    :param reference: of the failure, if it failed.
    """

    grant_id: str = ""
    entered: bool = False
    switched: bool = False
    reference: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Give the members that are sealed."""
        return {"g": self.grant_id, "e": self.entered, "w": self.switched, "r": self.reference}

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> Self:
        """Read the members that were sealed."""
        return cls(
            grant_id=members["g"],
            entered=members["e"],
            switched=members["w"],
            reference=members["r"],
        )


def claim(attempt: Attempt) -> bool:
    """Take a state for this request alone; ``False``: another one has it.

    :raises StoreError: the store does not answer; nothing was sent.
    """
    ends_at = attempt.state.clock() + LIFETIME + _SLACK
    sealed = _sealed(attempt, None)
    return attempt.state.store.create(attempt.key, sealed, ends_at=ends_at)


def is_used(state: State, login_state: Secret) -> bool:
    """Tell whether a request has taken this state."""
    return state.store.read(_key(login_state)) is not None


def settle(attempt: Attempt, result: Result, *, version: int = 1) -> bool:
    """Write down what came of a sign-in; ``False``: somebody else has."""
    sealed = _sealed(attempt, result)
    return attempt.state.store.update(attempt.key, sealed, expected_version=version) == "ok"


def find(attempt: Attempt) -> tuple[Result | None, int]:
    """Give what came of a sign-in, if that is known yet, and the version of the record."""
    stored = attempt.state.store.read(attempt.key)
    if stored is None:
        return None, 0
    ring = attempt.state.ring
    try:
        members = ring.open_json(stored.sealed, purpose=_PURPOSE, record=attempt.key)
    except Unreadable:
        return None, 0
    return members and Result.from_json(members), stored.control.version


def wait(attempt: Attempt) -> tuple[Result | None, int]:
    """Find what came of a sign-in; another request may still be at it."""
    give_up = time.monotonic() + 2 * attempt.state.config.token_timeout
    while True:
        result, version = find(attempt)
        if result is not None or not version or time.monotonic() > give_up:
            return result, version
        time.sleep(_POLL)


def _key(login_state: Secret) -> str:
    return f"state:{sha256(login_state.reveal().encode()).hexdigest()}"


def _sealed(attempt: Attempt, result: Result | None) -> bytes:
    members = result and result.as_json()
    return attempt.state.ring.seal_json(members, purpose=_PURPOSE, record=attempt.key)
