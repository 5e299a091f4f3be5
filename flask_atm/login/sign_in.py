"""A sign-in that was answered: done once, however often and from how many requests it is asked for.

The store remembers each ``state`` that was used, and what came of it. Whoever brings the same
answer again, at the same moment or later, goes where the first one went.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final, Self

from flask import Response, current_app, session

from flask_atm.browser_session import handles, remember
from flask_atm.destinations import after_login, redirect_to
from flask_atm.endings import drain_soon, end_sign_in, known_provider
from flask_atm.errors import LoginFailed
from flask_atm.grants.record import Snapshot
from flask_atm.grants.seal import Unreadable
from flask_atm.login.pending import LIFETIME, Pending
from flask_atm.login.recent import recent, remember_recent
from flask_atm.signals import user_logged_in
from flask_atm.state import Provider, State
from flask_atm.tokens import Secret

__all__ = ["USED", "Attempt", "Result", "claim", "follow", "is_used", "settle"]

log = logging.getLogger("flask_atm.login")

#: The error of a sign-in that has failed before, and was reported then.
USED: Final = "used"
_PURPOSE: Final = "used state"
_POLL: Final = 0.05
_SLACK: Final = 300.0


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


# -- the record of a state that was used


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


def _find(attempt: Attempt) -> tuple[Result | None, int]:
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


def _wait(attempt: Attempt) -> tuple[Result | None, int]:
    """Find what came of a sign-in; another request may still be at it."""
    give_up = time.monotonic() + 2 * attempt.state.config.token_timeout
    while True:
        result, version = _find(attempt)
        if result is not None or not version or time.monotonic() > give_up:
            return result, version
        time.sleep(_POLL)


def _key(login_state: Secret) -> str:
    return f"state:{sha256(login_state.reveal().encode()).hexdigest()}"


def _sealed(attempt: Attempt, result: Result | None) -> bytes:
    members = result and result.as_json()
    return attempt.state.ring.seal_json(members, purpose=_PURPOSE, record=attempt.key)


# -- going in


def follow(attempt: Attempt) -> Response:
    """Go where a sign-in leads: into the application, signed in.

    A second request does not undo what the first one did: it puts the same grant into its session.

    :raises LoginFailed: the sign-in has failed.
    """
    result, version = _wait(attempt)
    if result is not None and result.reference is not None:
        raise LoginFailed(
            "This sign-in has failed already.",
            error=USED,
            reference=result.reference,
            provider=attempt.provider.name,
        )
    if result is None or not result.entered:
        _note(attempt)
    grant_id = result.grant_id if result else ""
    snapshot = attempt.provider.tokens.open(grant_id) if grant_id else None
    if result is None or snapshot is None:
        return redirect_to(attempt.pending.next_path or after_login())
    if not result.entered:
        result = _enter(attempt, result, version, snapshot)
    _put_into_session(attempt, result)
    return redirect_to((not result.switched and attempt.pending.next_path) or after_login())


def _enter(attempt: Attempt, result: Result, version: int, snapshot: Snapshot) -> Result:
    """Do what is done once: end what was there before, tell the application."""
    provider = attempt.provider
    switched = _is_somebody_else(provider, result.grant_id, snapshot)
    _end_old(attempt.state, provider, result.grant_id, everything=switched)
    mine = replace(result, entered=True, switched=switched)
    if not settle(attempt, mine, version=version):
        return _find(attempt)[0] or mine
    if provider.config.sign_in:
        user_logged_in.send(
            attempt.state.app,
            provider=provider.name,
            grant_id=result.grant_id,
            claims=snapshot.grant.claims,
        )
    return mine


def _is_somebody_else(provider: Provider, grant_id: str, snapshot: Snapshot) -> bool:
    _, old_id = handles().get(provider.name, (None, None))
    if old_id in (None, grant_id) or not provider.config.sign_in:
        return False
    old = provider.tokens.open(old_id)
    return old is not None and old.grant.subject != snapshot.grant.subject


def _end_old(state: State, provider: Provider, grant_id: str, *, everything: bool) -> None:
    """End the grant that is replaced; of another user everything, connected accounts too."""
    for name, (_, old_id) in handles().items():
        if old_id == grant_id or not (everything or name == provider.name):
            continue
        other = known_provider(state, name)
        if other is not None and everything:
            end_sign_in(state, other, old_id)
            drain_soon(other)
        elif other is not None:
            # The same user stays signed in; the outbox keeps what the newer grant still shares.
            other.tokens.end(old_id, revoke=other.config.revoke_on_logout)


def _put_into_session(attempt: Attempt, result: Result) -> None:
    provider = attempt.provider
    if handles().get(provider.name, (None, None))[1] == result.grant_id:
        return
    if result.switched:
        session.clear()
    # Server-side sessions (Flask-Session) keep their id, which somebody may have planted.
    regenerate = getattr(current_app.session_interface, "regenerate", None)
    if regenerate is not None and provider.config.sign_in:
        regenerate(session._get_current_object())  # type: ignore[attr-defined]
    remember(provider.name, attempt.state.store_id(), result.grant_id)


def _note(attempt: Attempt) -> None:
    """Remember in the browser what could become a loop."""
    pending = attempt.pending
    known, now = recent(attempt.state), attempt.state.clock()
    if pending.step_up:
        remember_recent(attempt.state, known.with_step_up(pending.provider, now))
    elif pending.automatic:
        remember_recent(attempt.state, known.with_sign_in(pending.provider, now))
