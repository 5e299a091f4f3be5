# ruff: noqa: RUF009 -- key() is dataclasses.field() with a reader beside it
"""Every key of the configuration: its field, reader, default and meaning, in one place.

The frozen dataclasses here are what the package reads its settings from; the fields are named
like the keys, in lower case and without ``ATM_``. They hold no state and may be shared between
threads. Secrets are masked in their ``repr``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from flask_atm import settings as read
from flask_atm.config import values as own
from flask_atm.config.reading import key, lines, one_line
from flask_atm.tokens import FrozenDict, Secret

__all__ = [
    "ENDPOINTS",
    "APIConfig",
    "ApplicationKeys",
    "BackChannelConfig",
    "ClientConfig",
    "IDTokenConfig",
    "ProviderConfig",
    "Registration",
]

ENDPOINTS: Final = (
    "authorization_endpoint",
    "token_endpoint",
    "jwks_uri",
    "userinfo_endpoint",
    "revocation_endpoint",
    "introspection_endpoint",
    "end_session_endpoint",
    "pushed_authorization_request_endpoint",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class IDTokenConfig:
    """How ID tokens are checked."""

    algorithms: tuple[str, ...] = key(
        own.algorithms,
        own.ALGORITHMS,
        "signature algorithms that are accepted; asymmetric ones only",
    )
    clock_skew: float = key(read.seconds_or_zero, 60.0, "seconds that clocks may differ")


@dataclass(frozen=True, kw_only=True, slots=True)
class BackChannelConfig:
    """How this application reaches authorization servers."""

    ca_bundle: str | None = key(
        read.path, None, "file or folder of the certificates that are trusted"
    )
    proxies: FrozenDict | None = key(
        read.mapping(own.proxy), None, "proxies by scheme; default: the environment's", masked=True
    )
    allowed_http_hosts: tuple[str, ...] = key(
        read.listed(read.host), (), "hosts that plain http may be spoken to"
    )
    allowed_endpoint_hosts: tuple[str, ...] = key(
        read.listed(read.host), (), "the only hosts of endpoints; default: any"
    )
    pool_size: int = key(read.whole, 10, "connections kept per host")
    max_concurrency: int = key(read.whole, 8, "token requests at once, per process")


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """What this application is at one authorization server: the keys of providers and clients."""

    name: str
    issuer: str | None = key(own.issuer, None, "issuer identifier; metadata are found from it")
    metadata_url: str | None = key(read.url, None, "the metadata document, if it lies elsewhere")
    authorization_endpoint: str | None = key(read.url, None, "instead of the one in the metadata")
    token_endpoint: str | None = key(read.url, None, "instead of the one in the metadata")
    jwks_uri: str | None = key(read.url, None, "instead of the one in the metadata")
    userinfo_endpoint: str | None = key(read.url, None, "instead of the one in the metadata")
    revocation_endpoint: str | None = key(read.url, None, "instead of the one in the metadata")
    introspection_endpoint: str | None = key(read.url, None, "instead of the one in the metadata")
    end_session_endpoint: str | None = key(read.url, None, "instead of the one in the metadata")
    pushed_authorization_request_endpoint: str | None = key(
        read.url, None, "instead of the one in the metadata"
    )
    client_id: str = key(read.text, "", "the id of the registration")
    client_secret: Secret | Callable[[], str] | None = key(
        read.secret_or_callable,
        None,
        "its secret, or a callable that gives it",
        file=one_line,
        masked=True,
    )
    client_auth: str = key(own.client_auth, "none", "how the client authenticates")
    client_key: tuple[Secret, ...] = key(
        read.listed(own.private_key), (), "JWK, PEM or path; a list while rotating"
    )
    client_tls_cert: str | None = key(read.path, None, "certificate for mutual TLS")
    client_tls_key: str | None = key(read.path, None, "its key")
    client_assertion_audience: str = key(read.text, "issuer", "issuer, token_endpoint or a URL")
    scope: tuple[str, ...] = key(read.scope, (), "what is asked for")
    resource: tuple[str, ...] = key(read.listed(read.uri), (), "resource indicators (RFC 8707)")
    audience: str | None = key(read.text, None, "the audience parameter of Auth0 and others")
    token_params: FrozenDict = key(
        own.token_params, FrozenDict(), "extra parameters of every token request", masked=True
    )
    dpop: bool = key(read.boolean, False, "tokens bound to a key (RFC 9449)")
    dpop_key: Secret | None = key(own.private_key, None, "a configured key for it")

    @property
    def endpoints(self) -> FrozenDict:
        """The endpoints that are configured, by their names in the metadata."""
        return FrozenDict({n: found for n in ENDPOINTS if (found := getattr(self, n))})


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderConfig(Registration):
    """An authorization server that users sign in at, or connect accounts of."""

    offline_access: bool | Literal["auto"] = key(own.auto, "auto", "ask for a refresh token")
    authorize_params: FrozenDict = key(
        own.authorize_params, FrozenDict(), "extra parameters of the authorization request"
    )
    par: bool | Literal["auto"] = key(own.auto, "auto", "pushed authorization requests (RFC 9126)")
    request_object: bool = key(read.boolean, False, "signed request objects (RFC 9101)")
    userinfo: bool = key(read.boolean, False, "claims from the userinfo endpoint at sign-in")
    sign_in: bool = key(read.boolean, True, "False: a connected account, not a sign-in")
    client_token_scope: tuple[str, ...] = key(
        read.scope, (), "scope of this provider's client tokens"
    )
    client_token_resource: tuple[str, ...] = key(read.listed(read.uri), (), "resource of the same")
    id_token: IDTokenConfig = key(None, IDTokenConfig(), "how ID tokens are checked")
    revoke_on_logout: bool = key(read.boolean, True, "revoke the refresh token at logout")
    logout_at_provider: bool = key(read.boolean, True, "sign out at the provider too")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientConfig(Registration):
    """A registration for client credentials."""

    provider: str | None = key(
        read.name, None, "the provider whose server, or registration, it uses"
    )

    @property
    def needs_provider(self) -> bool:
        """Whether its provider comes from a loader, so that :meth:`at` has to be called."""
        return self.provider is not None and not (self.issuer or self.token_endpoint)

    def at(self, provider: Registration) -> "ClientConfig":
        """Give this client with the server of a provider, and its registration if it has none."""
        borrowed = ["issuer", "metadata_url", *ENDPOINTS]
        if not self.client_id:
            borrowed += ["client_id", "client_secret", "client_auth", "client_key"]
            borrowed += ["client_tls_cert", "client_tls_key", "client_assertion_audience"]
        return replace(self, **{field: getattr(provider, field) for field in borrowed})


@dataclass(frozen=True, kw_only=True, slots=True)
class APIConfig:
    """An API that is called with tokens."""

    name: str
    base_url: str = key(own.base_url, "", "the URL that relative ones are appended to")
    token: str = key(read.choice("user", "client", "exchange"), "user", "whose token is sent")
    client: str | None = key(read.name, None, "the client whose token it is")
    provider: str | None = key(read.name, None, "the provider that the token comes from")
    scope: tuple[str, ...] | None = key(read.scope, None, "asked for instead of the configured one")
    resource: tuple[str, ...] | None = key(read.listed(read.uri), None, "the same for resources")
    audience: str | None = key(read.text, None, "the same for the audience")
    token_params: FrozenDict = key(
        own.token_params, FrozenDict(), "further parameters of the token request", masked=True
    )
    allowed_origins: tuple[str, ...] = key(
        read.listed(read.origin), (), "further origins that may see it"
    )
    timeout: float | None = key(read.seconds, None, "seconds; default: ATM_API_TIMEOUT")
    headers: FrozenDict = key(own.headers, FrozenDict(), "sent with every call", masked=True)
    ca_bundle: str | None = key(
        read.path, None, "file or folder of the certificates that are trusted"
    )
    pool_size: int = key(read.whole, 10, "connections kept")
    renew_on_401: bool = key(read.boolean, True, "renew the token once where the API refuses it")


@dataclass(frozen=True, kw_only=True, slots=True)
class ApplicationKeys:
    """The keys that are set once per application."""

    user_token_leeway: float = key(read.seconds, 60.0, "seconds before expiry that renewal begins")
    client_token_leeway: float = key(read.seconds, 60.0, "the same for client tokens")
    client_token_local_lifetime: float = key(
        read.seconds_or_zero, 60.0, "seconds without a look at the shared cache"
    )
    default_provider: str | None = key(read.name, None, "where provider= is left out")
    providers: Mapping[str, ProviderConfig] = key(None, FrozenDict(), "providers by name")
    clients: Mapping[str, ClientConfig] = key(
        None, FrozenDict(), "client-credentials clients by name"
    )
    apis: Mapping[str, APIConfig] = key(None, FrozenDict(), "API sessions by name")
    store: str | FrozenDict = key(own.store, "memory", "where sign-ins are kept", masked=True)
    paired_store: str | None = key(
        own.atomic, None, "the atomic store beside a plain one", masked=True
    )
    cache: str | FrozenDict | None = key(
        own.cache, None, "where client tokens are shared", masked=True
    )
    encryption_keys: tuple[Secret, ...] = key(
        own.encryption_keys,
        (),
        "secrets that seal; default: from SECRET_KEY",
        file=lines,
    )
    store_prefix: str = key(own.prefix, "flask_atm", "in front of every key and table")
    grant_lifetime: float = key(read.seconds, 14 * 86400.0, "seconds that a sign-in lasts at most")
    grant_idle_timeout: float | None = key(read.seconds, None, "seconds that it lasts unused")
    token_timeout: float = key(read.seconds, 6.0, "seconds of one token request in all")
    api_timeout: float = key(read.seconds, 10.0, "seconds of one exchange with an API in all")
    back_channel: BackChannelConfig = key(None, BackChannelConfig(), "how servers are reached")
    routes: bool = key(read.boolean, True, "whether the blueprint atm is registered")
    url_prefix: str = key(own.url_prefix, "/oidc", "where its routes are")
    external_url: str | None = key(own.external_url, None, "base of redirect URIs")
    after_login: str = key(own.target, "/", "path or endpoint")
    after_logout: str = key(own.target, "/", "path or endpoint")
