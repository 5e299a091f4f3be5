"""An OpenID provider in this process, for tests and demonstrations. It authenticates nobody."""

import secrets
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from flask import Flask

from flask_atm.testing.fake_server import FakeServer
from flask_atm.testing.faults import Body, Fault, Hold, install
from flask_atm.testing.provider_log import ProviderRequest, describe_request
from flask_atm.testing.provider_records import Client, RedirectURIs, User
from flask_atm.testing.provider_rules import Rules
from flask_atm.testing.provider_server import describe
from flask_atm.testing.provider_storage import Storage
from flask_atm.testing.provider_tokens import make_logout_token, new_key
from flask_atm.testing.provider_views import ENDPOINTS, create_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

    from flask_atm.protocols import Clock

__all__ = ["FakeProvider"]

_USERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "alice": {"name": "Alice Adams", "given_name": "Alice", "family_name": "Adams"},
    "bob": {"name": "Bob Brown", "given_name": "Bob", "family_name": "Brown"},
}


class FakeProvider(FakeServer):
    """An OpenID provider on 127.0.0.1, on threads of its own; a context manager.

    ::

        with FakeProvider() as provider:
            app.config.update(provider.settings())

    Code flow with PKCE, rotating refresh tokens with reuse detection, client credentials,
    resource indicators, userinfo, introspection, revocation and RP-initiated logout, as a correct
    server does them. Every loopback redirect URI is registered. Thread-safe; all is forgotten
    with the object.

    :param users: claims by subject, Alice and Bob if left out; the first one signs in.
    :param clock: epoch seconds for all lifetimes, such as a :class:`FakeClock`.
    :param expires_in: seconds that an access token lives.
    :param lifetimes: the same by resource or audience.
    :param scopes: the scopes there are beside those of OpenID Connect; any if left out.
    :param resources: the resources there are; any if left out.
    :param rotation: ``False``: refresh tokens stay as they are.
    :param refresh_tokens: ``False``: there are none, even with ``offline_access``.
    :param auto_approve: ``False``: a sign-in page asks who it is.
    :param redirect_uris: further redirect URIs, for sign-in and logout.
    :param port: the port; chosen by the system if left out.
    """

    def __init__(
        self,
        *,
        users: Mapping[str, Mapping[str, Any]] | None = None,
        clock: "Clock" = time.time,
        expires_in: float = 300,
        lifetimes: Mapping[str, float] | None = None,
        scopes: Iterable[str] | None = None,
        resources: Iterable[str] | None = None,
        rotation: bool = True,
        refresh_tokens: bool = True,
        auto_approve: bool = True,
        redirect_uris: Iterable[str] = (),
        port: int = 0,
    ) -> None:
        super().__init__(self._serve, port=port)
        people = [
            _user(sub, claims) for sub, claims in (_USERS if users is None else users).items()
        ]
        #: How the provider behaves: the arguments by their names, which may be changed.
        self.rules = Rules(
            expires_in=expires_in,
            lifetimes=dict(lifetimes or {}),
            refresh_tokens=refresh_tokens,
            rotation=rotation,
            scopes=None if scopes is None else tuple(scopes),
            resources=None if resources is None else tuple(resources),
            auto_approve=auto_approve,
            user=people[0].sub if people else "",
        )
        self._redirect_uris = RedirectURIs(frozenset(redirect_uris))
        self._storage = Storage(self.rules, people, clock)
        self._requests: list[ProviderRequest] = []
        self._secret_key = secrets.token_urlsafe(32)
        self._key = new_key()
        self._app: Flask | None = None

    @property
    def issuer(self) -> str:
        """The issuer identifier: ``http://127.0.0.1:port``."""
        return self._http.url

    def settings(self, **config: Any) -> dict[str, Any]:
        """Register an application and give its configuration.

        :param config: further keys, such as ``ATM_SCOPE``, which win; with ``ATM_CLIENT_ID`` it
            is another application, with ``ATM_CLIENT_AUTH="none"`` a public one.
        """
        client_id = str(config.get("ATM_CLIENT_ID", "flask-app"))
        public = config.get("ATM_CLIENT_AUTH") == "none"
        secret = config.get("ATM_CLIENT_SECRET", self._secret_of(client_id))
        secret = None if public else str(secret() if callable(secret) else secret)
        self.register(client_id, secret)
        return {
            "SECRET_KEY": self._secret_key,
            "ATM_ISSUER": self.issuer,
            "ATM_CLIENT_ID": client_id,
            **({} if public else {"ATM_CLIENT_SECRET": secret}),
            "ATM_STORE": "memory",
            **config,
        }

    def _secret_of(self, client_id: str) -> str:
        client = self._storage.clients.get(client_id)
        return (client and client.secret) or secrets.token_urlsafe(32)

    def register(self, client_id: str, client_secret: str | None) -> None:
        """Register an application; without a secret it is a public one."""
        self._storage.clients[client_id] = Client(
            client_id=client_id, secret=client_secret, redirect_uris=self._redirect_uris
        )

    def approve(self, url: str, user: str | None = None) -> str:
        """Do what a browser and its user do at an authorization URL; give the callback URL.

        :param user: the subject of who signs in; one who does not exist declines.
        :raises ValueError: the provider shows an error instead.
        """
        answer = self._flask().test_client().post(url, data={"user": user or self.rules.user})
        if answer.location is None:
            raise ValueError(f"the provider refuses this: {answer.status}")
        return answer.location

    def fail(
        self,
        *,
        status: int | None = 503,
        times: int | None = 1,
        endpoint: str = "token",
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
        processed: bool = False,
    ) -> None:
        """Let the next requests fail.

        :param status: the status of the answer; ``None``: the connection is cut without one;
            200 without a body: the right answer, late by ``delay``.
        :param times: how many of them; ``None``: until :meth:`recover`.
        :param endpoint: as in :class:`ProviderRequest`.
        :param body: text, or what is sent as JSON: ``{"error": "invalid_grant"}``.
        :param headers: further headers of the answer.
        :param delay: seconds to wait before the answer.
        :param processed: the request takes effect, only its answer is lost.
        """
        self._faults.add(
            Fault(
                endpoint=_known(endpoint),
                status=status,
                times=times,
                body=body,
                headers=headers or {},
                delay=delay,
                processed=processed,
            )
        )

    def hold(self, endpoint: str = "token") -> Hold:
        """Hold back the answers of an endpoint: the requests take effect, their callers wait.

        ::

            with provider.hold() as held:
                …                # somebody refreshes, in another thread
                held.wait()      # its request is there
        """
        return self._faults.hold(_known(endpoint))

    @property
    def requests(self) -> list[ProviderRequest]:
        """All requests so far, in the order of their answers."""
        return self._requests.copy()

    def count(self, grant_type: str | None = None, *, endpoint: str = "token") -> int:
        """Count the requests of an endpoint, of all grant types or of one."""
        return sum(
            seen.endpoint == _known(endpoint) and grant_type in {None, seen.grant_type}
            for seen in self.requests
        )

    @property
    def replays(self) -> int:
        """How often a spent refresh token was sent again, and its whole family revoked."""
        return self._storage.replays

    def introspect(self, token: str) -> dict[str, Any]:
        """Give what the introspection endpoint says about a token (RFC 7662)."""
        found = self._storage.tokens.get(token)
        return describe(found, self.issuer) if found and found.active else {"active": False}

    def revoke(self, token: str) -> None:
        """Revoke one token; with a refresh token all that came from its sign-in."""
        found = self._storage.tokens.get(token)
        if found is not None:
            found.revoke()

    def revoke_all(self) -> None:
        """Revoke all tokens and end all sessions: everybody has to sign in again."""
        self._storage.revoke_all()

    def expire_tokens(self) -> None:
        """Let all access tokens expire now, whatever was said about their lifetime."""
        self._storage.expire_access_tokens()

    def logout_token(
        self, *, client_id: str = "flask-app", sub: str | None = None, sid: str | None = None
    ) -> str:
        """Make a token that ends sign-ins by OpenID Connect Back-Channel Logout 1.0."""
        named = {name: value for name, value in (("sub", sub), ("sid", sid)) if value is not None}
        return make_logout_token(self._key, self.issuer, client_id, self._storage.clock(), named)

    def backchannel_logout(
        self,
        client: "FlaskClient",
        *,
        sub: str | None = None,
        sid: str | None = None,
        client_id: str = "flask-app",
        path: str = "/oidc/backchannel-logout",
    ) -> "TestResponse":
        """Tell an application that a session has ended, as a provider does.

        :param client: a test client of the application; whose, makes no difference.
        :param sub: whose sign-ins end.
        :param sid: the session whose sign-ins end, if it is one only.
        :param client_id: of the application.
        :param path: where the application takes such tokens.
        :returns: its answer: 200, or 400 if it refuses.
        """
        token = self.logout_token(client_id=client_id, sub=sub, sid=sid)
        return client.post(path, data={"logout_token": token})

    def _serve(self, environ: "WSGIEnvironment", start: "StartResponse") -> "Iterable[bytes]":
        return self._flask()(environ, start)

    def _flask(self) -> Flask:
        with self._storage.lock:
            if self._app is None:
                self._app = create_app(self._storage, self.issuer, self._key)
                install(self._app, self._faults, self._record)
            return self._app

    def _record(self, status: int | None) -> None:
        self._requests.append(describe_request(status, self._storage.clock()))


def _user(sub: str, claims: Mapping[str, Any]) -> User:
    usual = {
        "preferred_username": sub,
        "email": f"{sub}@example.com",
        "email_verified": True,
    }
    return User(sub=sub, claims={**usual, **claims})


def _known(endpoint: str) -> str:
    if endpoint not in ENDPOINTS:
        raise ValueError(f"{endpoint!r} is no endpoint: choose from {', '.join(ENDPOINTS)}")
    return endpoint
