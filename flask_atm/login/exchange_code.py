"""An authorization code becomes tokens and claims, every one of them checked."""

import time
from collections.abc import Mapping
from typing import Any

from flask_atm.errors import LoginFailed, ProtocolError, ServerUnavailable
from flask_atm.grants.answers import Tokens, Verdict, classify
from flask_atm.grants.record import token_request
from flask_atm.login.pending import Pending
from flask_atm.oauth.back_channel import Failure
from flask_atm.oauth.id_token import IDTokenRejected, KeysUnavailable
from flask_atm.state import Provider, State
from flask_atm.tokens import FrozenDict, Secret

__all__ = ["check_id_token", "complete_claims", "is_openid", "redeem"]


def is_openid(provider: Provider, pending: Pending) -> bool:
    """Tell whether an ID token was asked for."""
    scope = pending.scope.split(" ") if pending.scope else provider.config.scope
    return provider.config.sign_in or "openid" in scope


def redeem(state: State, provider: Provider, pending: Pending, code: Secret) -> Tokens:
    """Send the code to the token endpoint (RFC 6749, section 4.1.3), once.

    :raises LoginFailed: the server refuses it.
    :raises ServerUnavailable: no usable answer; a new sign-in may work.
    """
    form = token_request(
        provider.tokens.settings,
        grant_type="authorization_code",
        code=code.reveal(),
        redirect_uri=pending.redirect_uri,
        code_verifier=pending.verifier.reveal(),
    )
    verdict = classify(provider.endpoint.request(form), now=state.clock())
    if verdict.tokens is None or verdict.tokens.access_token is None:
        raise _refusal(provider, verdict)
    return verdict.tokens


def _refusal(provider: Provider, verdict: Verdict) -> LoginFailed | ServerUnavailable:
    if verdict.kind in {"unavailable", "unsent"}:
        return ServerUnavailable(
            "The sign-in server did not answer. Sign in again in a moment.",
            retry_after=verdict.retry_after or 1,
            provider=provider.name,
        )
    if verdict.kind == "client":
        description = (
            "The server does not accept this application: compare client id, secret and client_auth"
            f" of the provider {provider.name!r} with its registration."
        )
    elif verdict.error:
        description = verdict.error_description or "The server refused the code."
    else:
        description = "The server's answer has no access token."
    return LoginFailed(
        error=verdict.error or "invalid_response",
        error_description=description,
        provider=provider.name,
    )


def check_id_token(
    provider: Provider, pending: Pending, tokens: Tokens, *, nonce: Secret
) -> Mapping[str, Any]:
    """Check the ID token that came with the tokens and give its claims.

    :raises LoginFailed: it is missing, or proved bad.
    :raises ServerUnavailable: it cannot be checked now.
    """
    failed: LoginFailed | ServerUnavailable
    if tokens.id_token is None:
        raise LoginFailed(
            error="invalid_response",
            error_description="The server sent no ID token although openid was asked for.",
            provider=provider.name,
        )
    try:
        return provider.id_tokens.check_sign_in(
            tokens.id_token.reveal(),
            nonce=nonce.reveal(),
            access_token=tokens.access_token.reveal() if tokens.access_token else None,
            max_age=pending.max_age,
            acr_values=pending.acr_values,
        )
    except IDTokenRejected as error:
        failed = _rejected(provider, str(error), f"id_token_{error.reason}")
    except KeysUnavailable as error:
        away = isinstance(error.__cause__, ServerUnavailable)
        failed = _keys_away(provider) if away else _rejected(provider, str(error), "keys")
    raise failed


def _rejected(provider: Provider, text: str, error: str) -> LoginFailed:
    return LoginFailed(error=error, error_description=text, provider=provider.name)


def _keys_away(provider: Provider) -> ServerUnavailable:
    return ServerUnavailable(
        "The sign-in server does not give its keys. Sign in again in a moment.",
        provider=provider.name,
    )


def complete_claims(
    state: State, provider: Provider, tokens: Tokens, claims: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Add what the userinfo endpoint says (OIDC Core 5.3), where that is configured.

    What the ID token says of the same is signed, and wins.

    :raises LoginFailed: it speaks of somebody else.
    :raises ServerUnavailable: it does not answer.
    """
    if not provider.config.userinfo or tokens.access_token is None:
        return claims
    found = _userinfo(state, provider, tokens.access_token)
    if claims and found.get("sub") != claims.get("sub"):
        raise _rejected(provider, "The userinfo endpoint speaks of another user.", "userinfo_sub")
    return FrozenDict({**found, **claims})


def _userinfo(state: State, provider: Provider, access_token: Secret) -> Mapping[str, Any]:
    url = state.metadata.get(provider.location).userinfo_endpoint
    if url is None:
        raise ProtocolError(
            f"the metadata of {provider.name!r} name no userinfo endpoint: set"
            " ATM_USERINFO_ENDPOINT, or ATM_USERINFO to False"
        )
    answer = state.back_channel.send(
        "GET",
        url,
        headers={
            "Accept": "application/json",
            "Authorization": f"Bearer {access_token.reveal()}",
        },
        deadline=time.monotonic() + state.config.token_timeout,
        name=provider.name,
    )
    if isinstance(answer, Failure) or answer.status >= 500 or answer.status == 429:
        raise ServerUnavailable(
            "The sign-in server does not say who signed in. Sign in again in a moment.",
            provider=provider.name,
        )
    try:
        claims = answer.json() if answer.status == 200 else None
    except ValueError:
        claims = None
    if claims is None:
        text = f"The userinfo endpoint answered {answer.status} and no JSON object."
        raise _rejected(provider, text, "userinfo")
    return claims
