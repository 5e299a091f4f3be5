"""Sessions for APIs: objects per context, connections per application."""

from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

from flask import g, has_app_context, has_request_context, request, session
from werkzeug.local import LocalProxy

from flask_atm.authorized_session import AuthorizedSession
from flask_atm.browser_session import SESSION_KEY
from flask_atm.calls.connections import Connections
from flask_atm.calls.origins import destination
from flask_atm.calls.token_auth import Authorizer, TokenAuth
from flask_atm.config.keys import APIConfig
from flask_atm.errors import ConfigurationError, LoginRequired
from flask_atm.globals import CurrentGrant, Nobody, current_grant, find_grant
from flask_atm.meaning import meaning, meant
from flask_atm.protocols import Customizer, TokenSource
from flask_atm.state import State, current_state
from flask_atm.tokens import TokenParameters

__all__ = [
    "api_auth",
    "api_proxy",
    "client_source",
    "make_session",
    "user_source",
]

S = TypeVar("S", bound=AuthorizedSession)


def user_source(
    provider: str | None, grant_id: str | None, asked: TokenParameters
) -> tuple[CurrentGrant, TokenParameters]:
    """Give the token source of a user: the one who is meant now, or the one of a grant id.

    :param asked: what a call asks for.
    :returns: the source, and that on top of what a decorator says, if it is about the same user.
    :raises LoginRequired: nobody is signed in, or the sign-in has ended.
    """
    if grant_id is None:
        present = meant()
        return _signed_in(current_grant(provider, present)), present.parameters.merge(asked)
    with meaning(grant_id=grant_id):
        return _signed_in(current_grant(provider)), asked


def _signed_in(found: CurrentGrant | Nobody) -> CurrentGrant:
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
    state: State,
    source: TokenSource,
    base_url: str,
    parameters: TokenParameters,
    allowed_origins: Iterable[str],
    customizer: Customizer | None,
    timeout: float | None,
    renew_on_401: bool,
) -> AuthorizedSession:
    """Make a session over the connections of the application."""
    return AuthorizedSession(
        source,
        base_url,
        parameters=parameters,
        allowed_origins=allowed_origins,
        customizer=customizer or state.hooks.customizer,
        timeout=state.config.api_timeout if timeout is None else timeout,
        renew_on_401=renew_on_401,
        connections=state.connections,
    )


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
    return _signed_in(current_grant(api.provider))


def _make(state: State, api: APIConfig, session_class: type[S]) -> S:
    session = session_class(
        _source(api),
        api.base_url,
        parameters=_parameters(api),
        allowed_origins=api.allowed_origins,
        customizer=state.hooks.customizer,
        timeout=state.config.api_timeout if api.timeout is None else api.timeout,
        renew_on_401=api.renew_on_401,
        connections=_connections(state, api),
        api=api.name,
    )
    session.headers.update(cast(Mapping[str, str], api.headers))
    return session


def _connections(state: State, api: APIConfig) -> Connections:
    """Give the connections for an API: shared, unless its settings differ."""
    if api.ca_bundle is None and api.pool_size == 10:
        return state.connections
    made = state.api_connections.get(api.name)
    if made is None:
        made = state.api_connections.setdefault(
            api.name, Connections(pool_size=api.pool_size, ca_bundle=api.ca_bundle)
        )
    return made


def _named(name: str, session_class: type[S]) -> S:
    """Give the session of an API for the present context, made once for it."""
    if not has_app_context():
        raise LoginRequired(
            f"atm.api({name!r}) is used in a view, or with an application context: with"
            " app.app_context(), and for a user's token atm.use_grant(grant_id)",
            reason="outside_request",
        )
    made = g._get_current_object().setdefault("_atm_sessions", {})
    owner = (
        request._get_current_object() if has_request_context() else None,  # type: ignore[attr-defined]
        session._get_current_object().get(SESSION_KEY) if has_request_context() else None,  # type: ignore[attr-defined]
        meant(),
    )
    kept = made.get((name, session_class))
    if kept is None or kept[0][0] is not owner[0] or kept[0] != owner or _has_moved(kept[1]):
        state = current_state()
        made_now = _make(state, _api_config(state, name), session_class)
        kept = made[name, session_class] = (owner, made_now)
    return cast(S, kept[1])


def _has_moved(made: AuthorizedSession) -> bool:
    """Tell whether the application says now that another user is meant."""
    source = made._authorizer.source
    if not isinstance(source, CurrentGrant) or not source.loaded:
        return False
    return find_grant(source.provider.name)[2] != source.grant_id


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
