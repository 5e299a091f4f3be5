"""The readers of values that have a meaning here, and the list of what is not built yet."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from json import dumps
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from flask_atm import settings as read
from flask_atm.config.reading import Section
from flask_atm.settings import Invalid
from flask_atm.tokens import FrozenDict, Secret

__all__ = [
    "ALGORITHMS",
    "CLIENT_AUTH",
    "NOT_YET",
    "algorithms",
    "atomic",
    "authorize_params",
    "auto",
    "base_url",
    "cache",
    "client_auth",
    "encryption_keys",
    "external_url",
    "headers",
    "issuer",
    "prefix",
    "private_key",
    "proxy",
    "refuse_not_yet",
    "store",
    "target",
    "token_params",
    "url_prefix",
]

#: What this version does not do yet: key and value (``True``, a pattern, or ``None`` for any).
#: Whoever builds one of these deletes its line.
NOT_YET: Final[tuple[tuple[str, object], ...]] = (
    ("cache", None),
    ("client_assertion_audience", None),
    ("client_auth", "*_jwt"),
    ("client_auth", "*tls_client_auth"),
    ("client_key", None),
    ("client_tls_cert", None),
    ("client_tls_key", None),
    ("dpop", True),
    ("dpop_key", None),
    ("par", True),
    ("request_object", True),
    ("token", "exchange"),
)

ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)

CLIENT_AUTH: Final = (
    *("client_secret_basic", "client_secret_post", "client_secret_jwt", "private_key_jwt"),
    *("tls_client_auth", "self_signed_tls_client_auth", "none"),
)

_STORE: Final = re.compile(
    r"sqlite|memory|sqlite:///.+|(rediss?|(postgresql|mysql|mariadb|sqlite)(\+\w+)?)://.+"
)


def _parameters(*reserved: str) -> read.Read[FrozenDict]:
    """Make a reader of extra request parameters, without those that the protocol sets itself."""

    def read_all(value: object) -> FrozenDict:
        found = read.mapping(read.text)(value)
        # The environment knows capitals only; parameters written in code stay as they are.
        found = FrozenDict({(k.lower() if k.isupper() else k): v for k, v in found.items()})
        if own := sorted(found.keys() & set(reserved)):
            raise Invalid(f"{', '.join(own)}: set by flask-atm itself, remove it")
        return found

    return read_all


#: Read extra parameters of the authorization request.
authorize_params: Final = _parameters(
    *("client_id", "response_type", "redirect_uri", "state", "nonce", "code_challenge"),
    *("code_challenge_method", "dpop_jkt", "request", "request_uri"),
)

#: Read extra parameters of the token request.
token_params: Final = _parameters(
    *("grant_type", "client_id", "client_secret", "client_assertion", "client_assertion_type"),
    *("code", "code_verifier", "redirect_uri", "refresh_token"),
)


def refuse_not_yet(section: Section) -> None:
    """Report what is set and not built yet."""
    for low, refused in NOT_YET:
        value = section.raw(low)
        if value is not None and (refused is None or (refused is True and value is True)):
            section.refuse(low, "not available in this version of flask-atm")
        elif isinstance(refused, str) and isinstance(value, str):
            # Of a URL the scheme alone: the rest may hold a password.
            word = value.partition(":")[0].lower()
            if fnmatchcase(word, refused):
                section.refuse(low, f"{word} is not available in this version of flask-atm")


def auto(value: object) -> bool | Literal["auto"]:
    """Read ``True``, ``False`` or ``"auto"``."""
    return "auto" if value == "auto" else read.boolean(value)


def client_auth(value: object) -> str:
    """Read a method of client authentication."""
    return read.choice(*CLIENT_AUTH)(value)


def atomic(value: object) -> str:
    """Read what names an atomic store."""
    if not isinstance(value, str):
        raise Invalid("has to be a text; a store object goes to ATM(store=…)")
    if value == "session":
        raise Invalid("session is a plain store: name an atomic one, such as redis://host")
    if _STORE.fullmatch(read.text(value)) and not value.endswith(":memory:"):
        return value
    raise Invalid(
        "has to be sqlite, sqlite:///path, redis://host, postgresql://host/database, or memory"
    )


def store(value: object) -> str | FrozenDict:
    """Read what names a store, or the settings of Flask-Caching."""
    if isinstance(value, Mapping):
        return _cache_settings(value)
    if value == "session":
        return "session"
    if not isinstance(value, str):
        raise Invalid("has to be a text, or a mapping with CACHE_TYPE; objects: ATM(store=…)")
    return atomic(value)


def _cache_settings(value: Mapping[object, object]) -> FrozenDict:
    """Read the settings of Flask-Caching; the environment may have changed their case."""
    found = FrozenDict({read.text(name).upper(): one for name, one in value.items()})
    if strange := sorted(name for name in found if not name.startswith("CACHE_")):
        raise Invalid(f"{', '.join(strange)}: no setting of Flask-Caching, which begin with CACHE_")
    if not isinstance(found.get("CACHE_TYPE"), str):
        raise Invalid('needs CACHE_TYPE, the name of a cache of Flask-Caching: "RedisCache"')
    return found


def cache(value: object) -> str | FrozenDict:
    """Read what names a store, or the settings of Flask-Caching."""
    return _cache_settings(value) if isinstance(value, Mapping) else atomic(value)


def private_key(value: object) -> Secret:
    """Read a private key: JWK, PEM or path."""
    return Secret(dumps(dict(value))) if isinstance(value, Mapping) else read.key_material(value)


def prefix(value: object) -> str:
    """Read what stands in front of keys and tables."""
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+", read.text(value)):
        raise Invalid("has letters, digits and . : _ - only")
    return read.text(value)


def issuer(value: object) -> str:
    """Read an issuer identifier (RFC 8414, section 2): one server, compared as it is written."""
    if "?" in read.url(value):
        raise Invalid("must not have a query (?…): no issuer has one")
    return read.text(value)


def base_url(value: object) -> str:
    """Read the URL that relative ones are appended to; it ends in a slash."""
    parts = urlsplit(read.url(value))
    if "?" in read.text(value):
        raise Invalid("has no query: the path of each call is appended to it")
    if {".", ".."} & set(unquote(parts.path).split("/")):
        raise Invalid("has no . or .. in its path")
    return read.text(value).rstrip("/") + "/"


def encryption_keys(value: object) -> tuple[Secret, ...]:
    """Read a list of secrets, or one."""
    if found := read.listed(read.key_material)(value):
        return found
    raise Invalid("is set but empty")


def url_prefix(value: object) -> str:
    """Read where the blueprint is mounted."""
    if not re.fullmatch(r"/([\w.~-]+(/[\w.~-]+)*/?)?", read.text(value), re.ASCII):
        raise Invalid("has to be a path, such as /oidc")
    return read.text(value).rstrip("/") or "/"


def target(value: object) -> str:
    """Read a path of this application, or an endpoint."""
    found = read.text(value)
    # To a browser "//host", and "/\\host" too, is another host.
    if re.fullmatch(r"/(?![/\\])[^\x00-\x20\\]*|[A-Za-z_][\w.-]*", found):
        return found
    raise Invalid("has to be a path of this application, such as /home, or the name of an endpoint")


def external_url(value: object) -> str:
    """Read the base of redirect URIs; it does not end in a slash."""
    if "?" in read.url(value):
        raise Invalid("must not have a query: paths are appended to it")
    return read.text(value).rstrip("/")


def _header(value: object) -> str:
    found = read.text(value)
    if not found.isprintable():
        raise Invalid("has a character that no header has")
    return found


def headers(value: object) -> FrozenDict:
    """Read headers that every call to an API sends."""
    found = read.mapping(_header)(value)
    for header in found:
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", header):
            raise Invalid(f"{header!r} is no name of a header")
        if header.lower() in {"authorization", "dpop", "cookie", "host"}:
            raise Invalid(f"{header} is set by flask-atm itself, or not at all: remove it")
    return found


def proxy(value: object) -> str:
    """Read the URL of a proxy."""
    if not re.fullmatch(r"(https?|socks[45][ah]?)://[!-~]+", read.text(value)):
        raise Invalid("has to be the URL of a proxy, http://proxy:3128")
    return read.text(value)


def algorithms(value: object) -> tuple[str, ...]:
    """Read signature algorithms, asymmetric ones only."""
    found = read.listed(read.choice(*ALGORITHMS))(value)
    if not found:
        raise Invalid("is set but empty")
    return found
