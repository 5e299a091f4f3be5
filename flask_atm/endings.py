"""The end of grants that is not the last word yet: what is said, and what is revoked."""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from threading import Thread
from typing import Final

from flask import Flask, current_app

from flask_atm.errors import ATMError, ConfigurationError, StoreError
from flask_atm.grants.logout_marks import ends
from flask_atm.grants.mass_ending import end_found, end_many
from flask_atm.grants.user_tokens import EndedGrant
from flask_atm.oauth.logout_token import LogoutToken
from flask_atm.signals import user_logged_out
from flask_atm.state import Provider, State
from flask_atm.tokens import AS_CONFIGURED, TokenParameters, fingerprint

__all__ = [
    "drain_behind",
    "drain_soon",
    "end_grants",
    "end_session",
    "end_sign_in",
    "end_subject",
    "known_provider",
]

log = logging.getLogger("flask_atm.logout")

#: Seconds that an answer waits for revocations; what takes longer goes on behind it.
_PATIENCE: Final = 1.5
#: Revocations that one sign-out causes.
_AT_ONCE: Final = 10
#: Those that a sign-out from outside causes; ``flask atm purge`` revokes the rest of many.
_BEHIND: Final = 100


def known_provider(state: State, name: str) -> Provider | None:
    """Give a provider; ``None`` if there is none of this name any more."""
    try:
        return state.provider(name)
    except ConfigurationError as error:
        log.warning("a browser has a sign-in at %r, which cannot be used: %s", name, error)
        return None


def end_sign_in(
    state: State, provider: Provider, grant_id: str, *, revoke_after: float = 0.0
) -> EndedGrant | None:
    """End a grant at once, and say so; its refresh token goes to the outbox.

    :param revoke_after: seconds that it waits there.
    :returns: what is left of it; ``None``: there was nothing, or the store is silent.
    """
    ended = None
    try:
        ended = provider.tokens.end(
            grant_id, revoke=provider.config.revoke_on_logout, revoke_after=revoke_after
        )
    except StoreError as error:
        # The browser has lost its handle already, so nobody else can use the grant.
        log.error(  # noqa: TRY400 -- its frames hold the grant
            "a sign-in at %r is not removed from the store, where it stays until it expires: %s"
            " grant=%s",
            provider.name,
            error,
            fingerprint(grant_id),
        )
    if ended is not None and provider.config.sign_in:
        user_logged_out.send(
            state.app, provider=provider.name, grant_id=grant_id, claims=ended.claims
        )
    return ended


def end_session(state: State, provider: Provider, token: LogoutToken) -> int:
    """End what a logout token names, for all sign-ins with the same registration.

    A connected account stays: who signs out at the provider did not disconnect it.

    :returns: how many have ended.
    :raises StoreError: the store is silent; the same token may come again.
    """
    ended: list[tuple[Provider, list[EndedGrant]]] = []
    try:
        for one in state.sign_ins_like(provider):
            if one.tokens.marks is not None:
                # First: a sign-in that is not found below finds this.
                one.tokens.marks.put(token, now=state.clock())
            revoke = one.config.revoke_on_logout
            for batch in end_found(
                one.tokens, *token.entry, revoke=revoke, only=lambda grant: ends(token, grant)
            ):
                ended.append((one, batch))
    finally:
        # Not before all have ended: a receiver that fails keeps nobody signed in.
        for one, batch in ended:
            _tell(state, one, batch)
    return sum(len(batch) for _, batch in ended)


def end_grants(
    state: State, provider: Provider, keys: Sequence[str], *, revoke: bool = True
) -> int:
    """End grants of a provider by the keys of their records, in batches, and say so.

    What cannot be read, or is no grant of this provider, stays as it is. The refresh tokens go to
    the outbox.

    :returns: how many have ended by this.
    :raises StoreError: the store is silent; some may have ended.
    """
    return _end_all(state, provider, end_many(provider.tokens, keys, revoke=revoke))


def end_subject(state: State, provider: Provider, subject: str, *, revoke: bool = True) -> int:
    """End the grants of a user at a provider, in batches, and say so.

    Those go too that no key of the ring opens: their user must not come back with the key.

    :returns: how many have ended by this, and could be read.
    :raises StoreError: the store is silent; some may have ended.
    """
    return _end_all(state, provider, end_found(provider.tokens, "sub", subject, revoke=revoke))


def _end_all(state: State, provider: Provider, batches: Iterable[list[EndedGrant]]) -> int:
    ended: list[EndedGrant] = []
    try:
        for batch in batches:
            ended += batch
    finally:
        # Not before all have ended: a receiver that fails keeps nobody signed in.
        _tell(state, provider, ended)
    return len(ended)


def _tell(state: State, provider: Provider, ended: Iterable[EndedGrant]) -> None:
    if provider.config.sign_in:
        for one in ended:
            user_logged_out.send(
                state.app, provider=provider.name, grant_id=None, claims=one.claims
            )


def drain_soon(
    provider: Provider,
    due: Collection[str] = (),
    parameters: TokenParameters = AS_CONFIGURED,
) -> None:
    """Revoke what the outbox of a provider holds; a slow server does not hold up the answer.

    Ten at most: the others are revoked by whoever signs out next.

    :param due: keys of ended grants that are not to wait any longer.
    :param parameters: of the revocation of these.
    """
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    thread = _thread(_drain, app, provider, due, parameters, _AT_ONCE)
    thread.start()
    thread.join(_PATIENCE)


def drain_behind(state: State, provider: Provider) -> None:
    """Revoke what the outbox of a provider holds, behind the answer.

    However many sign-outs come at the same moment, one thread of a process does it, and goes
    through the outbox once more for those that came meanwhile.
    """
    place = (os.getpid(), provider.name)
    with state.drains_lock:
        is_running = place in state.drains
        state.drains[place] = True
    if is_running:
        return
    try:
        _thread(_drain_while_wanted, state, provider, place).start()
    except RuntimeError as error:
        with state.drains_lock:
            state.drains.pop(place, None)
        log.warning("no thread can be started for revocations at %r: %s", provider.name, error)


def _thread(target: Callable[..., None], *args: object) -> Thread:
    return Thread(target=target, args=args, name="flask-atm-revoke", daemon=True)


def _drain_while_wanted(state: State, provider: Provider, place: tuple[int, str]) -> None:
    try:
        while _is_wanted(state, place):
            _drain(state.app, provider, (), AS_CONFIGURED, _BEHIND)
    except BaseException:
        # A bug in a hook, say: the next sign-out starts another thread.
        with state.drains_lock:
            state.drains.pop(place, None)
        raise


def _is_wanted(state: State, place: tuple[int, str]) -> bool:
    """Tell whether somebody has signed out since the last look; if not, the next starts anew."""
    with state.drains_lock:
        if state.drains.get(place):
            state.drains[place] = False
            return True
        state.drains.pop(place, None)
        return False


def _drain(
    app: Flask,
    provider: Provider,
    due: Collection[str],
    parameters: TokenParameters,
    limit: int,
) -> None:
    try:
        # A secret that is a callable may need the application.
        with app.app_context():
            provider.tokens.outbox.drain(due=due, parameters=parameters, limit=limit)
    except ATMError as error:
        log.warning("revocations at %r stay in the outbox: %s", provider.name, error)
