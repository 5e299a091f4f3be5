"""The two ends of a sign-in, the way out and the way back, and Authlib between them.

Authlib's Flask client is the protocol engine: it writes the authorization request and reads the
response. Under it are our metadata, our token endpoint, our checks of ID tokens and our pending
sign-in; Authlib itself sends nothing, and keeps nothing in the Flask session.
"""

import hashlib
import logging
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from contextlib import suppress
from html import escape
from typing import Any, Final, cast
from urllib.parse import urlsplit

from authlib.integrations.flask_client import FlaskIntegration, FlaskOAuth2App, OAuth
from flask import Flask, Response

from flask_atm.destinations import (
    callback_endpoint,
    check_return_url,
    external_url,
    local_path,
    redirect_to,
)
from flask_atm.errors import (
    ATMError,
    ConfigurationError,
    LoginFailed,
    LoginRequired,
    StepUpRequired,
    StoreError,
)
from flask_atm.login.accept import ANSWERS, accept, check_issuer, matching, report
from flask_atm.login.authorization import (
    Received,
    asked_scope,
    check_server,
    max_age_of,
    parameters,
    received,
)
from flask_atm.login.exchange_code import check_id_token, is_openid, redeem
from flask_atm.login.pending import Pending, find_pending, put_pending
from flask_atm.login.recent import is_strict, was_sent
from flask_atm.login.sign_in import USED, follow
from flask_atm.login.used_states import Attempt, Result, claim, settle
from flask_atm.signals import login_failed
from flask_atm.state import STATE_KEY, Provider, State, current_state
from flask_atm.tokens import Secret

__all__ = ["begin", "begin_again", "finish", "registry"]

log = logging.getLogger("flask_atm.login")

_REGISTRY: Final = "atm.oauth"


# -- the way out


def begin(provider_name: str | None, next_url: str | None, **authorize_params: Any) -> Response:
    """Send the browser to a provider to sign in.

    :param provider_name: by default the one that is meant where none is named.
    :param next_url: where to go afterwards; anything but a path of this application counts as
        none, which leads to ``ATM_AFTER_LOGIN``.
    :param authorize_params: further parameters of the authorization request, and ``redirect_uri``
        for a callback route of one's own.
    :raises ServerUnavailable: the metadata of the provider cannot be had.
    :raises ConfigurationError: a sign-in there would not be safe, or there is no such provider.
    """
    provider = current_state().provider(provider_name)
    return _send_away(provider, local_path(next_url), authorize_params)


def begin_again(error: LoginRequired, next_path: str | None) -> Response:
    """Send a browser to sign in that did not ask for it. Raises as :func:`begin`."""
    provider = current_state().provider(error.provider)
    if not isinstance(error, StepUpRequired):
        return _send_away(provider, next_path, {}, automatic=True)
    asked = {"acr_values": " ".join(error.acr_values) or None, "max_age": error.max_age}
    return _send_away(
        provider, next_path, asked, automatic=True, step_up=True, acr_values=error.acr_values
    )


def _send_away(
    provider: Provider,
    next_path: str | None,
    given: Mapping[str, Any],
    *,
    automatic: bool = False,
    step_up: bool = False,
    acr_values: tuple[str, ...] = (),
) -> Response:
    state = current_state()
    metadata = state.metadata.get(provider.location)
    check_server(provider, metadata)
    redirect_uri, rest = _redirect_uri(state, provider, given)
    asked = parameters(provider, metadata, rest)
    scope = str(asked["scope"])
    pending = Pending(
        provider=provider.name,
        nonce=Secret(secrets.token_urlsafe(32)),
        verifier=Secret(secrets.token_urlsafe(32)),
        redirect_uri=redirect_uri,
        issued_at=round(state.clock(), 1),
        next_path=next_path,
        scope=None if scope == " ".join(asked_scope(provider, metadata, None)) else scope,
        max_age=max_age_of(asked),
        acr_values=acr_values,
        step_up=step_up,
        automatic=automatic,
        form_post=asked.get("response_mode") == "form_post",
    )
    client = registry(state.app).create_client(provider.name)
    return client.authorize_redirect(redirect_uri, pending=pending, **asked)


