"""The configuration: ``ATM_*`` keys of a Flask application, read once into frozen dataclasses.

Every problem is found before one :exc:`~flask_atm.ConfigurationError` is raised; each names the
key and the cure, none repeats a secret. Nothing here touches the network.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

from flask_atm.config.keys import (
    ApplicationKeys,
    ClientConfig,
    ProviderConfig,
    Registration,
)
from flask_atm.config.reading import Section, fields_of
from flask_atm.config.ring import ring_of, to_bytes
from flask_atm.config.rules import (
    one_of,
    read_api,
    read_back_channel,
    read_client,
    read_provider,
    refuse_http,
)
from flask_atm.config.values import refuse_not_yet
from flask_atm.errors import ConfigurationError
from flask_atm.settings import is_loopback
from flask_atm.tokens import FrozenDict

__all__ = ["FLAT", "KEYS", "Config", "Key", "client_from", "provider_from"]

#: The name of the provider that the flat keys configure.
FLAT: Final = "oidc"

# One of these makes a provider; the other flat keys alone were meant for another one.
_IDENTITY: Final = (
    *("issuer", "metadata_url", "authorization_endpoint", "token_endpoint"),
    *("client_id", "client_secret"),
)

_log: Final = logging.getLogger("flask_atm.config")


class Key(NamedTuple):
    """A key of the configuration, for the documentation.

    :param name: such as ``ATM_ISSUER``.
    :param where: ``P`` per provider, ``C`` per client too, ``A`` application.
    :param meaning: a few words.
    """

    name: str
    where: str
    meaning: str


def _keys() -> Iterator[Key]:
    common = {one.name for one in fields_of(Registration)}
    for kind, where in ((ProviderConfig, "P"), (ApplicationKeys, "A")):
        for one in fields_of(kind):
            scope = "PC" if kind is ProviderConfig and one.name in common else where
            yield Key(f"ATM_{one.name.upper()}", scope, one.metadata["meaning"])
            if one.metadata["file"]:
                yield Key(f"ATM_{one.name.upper()}_FILE", scope, "the same, from a file")


#: Every key there is, in the order of their declaration.
KEYS: Final = tuple(_keys())


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ApplicationKeys):
    """The configuration of one application. Frozen; may be shared between threads.

    The fields are named like the keys, in lower case and without ``ATM_``.
    """

    @classmethod
    def load(
        cls,
        values: Mapping[str, object],
        *,
        debug: bool,
        testing: bool,
        has_provider_loader: bool = False,
        has_client_loader: bool = False,
        has_store: bool = False,
    ) -> Self:
        """Read the configuration of an application.

        :param values: ``app.config``.
        :param debug: ``app.debug``; here and when testing, weak keys are accepted.
        :param testing: ``app.testing``.
        :param has_provider_loader: providers that are not configured may be named.
        :param has_client_loader: clients that are not configured may be named.
        :param has_store: the application brings a store of its own, which needs keys.
        :raises ConfigurationError: with every problem there is.
        """
        problems: list[str] = []
        top = Section.of_application(values, problems)
        flask = Section.of_flask(values, problems)
        del values  # A traceback with local variables would show its secrets.
        top.refuse_unknown(ApplicationKeys, ProviderConfig)
        refuse_not_yet(top)
        found = top.read(ApplicationKeys)
        _read_servers(top, found, any_provider=has_provider_loader)
        _read_apis(top, found, any_provider=has_provider_loader, any_client=has_client_loader)
        signs_in = bool(found["providers"]) or has_provider_loader
        found.setdefault("store", "sqlite" if signs_in else "memory")
        found["encryption_keys"] = ring_of(
            found.get("encryption_keys", ()),
            top,
            flask,
            signs_in=signs_in,
            seals=has_store or found["store"] != "memory",
            strict=not (debug or testing),
        )
        if problems:
            raise ConfigurationError(problems)
        config = cls(**found)
        _warn(config)
        return config

    @property
    def ring_secrets(self) -> tuple[bytes, ...]:
        """The secrets of the key ring, the one that seals first.

        Empty where nothing has to be sealed beyond the process.
        """
        return tuple(map(to_bytes, self.encryption_keys))


def provider_from(name: str, mapping: Mapping[str, object], config: Config) -> ProviderConfig:
    """Read what a provider loader returned, by the rules of ``ATM_PROVIDERS``.

    :raises ConfigurationError: with every problem there is.
    """
    problems: list[str] = []
    section = Section.of_loader("provider_loader", name, mapping, problems)
    del mapping  # A traceback with local variables would show its secrets.
    section.refuse_unknown(ProviderConfig)
    provider = read_provider(section, name, config.back_channel.allowed_http_hosts)
    if problems:
        raise ConfigurationError(problems)
    return provider


def client_from(name: str, mapping: Mapping[str, object], config: Config) -> ClientConfig:
    """Read what a client loader returned, by the rules of ``ATM_CLIENTS``.

    A client of a provider that is not in ``config`` still has to be completed by
    :meth:`ClientConfig.at`.

    :raises ConfigurationError: with every problem there is.
    """
    problems: list[str] = []
    section = Section.of_loader("client_loader", name, mapping, problems)
    del mapping  # A traceback with local variables would show its secrets.
    client = read_client(
        section, name, config.back_channel.allowed_http_hosts, config.providers, any_provider=True
    )
    if problems:
        raise ConfigurationError(problems)
    return client


def _read_servers(top: Section, found: dict[str, Any], *, any_provider: bool) -> None:
    """Read the back channel, the providers and the clients."""
    found["back_channel"] = read_back_channel(top.child("back_channel"))
    hosts = found["back_channel"].allowed_http_hosts
    refuse_http(top, "external_url", found.get("external_url"), hosts)
    providers = found["providers"] = FrozenDict(_providers(top, hosts))
    found["clients"] = FrozenDict(
        (name, read_client(section, name, hosts, providers, any_provider=any_provider))
        for name, section in top.child("clients").children()
    )
    one_of(
        top, "default_provider", found.get("default_provider"), None if any_provider else providers
    )
    if not top.has("default_provider") and (FLAT in providers or len(providers) == 1):
        found["default_provider"] = FLAT if FLAT in providers else next(iter(providers))


def _providers(top: Section, hosts: tuple[str, ...]) -> Iterator[tuple[str, ProviderConfig]]:
    flat = top.set_keys(ProviderConfig)
    if set(_IDENTITY).intersection(flat):
        yield FLAT, read_provider(top, FLAT, hosts)
    else:
        for low in flat:
            top.problem(
                low,
                f"a key of one provider: write {low!r} into its entry of ATM_PROVIDERS, or"
                f" configure the provider {FLAT!r} with ATM_ISSUER and ATM_CLIENT_ID",
            )
    named = top.child("providers")
    for name, section in named.children():
        if name == FLAT and flat:
            named.problem(name, f"the flat keys (ATM_{flat[0].upper()}) configure it too: keep one")
            continue
        section.refuse_unknown(ProviderConfig)
        yield name, read_provider(section, name, hosts)


def _read_apis(
    top: Section, found: dict[str, Any], *, any_provider: bool, any_client: bool
) -> None:
    providers = None if any_provider else found["providers"]
    clients = None if any_client else found["clients"]
    found["apis"] = FrozenDict(
        (name, read_api(section, name, clients=clients, providers=providers))
        for name, section in top.child("apis").children()
    )


def _warn(config: Config) -> None:
    """Say at each start where plain http may go."""
    if hosts := config.back_channel.allowed_http_hosts:
        _log.warning(
            "Plain http is allowed to %s (ATM_BACK_CHANNEL['allowed_http_hosts']):"
            " whoever is on the way can read secrets and tokens.",
            ", ".join(hosts),
        )
    for api in config.apis.values():
        for url in (api.base_url, *api.allowed_origins):
            if urlsplit(url).scheme == "http" and not is_loopback(urlsplit(url).hostname or ""):
                _log.warning(
                    "Tokens may go over plain http to %s (ATM_APIS[%r]):"
                    " whoever is on the way can read them.",
                    url,
                    api.name,
                )
