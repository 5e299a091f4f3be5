"""The connections of an application to its APIs: shared by threads, remade after a fork.

Sessions come and go with each request that Flask serves; what is expensive lives here.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter, HTTPAdapter

from flask_atm.calls.exchanges import Exchange, watch_pools
from flask_atm.oauth.watchdog import Watchdog
from flask_atm.settings import is_loopback

__all__ = ["Connections", "Route"]

_MOST_ROUTES: Final = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """How to get to an origin, as the environment said when it was first asked.

    :param proxies: by scheme; empty where ``NO_PROXY`` names the host.
    :param verify: a CA bundle, or ``True`` for the usual one.
    """

    proxies: dict[str, str]
    verify: str | bool


class Connections:
    """Adapters, shared per session class, and routes, looked up once per origin.

    Thread-safe. One per application, and per setting of an API that differs.

    :param pool_size: idle connections kept per host.
    :param ca_bundle: the path of a CA bundle, instead of the environment's.
    :param proxies: by scheme, instead of the environment's.
    """

    def __init__(
        self,
        *,
        pool_size: int = 10,
        ca_bundle: str | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> None:
        self._pool_size = pool_size
        self._ca_bundle = ca_bundle
        self._proxies = None if proxies is None else dict(proxies)
        self._adapters: dict[type, Mapping[str, BaseAdapter]] = {}
        self._routes: dict[str, Route] = {}
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._watchdog = Watchdog()
        self._pid = os.getpid()

    def adapters(
        self, session_class: type, mounted: Mapping[str, BaseAdapter] | None = None
    ) -> Mapping[str, BaseAdapter]:
        """Give the shared adapters of a class by URL prefix, the longest first.

        :param mounted: what the constructor of a session of this class has mounted. The first
            one of each prefix becomes the shared one.
        """
        shared = self._adapters.get(session_class)
        if shared is not None and (not mounted or mounted.keys() <= shared.keys()):
            return shared
        with self._lock:
            shared = self._adapters.get(session_class)
            found = self._defaults() | dict(mounted or {}) | dict(shared or {})
            for adapter in found.values():
                _watch(adapter)
            ordered = sorted(found.items(), key=lambda item: -len(item[0]))
            self._adapters[session_class] = MappingProxyType(dict(ordered))
            return self._adapters[session_class]

    def _defaults(self) -> dict[str, BaseAdapter]:
        return {
            prefix: _Adapter(pool_maxsize=self._pool_size) for prefix in ("https://", "http://")
        }

    def route(self, origin: str) -> Route:
        """Give the proxies and the CA bundle for an origin."""
        route = self._routes.get(origin)
        if route is None:
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.clear()
            route = self._routes[origin] = self._look_up(origin)
        return route

    def _look_up(self, origin: str) -> Route:
        found = requests.Session().merge_environment_settings(origin, {}, None, None, None)
        proxies = found["proxies"] if self._proxies is None else self._proxies
        if self._proxies is None and is_loopback(urlsplit(origin).hostname or ""):
            proxies = {}  # the environment's proxy cannot reach the addresses of this machine
        bundle = self._ca_bundle or found["verify"] or True
        # Without TLS it means nothing, but requests would look for the file at each call.
        verify = bundle if origin.startswith("https:") else True
        return Route(proxies=dict(proxies), verify=verify)

    def exchange(self, seconds: float) -> Exchange:
        """Give the context in which one request is sent and answered, within ``seconds``."""
        if self._pid != os.getpid():
            self._remake()
        return Exchange(self._watchdog, monotonic() + seconds)

    def _remake(self) -> None:
        # The sockets belong to the parent too. Its locks may have been held when it forked, so
        # nothing of it is closed or asked: pickling's way in gives an adapter new, empty pools.
        self._start()
        for adapters in self._adapters.values():
            for adapter in adapters.values():
                if isinstance(adapter, HTTPAdapter):
                    adapter.__setstate__(adapter.__getstate__())  # type: ignore[attr-defined]
                    _watch(adapter)

    def close(self) -> None:
        """Close the idle connections; later requests open new ones."""
        for adapters in self._adapters.values():
            for adapter in adapters.values():
                adapter.close()


def _watch(adapter: BaseAdapter) -> None:
    if isinstance(adapter, HTTPAdapter):
        watch_pools(adapter.poolmanager)


class _Adapter(HTTPAdapter):
    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        watch_pools(manager)
        return manager
