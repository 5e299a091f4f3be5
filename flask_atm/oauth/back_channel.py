"""The one way to an authorization server: one safe request at a time.

What ``requests`` does not promise is promised here: a deadline over everything, an answer of
limited size, a body that is whole or an error, no redirects, no repeats, no cookies, no netrc,
strict JSON, and the knowledge whether a byte of the request was written.
"""

import logging
import os
import re
import ssl
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from time import monotonic
from types import MappingProxyType
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies
from urllib3.exceptions import (
    HTTPError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.exceptions import SSLError as TLSError
from urllib3.exceptions import TimeoutError as HTTPTimeout
from urllib3.util import Retry

from flask_atm.errors import ConfigurationError
from flask_atm.oauth.answer import Answer, Failure, Reason, Result
from flask_atm.oauth.deadline import Attempt, Resolve, Resolver, Stop
from flask_atm.oauth.wire import POOLS
from flask_atm.settings import is_loopback

__all__ = ["Answer", "BackChannel", "Failure", "Form", "OwnSession", "Reason", "Result"]

#: Parameters of a request; a list is sent as a repeated parameter.
Form: TypeAlias = Mapping[str, str | Sequence[str]]

_log = logging.getLogger("flask_atm.back_channel")
_BLOCK: Final = 16 * 1024
_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[!-\"$->@-\[\]-~]*)?(?:[?#][!-\[\]-~]*)?"
)


class _Adapter(HTTPAdapter):
    """Connections that share one SSL context; whatever is asked, certificates are verified."""

    def __init__(self, context: ssl.SSLContext, size: int) -> None:
        self._context = context
        super().__init__(pool_connections=size, pool_maxsize=size, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        if not proxy.lower().startswith(("http://", "https://")):
            raise ConfigurationError(
                "The back channel speaks to http and https proxies only: set"
                " ATM_BACK_CHANNEL['proxies'], or name the host in NO_PROXY."
            )
        manager = super().proxy_manager_for(proxy, proxy_ssl_context=self._context, **kwargs)
        manager.pool_classes_by_scheme = POOLS
        return manager

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[Any, Any]:
        place, _ = super().build_connection_pool_key_attributes(request, True, None)
        return place, {"ssl_context": self._context, "cert_reqs": "CERT_REQUIRED"}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave it to the context: loading the bundle again costs 17 ms per connection."""


# -- the back channel


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    scheme: str
    host: str
    port: str
    path: str

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnSession:
    """What ``http_session`` gave: the application's session, or ``None`` for ours."""

    session: requests.Session | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Route:
    """What the settings and the environment say about an origin."""

    proxies: Mapping[str, str]
    bundle: str


class _Process:
    """What a process has of its own: nothing of it survives a fork."""

    def __init__(self, *, resolve: Resolve | None, pool_size: int, max_concurrency: int) -> None:
        self.resolver = Resolver(resolve)
        self.places = threading.Semaphore(max_concurrency)
        self._pool_size = pool_size
        self._lock = threading.Lock()
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._adapters: dict[str, _Adapter] = {}

    def pooled(self, bundle: str) -> _Adapter:
        """Give the adapter that keeps connections."""
        found = self._adapters.get(bundle)
        return found or self._adapters.setdefault(
            bundle, _Adapter(self._context(bundle), self._pool_size)
        )

    def fresh(self, bundle: str) -> _Adapter:
        """Make an adapter for one request."""
        return _Adapter(self._context(bundle), 1)

    def _context(self, bundle: str) -> ssl.SSLContext:
        with self._lock:  # one costs 19 ms, and many may come at the same moment
            if bundle not in self._contexts:
                self._contexts[bundle] = _make_context(bundle)
            return self._contexts[bundle]

    def close(self) -> None:
        for adapter in self._adapters.values():
            adapter.close()


def _make_context(bundle: str) -> ssl.SSLContext:
    where = {"capath" if os.path.isdir(bundle) else "cafile": bundle}
    try:
        return ssl.create_default_context(**where)  # type: ignore[arg-type]
    except OSError as error:
        raise ConfigurationError(
            f"{bundle!r} is no CA bundle ({error}): point ATM_BACK_CHANNEL['ca_bundle'],"
            " REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE to a PEM file or a folder of hashed ones."
        ) from error


class BackChannel:
    """The way to authorization servers, for one application. Thread-safe and fork-safe.

    :param ca_bundle: a PEM file or a folder; ``None``: that of the environment, or certifi's.
    :param proxies: as ``requests`` has them; ``None``: those of the environment, read once per
        origin. Loopback is never reached through a proxy.
    :param allowed_http_hosts: hosts that may be asked without TLS, besides loopback.
    :param allowed_endpoint_hosts: if given, the only hosts that may be asked.
    :param pool_size: how many idle connections are kept per origin.
    :param max_concurrency: how many may have a :meth:`place` at once in a process.
    :param connect_timeout: seconds for name resolution and TCP together.
    :param http_session: gives the application's own session, which is then used with its adapters
        and connections, but without its retries; the deadline is then kept as well as it can be,
        and a :class:`Failure` says "not written" only for failed connects.
    :param resolver: used in place of ``socket.getaddrinfo``.
    """

    def __init__(
        self,
        *,
        ca_bundle: str | None = None,
        proxies: Mapping[str, str] | None = None,
        allowed_http_hosts: Iterable[str] = (),
        allowed_endpoint_hosts: Iterable[str] = (),
        pool_size: int = 10,
        max_concurrency: int = 8,
        connect_timeout: float = 2.0,
        http_session: Callable[[str], requests.Session | None] | None = None,
        resolver: Resolve | None = None,
    ) -> None:
        self._ca_bundle = ca_bundle
        self._proxies = proxies
        self._http_hosts = frozenset(host.lower() for host in allowed_http_hosts)
        self._hosts = frozenset(host.lower() for host in allowed_endpoint_hosts)
        self._pool_size = pool_size
        self._max_concurrency = max_concurrency
        self._connect_timeout = connect_timeout
        self._http_session = http_session
        self._resolver = resolver
        self._routes: dict[str, _Route] = {}
        self._processes: dict[int, _Process] = {}

    def check_url(self, url: str) -> None:
        """Raise :exc:`~flask_atm.ConfigurationError` for a URL that may not be asked."""
        self._target(url)

    def own_session(self, name: str) -> OwnSession:
        """Ask the application for a session of its own: its code may block, so do it in time.

        :param name: of the provider or client.
        """
        return OwnSession(session=self._http_session(name) if self._http_session else None)

    @contextmanager
    def place(self, deadline: float) -> Generator[bool]:
        """Wait for one of the ``max_concurrency`` places of this process.

        :param deadline: the end of the wait by ``time.monotonic()``; gives ``False`` then.
        """
        places = self._here().places
        taken = places.acquire(timeout=max(0.0, deadline - monotonic()))
        try:
            yield taken
        finally:
            if taken:
                places.release()

    def send(
        self,
        method: str,
        url: str,
        *,
        form: Form | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: float,
        fresh: bool = False,
        max_bytes: int = 262144,
        may_write: Callable[[], bool] | None = None,
        name: str = "",
        own: OwnSession | None = None,
    ) -> Result:
        """Send one request, once.

        :param form: sent as ``application/x-www-form-urlencoded``.
        :param deadline: the end of everything, by ``time.monotonic()``.
        :param fresh: use a new connection, so that no failure can come from an old one.
        :param max_bytes: the largest body that is taken, after decompression.
        :param may_write: asked once, after connecting and right before the first byte.
        :param name: of the provider or client, for ``http_session``.
        :param own: what :meth:`own_session` gave, if it was asked before.
        :raises ConfigurationError: the URL is not allowed, or the CA bundle or proxy unusable.
        """
        target = self._target(url)
        session = (own or self.own_session(name)).session
        started = monotonic()
        all_headers = {"Accept-Encoding": "identity", "User-Agent": "flask-atm", **(headers or {})}
        body = None
        if form is not None:
            body = urlencode(form, doseq=True).encode("ascii")
            all_headers["Content-Type"] = "application/x-www-form-urlencoded"
        request = requests.Request(method, url, headers=all_headers, data=body)
        attempt = Attempt(
            self._here().resolver,
            deadline=deadline,
            connect_timeout=self._connect_timeout,
            may_write=may_write,
            max_bytes=max_bytes,
        )
        with attempt:
            if session is None:
                result = self._ask(request, target, attempt, fresh=fresh)
            else:
                result = _ask_session(session, request, attempt, self._connect_timeout)
        _report(method, target, result, monotonic() - started)
        return result

    def close(self) -> None:
        """Close the idle connections of this process; it can be used on."""
        self._here().close()

    def _ask(
        self, request: requests.Request, target: _Target, attempt: Attempt, *, fresh: bool
    ) -> Result:
        route = self._route(target)
        here = self._here()
        if not fresh:
            return _exchange(here.pooled(route.bundle), request, route, attempt)
        request.headers["Connection"] = "close"
        with closing(here.fresh(route.bundle)) as adapter:
            return _exchange(adapter, request, route, attempt)

    def _target(self, url: str) -> _Target:
        found = _URL.fullmatch(url)
        if not found or int(found["port"] or 0) > 65535:
            raise ConfigurationError(
                "An endpoint is no URL like https://host/path: ASCII only, without user name and"
                " password. Correct the provider's endpoints or its metadata."
            )
        scheme, host = found["scheme"].lower(), found["host"].lower().strip("[]")
        if scheme not in ("https", "http"):
            raise ConfigurationError(f"{scheme}://{host}: an endpoint has to be an https URL.")
        if scheme == "http" and not is_loopback(host) and host not in self._http_hosts:
            raise ConfigurationError(
                f"http://{host}: plain http is for loopback only. Use https, or name the host in"
                " ATM_BACK_CHANNEL['allowed_http_hosts'] if the network is your own."
            )
        if self._hosts and host not in self._hosts:
            raise ConfigurationError(
                f"{host}: not in ATM_BACK_CHANNEL['allowed_endpoint_hosts']. Add it there if this"
                " host may get tokens and secrets."
            )
        port = found["port"] or ("443" if scheme == "https" else "80")
        return _Target(scheme=scheme, host=host, port=port, path=found["path"] or "/")

    def _route(self, target: _Target) -> _Route:
        found = self._routes.get(target.origin)
        if found:
            return found
        proxies = self._proxies
        if is_loopback(target.host):
            proxies = {}
        elif proxies is None:
            proxies = get_environ_proxies(f"{target.scheme}://{target.host}:{target.port}")
        variables = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        bundles = (self._ca_bundle, *map(os.environ.get, variables), DEFAULT_CA_BUNDLE_PATH)
        bundle = next(filter(None, bundles))
        return self._routes.setdefault(target.origin, _Route(proxies=proxies, bundle=bundle))

    def _here(self) -> _Process:
        pid = os.getpid()
        here = self._processes.get(pid)
        if here is None:
            made = _Process(
                resolve=self._resolver,
                pool_size=self._pool_size,
                max_concurrency=self._max_concurrency,
            )
            here = self._processes.setdefault(pid, made)
            for other in [known for known in self._processes if known != pid]:
                self._processes.pop(other, None)  # the parent's: its sockets are closed here
        return here


# -- what can go wrong


#: What requests, urllib3 and http.client raise when a request fails.
_BROKEN: Final = (requests.RequestException, HTTPError, HTTPException, OSError, UnicodeError)


def _exchange(
    adapter: _Adapter, request: requests.Request, route: _Route, attempt: Attempt
) -> Result:
    """Send by our own connections: no requests.Session, so none of what it adds."""
    try:
        response = adapter.send(
            request.prepare(),
            stream=True,
            timeout=(attempt.time_left, attempt.time_left),
            proxies=dict(route.proxies),
        )
    except Stop as stop:
        return Failure(written=attempt.written, reason=stop.reason)
    except _BROKEN as error:
        return Failure(written=attempt.written, reason=_reason(error, attempt))
    return _finish(response, attempt)


def _ask_session(
    session: requests.Session,
    request: requests.Request,
    attempt: Attempt,
    connect_timeout: float,
) -> Result:
    """Send by the application's session, which tells less about what happened."""
    if session.verify is False:
        raise ConfigurationError(
            "The session of http_session does not verify certificates: remove verify=False and"
            " set its verify to the CA bundle of the server."
        )
    try:
        attempt.before_write()
    except Stop as stop:
        return Failure(written=False, reason=stop.reason)
    try:
        response = _once(session).request(
            request.method or "GET",
            request.url or "",
            data=request.data,
            headers=dict(request.headers),
            auth=_as_it_is,
            timeout=(min(connect_timeout, attempt.time_left), attempt.time_left),
            allow_redirects=False,
            stream=True,
        )
    except _BROKEN as error:
        unsent = _proof_of_nothing_sent(error)
        return Failure(written=unsent is None, reason=unsent or _reason(error, attempt))
    attempt.hold_response(response)
    return _finish(response, attempt)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Stand where credentials would come from a netrc file."""
    return request


def _once(session: requests.Session) -> requests.Session:
    """Give the application's session, with its connections, but for one single request.

    A copy of its attributes, so that the original keeps its retries and gets no cookies.
    """
    twin: requests.Session = object.__new__(type(session))
    twin.__dict__.update(session.__dict__)
    twin.cookies = session.cookies.copy()
    twin.adapters = dict(session.adapters)
    for prefix, adapter in session.adapters.items():
        if isinstance(adapter, HTTPAdapter):
            patient: HTTPAdapter = object.__new__(type(adapter))
            patient.__dict__.update(adapter.__dict__)
            patient.max_retries = Retry(0, read=False)
            twin.adapters[prefix] = patient
    return twin


def _proof_of_nothing_sent(error: Exception) -> Reason | None:
    """Give the reason why nothing can have been sent; ``None`` where that is not certain."""
    if isinstance(error, requests.ConnectTimeout):
        return "timeout"
    cause = error.args[0] if error.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    if isinstance(cause, NameResolutionError):
        return "dns"
    return "refused" if isinstance(cause, NewConnectionError) else None


def _reason(error: Exception, attempt: Attempt) -> Reason:
    if attempt.cancelled or isinstance(error, (requests.Timeout, HTTPTimeout, TimeoutError)):
        return "timeout"
    tls = isinstance(error, (requests.exceptions.SSLError, TLSError, ssl.SSLError))
    return "tls" if tls and not attempt.written else "reset"


def _finish(response: requests.Response, attempt: Attempt) -> Result:
    """Read the body to its end and its limit."""
    reason: Reason = "short"
    with closing(response):
        try:
            body = _read(response, attempt)
        except Stop as stop:
            reason = stop.reason
        except (*_BROKEN, zlib.error) as error:
            # Whatever it was: the server has answered, and the answer is not whole.
            reason = "timeout" if _reason(error, attempt) == "timeout" else "short"
        else:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(status=response.status_code, headers=MappingProxyType(headers), body=body)
    return Failure(written=True, reason=reason)


def _read(response: requests.Response, attempt: Attempt) -> bytes:
    """Give the whole body, decompressed; never keep more than the limit and a block."""
    packed = response.headers.get("Content-Encoding", "").strip().lower()
    unpacker = zlib.decompressobj(47) if packed in ("gzip", "x-gzip", "deflate") else None
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    framed = chunked or response.raw.length_remaining is not None
    limit = attempt.max_bytes
    body = bytearray()
    # What nobody can cut (an adapter of the application that is not urllib3) goes byte by byte.
    size = _BLOCK if attempt.can_cut else 1
    while block := response.raw.read(size, decode_content=False):
        body += unpacker.decompress(block, limit + 1 - len(body)) if unpacker else block
        if len(body) > limit:
            raise Stop("too_large")
        if not attempt.can_cut:
            attempt.check()
    # A body without a length ends where the connection does, also where the watchdog has cut it.
    # One with a length is whole, and kept even if it is late: it may hold a refresh token.
    if not framed:
        attempt.check()
    if unpacker and body and not unpacker.eof:
        raise Stop("short")
    return bytes(body)


def _report(method: str, target: _Target, result: Result, seconds: float) -> None:
    outcome = result.status if isinstance(result, Answer) else result.reason
    _log.debug("%s %s%s: %s, %.0f ms", method, target.host, target.path, outcome, 1000 * seconds)
