"""The end of a grant that is not the last word yet: what is said, and what is revoked."""

import logging
from collections.abc import Collection
from threading import Thread
from typing import Final

from flask import Flask, current_app

from flask_atm.errors import ATMError, ConfigurationError, StoreError
from flask_atm.grants.user_tokens import EndedGrant
from flask_atm.signals import user_logged_out
from flask_atm.state import Provider, State
from flask_atm.tokens import AS_CONFIGURED, TokenParameters, fingerprint

__all__ = ["drain_soon", "end_sign_in", "known_provider"]

log = logging.getLogger("flask_atm.logout")

#: Seconds that an answer waits for revocations; what takes longer goes on behind it.
_PATIENCE: Final = 1.5


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


def drain_soon(
    provider: Provider,
    due: Collection[str] = (),
    parameters: TokenParameters = AS_CONFIGURED,
) -> None:
    """Revoke what the outbox of a provider holds; a slow server does not hold up the answer.

    :param due: keys of ended grants that are not to wait any longer.
    :param parameters: of the revocation of these.
    """
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    thread = Thread(
        target=_drain, args=(app, provider, due, parameters), name="flask-atm-revoke", daemon=True
    )
    thread.start()
    thread.join(_PATIENCE)


def _drain(
    app: Flask, provider: Provider, due: Collection[str], parameters: TokenParameters
) -> None:
    try:
        # A secret that is a callable may need the application.
        with app.app_context():
            provider.tokens.drain(due=due, parameters=parameters)
    except ATMError as error:
        log.warning("revocations at %r stay in the outbox: %s", provider.name, error)
