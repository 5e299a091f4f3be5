"""Going in: the grant of a sign-in goes into the browser's session, and the browser to its page.

However often the same answer comes, it leads to the same place: what is done once (whoever was
there before leaves, the application is told) is done by the request that writes it down first.
"""

import secrets
from dataclasses import replace
from typing import Final

from flask import Response, current_app, session

from flask_atm.browser_session import forget, handles, remember
from flask_atm.destinations import after_login, redirect_to
from flask_atm.endings import drain_soon, end_sign_in, known_provider
from flask_atm.errors import LoginFailed, SessionTooLarge
from flask_atm.grants.record import Snapshot
from flask_atm.grants.stores.session import SessionStore
from flask_atm.login.recent import recent, remember_recent
from flask_atm.login.used_states import Attempt, Result, find, settle, wait
from flask_atm.login.whose import NOBODY, User, belongs_to
from flask_atm.signals import user_logged_in
from flask_atm.state import Provider, State

__all__ = ["USED", "follow"]

#: The error of a sign-in that has failed before, and was reported then.
USED: Final = "used"


def follow(attempt: Attempt) -> Response:
    """Go where a sign-in leads: into the application, signed in.

    :raises LoginFailed: the sign-in has failed.
    """
    result, version = wait(attempt)
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
    next_path = attempt.pending.next_path
    if result is None or snapshot is None:
        return redirect_to(next_path or after_login())
    if not result.entered:
        _check_room(attempt, result, version, snapshot)
        result = _enter(attempt, result, version, snapshot)
    elif _has_later_sign_in(attempt.provider, grant_id):
        return redirect_to(after_login())
    _put_into_session(attempt, result, snapshot)
    return redirect_to((not result.switched and next_path) or after_login())


def _check_room(attempt: Attempt, result: Result, version: int, snapshot: Snapshot) -> None:
    """End a new grant that does not fit into the session cookie, where it is to be copied there.

    :raises SessionTooLarge: it does not, and nothing of it is left.
    """
    state, provider = attempt.state, attempt.provider
    copies = provider.tokens.vault.copies
    if copies is None or not isinstance(state.plain, SessionStore):
        return
    switched = _is_somebody_else(attempt, result.grant_id, snapshot.grant.subject)
    try:
        state.plain.check_room(
            provider.name,
            state.store_id(),
            result.grant_id,
            copies.sealed(snapshot),
            alone=switched,
        )
    except SessionTooLarge:
        provider.tokens.end(result.grant_id)
        drain_soon(provider)
        settle(attempt, Result(reference=secrets.token_hex(4)), version=version)
        raise


def _note(attempt: Attempt) -> None:
    """Remember in the browser what could become a loop."""
    pending = attempt.pending
    known, now = recent(attempt.state), attempt.state.clock()
    if pending.step_up:
        remember_recent(attempt.state, known.with_step_up(pending.provider, now))
    elif pending.automatic:
        remember_recent(attempt.state, known.with_sign_in(pending.provider, now))


def _enter(attempt: Attempt, result: Result, version: int, snapshot: Snapshot) -> Result:
    """Do what is done once: end what was there before, tell the application."""
    provider = attempt.provider
    switched = _is_somebody_else(attempt, result.grant_id, snapshot.grant.subject)
    _end_old(attempt.state, provider, result.grant_id, everything=switched)
    mine = replace(result, entered=True, switched=switched)
    if not settle(attempt, mine, version=version):
        return find(attempt)[0] or mine
    if provider.config.sign_in:
        user_logged_in.send(
            attempt.state.app,
            provider=provider.name,
            grant_id=result.grant_id,
            claims=snapshot.grant.claims,
        )
    return mine


def _put_into_session(attempt: Attempt, result: Result, snapshot: Snapshot) -> None:
    provider = attempt.provider
    if _old_grant_id(provider) == result.grant_id:
        return
    if result.switched:
        session.clear()
    elif provider.config.sign_in:
        _drop_accounts_of_others(attempt.state, (provider.tokens.issuer, snapshot.grant.subject))
    # Server-side sessions (Flask-Session) keep their id, which somebody may have planted.
    regenerate = getattr(current_app.session_interface, "regenerate", None)
    if regenerate is not None and provider.config.sign_in:
        regenerate(session._get_current_object())  # type: ignore[attr-defined]
    remember(provider.name, attempt.state.store_id(), result.grant_id)
    provider.tokens.vault.copy(snapshot)


# -- who was there before


def _drop_accounts_of_others(state: State, user: User) -> None:
    """End the connected accounts that a user who signed out has left in this browser."""
    for name, (_, grant_id) in handles().items():
        account = known_provider(state, name)
        if account is None or account.config.sign_in:
            continue
        if not (belongs_to(state, grant_id, user) or belongs_to(state, grant_id, NOBODY)):
            forget(name)
            end_sign_in(state, account, grant_id)
            drain_soon(account)


def _old_grant_id(provider: Provider) -> str | None:
    return handles().get(provider.name, (None, None))[1]


def _has_later_sign_in(provider: Provider, grant_id: str) -> bool:
    """Tell whether the browser has signed in again since: an old answer does not undo that."""
    old_id = _old_grant_id(provider)
    return old_id not in (None, grant_id) and provider.tokens.open(old_id) is not None


def _is_somebody_else(attempt: Attempt, grant_id: str, subject: str) -> bool:
    provider = attempt.provider
    old_id = _old_grant_id(provider)
    if old_id in (None, grant_id) or not provider.config.sign_in:
        return False
    old = provider.tokens.open(old_id)
    if old is not None:
        return old.grant.subject != subject
    return not belongs_to(attempt.state, old_id, (provider.tokens.issuer, subject))


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
