"""Sign somebody in without browser and provider."""

import secrets
from collections.abc import Mapping
from typing import Any

from flask import session
from flask.testing import FlaskClient

from flask_atm.browser_session import SESSION_KEY, remember
from flask_atm.grants.answers import Tokens
from flask_atm.grants.user_tokens import NewGrant
from flask_atm.grants.vault import record_key
from flask_atm.state import Provider, current_state
from flask_atm.tokens import Secret, parse_scope

__all__ = ["sign_in"]


def sign_in(
    client: FlaskClient,
    claims: Mapping[str, Any] | None = None,
    expires_in: float = 300,
    provider: str | None = None,
    *,
    access_token: str | None = None,
    refresh_token: str | None = None,
    scope: str | None = None,
) -> str:
    """Put a grant into the application's store, and its id into the test client's session.

    ::

        sign_in(client, {"sub": "alice", "name": "Alice"})
        assert b"Hello Alice" in client.get("/").data

    No signal is sent, and nobody is asked. Whoever was signed in before just is not any more.

    :param client: the test client of an application with an ATM.
    :param claims: of the ID token; ``iss`` and ``sub`` (``alice``) are there in any case.
    :param expires_in: seconds that the access token lives; 0 or less: it has expired.
    :param provider: by default the one that is meant where none is named.
    :param access_token: a random one, which no API knows, if left out.
    :param refresh_token: none if left out: the end of the access token is the end of the sign-in.
    :param scope: what was granted; the configured scope if left out.
    :returns: the grant id, for ``atm.use_grant(…)``.
    :raises ConfigurationError: no ATM, or no such provider.
    """
    tokens = Tokens(
        access_token=Secret(access_token or secrets.token_urlsafe(32)),
        token_type="Bearer",
        lifetime=expires_in,
        refresh_token=None if refresh_token is None else Secret(refresh_token),
        scope=scope,
    )
    with client.session_transaction() as kept, client.application.test_request_context():
        state = current_state()
        ready = state.provider(provider)
        grant_id = ready.tokens.create(
            NewGrant(
                tokens=tokens,
                claims=_claims(ready, claims or {}),
                scope=ready.config.scope if scope is None else parse_scope(scope),
                requested_at=state.clock(),
            )
        )
        session.update(kept)
        remember(ready.name, state.store_id(), grant_id)
        ready.tokens.vault.copy_new(record_key(grant_id))
        kept[SESSION_KEY] = session[SESSION_KEY]
    return grant_id


def _claims(provider: Provider, claims: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "iss": provider.config.issuer,
        "aud": provider.config.client_id,
        "sub": "alice",
        **claims,
    }
