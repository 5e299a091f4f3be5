"""What the fake provider signs: ID tokens and logout tokens."""

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from authlib.oidc.core import OpenIDCode, OpenIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from flask_atm.testing.provider_records import Client, Grant, Session

if TYPE_CHECKING:
    from flask_atm.testing.provider_server import Server

__all__ = [
    "ALGORITHM",
    "RefreshedToken",
    "SignInToken",
    "SigningKey",
    "make_logout_token",
    "new_key",
    "own_claims",
]

SigningKey = ECKey

#: How everything is signed: making an RSA key would take longer than all the rest.
ALGORITHM: Final = "ES256"

_ID_TOKEN_LIFETIME: Final = 3600
_LOGOUT_EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"


def new_key() -> SigningKey:
    """Make a signing key."""
    return ECKey.generate_key("P-256", {"alg": ALGORITHM, "use": "sig"}, auto_kid=True)


class _IDToken:
    """What is in an ID token, by the provider's clock."""

    def __init__(self, server: "Server") -> None:
        super().__init__()
        self._server = server

    def resolve_client_private_key(self, client: Client) -> SigningKey:
        return self._server.key

    def get_client_algorithm(self, client: Client) -> str:
        return ALGORITHM

    def get_encode_header(self, client: Client) -> dict[str, Any]:
        return {"alg": ALGORITHM, "kid": self._server.key.kid}

    def get_compatible_claims(self, request: Any) -> dict[str, Any]:
        grant: Grant = (request.authorization_code or request.refresh_token).grant
        now = int(self._server.storage.clock())
        claims = {
            "iss": self._server.issuer,
            "aud": request.client.client_id,
            "iat": now,
            "exp": now + _ID_TOKEN_LIFETIME,
            "auth_time": grant.session.auth_time,
            "sid": grant.session.sid,
        }
        return {**claims, "acr": grant.acr} if grant.acr else claims

    def generate_user_info(self, user: Session, scope: str) -> dict[str, Any]:
        return user.user.claims_for(scope)


class SignInToken(_IDToken, OpenIDCode):  # type: ignore[misc]
    """The ID token of a sign-in, with its nonce."""

    def exists_nonce(self, nonce: str, request: Any) -> bool:
        return False


class RefreshedToken(_IDToken, OpenIDToken):  # type: ignore[misc]
    """The ID token that comes with a refresh (OpenID Connect Core, section 12.2)."""


def make_logout_token(
    key: SigningKey, issuer: str, client_id: str, now: float, named: Mapping[str, str]
) -> str:
    """Make a logout token (OpenID Connect Back-Channel Logout 1.0, section 2.4).

    :param named: ``sub``, ``sid`` or both.
    """
    claims = {
        "iss": issuer,
        "aud": client_id,
        "iat": int(now),
        "exp": int(now) + 120,
        "jti": secrets.token_urlsafe(16),
        "events": {_LOGOUT_EVENT: {}},
        **named,
    }
    return jwt.encode({"alg": ALGORITHM, "kid": key.kid, "typ": "logout+jwt"}, claims, key)


def own_claims(key: SigningKey, issuer: str, id_token: str) -> Mapping[str, Any]:
    """Give the claims of an ID token that is ours, also of an old one; else nothing."""
    try:
        claims = jwt.decode(id_token, key, [ALGORITHM]).claims
    except (JoseError, ValueError):
        return {}
    return claims if claims.get("iss") == issuer else {}
