"""What one application has, by name: its providers, its clients, its hooks. Frozen.

Providers and clients are put together at first use, because loaders may know names that the
configuration does not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from flask import Response, current_app

from flask_atm.calls.connections import Connections
from flask_atm.config import client_from, provider_from
from flask_atm.errors import ConfigurationError
from flask_atm.grants.client_tokens import ClientTokens
from flask_atm.grants.single_flight import ProcessLock
from flask_atm.parts import Parts, Provider, issuer_of
from flask_atm.protocols import Customizer
from flask_atm.tokens import Login

__all__ = ["STATE_KEY", "Hooks", "Provider", "State", "current_state"]

STATE_KEY: Final = "atm.state"
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """The callables that the application passed to :class:`~flask_atm.ATM`."""

    customizer: Customizer | None = None
    on_login: Callable[[Login], Response | None] | None = None
    provider_loader: Callable[[str], Mapping[str, Any] | None] | None = None
    client_loader: Callable[[str], Mapping[str, Any] | None] | None = None
    default_provider: Callable[[], str] | None = None
    grant_loader: Callable[[str], str | None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class State(Parts):
    """All that belongs to one application, by name. Thread-safe and fork-safe."""

    hooks: Hooks
    connections: Connections
    api_connections: dict[str, Connections] = field(default_factory=dict)
    #: When something was last said that is not to be said all the time, by ``time.monotonic()``.
    complaints: dict[str, float] = field(default_factory=dict)
    #: The providers whose outboxes a thread drains, by process: whether it has to look again.
    drains: dict[tuple[int, str], bool] = field(default_factory=dict)
    drains_lock: ProcessLock = field(default_factory=ProcessLock, repr=False)
    _providers: dict[str, Provider] = field(default_factory=dict)
    _clients: dict[str, ClientTokens] = field(default_factory=dict)

    # -- names

    def default_provider(self) -> str:
        """Give the name of the provider that is meant where none is named.

        :raises ConfigurationError: there is none, or several.
        """
        hook = self.hooks.default_provider
        name = self.config.default_provider if hook is None else hook()
        if name:
            return name
        known = ", ".join(sorted(self.config.providers))
        raise ConfigurationError(
            f"several providers are configured ({known}): name one, or set ATM_DEFAULT_PROVIDER"
            if known
            else "no provider is configured: set ATM_ISSUER and ATM_CLIENT_ID"
        )

    def provider(self, name: str | None = None) -> Provider:
        """Give a provider, by default the one that is meant where none is named.

        :raises ConfigurationError: there is no such provider.
        """
        name = self.default_provider() if name is None else name
        known = self._providers.get(name)
        if known is not None:
            return known
        config = self.config.providers.get(name)
        if config is None:
            loaded = self._load(self.hooks.provider_loader, name)
            if loaded is None:
                raise _unknown("provider", name, self.config.providers, "ATM_PROVIDERS")
            config = provider_from(name, loaded, self.config)
        return self._providers.setdefault(name, self.make_provider(config))

    def sign_ins_like(self, provider: Provider) -> list[Provider]:
        """Give the providers that sign users in with the same registration as this one."""
        wanted = (issuer_of(provider.config), provider.config.client_id)
        known = {
            **self.config.providers,
            **{one.name: one.config for one in self._providers.values()},
        }
        return [
            self.provider(name)
            for name, config in known.items()
            if config.sign_in and (issuer_of(config), config.client_id) == wanted
        ]

    def client(self, name: str) -> ClientTokens:
        """Give the client-credentials client of this name.

        :raises ConfigurationError: there is no such client.
        """
        known = self._clients.get(name)
        if known is not None:
            return known
        config = self.config.clients.get(name)
        if config is None:
            loaded = self._load(self.hooks.client_loader, name)
            if loaded is None:
                raise _unknown("client", name, self.config.clients, "ATM_CLIENTS")
            config = client_from(name, loaded, self.config)
        if config.needs_provider and config.provider is not None:
            config = config.at(self.provider(config.provider).config)
        return self._clients.setdefault(name, self.make_client(config))

    def _load(
        self, loader: Callable[[str], Mapping[str, Any] | None] | None, name: str
    ) -> Mapping[str, Any] | None:
        # What fails is not remembered: the next call asks again.
        return None if loader is None else loader(name)


def current_state() -> State:
    """Give the state of the current application.

    :raises ConfigurationError: the application has no ATM.
    """
    state = current_app._get_current_object().extensions.get(STATE_KEY)  # type: ignore[attr-defined]
    if not isinstance(state, State):
        raise ConfigurationError("this application has no ATM: call atm.init_app(app)")
    return state


def _unknown(kind: str, name: str, known: Mapping[str, _T], key: str) -> ConfigurationError:
    names = ", ".join(sorted(known)) or "none"
    return ConfigurationError(f"there is no {kind} called {name!r} in {key}; known: {names}")
