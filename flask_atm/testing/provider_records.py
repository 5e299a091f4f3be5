"""What the fake provider knows: users, clients, sessions, grants, codes and tokens."""

import hmac
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final, Literal
from urllib.parse import urlsplit

__all__ = [
    "Client",
    "Code",
    "Grant",
    "RedirectURIs",
    "Session",
    "Token",
    "User",
]

#: Claims that are told only under a scope (OpenID Connect Core, section 5.4).
_SCOPED_CLAIMS: Final = {
    "profile": "name family_name given_name middle_name nickname preferred_username profile"
    " picture website gender birthdate zoneinfo locale updated_at",
    "email": "email email_verified",
    "phone": "phone_number phone_number_verified",
    "address": "address",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """Somebody who can sign in.

    :param sub: the subject, and the name by which tests and ``login_hint`` choose the user.
    """

    sub: str
    claims: Mapping[str, Any]

    def claims_for(self, scope: str) -> dict[str, Any]:
        """Give the claims that a scope lets a client see."""
        granted = scope.split()
        hidden = {
            name
            for word, names in _SCOPED_CLAIMS.items()
            if word not in granted
            for name in names.split()
        }
        claims = {name: value for name, value in self.claims.items() if name not in hidden}
        return {**claims, "sub": self.sub}

    def answers_to(self, hint: str) -> bool:
        """Whether a ``login_hint`` means this user."""
        names = (self.sub, self.claims.get("email"), self.claims.get("preferred_username"))
        return hint.lower() in {str(name).lower() for name in names if name}


@dataclass(frozen=True, slots=True)
class RedirectURIs(Container[str]):
    """The redirect URIs of a client: every one on a loopback host, and those named.

    :param named: compared exactly.
    """

    named: frozenset[str] = frozenset()

    def __contains__(self, uri: object) -> bool:
        if not isinstance(uri, str):
            return False
        if uri in self.named:
            return True
        try:
            parts = urlsplit(uri)
            host = parts.hostname or ""
        except ValueError:
            return False
        return parts.scheme in {"http", "https"} and not parts.fragment and _is_loopback(host)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """A registered application; the methods are those that Authlib asks for."""

    client_id: str
    secret: str | None = field(repr=False)
    redirect_uris: RedirectURIs

    def get_default_redirect_uri(self) -> None:
        return None

    def get_allowed_scope(self, scope: str | None) -> str:
        return scope or ""

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri in self.redirect_uris

    def check_client_secret(self, client_secret: str) -> bool:
        return self.secret is not None and hmac.compare_digest(
            self.secret.encode(), client_secret.encode()
        )

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return (method == "none") == (self.secret is None)

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type != "client_credentials" or self.secret is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One browser of one user at the provider: what Authlib knows as the user."""

    sid: str
    user: User
    auth_time: int


@dataclass(kw_only=True, slots=True)
class Grant:
    """What one sign-in gave a client: the family of its tokens."""

    client: Client
    session: Session
    scope: str
    resources: tuple[str, ...] = ()
    nonce: str | None = None
    acr: str | None = None
    revoked: bool = False


@dataclass(kw_only=True, slots=True)
class Code:
    """An authorization code; the methods are those that Authlib asks for."""

    value: str = field(repr=False)
    grant: Grant
    redirect_uri: str
    code_challenge: str
    code_challenge_method: str
    expires_at: float
    used: bool = False

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.grant.scope

    def get_nonce(self) -> str | None:
        return self.grant.nonce

    def get_auth_time(self) -> int:
        return self.grant.session.auth_time

    def get_acr(self) -> str | None:
        return self.grant.acr

    def get_amr(self) -> None:
        return None


@dataclass(kw_only=True, slots=True)
class Token:
    """An access or refresh token; the methods are those that Authlib asks for."""

    value: str = field(repr=False)
    kind: Literal["access_token", "refresh_token"]
    client: Client
    grant: Grant | None
    scope: str
    audience: tuple[str, ...]
    issued_at: float
    expires_at: float | None
    clock: Callable[[], float] = field(repr=False)
    revoked: bool = False
    used: bool = False

    @property
    def active(self) -> bool:
        """Whether it is good now."""
        return not (self.used or self.is_revoked() or self.is_expired())

    def check_client(self, client: Client) -> bool:
        return client.client_id == self.client.client_id

    def get_scope(self) -> str:
        return self.scope

    def is_expired(self) -> bool:
        return self.expires_at is not None and self.clock() >= self.expires_at

    def is_revoked(self) -> bool:
        return self.revoked or (self.grant is not None and self.grant.revoked)

    def get_user(self) -> Session | None:
        return self.grant.session if self.grant else None

    def revoke(self) -> None:
        """End it; a refresh token takes its whole family with it."""
        self.revoked = True
        if self.grant is not None and self.kind == "refresh_token":
            self.grant.revoked = True
