"""Applications that sign in at a real provider, and browsers that do it step by step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flask import Flask, session
from flask.testing import FlaskClient
from werkzeug.test import Cookie, TestResponse

from flask_atm.decorators import requires_login, requires_token
from flask_atm.extension import ATM
from flask_atm.globals import current_login, current_user_token
from flask_atm.state import STATE_KEY, State
from tests.browser import NAVIGATION, Browser
from tests.servers import ClientRegistration, OIDCServer

__all__ = ["HERE", "PAGE", "Site", "cookies", "jar", "make_site", "provider_settings", "query_of"]

PAGE = NAVIGATION
HERE = {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}


@dataclass(frozen=True, kw_only=True)
class Site:
    """An application with an ATM, and its provider."""

    app: Flask
    atm: ATM
    provider: OIDCServer
    registration: ClientRegistration

    @property
    def state(self) -> State:
        state = self.app.extensions[STATE_KEY]
        assert isinstance(state, State)
        return state

    def browser(self) -> Browser:
        """A new browser, with no cookie of anybody."""
        return Browser(self.app, self.provider)

    def client(self) -> FlaskClient:
        """Its half that talks to the application."""
        return self.app.test_client()

    def begin(self, client: FlaskClient, path: str = "/oidc/login?next=/me") -> str:
        """Go where a sign-in begins; give the URL at the provider."""
        response = client.get(path, headers=PAGE)
        assert response.status_code == 302, response.text
        return response.location

    def answer(self, location: str, **parameters: str) -> str:
        """Sign in at the provider as a new browser; give the path that it leads to."""
        visit = self.provider.visit(location + "".join(f"&{k}={v}" for k, v in parameters.items()))
        parts = urlsplit(visit.url)
        assert parts.hostname == "localhost", visit
        return f"{parts.path}?{parts.query}"

    def sign_in(
        self, client: FlaskClient, path: str = "/oidc/login?next=/me", **parameters: str
    ) -> TestResponse:
        """Sign in; give the answer of the callback."""
        return client.get(self.answer(self.begin(client, path), **parameters), headers=PAGE)

    def code_requests(self) -> int:
        """How many codes came to the token endpoint."""
        return len(self.provider.token_requests(grant_type="authorization_code"))


def provider_settings(
    oidc: OIDCServer, callback: str, **metadata: Any
) -> tuple[dict[str, Any], ClientRegistration]:
    """Register at the provider; give the keys of ATM_PROVIDERS."""
    registration = oidc.add_client(
        callback, post_logout_redirect_uris=["http://localhost/oidc/logged-out"], **metadata
    )
    settings = {
        "issuer": oidc.issuer,
        "client_id": registration.client_id,
        "client_secret": registration.client_secret,
    }
    return settings, registration


def make_site(
    oidc: OIDCServer,
    *,
    atm: Mapping[str, Any] | None = None,
    callback: str = "http://localhost/oidc/callback",
    before: Any = None,
    registration: Mapping[str, Any] | None = None,
    **config: Any,
) -> Site:
    """Make an application with one provider, some views and an ATM.

    :param atm: arguments of :class:`ATM`.
    :param before: called with the application before the ATM is there.
    :param registration: more metadata of the client.
    """
    settings, client = provider_settings(oidc, callback, **(registration or {}))
    app = Flask(__name__)
    app.testing = True
    app.config["SECRET_KEY"] = "a secret of 32 characters or more!!"
    app.config["ATM_STORE"] = "memory"
    app.config.update({f"ATM_{name.upper()}": value for name, value in settings.items()})
    app.config.update(config)
    if before is not None:
        before(app)
    extension = ATM(app, **(atm or {}))
    _add_views(app)
    return Site(app=app, atm=extension, provider=oidc, registration=client)


def _add_views(app: Flask) -> None:
    @app.get("/me")
    @requires_login
    def me() -> str:
        return str(current_login.claims["sub"])

    @app.post("/me")
    @requires_login
    def change_me() -> str:
        return "changed"

    @app.get("/token")
    @requires_token
    def token() -> str:
        return current_user_token.token_type

    @app.get("/who")
    def who() -> str:
        return str(current_login.claims["sub"]) if bool(current_login) else "nobody"

    @app.get("/basket")
    def basket() -> dict[str, Any]:
        session.setdefault("basket", "full")
        return dict(session)


def query_of(url: str) -> dict[str, str]:
    """The parameters of a URL, each of which is there once."""
    query = parse_qs(urlsplit(url).query, keep_blank_values=True)
    assert all(len(values) == 1 for values in query.values()), query
    return {name: values[0] for name, values in query.items()}


def cookies(response: TestResponse, prefix: str) -> list[str]:
    """The Set-Cookie headers of one kind of cookie."""
    return [value for value in response.headers.getlist("Set-Cookie") if value.startswith(prefix)]


def jar(client: FlaskClient) -> list[Cookie]:
    """All cookies that a test client has, whatever their path."""
    return list((client._cookies or {}).values())
