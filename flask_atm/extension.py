"""``ATM``: puts everything together for an application, and offers it by one-line methods."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import requests
from flask import Flask, Response, current_app, has_request_context, request

from flask_atm import apis, login, logout, views
from flask_atm.assembly import make_state
from flask_atm.authorized_session import AuthorizedSession
from flask_atm.errors import ConfigurationError, LoginRequired, StoreError
from flask_atm.globals import current_login, current_user_token, forget_looked_up
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.stores.paired import PairedStore
from flask_atm.meaning import generator_around, meaning
from flask_atm.protocols import AtomicGrantStore, Clock, Customizer, GrantStore, RequestContext
from flask_atm.state import STATE_KEY, Hooks, current_state
from flask_atm.tokens import AS_CONFIGURED, AccessToken, Login, TokenParameters, UserToken

if TYPE_CHECKING:
    from authlib.integrations.flask_client import OAuth
    from cachelib import BaseCache
    from flask_caching import Cache

    from flask_atm.calls.token_auth import TokenAuth

__all__ = ["ATM"]

S = TypeVar("S", bound=AuthorizedSession)
_NO_ORIGINS: Final[tuple[str, ...]] = ()
Loader = Callable[[str], Mapping[str, Any] | None]


class ATM:
    """Access token management for Flask applications.

    One object may serve several applications: it holds its constructor arguments and nothing of
    any application. All methods are thread-safe; those that use tokens need an application
    context, and a request or :meth:`use_grant` for the tokens of a user.

    :param app: an application to initialise now; else call :meth:`init_app`.
    :param store: where sign-ins are kept, instead of ``ATM_STORE``: a store of
        :mod:`flask_atm.stores`, a cache of cachelib or Flask-Caching, or a store of your own.
    :param customizer: changes the parameters of every call by its request.
    :param on_login: called with the :class:`~flask_atm.Login` before a sign-in is saved; may
        return a response to send instead, or raise :exc:`~flask_atm.LoginFailed`.
    :param provider_loader: gives the settings of a provider that is not in the configuration.
    :param client_loader: the same for clients.
    :param default_provider: gives the name of the provider where none is named.
    :param grant_loader: gives a grant id for a provider where the Flask session has none.
    :param http_session: gives an own session for the back channel, by the name of the provider or
        client; it is used as it is.
    :param cache: not available in this version, as are ``oauth``, ``client_assertion``,
        ``client_signer``, ``dpop_keys`` and ``cache_key``: anything but ``None`` is refused.
    :param clock: gives the present as epoch seconds.
    :param engine: the times of the refresh engine, for tests.
    :param checkpoint: called at the points where tests stop the refresh engine.
    :raises ConfigurationError: for an argument that is not available in this version.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        store: "AtomicGrantStore | GrantStore | PairedStore | BaseCache | Cache | None" = None,
        customizer: Customizer | None = None,
        on_login: Callable[[Login], Response | None] | None = None,
        provider_loader: Loader | None = None,
        client_loader: Loader | None = None,
        default_provider: Callable[[], str] | None = None,
        grant_loader: Callable[[str], str | None] | None = None,
        http_session: Callable[[str], requests.Session | None] | None = None,
        cache: object = None,
        oauth: object = None,
        client_assertion: object = None,
        client_signer: object = None,
        dpop_keys: object = None,
        cache_key: object = None,
        clock: Clock = time.time,
        engine: EngineParameters | None = None,
        checkpoint: Callable[[str], None] = lambda point: None,
    ) -> None:
        _refuse_not_yet(
            cache=cache,
            oauth=oauth,
            client_assertion=client_assertion,
            client_signer=client_signer,
            dpop_keys=dpop_keys,
            cache_key=cache_key,
        )
        self._hooks: Final = Hooks(
            customizer=_callable(customizer, "customizer"),
            on_login=_callable(on_login, "on_login"),
            provider_loader=_callable(provider_loader, "provider_loader"),
            client_loader=_callable(client_loader, "client_loader"),
            default_provider=_callable(default_provider, "default_provider"),
            grant_loader=_callable(grant_loader, "grant_loader"),
        )
        self._store: Final = store
        self._http_session: Final = _callable(http_session, "http_session")
        self._clock: Final = clock
        self._engine: Final = engine
        self._checkpoint: Final = checkpoint
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the configuration of an application and make it ready. No network.

        :raises ConfigurationError: all problems of the configuration at once.
        :raises RuntimeError: the application has an ATM already.
        """
        if "atm" in app.extensions:
            raise RuntimeError(
                "this application has an ATM already: create ATM() once, and call either ATM(app)"
                " or atm.init_app(app)"
            )
        state = make_state(
            app,
            hooks=self._hooks,
            store=self._store,
            http_session=self._http_session,
            clock=self._clock,
            engine=self._engine,
            checkpoint=self._checkpoint,
        )
        has_routes = state.config.routes and (
            state.config.providers or self._hooks.provider_loader is not None
        )
        if has_routes and "atm" in app.blueprints:
            raise ConfigurationError(
                "the application has a blueprint called 'atm', the name of ours: give it another"
                " one, or set ATM_ROUTES to False if the routes are in it"
            )
        app.extensions["atm"] = self
        app.extensions[STATE_KEY] = state
        app.jinja_env.globals["current_login"] = current_login
        app.jinja_env.globals["current_user_token"] = current_user_token
        views.register_error_handlers(app)
        if has_routes:
            app.register_blueprint(views.make_blueprint(state.config))

    # -- APIs

    @overload
    def api(self, name: str) -> AuthorizedSession: ...

    @overload
    def api(self, name: str, session_class: type[S]) -> S: ...

    def api(
        self, name: str, session_class: type[AuthorizedSession] = AuthorizedSession
    ) -> AuthorizedSession:
        """Give the session of an API in ``ATM_APIS``; it may be made at module level.

        :param session_class: a subclass of :class:`~flask_atm.AuthorizedSession`.
        :returns: a proxy: one object per context, over connections that the application shares.
        """
        return apis.api_proxy(name, session_class)

    def user_session(
        self,
        base_url: str,
        *,
        provider: str | None = None,
        grant_id: str | None = None,
        allowed_origins: Iterable[str] = _NO_ORIGINS,
        customizer: Customizer | None = None,
        timeout: float | None = None,
        renew_on_401: bool = True,
        **parameters: Any,
    ) -> AuthorizedSession:
        """Make a session with the token of the user who is signed in, or of a grant.

        :param base_url: of the API.
        :param provider: of the token; by default the one that is meant where none is named.
        :param grant_id: instead of the browser's grant.
        :param parameters: ``scope``, ``resource``, … of :class:`~flask_atm.TokenParameters`.
        :raises LoginRequired: nobody is signed in.
        """
        source, asked = apis.user_source(provider, grant_id, _parameters(parameters))
        return apis.make_session(
            source.state,
            source,
            base_url,
            asked,
            allowed_origins,
            customizer,
            timeout,
            renew_on_401,
        )

    def client_session(
        self,
        base_url: str,
        *,
        client: str | None = None,
        provider: str | None = None,
        allowed_origins: Iterable[str] = _NO_ORIGINS,
        customizer: Customizer | None = None,
        timeout: float | None = None,
        renew_on_401: bool = True,
        **parameters: Any,
    ) -> AuthorizedSession:
        """Make a session with a token of this application itself.

        :param base_url: of the API.
        :param client: a name in ``ATM_CLIENTS``.
        :param provider: or the provider whose own registration is meant; neither: the default one.
        :param parameters: ``scope``, ``resource``, … of :class:`~flask_atm.TokenParameters`.
        """
        return apis.make_session(
            current_state(),
            apis.client_source(client, provider),
            base_url,
            _parameters(parameters),
            allowed_origins,
            customizer,
            timeout,
            renew_on_401,
        )

    def auth(self, name: str) -> "TokenAuth":
        """Give an API's token as ``auth=`` of ``requests`` sessions that are not ours.

        :param name: a name in ``ATM_APIS``.
        """
        return apis.api_auth(name)

    # -- tokens

    def get_user_token(
        self, *, provider: str | None = None, grant_id: str | None = None, **parameters: Any
    ) -> UserToken:
        """Give a token of the user that is valid now, renewed if that is due.

        :param provider: by default the one that is meant where none is named.
        :param grant_id: instead of the browser's grant.
        :param parameters: ``scope``, ``resource``, … of :class:`~flask_atm.TokenParameters`.
        :raises LoginRequired: nobody is signed in, or the sign-in has ended.
        :raises ServerUnavailable: the provider is away, and no valid token is left.
        """
        source, asked = apis.user_source(provider, grant_id, _parameters(parameters))
        return source.get(self._customized(asked))

    def get_client_token(
        self, client: str | None = None, *, provider: str | None = None, **parameters: Any
    ) -> AccessToken:
        """Give a token of this application itself that is valid now.

        :param client: a name in ``ATM_CLIENTS``.
        :param provider: or the provider whose own registration is meant; neither: the default one.
        :param parameters: ``scope``, ``resource``, … of :class:`~flask_atm.TokenParameters`.
        :raises ServerUnavailable: the server is away, and no valid token is left.
        :raises TokenEndpointError: the server refuses.
        """
        asked = _parameters(parameters)
        return apis.client_source(client, provider).get(self._customized(asked))

    def _customized(self, parameters: TokenParameters) -> TokenParameters:
        customizer = current_state().hooks.customizer
        if customizer is None:
            return parameters
        here = request if has_request_context() else None
        context = RequestContext(
            method=here.method if here else None,
            url=here.url if here else None,
            headers=dict(here.headers) if here else {},
            incoming=True,
        )
        return parameters.merge(customizer(context, parameters))

    def forget_client_tokens(self, client: str | None = None) -> None:
        """Make every process get new tokens of a client, by default of all that were used here."""
        state = current_state()
        names = [client] if client is not None else list(state.config.clients)
        for name in names:
            state.client(name).forget()
        if client is None:
            for provider in state.config.providers:
                state.provider(provider).client_tokens.forget()

    # -- grants

    @contextmanager
    def use_grant(self, grant_id: str) -> Iterator[None]:
        """Let jobs, threads and sockets work as in a view of the user of a grant.

        In a generator it holds while the generator runs, not for whoever reads from it.

        :param grant_id: of a :class:`~flask_atm.Login`.
        :raises ValueError: there is none.
        :raises RuntimeError: in an asynchronous generator.
        """
        if not grant_id:
            raise ValueError(
                "use_grant() wants a grant id: take current_login.grant_id in the view, and pass it"
                " to the job"
            )
        forget_looked_up()
        with meaning(grant_id=grant_id, generator=generator_around()):
            yield
        forget_looked_up()

    def revoke_grant(
        self, grant_id: str | None = None, *, provider: str | None = None, **parameters: Any
    ) -> None:
        """End a grant: gone at once, its refresh token revoked as soon as that can be done.

        :param grant_id: by default the one that is meant now. Without any nothing is done.
        :param parameters: ``client_assertion`` and ``extra`` of the revocation (RFC 7009).
        """
        logout.revoke(grant_id, provider, self._customized(_parameters(parameters)))

    # -- sign-in and sign-out

    def login(
        self, next_url: str | None = None, *, provider: str | None = None, **authorize_params: Any
    ) -> Response:
        """Send the browser to sign in.

        :param next_url: where to go afterwards: a path of this application.
        :param authorize_params: further parameters of the authorization request.
        """
        return login.begin(provider, next_url, **authorize_params)

    def callback(self, provider: str | None = None) -> Response:
        """Finish a sign-in: for a callback route of one's own.

        :raises LoginFailed: what came does not match, or is an error.
        """
        return login.finish(provider)

    def logout(self, next_url: str | None = None, *, provider: str | None = None) -> Response:
        """Sign out, here and at the provider: for a route of one's own that checks its origin.

        :param next_url: where to go afterwards: a path of this application.
        :param provider: by default every sign-in of this browser.
        """
        return logout.logout(next_url, provider)

    def login_required_response(self, error: LoginRequired) -> Response:
        """Give what the default handler answers, for handlers of one's own."""
        return views.login_required_response(error)

    # -- operations

    def health(self) -> dict[str, Any]:
        """Tell how token endpoints answered last, and whether the store does. No other network."""
        state = current_state()
        try:
            state.store.read("health")
            store = "ok"
        except StoreError as error:
            store = str(error)
        endpoints = {
            issuer: {
                "client_id": client_id,
                "last": breaker.last,
                "paused_for": round(breaker.left(), 1),
            }
            for (issuer, client_id), breaker in state.breakers.items()
        }
        return {"store": store, "endpoints": endpoints}

    @property
    def oauth(self) -> "OAuth":
        """The Authlib registry of the current application."""
        return login.registry(current_app)


def _parameters(given: Mapping[str, Any]) -> TokenParameters:
    return TokenParameters.of(**given) if given else AS_CONFIGURED


def _refuse_not_yet(**arguments: object) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise ConfigurationError(
            f"ATM({name}=…): not available in this version of flask-atm" for name in given
        )


def _callable(value: Any, name: str) -> Any:
    if value is not None and not callable(value):
        raise TypeError(f"ATM({name}=…) has to be callable, not {type(value).__name__}")
    return value
