"""What keys have to say together: a provider, a client, an API that can work.

Each function reads one section and reports what does not fit; what it returns is of use only if
no problem was found.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from flask_atm.config.keys import (
    ENDPOINTS,
    APIConfig,
    BackChannelConfig,
    ClientConfig,
    IDTokenConfig,
    ProviderConfig,
)
from flask_atm.config.reading import Section
from flask_atm.config.values import refuse_not_yet
from flask_atm.settings import is_loopback, origin

__all__ = ["one_of", "read_api", "read_back_channel", "read_client", "read_provider", "refuse_http"]

_PLACES: Final = ("issuer", "metadata_url", *ENDPOINTS)
_SECRET: Final = ("client_secret", "client_secret_file")
_SIGN_IN_SCOPE: Final = ("openid", "profile", "email")
_UNKNOWN_ISSUER: Final = "missing: the metadata have to be those of a known issuer"
_TENANTS: Final = re.compile(
    r"[{]|%7b|//(login\.microsoftonline\.(com|us|de)|login\.partner\.microsoftonline\.cn"
    r"|login\.windows\.net|sts\.windows\.net)(:\d+)?/(common|organizations|consumers)(/|$)",
    re.IGNORECASE,
)


def read_back_channel(section: Section) -> BackChannelConfig:
    """Read ``ATM_BACK_CHANNEL``."""
    section.refuse_unknown(BackChannelConfig)
    return BackChannelConfig(**section.read(BackChannelConfig))


def read_provider(section: Section, name: str, http_hosts: Collection[str]) -> ProviderConfig:
    """Read one provider.

    :param section: its keys; unknown ones have been refused.
    :param name: its name.
    :param http_hosts: the hosts that plain http may be spoken to.
    """
    refuse_not_yet(section)
    found = section.read(ProviderConfig)
    id_token = section.child("id_token")
    id_token.refuse_unknown(IDTokenConfig)
    found["id_token"] = IDTokenConfig(**id_token.read(IDTokenConfig))
    if not section.has("scope") and found.get("sign_in", True):
        found["scope"] = _SIGN_IN_SCOPE
    _check_places(section, found, http_hosts)
    _check_registration(section, found)
    _check_sign_in(section, found)
    return ProviderConfig(name=name, **found)


def read_client(
    section: Section,
    name: str,
    http_hosts: Collection[str],
    providers: Mapping[str, ProviderConfig],
    *,
    any_provider: bool,
) -> ClientConfig:
    """Read one client of ``ATM_CLIENTS``.

    :param providers: those that are known; a client of one of them is completed from it.
    :param any_provider: others may be named too, there is a loader.
    """
    section.refuse_unknown(ClientConfig)
    refuse_not_yet(section)
    found = section.read(ClientConfig)
    _check_places(section, found, http_hosts)
    if not section.has("provider"):
        if section.has("metadata_url") and not section.has("issuer"):
            section.problem("issuer", _UNKNOWN_ISSUER)
        elif not section.has("token_endpoint", "issuer"):
            section.problem("token_endpoint", "missing: set it, or issuer, or provider")
        _check_registration(section, found, public_by_default=False)
        return ClientConfig(name=name, **found)
    for low in _PLACES:
        if section.has(low):
            section.problem(low, "the provider has it: remove one of them")
    if section.has("client_id"):
        _check_registration(section, found, public_by_default=False)
    elif section.has(*_SECRET, "client_auth"):
        section.problem(
            "client_id",
            "missing: set it, or remove the rest of the registration to use the provider's",
        )
    client = ClientConfig(name=name, **found)
    one_of(section, "provider", client.provider, None if any_provider else providers)
    server = providers.get(client.provider or "")
    return client.at(server) if server else client


def read_api(
    section: Section,
    name: str,
    *,
    clients: Collection[str] | None,
    providers: Collection[str] | None,
) -> APIConfig:
    """Read one API of ``ATM_APIS``.

    :param clients: the names that may be used; ``None``: any, there is a loader.
    :param providers: the same for providers.
    """
    section.refuse_unknown(APIConfig)
    refuse_not_yet(section)
    api = APIConfig(name=name, **section.read(APIConfig))
    _check_base_url(section, api)
    if section.has("client") and not section.has("token"):
        section.problem("token", 'missing: write "client" to send the token of a client')
    elif api.client and section.raw("token") == "user":
        section.problem("client", f'not used with {section.label("token")} "user": remove one')
    elif api.client and api.provider:
        section.problem("provider", "not used beside a client: remove one of them")
    elif providers is not None and not providers and not section.has("client", "provider"):
        cure = "set client" if api.token == "client" else 'set token to "client" and name a client'
        section.problem("token", f"there is no provider to get it from: {cure}")
    one_of(section, "client", api.client, clients)
    one_of(section, "provider", api.provider, providers)
    return api


def one_of(section: Section, low: str, named: str | None, known: Collection[str] | None) -> None:
    """Report a name that nothing has; ``None`` for ``known``: there is a loader."""
    if named is not None and known is not None and named not in known:
        there = f"there are {', '.join(sorted(known))}" if known else "there are none"
        section.problem(low, f"there is no {named!r}; {there}")


def refuse_http(section: Section, low: str, url: str | None, http_hosts: Collection[str]) -> None:
    """Report plain http that leaves this machine."""
    parts = urlsplit(url or "")
    host = parts.hostname or ""
    if parts.scheme == "http" and not is_loopback(host) and host not in http_hosts:
        section.problem(
            low,
            "plain http: use https, or name the host in ATM_BACK_CHANNEL"
            "['allowed_http_hosts'] (loopback is always allowed)",
        )


def _check_places(section: Section, found: Mapping[str, Any], http_hosts: Collection[str]) -> None:
    for low in _PLACES:
        refuse_http(section, low, found.get(low), http_hosts)
    for low in ("issuer", "metadata_url"):
        if _TENANTS.search(found.get(low, "")):
            section.problem(
                low,
                "stands for many issuers: configure one provider per tenant, with the id of"
                " the tenant instead of common, organizations, consumers or {tenantid}",
            )


def _check_registration(
    section: Section, found: dict[str, Any], *, public_by_default: bool = True
) -> None:
    if not section.has("client_id"):
        section.problem("client_id", "missing: it comes with the registration at the server")
    has_secret = section.has(*_SECRET)
    auth, method = found.get("client_auth", ""), section.label("client_auth")
    if not section.has("client_auth"):
        found["client_auth"] = "client_secret_basic" if has_secret else "none"
        if not has_secret and (section.is_none("client_secret") or not public_by_default):
            section.problem("client_secret", f"missing: set it, or set {method} to none")
    elif auth == "none" and has_secret:
        section.problem("client_secret", f"not used where {method} is none: remove one of them")
    elif auth.startswith("client_secret_") and not has_secret:
        section.problem("client_secret", f"missing: {auth} needs it")


def _check_sign_in(section: Section, found: Mapping[str, Any]) -> None:
    scope = found.get("scope", ())
    if found.get("sign_in", True) and "openid" not in scope and "scope" in found:
        section.problem(
            "scope",
            f"a sign-in needs openid: add it, or set {section.label('sign_in')} to False"
            " for a connected account",
        )
    if found.get("userinfo") and not section.has("issuer", "userinfo_endpoint"):
        section.problem("userinfo_endpoint", "missing: userinfo is read from it")
    if section.has("issuer"):
        return
    if "openid" in scope:
        section.problem("issuer", "missing: ID tokens (scope openid) are checked against it")
    elif section.has("metadata_url"):
        section.problem("issuer", _UNKNOWN_ISSUER)
    elif not (section.has("authorization_endpoint") and section.has("token_endpoint")):
        both = " and ".join(map(section.label, ("authorization_endpoint", "token_endpoint")))
        section.problem("issuer", f"missing: set it, or {both}")


def _check_base_url(section: Section, api: APIConfig) -> None:
    if not section.has("base_url"):
        section.problem("base_url", "missing: the URL that the paths of the calls are appended to")
    parts = urlsplit(api.base_url)
    if parts.scheme != "http" or is_loopback(parts.hostname or ""):
        return
    if origin(f"http://{parts.netloc}") not in api.allowed_origins:
        section.problem(
            "base_url",
            "plain http: use https, or name the origin in allowed_origins"
            " (loopback is always allowed)",
        )