def _redirect_uri(
    state: State, provider: Provider, given: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Give the URL to come back to, and the other parameters."""
    rest = dict(given)
    own = rest.pop("redirect_uri", None)
    if own is not None:
        return check_return_url(str(own)), rest
    endpoint, values = callback_endpoint(state, provider.name)
    return external_url(endpoint, **values), rest


# -- the way back


def finish(provider_name: str | None) -> Response:
    """Take what a provider sent back with the browser, and sign its user in.

    :param provider_name: whose redirect URI this is; by default that of the default provider.
    :raises LoginFailed: what came does not match, or is an error. Nothing was sent then, unless
        it is what the provider answered to the code.
    :raises ServerUnavailable: the provider is away; a new sign-in may work.
    :raises StoreError: the store is silent; nobody is signed in.
    """
    state = current_state()
    provider = state.provider(provider_name)
    try:
        answer = received()
        attempt = matching(state, provider, answer)
    except LoginFailed as error:
        report(error, provider)
        raise
    if not ANSWERS & answer.keys():
        return follow(attempt)
    try:
        check_issuer(attempt, answer)
        return _take(attempt, answer)
    except LoginFailed as error:
        if error.error != USED:
            report(error, provider)
            login_failed.send(state.app, provider=provider.name, error=error)
        raise


def _take(attempt: Attempt, answer: Received) -> Response:
    """Use an answer, unless another request has: then go where that one goes."""
    if not claim(attempt):
        return _go_on(attempt)
    client = registry(attempt.state.app).create_client(attempt.provider.name)
    reference = secrets.token_hex(4)
    try:
        own_response = accept(attempt, answer, client)
    except BaseException as error:
        if isinstance(error, LoginFailed):
            reference = error.reference = error.reference or reference
        with suppress(StoreError):
            settle(attempt, Result(reference=reference))
        raise
    if own_response is not None:
        return own_response
    return _go_on(attempt)


def _go_on(attempt: Attempt) -> Response:
    """Go where the sign-in leads, with the cookies of this application.

    A browser leaves them out because another site sent it here: with a form that the provider
    posts, and always where the session is ``Strict``. Then it comes back with the state alone.
    """
    if was_sent(attempt.state):
        return follow(attempt)
    url = f"{urlsplit(attempt.pending.redirect_uri).path}?state={attempt.login_state.reveal()}"
    if not is_strict():
        return redirect_to(url)
    # Strict cookies stay away through redirects, too: it takes a page of ours to send for them.
    link = f'<a href="{escape(url)}">Continue</a>'
    response = Response(f"<!doctype html><title>Sign-in</title>{link}")
    response.headers["Refresh"] = f"0; url={url}"
    response.headers["Cache-Control"] = "no-store"
    response.headers["Referrer-Policy"] = "no-referrer"  # the URL may have a code in it
    return response


# -- Authlib


def registry(app: Flask) -> "_Registry":
    """Give the Authlib registry of an application: providers by name, made when asked for."""
    return cast("_Registry", app.extensions.setdefault(_REGISTRY, _Registry(app)))


class _Integration(FlaskIntegration):  # type: ignore[misc]
    """Keeps a pending sign-in in our cookie; nothing in the Flask session, no ``OIDC_…`` keys."""

    def set_state_data(self, session: Any, state: str, data: Mapping[str, Any]) -> None:
        put_pending(current_state(), Secret(state), data["pending"])

    def get_state_data(self, session: Any, state: str) -> dict[str, Any] | None:
        pending = find_pending(current_state(), Secret(state or ""))
        if pending is None:
            return None
        data: dict[str, Any] = {"redirect_uri": pending.redirect_uri}
        if is_openid(current_state().provider(self.name), pending):
            data["nonce"] = pending.nonce
        return data

    def clear_state_data(self, session: Any, state: str) -> None:
        """The cookie stays until it expires: a second click ends where the first one did."""

    @staticmethod
    def load_config(oauth: Any, name: str, params: Any) -> dict[str, Any]:
        return {}


class _Client(FlaskOAuth2App):  # type: ignore[misc]
    """Authlib's client of a provider, on top of our own parts. Stateless.

    Errors go back as values: frames of Authlib hold the code, and no traceback is to show it.
    """

    #: Authlib would keep the token response in ``g``, as long as the context lives.
    token = property(lambda self: None, lambda self, value: None)

    def load_server_metadata(self) -> dict[str, Any]:
        state = current_state()
        metadata = state.metadata.get(state.provider(self.name).location)
        return {"authorization_endpoint": metadata.authorization_endpoint}

    def authorize_redirect(
        self, redirect_uri: str | None = None, *, pending: Pending | None = None, **params: Any
    ) -> Response:
        if pending is None:
            return begin(self.name, None, redirect_uri=redirect_uri, **params)
        challenge = hashlib.sha256(pending.verifier.reveal().encode()).digest()
        if "openid" in params["scope"].split(" "):
            params["nonce"] = pending.nonce.reveal()
        made = self.create_authorization_url(
            redirect_uri,
            state=secrets.token_urlsafe(32),
            # Given to Authlib as a code_verifier it would be logged.
            code_challenge=urlsafe_b64encode(challenge).rstrip(b"=").decode(),
            code_challenge_method="S256",
            **params,
        )
        self.save_authorize_data(state=made["state"], pending=pending)
        return redirect_to(made["url"])

    def fetch_access_token(
        self, redirect_uri: str | None = None, *, pending: Pending | None = None, **params: Any
    ) -> dict[str, Any]:
        if pending is None:
            raise ConfigurationError("use atm.callback(): it checks what Authlib does not")
        state = current_state()
        try:
            tokens = redeem(state, state.provider(self.name), pending, Secret(params["code"]))
        except ATMError as error:
            return {"tokens": error}
        answer = {"tokens": tokens}
        return answer if tokens.id_token is None else {**answer, "id_token": tokens.id_token}

    def parse_id_token(
        self,
        token: Mapping[str, Any],
        nonce: Secret,
        claims_options: Any = None,
        claims_cls: Any = None,
        leeway: int = 0,
    ) -> Mapping[str, Any] | ATMError:
        provider = current_state().provider(self.name)
        try:
            return check_id_token(provider, claims_options, token["tokens"], nonce=nonce)
        except ATMError as error:
            return error


class _Registry(OAuth):  # type: ignore[misc]
    """An Authlib registry that knows the providers of one application, and only them.

    Authlib's own would take the place of the application's in ``app.extensions``.
    """

    oauth2_client_cls = _Client
    framework_integration_cls = _Integration

    def __init__(self, app: Flask) -> None:
        super().__init__()
        self.app = app

    def create_client(self, name: str) -> _Client:
        """Give the client of a provider, registered at first use.

        :raises ConfigurationError: there is no such provider.
        """
        client = super().create_client(name)
        if client is None:
            provider: Provider = self.app.extensions[STATE_KEY].provider(name)
            client = self.register(name, client_id=provider.config.client_id)
        return cast(_Client, client)

    def __getattr__(self, name: str) -> _Client:
        # Authlib's own knows only what is registered, and raises AttributeError for the rest.
        problem = name
        if not name.startswith("_"):
            try:
                return self.create_client(name)
            except ConfigurationError as error:
                problem = str(error)
        raise AttributeError(problem)
