"""Sign-out: here at once, at the provider by way of the browser (RP-Initiated Logout 1.0)."""

import json
import logging
import secrets
from collections.abc import Mapping
from hmac import compare_digest
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from flask import Response, has_request_context, request

from flask_atm.browser_session import forget, handles
from flask_atm.destinations import after_logout, external_url, local_path, own_origins, redirect_to
from flask_atm.endings import drain_soon, end_sign_in, known_provider
from flask_atm.errors import ConfigurationError, ProtocolError, ServerUnavailable
from flask_atm.globals import find_grant, forget_looked_up
from flask_atm.grants.user_tokens import EndedGrant
from flask_atm.login.recent import recent, remember_recent
from flask_atm.sealed_cookies import cookie_name, drop_cookie, open_cookie, seal_cookie
from flask_atm.state import Provider, State, current_state
from flask_atm.tokens import AS_CONFIGURED, TokenParameters

__all__ = ["form_token", "is_own_request", "logged_out", "logout", "revoke"]

log = logging.getLogger("flask_atm.logout")

#: Seconds that the provider has to sign out before refresh tokens are revoked all the same.
_REVOKE_AFTER: Final = 60.0
_MAX_AGE: Final = 600
_LONGEST_HINT: Final = 4096
_COOKIE: Final = "atm_logout"
Ended = list[tuple[Provider, EndedGrant]]


def logout(next_url: str | None, provider_name: str | None) -> Response:
    """Sign out. Whether the user wants that is for the route to check.

    :param next_url: where to go afterwards; anything but a path of this application counts as
        none, which leads to ``ATM_AFTER_LOGOUT``.
    :param provider_name: one sign-in, or connected account; by default every sign-in of this
        browser, and no connected account.
    """
    state, next_path = current_state(), local_path(next_url)
    doomed = _taken_out_of_session(state, provider_name)
    remember_recent(state, recent(state).without_sign_ins(p.name for p, _ in doomed))
    signs_out_at = _first_with_logout(state, [provider for provider, _ in doomed])
    ended: Ended = []
    for provider, grant_id in doomed:
        wait = _REVOKE_AFTER if signs_out_at and provider.name == signs_out_at[0].name else 0.0
        left = end_sign_in(state, provider, grant_id, revoke_after=wait)
        if left is not None:
            ended.append((provider, left))
        if not wait:
            drain_soon(provider)
    if signs_out_at is None:
        return redirect_to(next_path or after_logout())
    return _at_provider(state, *signs_out_at, ended, next_path)


def _taken_out_of_session(state: State, provider_name: str | None) -> list[tuple[Provider, str]]:
    """Take grants out of the browser's session, before anything can fail."""
    found = []
    for name, (_, grant_id) in handles().items():
        if provider_name not in (None, name):
            continue
        provider = known_provider(state, name)
        if provider is None:
            forget(name)
        elif provider_name is not None or provider.config.sign_in:
            forget(name)
            found.append((provider, grant_id))
    forget_looked_up()
    default = state.config.default_provider
    return sorted(found, key=lambda pair: pair[0].name != default)


def _first_with_logout(state: State, providers: list[Provider]) -> tuple[Provider, str] | None:
    """Find the provider to send the browser to: it can be sent to one only."""
    for provider in providers:
        if not (provider.config.logout_at_provider and provider.config.sign_in):
            continue
        try:
            endpoint = state.metadata.get(provider.location).end_session_endpoint
        except (ServerUnavailable, ProtocolError) as error:
            log.warning("no logout at %r, only here: %s", provider.name, error)
            continue
        if endpoint:
            return provider, endpoint
    return None


def _at_provider(
    state: State, provider: Provider, endpoint: str, ended: Ended, next_path: str | None
) -> Response:
    """Send the browser to the provider, which sends it back to :func:`logged_out`."""
    mine = [grant for owner, grant in ended if owner.name == provider.name]
    query = {"client_id": provider.config.client_id}
    id_token = mine[0].id_token if mine else None
    if id_token and len(id_token) <= _LONGEST_HINT:
        query["id_token_hint"] = id_token
    cookie: dict[str, Any] | None = None
    try:
        back = query["post_logout_redirect_uri"] = external_url("atm.logged_out")
        query["state"] = secrets.token_urlsafe(32)
        keys = [grant.key for grant in mine]
        cookie = {"provider": provider.name, "keys": keys, "next": next_path}
    except ConfigurationError as error:
        log.warning("after its logout %r cannot send browsers back: %s", provider.name, error)
    joint = "&" if urlsplit(endpoint).query else "?"
    response = redirect_to(f"{endpoint}{joint}{urlencode(query)}")
    if cookie is not None:
        parts = urlsplit(back)
        name = cookie_name(_COOKIE, secure=parts.scheme == "https")
        seal_cookie(
            response,
            state,
            name,
            cookie,
            record=query["state"],
            path=parts.path,
            max_age=_MAX_AGE,
        )
    return response


def logged_out() -> Response:
    """Receive the browser after the logout at the provider.

    Only with the state that was sent along is anything done; the browser goes on in any case.
    """
    state = current_state()
    for secure in (True, False):
        name = cookie_name(_COOKIE, secure=secure)
        match open_cookie(state, name, record=request.args.get("state", "")):
            case {"provider": str(), "keys": list(), "next": str() | None} as found:
                return _after_provider(state, name, found)
    return redirect_to(after_logout())


def _after_provider(state: State, cookie: str, found: Mapping[str, Any]) -> Response:
    provider = known_provider(state, found["provider"])
    if provider is not None:
        drain_soon(provider, due=[str(key) for key in found["keys"]])
    response = redirect_to(local_path(found["next"]) or after_logout())
    drop_cookie(response, cookie, path=request.script_root + request.path)
    return response


def revoke(
    grant_id: str | None, provider_name: str | None, parameters: TokenParameters = AS_CONFIGURED
) -> None:
    """End a grant, and revoke its refresh token as soon as that can be done.

    :param grant_id: by default the one that is meant now. Without any nothing is done.
    :param provider_name: whose grant, if none is named; by default the one that is meant.
    :param parameters: of the revocation.
    :raises LoginRequired: outside a request, and no grant was named.
    :raises StoreError: the store is silent, and the grant still there.
    """
    state = current_state()
    if grant_id is None:
        state, provider, grant_id = find_grant(provider_name)
    else:
        provider = state.provider(provider_name or grant_id.partition(".")[0])
    if grant_id is None:
        return
    if has_request_context() and handles().get(provider.name, (None, None))[1] == grant_id:
        forget(provider.name)
    ended = provider.tokens.end(grant_id)
    forget_looked_up()
    if ended is not None:
        drain_soon(provider, due=[ended.key], parameters=parameters)


# -- who asks for it


def is_own_request() -> bool:
    """Tell whether a page of this application sent the present request, as far as headers say.

    If they do not, the form has to: see :func:`form_token`.
    """
    if request.headers.get("Sec-Fetch-Site") == "same-origin":
        return True
    if request.headers.get("Origin") in own_origins():
        return True
    sent = request.form.get("token", "").encode("utf-8", "replace")
    digests = current_state().ring.digests(*_bound_to())
    return any(compare_digest(sent, digest.encode()) for digest in digests)


def form_token() -> str:
    """Give the token for a logout form: of these sign-ins, and of no use for others."""
    return current_state().ring.digest(*_bound_to())


def _bound_to() -> tuple[str, str]:
    return "logout form", json.dumps(sorted(handles().items()))
