"""One request on its way: its deadline, its socket, and whether a byte of it was written."""

import math
import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from ipaddress import ip_address
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from flask_atm.oauth.answer import Reason
from flask_atm.oauth.watchdog import Watchdog

__all__ = ["CURRENT", "Attempt", "Resolve", "Resolver", "Stop"]

Resolve: TypeAlias = Callable[..., Sequence[tuple[Any, ...]]]

_LONGEST_LOOKUP: Final = 15.0


class Stop(Exception):
    """Ends a request from within urllib3, which catches only errors of its own and of sockets."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Final = reason


class Resolver:
    """Name resolution that can be left waiting: the system's has no time-out.

    A lookup that still runs is shared, so that a resolver that hangs holds one thread per host.
    """

    def __init__(self, resolve: Resolve | None) -> None:
        self._resolve = resolve
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], tuple[float, Future[Sequence[tuple[Any, ...]]]]] = {}

    def addresses(self, host: str, port: int, end: float) -> Sequence[tuple[Any, ...]]:
        """Give what ``socket.getaddrinfo`` gives, or stop at ``end``."""
        try:
            ip_address(host)
        except ValueError:
            lookup = self._lookup(host, port)
        else:
            return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        try:
            return lookup.result(max(0.0, end - monotonic()))
        except (OSError, UnicodeError):
            raise Stop("dns") from None

    def _lookup(self, host: str, port: int) -> Future[Sequence[tuple[Any, ...]]]:
        with self._lock:
            since, lookup = self._running.get((host, port), (-math.inf, Future()))
            if since < monotonic() - _LONGEST_LOOKUP:
                lookup = Future()
                self._running[host, port] = monotonic(), lookup
                threading.Thread(target=self._run, args=(host, port, lookup), daemon=True).start()
        return lookup

    def _run(self, host: str, port: int, lookup: Future[Sequence[tuple[Any, ...]]]) -> None:
        resolve = self._resolve or socket.getaddrinfo
        try:
            lookup.set_result(resolve(host, port, 0, socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            lookup.set_exception(error)
        finally:
            with self._lock:
                if self._running.get((host, port), (0, None))[1] is lookup:
                    del self._running[host, port]


class Attempt:
    """One request: its deadline, its socket, and whether a byte of it was written."""

    def __init__(
        self,
        resolver: Resolver,
        *,
        deadline: float,
        connect_timeout: float,
        may_write: Callable[[], bool] | None,
        max_bytes: int,
    ) -> None:
        self.deadline = deadline
        self.max_bytes: Final = max_bytes
        self.written = False
        self.cancelled = False
        self._resolver = resolver
        self._connect_timeout = connect_timeout
        self._may_write = may_write
        self._lock = threading.Lock()
        self._handle: socket.socket | None = None
        self._shutdown: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        self._token = CURRENT.set(self)
        self._watchdog = _watchdog(os.getpid())
        self._watchdog.begin(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watchdog.end(self)
        CURRENT.reset(self._token)
        with self._lock:
            handle, self._handle = self._handle, None
        if handle:
            handle.close()

    @property
    def time_left(self) -> float:
        """Seconds until the deadline; never 0, which sockets take for "do not block"."""
        return max(0.001, self.deadline - monotonic())

    def connect(self, host: str, port: int, options: Iterable[tuple[Any, ...]]) -> socket.socket:
        """Connect to one of the addresses of a host, within the connect time-out for all."""
        end = monotonic() + min(self._connect_timeout, self.time_left)
        addresses = self._resolver.addresses(host, port, end)
        reason: Reason = "refused"
        for left, (family, kind, protocol, _, address) in zip(
            range(len(addresses), 0, -1), addresses, strict=True
        ):
            # A fair share each: one address that swallows packets must not cost the whole time.
            budget = min(max((end - monotonic()) / left, 0.5), end - monotonic())
            if budget <= 0:
                raise Stop("timeout")
            sock = socket.socket(family, kind, protocol)
            try:
                for option in options:
                    sock.setsockopt(*option)
                sock.settimeout(budget)
                sock.connect(address)
                sock.settimeout(min(self._connect_timeout, self.time_left))
                self.hold(sock)
            except OSError as error:
                sock.close()
                reason = "timeout" if isinstance(error, TimeoutError) else "refused"
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise Stop(reason)

    def hold(self, sock: Any) -> None:
        """Keep a handle of the connection that stays valid, whoever wraps or closes ``sock``."""
        handle = socket.fromfd(sock.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        with self._lock:
            old, self._handle = self._handle, handle
            if self.cancelled:
                _shut(handle)
        if old:
            old.close()

    def hold_response(self, response: Any) -> None:
        """Keep what can end the body of a response that came over a connection of others."""
        with self._lock:
            self._shutdown = getattr(response.raw, "shutdown", None)
        if self.cancelled:
            self.cut()

    def before_write(self, sock: Any = None) -> None:
        """Allow the first byte, or stop: the only place that knows that nothing was written."""
        if self.written:
            return
        if sock is not None and self._handle is None:  # a connection from the pool
            self.hold(sock)
        if self._may_write is not None and not self._may_write():
            raise Stop("window")
        with self._lock:
            self.check()
            self.written = True

    @property
    def can_cut(self) -> bool:
        """Whether the watchdog is able to end the body."""
        return bool(self._handle or self._shutdown)

    def check(self) -> None:
        """Stop if the deadline has passed."""
        if self.cancelled or monotonic() >= self.deadline:
            raise Stop("timeout")

    def cut(self) -> None:
        """End it now, whatever it waits for. Called by the watchdog."""
        with self._lock:
            self.cancelled = True
            if self._handle:
                _shut(self._handle)
            if self._shutdown:
                with suppress(OSError, RuntimeError, ValueError):  # it has ended by itself
                    self._shutdown()


def _shut(handle: socket.socket) -> None:
    with suppress(OSError):  # the server may have been faster
        handle.shutdown(socket.SHUT_RDWR)


@lru_cache(maxsize=1)
def _watchdog(pid: int) -> Watchdog:
    """Give the one of this process: threads and locks do not survive a fork."""
    return Watchdog()


CURRENT: Final[ContextVar[Attempt]] = ContextVar("flask_atm.back_channel")
