"""The parameters of an authorization request (RFC 6749, OIDC Core 3.1.2.1), and what came back."""

import json
from collections.abc import Mapping
from typing import Any, Final

from flask import request

from flask_atm.errors import ConfigurationError, LoginFailed, ProtocolError
from flask_atm.oauth.metadata import ServerMetadata
from flask_atm.state import Provider
from flask_atm.tokens import Secret, parse_scope

__all__ = ["Received", "asked_scope", "check_server", "max_age_of", "parameters", "received"]

#: Set by flask-atm itself, one for every sign-in.
_RESERVED: Final = frozenset(
    {"client_id", "response_type", "state", "nonce", "code_challenge", "code_challenge_method"}
    | {"dpop_jkt", "request", "request_uri"}
)
_ANSWER: Final = ("state", "code", "iss", "error", "error_description")

#: What came back: the parameters that are looked at; the code is a secret until it is used.
Received = Mapping[str, Secret]


def parameters(
    provider: Provider, metadata: ServerMetadata, given: Mapping[str, Any]
) -> dict[str, str | list[str]]:
    """Put together what is asked for: the configuration, then what the call gives.

    :param given: texts, numbers, lists (one text with spaces), mappings (JSON); ``None`` takes
        away what the configuration has.
    :raises ValueError: for a parameter that is not the caller's to give.
    """
    if own := sorted(_RESERVED & given.keys()):
        raise ValueError(f"{', '.join(own)}: set by flask-atm itself, leave it out")
    config = provider.config
    merged: dict[str, Any] = {**config.authorize_params, **given}
    merged["scope"] = asked_scope(provider, metadata, merged.get("scope"))
    merged.setdefault("resource", list(config.resource) or None)
    merged.setdefault("audience", config.audience)
    return {
        name: list(value) if name == "resource" and not isinstance(value, str) else _text(value)
        for name, value in merged.items()
        if value is not None
    }


def asked_scope(
    provider: Provider, metadata: ServerMetadata, given: str | list[str] | None
) -> tuple[str, ...]:
    """Give the scope that is asked for: what is given or configured, and a refresh token.

    ``prompt=consent`` is not sent along: most servers give a refresh token without, and users
    would have to consent at each sign-in. Where it is wanted it goes into ``ATM_AUTHORIZE_PARAMS``.
    """
    config = provider.config
    scope = parse_scope(given) if given else config.scope
    if config.sign_in and "openid" not in scope:
        scope = ("openid", *scope)
    wanted = config.offline_access
    if wanted == "auto":
        wanted = "offline_access" in (metadata.scopes_supported or ())
    return (*scope, "offline_access") if wanted and "offline_access" not in scope else scope


def max_age_of(asked: Mapping[str, str | list[str]]) -> int | None:
    """Give the ``max_age`` that was asked for, which the answer has to keep.

    :raises ValueError: it is no number of seconds.
    """
    value = asked.get("max_age")
    if value is None:
        return None
    if not isinstance(value, str) or not value.isdecimal():
        raise ValueError("max_age is a whole number of seconds")
    return int(value)


def check_server(provider: Provider, metadata: ServerMetadata) -> None:
    """Check that a server can be signed in at.

    :raises ConfigurationError: it says that it cannot do PKCE with S256.
    :raises ProtocolError: it does not say where.
    """
    if metadata.authorization_endpoint is None:
        raise ProtocolError(
            f"the metadata of {provider.name!r} name no authorization endpoint: set"
            " ATM_AUTHORIZATION_ENDPOINT"
        )
    methods = metadata.code_challenge_methods_supported
    if methods is not None and "S256" not in methods:
        raise ConfigurationError(
            f"The provider {provider.name!r} does not take PKCE with S256 (it names"
            f" {', '.join(methods)[:100] or 'no method'}), and without it no sign-in is safe: use a"
            " server that does (RFC 9700, section 2.1.1)."
        )


def received() -> Received:
    """Give the authorization response of the present request (RFC 6749, section 4.1.2).

    :raises LoginFailed: a parameter came twice.
    """
    values = request.form if request.method == "POST" else request.args
    found = {name: values.getlist(name) for name in _ANSWER}
    twice = [name for name, all_of_it in found.items() if len(all_of_it) > 1]
    if twice:
        raise LoginFailed(
            "This is no answer to a sign-in.",
            error="invalid_response",
            error_description=f"It has {', '.join(twice)} more than once.",
        )
    return {name: Secret(all_of_it[0]) for name, all_of_it in found.items() if all_of_it}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return json.dumps(value, separators=(",", ":"))
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping) for item in value):
            return json.dumps(value, separators=(",", ":"))
        return " ".join(map(str, value))
    return str(value)
