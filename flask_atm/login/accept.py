"""The answer to a sign-in: whether it is one, and how its code becomes a grant in the store."""

import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from flask import Response

from flask_atm.errors import ATMError, LoginFailed
from flask_atm.grants.answers import Tokens
from flask_atm.grants.user_tokens import NewGrant
from flask_atm.login.authorization import Received, asked_scope
from flask_atm.login.exchange_code import check_id_token, complete_claims, is_openid
from flask_atm.login.pending import find_pending
from flask_atm.login.used_states import Attempt, Result, is_used, settle
from flask_atm.login.whose import grant_id_of
from flask_atm.state import Provider, State
from flask_atm.tokens import Login, Secret

__all__ = ["ANSWERS", "accept", "check_issuer", "matching", "report"]

log = logging.getLogger("flask_atm.login")

#: One of these makes an authorization response.
ANSWERS: Final = frozenset({"code", "error"})
_ERROR: Final = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]{1,100}")
#: Providers name the user in what they say; the page shows it, a log does not.
_ADDRESS: Final = re.compile(r"[^\s'\"<>(),;:]*@[^\s'\"<>(),;:]*")


def matching(state: State, provider: Provider, answer: Received) -> Attempt:
    """Find the pending sign-in of this browser that the answer is for."""
    login_state = answer.get("state", Secret(""))
    pending = find_pending(state, login_state)
    # Without an answer it comes from ourselves: the second half of an answer that was a form.
    if (
        pending is not None
        and pending.provider == provider.name
        and (ANSWERS & answer.keys() or is_used(state, login_state))
    ):
        return Attempt(state=state, provider=provider, pending=pending, login_state=login_state)
    raise LoginFailed(
        "This is no answer to a sign-in that this browser began in the last ten minutes.",
        error="state",
        error_description="It may have been used in another browser, or under another host name"
        " than the one that the sign-in began at, or cookies are off.",
        provider=provider.name,
    )


def check_issuer(attempt: Attempt, answer: Received) -> None:
    """Check who answered (RFC 9207); a provider without issuer has its redirect URI alone."""
    provider = attempt.provider
    issuer, found = provider.location.issuer, answer.get("iss")
    if issuer is None:
        return
    if found is None:
        metadata = attempt.state.metadata.get(provider.location)
        right = not metadata.authorization_response_iss_parameter_supported
    else:
        right = found.reveal() == issuer
    if not right:
        raise LoginFailed(
            "This is no answer of the provider that was asked.",
            error="iss",
            error_description="The answer names no issuer, or another one (RFC 9207).",
            provider=provider.name,
        )


def report(error: LoginFailed, provider: Provider) -> None:
    """Log a refusal with the word that its page shows too; nothing of what was received."""
    error.reference = error.reference or secrets.token_hex(4)
    error.provider = error.provider or provider.name
    log.warning(
        "a sign-in at %r was refused: %s: %s reference=%s",
        provider.name,
        error.error,
        _ADDRESS.sub("(address)", error.error_description or error.description or ""),
        error.reference,
    )


def accept(attempt: Attempt, answer: Received, client: Any) -> Response | None:
    """Exchange the code and store the grant.

    :param client: Authlib's, which reads the code from the request.
    :returns: what the application wants to be sent instead; nothing is stored then.
    :raises LoginFailed: the answer is an error, or the provider's to the code is none of use.
    """
    if "error" in answer:
        raise _error_response(attempt.provider, answer)
    state, provider = attempt.state, attempt.provider
    requested_at = state.clock()
    tokens, claims = _exchange(attempt, client)
    grant_id = grant_id_of(state, provider, str(claims.get("sub", "")))
    if state.hooks.on_login is not None:
        own_response = state.hooks.on_login(_login(attempt, grant_id, claims))
        if own_response is not None:
            settle(attempt, Result())
            response = state.app.make_response(own_response)
            response.headers["Cache-Control"] = "no-store"
            return response
    new = NewGrant(
        tokens=tokens,
        claims=claims,
        scope=_scope(attempt),
        requested_at=requested_at,
        grant_id=grant_id,
    )
    provider.tokens.create(new)
    if tokens.refresh_token is None:
        _tell_no_refresh_token(state, provider)
    settle(attempt, Result(grant_id=grant_id))
    return None


def _error_response(provider: Provider, answer: Received) -> LoginFailed:
    """Read an error response (RFC 6749, section 4.1.2.1)."""
    error = answer["error"].reveal()
    description = answer["error_description"].reveal() if "error_description" in answer else ""
    words = "".join(c if c.isprintable() else " " for c in description[:1000]).split()
    return LoginFailed(
        "The provider did not sign you in.",
        error=error if _ERROR.fullmatch(error) else "invalid_response",
        error_description=" ".join(words)[:200] or None,
        provider=provider.name,
    )


def _exchange(attempt: Attempt, client: Any) -> tuple[Tokens, Mapping[str, Any]]:
    """Give tokens and claims; errors are raised here, where no frame holds the code."""
    provider, pending = attempt.provider, attempt.pending
    answer = client.authorize_access_token(claims_options=pending, pending=pending)
    tokens = answer["tokens"]
    if isinstance(tokens, ATMError):
        raise tokens
    claims: Mapping[str, Any] = {}
    if is_openid(provider, pending):
        # Without an ID token Authlib has not asked for claims, and this says what is missing.
        checked = answer.get("userinfo")
        claims = checked or check_id_token(provider, pending, tokens, nonce=pending.nonce)
        if isinstance(claims, ATMError):
            raise claims
    else:
        # Nobody asked for an ID token, and nobody has checked it.
        tokens = replace(tokens, id_token=None)
    return tokens, complete_claims(attempt.state, provider, tokens, claims)


def _login(attempt: Attempt, grant_id: str, claims: Mapping[str, Any]) -> Login:
    now = attempt.state.clock()
    return Login(
        provider=attempt.provider.name,
        grant_id=grant_id,
        subject=str(claims.get("sub", "")),
        claims=claims,
        signed_in_at=now,
        ends_at=now + attempt.provider.tokens.lifetime,
    )


def _scope(attempt: Attempt) -> tuple[str, ...]:
    if attempt.pending.scope:
        return tuple(attempt.pending.scope.split(" "))
    metadata = attempt.state.metadata.get(attempt.provider.location)
    return asked_scope(attempt.provider, metadata, None)


def _tell_no_refresh_token(state: State, provider: Provider) -> None:
    key = f"no refresh token {provider.name}"
    if key in state.complaints:
        return
    state.complaints[key] = 0.0
    log.warning(
        "a sign-in at %r gave no refresh token: users have to sign in again when the access token"
        " expires. Set ATM_OFFLINE_ACCESS to True, or allow refresh tokens in the registration;"
        " some servers want ATM_AUTHORIZE_PARAMS = {'prompt': 'consent'} with it, Google"
        " {'access_type': 'offline', 'prompt': 'consent'}.",
        provider.name,
    )
