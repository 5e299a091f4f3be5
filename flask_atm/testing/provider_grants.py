"""The grants of the fake provider, and what they demand."""

from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749 import InvalidRequestError
from authlib.oauth2.rfc6749.grants import (
    AuthorizationCodeGrant,
    ClientCredentialsGrant,
    RefreshTokenGrant,
)
from authlib.oauth2.rfc7636 import CodeChallenge

from flask_atm.testing.provider_records import Client, Code, Grant, Session, Token
from flask_atm.testing.provider_storage import Storage

__all__ = [
    "AUTH_METHODS",
    "ClientGrant",
    "CodeGrant",
    "RefreshGrant",
    "ResourcesChecked",
    "S256Required",
]

#: How clients authenticate.
AUTH_METHODS: Final = ["client_secret_basic", "client_secret_post", "none"]


class InvalidTargetError(OAuth2Error):  # type: ignore[misc]
    """The resource is unknown or was not granted (RFC 8707)."""

    error = "invalid_target"
    description = "The requested resource is invalid, unknown, malformed or was not granted."


class TokenAnswer(dict[str, Any]):
    """A token response that Authlib may log: its tokens do not show."""

    def __repr__(self) -> str:
        return "<token response>"


class Targeted:
    """A grant whose access token is for the resources and the audience that were asked for."""

    TOKEN_ENDPOINT_AUTH_METHODS = AUTH_METHODS
    request: Any
    server: Any

    def validate_token_request(self) -> None:
        super().validate_token_request()  # type: ignore[misc]
        source: Code | Token | None = self.request.authorization_code or self.request.refresh_token
        self.request.audience = self._audience(source.grant if source else None)

    def _audience(self, grant: Grant | None) -> tuple[str, ...]:
        granted = grant.resources if grant else ()
        asked = _resources(self.request)
        _check_resources(asked, granted or self.server.storage.rules.resources)
        audience = self.request.payload.data.get("audience")
        return (asked or granted) + ((audience,) if audience else ())

    def generate_token(self, **options: Any) -> TokenAnswer:
        lifetime = self.server.storage.rules.lifetime(self.request.audience)
        answer = super().generate_token(**{**options, "expires_in": lifetime})  # type: ignore[misc]
        return TokenAnswer(answer)


def _resources(request: Any) -> tuple[str, ...]:
    return tuple(request.payload.datalist.get("resource", ()))


def _check_resources(asked: Iterable[str], known: Iterable[str] | None) -> None:
    for uri in asked:
        parts = urlsplit(uri)
        if not parts.scheme or "#" in uri or (known is not None and uri not in known):
            raise InvalidTargetError


class CodeGrant(Targeted, AuthorizationCodeGrant):  # type: ignore[misc]
    """RFC 6749, section 4.1."""

    @staticmethod
    def validate_authorization_redirect_uri(request: Any, client: Client) -> str:
        uri: str | None = request.payload.redirect_uri
        if uri is None or not client.check_redirect_uri(uri):
            raise InvalidRequestError("The redirect_uri is missing, or not one of the client's.")
        return uri

    def save_authorization_code(self, code: str, request: Any) -> None:
        data = request.payload.data
        grant = Grant(
            client=request.client,
            session=request.user,
            scope=request.scope,
            resources=_resources(request),
            nonce=data.get("nonce"),
            acr=data.get("acr_values", "").partition(" ")[0] or None,
        )
        storage: Storage = self.server.storage
        storage.add_code(code, grant, request.payload.redirect_uri, data["code_challenge"])

    def query_authorization_code(self, code: str, client: Client) -> Code | None:
        return self.server.storage.use_code(code, client)  # type: ignore[no-any-return]

    def delete_authorization_code(self, authorization_code: Code) -> None:
        authorization_code.used = True

    def authenticate_user(self, authorization_code: Code) -> Session:
        return authorization_code.grant.session

    def generate_token(self, **options: Any) -> TokenAnswer:
        rules = self.server.storage.rules
        offline = "offline_access" in (options["scope"] or "").split()
        return super().generate_token(
            **{**options, "include_refresh_token": offline and rules.refresh_tokens}
        )


class RefreshGrant(Targeted, RefreshTokenGrant):  # type: ignore[misc]
    """RFC 6749, section 6, with rotation and reuse detection (RFC 9700, section 4.14)."""

    def authenticate_refresh_token(self, refresh_token: str) -> Token | None:
        return self.server.storage.use_refresh_token(refresh_token)  # type: ignore[no-any-return]

    def authenticate_user(self, refresh_token: Token) -> Session | None:
        return refresh_token.get_user()

    def generate_token(self, **options: Any) -> TokenAnswer:
        rotation = self.server.storage.rules.rotation
        return super().generate_token(**{**options, "include_refresh_token": rotation})

    def revoke_old_credential(self, refresh_token: Token) -> None:
        refresh_token.used = self.server.storage.rules.rotation


class ClientGrant(Targeted, ClientCredentialsGrant):  # type: ignore[misc]
    """RFC 6749, section 4.4."""


class S256Required(CodeChallenge):  # type: ignore[misc]
    """PKCE (RFC 7636), never without."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        super().validate_code_challenge(grant, redirect_uri)
        data = grant.request.payload.data
        if data.get("code_challenge_method") != "S256" or not data.get("code_challenge"):
            raise InvalidRequestError("PKCE is required: code_challenge_method is S256.")


class ResourcesChecked:
    """The resources of an authorization request have to exist (RFC 8707)."""

    def __call__(self, grant: Any) -> None:
        grant.register_hook("after_validate_authorization_request_payload", self._check)

    def _check(self, grant: Any, result: None) -> None:
        _check_resources(_resources(grant.request), grant.server.storage.rules.resources)
