"""The protocol of the fake provider: Authlib's authorization server over :class:`Storage`."""

from typing import Any, Final
from urllib.parse import unquote_plus

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oauth2.rfc9207 import IssuerParameter
from flask import Flask
from werkzeug.datastructures import Authorization

from flask_atm.testing.provider_grants import (
    AUTH_METHODS,
    ClientGrant,
    CodeGrant,
    RefreshGrant,
    ResourcesChecked,
    S256Required,
)
from flask_atm.testing.provider_records import Client, Code, Token
from flask_atm.testing.provider_storage import Storage
from flask_atm.testing.provider_tokens import RefreshedToken, SigningKey, SignInToken

__all__ = ["SCOPES", "Issuer", "Server", "describe"]

#: The scopes of OpenID Connect.
SCOPES: Final = ("openid", "profile", "email", "phone", "address", "offline_access")


class Issuer(IssuerParameter):  # type: ignore[misc]
    """Puts the issuer into authorization responses (RFC 9207)."""

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer

    def get_issuer(self) -> str:
        return self._issuer


class Server(AuthorizationServer):  # type: ignore[misc]
    """Authlib's server with all grants and endpoints of the fake provider.

    :param issuer: the issuer identifier.
    :param key: signs ID tokens with ES256.
    """

    def __init__(self, app: Flask, storage: Storage, issuer: str, key: SigningKey) -> None:
        self.storage = storage
        self.issuer = issuer
        self.key = key
        app.config["OAUTH2_REFRESH_TOKEN_GENERATOR"] = True
        super().__init__(app, query_client=storage.clients.get, save_token=self._remember)
        self.register_client_auth_method("client_secret_basic", _authenticate_basic)
        self.register_grant(CodeGrant, [S256Required(), ResourcesChecked(), SignInToken(self)])
        self.register_grant(RefreshGrant, [RefreshedToken(self)])
        self.register_grant(ClientGrant)
        self.register_endpoint(Revocation)
        self.register_endpoint(Introspection)
        Issuer(issuer)(self)

    def validate_requested_scope(self, scope: str | None) -> None:
        known = self.storage.rules.scopes
        self.scopes_supported = known and (*SCOPES, *known)
        super().validate_requested_scope(scope)

    def _remember(self, answer: dict[str, Any], request: Any) -> None:
        storage: Storage = self.storage
        now = storage.clock()
        source: Code | Token | None = request.authorization_code or request.refresh_token
        common: dict[str, Any] = {
            "client": request.client,
            "grant": source.grant if source else None,
            "issued_at": now,
            "clock": storage.clock,
        }
        storage.add_token(
            Token(
                value=answer["access_token"],
                kind="access_token",
                scope=answer.get("scope", ""),
                audience=request.audience,
                expires_at=now + answer["expires_in"],
                **common,
            )
        )
        if source and "refresh_token" in answer:
            lifetime = storage.rules.refresh_expires_in
            storage.add_token(
                Token(
                    value=answer["refresh_token"],
                    kind="refresh_token",
                    scope=source.get_scope(),
                    audience=(),
                    expires_at=None if lifetime is None else now + lifetime,
                    **common,
                )
            )


def _authenticate_basic(query_client: Any, request: Any) -> Client | None:
    """Check credentials that are form-encoded (RFC 6749, 2.3.1): to Authlib a plus is a plus."""
    given = Authorization.from_header(request.headers.get("Authorization"))
    if given is None or given.type != "basic":
        return None
    client: Client | None = query_client(unquote_plus(given.username or ""))
    secret = unquote_plus(given.password or "")
    return client if client and client.check_client_secret(secret) else None


class Revocation(RevocationEndpoint):  # type: ignore[misc]
    """RFC 7009."""

    CLIENT_AUTH_METHODS = AUTH_METHODS

    def query_token(self, token_string: str, token_type_hint: str | None) -> Token | None:
        return self.server.storage.tokens.get(token_string)  # type: ignore[no-any-return]

    def revoke_token(self, token: Token, request: Any) -> None:
        token.revoke()


class Introspection(IntrospectionEndpoint):  # type: ignore[misc]
    """RFC 7662, for every client that has a secret."""

    CLIENT_AUTH_METHODS = AUTH_METHODS[:2]

    def query_token(self, token_string: str, token_type_hint: str | None) -> Token | None:
        token: Token | None = self.server.storage.tokens.get(token_string)
        return token if token and token.active else None

    def check_permission(self, token: Token, client: Client, request: Any) -> bool:
        return True

    def introspect_token(self, token: Token) -> dict[str, Any]:
        return describe(token, self.server.issuer)


def describe(token: Token, issuer: str) -> dict[str, Any]:
    """Give what introspection says about a token that is good."""
    session = token.get_user()
    description = {
        "active": True,
        "iss": issuer,
        "client_id": token.client.client_id,
        "sub": session.user.sub if session else token.client.client_id,
        "username": session.user.claims.get("name") if session else None,
        "scope": token.scope,
        "aud": list(token.audience) or None,
        "iat": int(token.issued_at),
        "exp": None if token.expires_at is None else int(token.expires_at),
        "token_type": "Bearer" if token.kind == "access_token" else None,
    }
    return {name: value for name, value in description.items() if value is not None}
