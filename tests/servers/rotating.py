"""An authorization server in threads of this process, with habits that oidc-provider lacks."""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import unquote_plus

from .faulty import (
    POLL,
    WAIT,
    Behaviour,
    Exchange,
    FaultyServer,
    NotInTimeError,
    Reply,
    Request,
    respond,
)

JSON = dict[str, Any]
INVALID_GRANT = Reply(400, {"error": "invalid_grant"})


@dataclass(frozen=True, kw_only=True)
class AccessTokenInfo:
    """What an access token stands for."""

    subject: str
    audience: str | None
    scope: str
    expires_at: float
    grant: str | None
    revoked: bool = False


@dataclass(kw_only=True)
class TokenGrant:
    """What the server knows of one sign-in."""

    id: str
    subject: str
    scope: str
    resources: tuple[str, ...]
    dead: bool = False
    refresh_token: str | None = None
    access_token: str | None = None


@dataclass(kw_only=True)
class Spent:
    """A refresh token that was used: when, and for which answer."""

    grant: TokenGrant
    at: float
    answer: JSON


Reuse = Literal["kill", "sibling", "allow"]


class RotatingTokenServer(FaultyServer):
    """An authorization server for the refresh token and client credentials grants, with an API.

    ``/token``, ``/revoke``, ``/introspect``, ``/.well-known/openid-configuration`` and ``/api/…``
    (tells whose token it was given). Grants are made by :meth:`issue`; all tokens are opaque.

    :param rotate: a refresh gives a new refresh token; a callable decides at each.
    :param reuse: what a used refresh token does: "kill" the grant; give new tokens and revoke those
        of the "sibling" (WSO2); "allow".
    :param grace: for so many seconds after its use a refresh token gets the same new tokens again.
    :param lifetime: of access tokens, in seconds.
    :param clock: the server's, in seconds since 1970.
    :param bind_resource: a new refresh token is good for the last resource only.
    :param revoke_previous: a refresh revokes the access token before it.
    :param decorate: changes every good answer of the token endpoint (its ``token_type`` …).
    :param latency: seconds before an answer, after processing.
    :param refresh_token_size: characters of a refresh token.

    The attributes may be changed while it runs.
    """

    def __init__(
        self,
        *,
        client_id: str = "app",
        client_secret: str | None = "secret",
        rotate: bool | Callable[[], bool] = True,
        reuse: Reuse = "kill",
        grace: float = 0,
        lifetime: float = 300,
        latency: float = 0,
        bind_resource: bool = False,
        revoke_previous: bool = False,
        refresh_token_size: int = 43,
        decorate: Callable[[JSON], JSON] = lambda answer: answer,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.client_id = client_id
        self.client_secret = client_secret
        self.rotate = rotate
        self.reuse = reuse
        self.grace = grace
        self.lifetime = lifetime
        self.latency = latency
        self.bind_resource = bind_resource
        self.revoke_previous = revoke_previous
        self.refresh_token_size = refresh_token_size
        self.decorate = decorate
        self.clock = clock
        self.replays = 0
        self.graced = 0
        self.refreshes = 0
        self.revocations: list[str] = []
        self.grants: dict[str, TokenGrant] = {}
        self._access_tokens: dict[str, AccessTokenInfo] = {}
        self._refresh_tokens: dict[str, TokenGrant] = {}
        self._spent: dict[str, Spent] = {}
        self._spoilt: deque[Callable[[Reply], Behaviour]] = deque()
        self._holding = False
        self._held: list[threading.Event] = []
        self.always(self._token_endpoint, "/token")
        self.always(respond(self._revoke), "/revoke")
        self.always(respond(self._introspect), "/introspect")
        self.always(respond(self._metadata), "/.well-known/openid-configuration")
        self.always(respond(self._api))

    # -- for the test

    @property
    def token_endpoint(self) -> str:
        """Its URL."""
        return f"{self.url}/token"

    @property
    def token_requests(self) -> list[Request]:
        """The requests to the token endpoint."""
        return [request for request in self.requests if request.path == "/token"]

    def issue(
        self, subject: str, *, scope: str = "openid read", resources: Sequence[str] = ()
    ) -> JSON:
        """Make a grant, as a sign-in would: the token response."""
        with self._changed:
            identifier = secrets.token_hex(8)
            grant = TokenGrant(
                id=identifier, subject=subject, scope=scope, resources=tuple(resources)
            )
            self.grants[identifier] = grant
            return self._new_tokens(grant, next(iter(resources), None), rotate=True)

    def lookup(self, access_token: str) -> AccessTokenInfo | None:
        """What a token stands for, if it is valid now."""
        with self._changed:
            info = self._access_tokens.get(access_token)
            if info is None or info.revoked or info.expires_at <= self.clock():
                return None
            return None if info.grant and self.grants[info.grant].dead else info

    def hold(self) -> None:
        """Process token requests, and keep the answers until :meth:`release`."""
        with self._changed:
            self._holding = True

    def wait_held(self, n: int = 1, timeout: float = WAIT) -> None:
        """Wait until `n` answers are held."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._held) >= n, timeout):
                raise NotInTimeError(len(self._held), n, timeout)

    def release(self, n: int | None = None) -> int:
        """Send the first `n` held answers, or all and hold no more; returns how many."""
        with self._changed:
            self._holding = self._holding and n is not None
            going, self._held = self._held[:n], self._held[len(self._held[:n]) :]
            for event in going:
                event.set()
            return len(going)

    def spoil(self, *changes: Callable[[Reply], Behaviour]) -> None:
        """Process the next token requests, and then do this with their answers::

        server.spoil(lambda reply: Cut(reply=reply), lambda reply: Reply(503))
        """
        with self._changed:
            self._spoilt.extend(changes)

    def kill(self, grant: str | None = None) -> None:
        """Revoke a grant, or all."""
        with self._changed:
            for one in self.grants.values():
                one.dead = one.dead or grant in (None, one.id)

    # -- tokens (all with the lock held)

    def _new_access_token(
        self, subject: str, audience: str | None, scope: str, grant: str | None
    ) -> str:
        token = secrets.token_urlsafe(24)
        self._access_tokens[token] = AccessTokenInfo(
            subject=subject,
            audience=audience,
            scope=scope,
            expires_at=self.clock() + self.lifetime,
            grant=grant,
        )
        return token

    def _revoke_access_token(self, token: str | None) -> None:
        if token in self._access_tokens:
            self._access_tokens[token] = replace(self._access_tokens[token], revoked=True)

    def _new_tokens(self, grant: TokenGrant, audience: str | None, *, rotate: bool) -> JSON:
        if self.revoke_previous:
            self._revoke_access_token(grant.access_token)
        token = self._new_access_token(grant.subject, audience, grant.scope, grant.id)
        grant.access_token = token
        answer = self._answer_with(token, grant.scope)
        if rotate:
            size = self.refresh_token_size
            grant.refresh_token = secrets.token_urlsafe(max(32, size))[:size]
            self._refresh_tokens[grant.refresh_token] = grant
            answer["refresh_token"] = grant.refresh_token
        return answer

    def _answer_with(self, access_token: str, scope: str) -> JSON:
        return {
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": int(self.lifetime),
            "scope": scope,
        }

    def _used_again(self, spent: Spent, audience: str | None) -> Reply:
        if self.clock() < spent.at + self.grace:
            self.graced += 1
            return self._good(spent.answer)
        self.replays += 1
        if self.reuse == "kill":
            spent.grant.dead = True
            return INVALID_GRANT
        if self.reuse == "sibling":
            self._revoke_access_token(spent.answer["access_token"])
            self._refresh_tokens.pop(spent.answer["refresh_token"], None)
        spent.answer = self._new_tokens(spent.grant, audience, rotate=True)
        return self._good(spent.answer)

    def _refresh(self, request: Request) -> Reply:
        token = request.parameter("refresh_token") or ""
        audience = request.parameter("resource")
        grant = self._refresh_tokens.get(token)
        if grant is None or grant.dead:
            return INVALID_GRANT
        if token in self._spent:
            return self._used_again(self._spent[token], audience)
        if audience and audience not in grant.resources:
            return Reply(400, {"error": "invalid_target"})
        rotate = self.rotate() if callable(self.rotate) else self.rotate
        if audience and self.bind_resource:
            grant.resources = (audience,)
        answer = self._new_tokens(grant, audience, rotate=rotate)
        if rotate:
            self._spent[token] = Spent(grant=grant, at=self.clock(), answer=answer)
        self.refreshes += 1
        return self._good(answer)

    def _good(self, answer: JSON) -> Reply:
        return Reply(200, self.decorate(dict(answer)))

    # -- endpoints

    def _client_known(self, request: Request) -> bool:
        scheme, _, value = (request.header("Authorization") or "").partition(" ")
        given = (request.parameter("client_id"), request.parameter("client_secret"))
        if scheme.lower() == "basic":
            name, _, secret = base64.b64decode(value).decode().partition(":")
            given = (unquote_plus(name), unquote_plus(secret))
        return given == (self.client_id, self.client_secret)

    def _process(self, request: Request) -> Reply:
        if not self._client_known(request):
            return Reply(401, {"error": "invalid_client"})
        kind = request.parameter("grant_type")
        if kind == "refresh_token":
            return self._refresh(request)
        if kind == "client_credentials":
            scope = request.parameter("scope") or ""
            token = self._new_access_token(
                self.client_id, request.parameter("resource"), scope, None
            )
            return self._good(self._answer_with(token, scope))
        return Reply(400, {"error": "unsupported_grant_type"})

    def _token_endpoint(self, exchange: Exchange) -> None:
        event = threading.Event()
        with self._changed:
            reply = self._process(exchange.request)
            spoilt = self._spoilt.popleft() if self._spoilt else None
            if self._holding:
                self._held.append(event)
                self._changed.notify_all()
            else:
                event.set()
        while not event.wait(POLL):
            if self.closing.is_set():
                raise ConnectionAbortedError
        exchange.pause(self.latency)
        (spoilt(reply) if spoilt else reply)(exchange)

    def _revoke(self, request: Request) -> Behaviour:
        if not self._client_known(request):
            return Reply(401, {"error": "invalid_client"})
        token = request.parameter("token") or ""
        with self._changed:
            self.revocations.append(token)
            self._revoke_access_token(token)
            if token in self._refresh_tokens:
                self._refresh_tokens[token].dead = True
        return Reply(200)

    def _introspect(self, request: Request) -> Behaviour:
        info = self.lookup(request.parameter("token") or "")
        if info is None or not self._client_known(request):
            return Reply(200, {"active": False})
        found = {"active": True, "sub": info.subject, "aud": info.audience, "scope": info.scope}
        return Reply(200, found | {"exp": int(info.expires_at), "client_id": self.client_id})

    def _metadata(self, request: Request) -> Behaviour:
        return Reply(
            200,
            {
                "issuer": self.url,
                "token_endpoint": self.token_endpoint,
                "revocation_endpoint": f"{self.url}/revoke",
                "introspection_endpoint": f"{self.url}/introspect",
                "authorization_endpoint": f"{self.url}/authorize",
                "jwks_uri": f"{self.url}/jwks",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
                "scopes_supported": ["openid"],
            },
        )

    def _api(self, request: Request) -> Behaviour:
        if not request.path.startswith("/api"):
            return Reply(404)
        _, _, token = (request.header("Authorization") or "").partition(" ")
        info = self.lookup(token)
        if info is None:
            challenge = 'Bearer realm="api", error="invalid_token"'
            return Reply(401, {"error": "invalid_token"}, {"WWW-Authenticate": challenge})
        told = {"sub": info.subject, "aud": info.audience, "scope": info.scope}
        told |= {"grant": info.grant, "path": request.path, "method": request.method}
        return Reply(200, told | {"body_sha256": hashlib.sha256(request.body).hexdigest()})
