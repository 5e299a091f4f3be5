"""Sessions for APIs: objects per context, connections per application."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from flask import g, has_app_context, has_request_context, request
from werkzeug.local import LocalProxy

from flask_atm.authorized_session import AuthorizedSession
from flask_atm.calls.connections import Connections
from flask_atm.calls.origins import destination
from flask_atm.calls.token_auth import Authorizer, TokenAuth
from flask_atm.config.keys import APIConfig
from flask_atm.errors import ConfigurationError, LoginRequired
from flask_atm.globals import CurrentGrant, current_grant, meaning, meant
from flask_atm.protocols import TokenSource
from flask_atm.state import State, current_state
from flask_atm.tokens import TokenParameters

__all__ = [
    "api_auth",
    "api_proxy",
    "client_source",
    "make_session",
    "user_parameters",
    "user_source",
]

S = TypeVar("S", bound=AuthorizedSession)


def user_source(provider: str | None = None, grant_id: str | None = None) -> CurrentGrant:
    """Give the token source of a user: the one who is meant now, or the one of a grant id.

    :raises LoginRequired: nobody is signed in, or the sign-in has ended.
    """
    if grant_id is None:
        found = current_grant(provider)
    else:
        with meaning(grant_id=grant_id):
            found = current_grant(provider)
    if isinstance(found, CurrentGrant):
        return found
    raise found.error()


def client_source(client: str | None = None, provider: str | None = None) -> TokenSource:
    """Give the token source of a client, or of a provider's own registration.

    :raises ConfigurationError: there is no such client or provider.
    """
    state = current_state()
    if client is not None and provider is not None:
        raise ValueError("name a client or a provider, not both")
    if client is not None:
        return state.client(client)
    return state.provider(provider).client_tokens


def make_session(
    source: TokenSource,
    base_url: str,
    *,
    session_class: type[S],
    api: APIConfig | None = None,
    **options: Any,
) -> S:
    """Make a session over the connections of the application."""
    state = current_state()
    options.setdefault("timeout", state.config.api_timeout)
    if options["timeout"] is None:
        options["timeout"] = state.config.api_timeout
    if options.get("customizer") is None:
        options["customizer"] = state.hooks.customizer
    return session_class(
        source,
        base_url,
        connections=_connections(state, api),
        api=api.name if api else None,
        **options,
    )


def _connections(state: State, api: APIConfig | None) -> Connections:
    """Give the connections for an API: shared, unless its settings differ."""
    if api is None or (api.ca_bundle is None and api.pool_size == 10):
        return state.connections
    made = state.api_connections.get(api.name)
    if made is None:
        made = state.api_connections.setdefault(
            api.name, Connections(pool_size=api.pool_size, ca_bundle=api.ca_bundle)
        )
    return made


# -- ATM_APIS


def _api_config(state: State, name: str) -> APIConfig:
    api = state.config.apis.get(name)
    if api is None:
        known = ", ".join(sorted(state.config.apis)) or "none"
        raise ConfigurationError(f"there is no API called {name!r} in ATM_APIS; known: {known}")
    return api


def _parameters(api: APIConfig) -> TokenParameters:
    own = TokenParameters.of(
        scope=api.scope, resource=api.resource, audience=api.audience, extra=api.token_params
    )
    return own if api.token == "client" else meant().parameters.merge(own)


def _source(api: APIConfig) -> TokenSource:
    if api.token == "client":
        return client_source(api.client, None if api.client else api.provider)
    return user_source(api.provider)


def _make(api: APIConfig, session_class: type[S]) -> S:
    session = make_session(
        _source(api),
        api.base_url,
        session_class=session_class,
        api=api,
        parameters=_parameters(api),
        allowed_origins=api.allowed_origins,
        timeout=api.timeout,
        renew_on_401=api.renew_on_401,
    )
    session.headers.update(cast(Mapping[str, str], api.headers))
    return session


def _named(name: str, session_class: type[S]) -> S:
    """Give the session of an API for the present context, made once for it."""
    if not has_app_context():
        raise LoginRequired(
            f"atm.api({name!r}) is used in a view, or with an application context: with"
            " app.app_context(), and for a user's token atm.use_grant(grant_id)",
            reason="outside_request",
        )
    api = _api_config(current_state(), name)
    made = g.setdefault("_atm_sessions", {})
    owner = (
        request._get_current_object() if has_request_context() else None,  # type: ignore[attr-defined]
        None if api.token == "client" else user_source(api.provider),
        meant(),
    )
    kept = made.get((name, session_class))
    if kept is None or any(a is not b for a, b in zip(kept[0], owner, strict=True)):
        kept = made[name, session_class] = (owner, _make(api, session_class))
    return cast(S, kept[1])


def api_proxy(name: str, session_class: type[S]) -> S:
    """Give a proxy to the session of an API; it may be made at module level."""
    return cast(S, LocalProxy(lambda: _named(name, session_class)))


def api_auth(name: str) -> TokenAuth:
    """Give an API's token as ``auth=`` of a ``requests`` session that is not ours."""
    state = current_state()
    api = _api_config(state, name)
    authorizer = Authorizer(
        source=_source(api),
        parameters=_parameters(api),
        customizer=state.hooks.customizer,
        api=api.name,
    )
    return TokenAuth(
        authorizer,
        destination(api.base_url, api.allowed_origins),
        renew_on_401=api.renew_on_401,
    )


def user_parameters(grant_id: str | None, asked: TokenParameters) -> TokenParameters:
    """Give what a call asks for on top of what a decorator says, if that is about the same user."""
    return asked if grant_id is not None else meant().parameters.merge(asked)
