"""One request to an API and its answer: over at its deadline, whatever the API does.

The time-outs of ``requests`` begin anew with every byte that arrives, so a server that drips holds
a call for as long as it likes. Here one thread cuts the connections of exchanges that are late.
"""

import math
import socket
from contextlib import suppress
from contextvars import ContextVar
from time import monotonic
from types import TracebackType
from typing import Any, Final

import requests
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from flask_atm.oauth.watchdog import Watchdog

__all__ = ["Exchange", "TimeLeft", "watch_pools"]


class Exchange:
    """One request and its answer: a context that ends at a fixed moment, whatever the API does.

    :raises requests.ReadTimeout: at that moment, from the context.
    """

    __slots__ = ("_connection", "_sock", "_token", "_watchdog", "deadline", "expired")

    def __init__(self, watchdog: Watchdog, deadline: float) -> None:
        self._watchdog = watchdog
        self.deadline = deadline
        self.expired = False
        self._connection: _HTTPConnection | _HTTPSConnection | None = None
        self._sock: Any = None

    def __enter__(self) -> "Exchange":
        self._watchdog.begin(self)
        self._token = _CURRENT.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _CURRENT.reset(self._token)
        self._watchdog.end(self)
        # Also without an error: an answer that was cut can look like a short, complete one.
        if self.expired and (error is None or isinstance(error, Exception)):
            raise requests.ReadTimeout("The API did not answer within its time.") from None

    def hold(self, connection: "_HTTPConnection | _HTTPSConnection") -> None:
        """Note the connection that carries this exchange from now on."""
        with self._watchdog.changed:
            self.left()
            self._connection = connection
            # urllib3 lets go of it before the end of a body that ends with the connection.
            self._sock = getattr(connection.sock, "socket", connection.sock)  # TLS within TLS
            connection.exchange = self

    def left(self) -> float:
        """Give the seconds that are left.

        :raises _DeadlinePassed: none.
        """
        seconds = self.deadline - monotonic()
        if seconds <= 0:
            self.expired = True
            raise _DeadlinePassed
        return seconds

    def cut(self) -> None:
        """End it: the thread that waits for the API sees the end of the stream.

        Called with the watchdog's lock held.
        """
        self.expired = True
        connection = self._connection
        if connection is None or (
            connection.sock is self._sock and connection.exchange is not self
        ):
            return  # it went back to the pool and out again: it carries another exchange
        if isinstance(self._sock, socket.socket):
            with suppress(OSError):
                # Not SSLSocket.shutdown: that first makes it a plain one under the other thread,
                # which would then write in clear.
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)


class _DeadlinePassed(Exception):
    """Unlike a time-out it is no reason for urllib3 to try again."""


_CURRENT: Final[ContextVar[Exchange | None]] = ContextVar("flask_atm.exchange", default=None)


class _HTTPConnection(HTTPConnection):
    exchange: Exchange | None = None

    def connect(self) -> None:
        if exchange := _CURRENT.get():
            self.timeout = exchange.left()
        super().connect()

    def request(self, *args: Any, **kwargs: Any) -> None:
        if exchange := _CURRENT.get():
            if self.sock is None:
                self.connect()  # not with the header in hand, which tracebacks would show
            exchange.hold(self)
        super().request(*args, **kwargs)


class _HTTPSConnection(HTTPSConnection):
    exchange: Exchange | None = None

    def connect(self) -> None:
        if exchange := _CURRENT.get():
            self.timeout = exchange.left()
        super().connect()

    def request(self, *args: Any, **kwargs: Any) -> None:
        if exchange := _CURRENT.get():
            if self.sock is None:
                self.connect()  # not with the header in hand, which tracebacks would show
            exchange.hold(self)
        super().request(*args, **kwargs)


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


_POOLS: Final[dict[type, type]] = {
    HTTPConnectionPool: _HTTPPool,
    HTTPSConnectionPool: _HTTPSPool,
}


def watch_pools(manager: Any) -> None:
    # Pools of one's own, and those of SOCKS proxies, are left alone.
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {name: _POOLS.get(pool, pool) for name, pool in pools.items()}


class TimeLeft:
    """The seconds that an API has for one call; getting a token does not use them up.

    A context: what passes in it is used up.

    :param total: the session's.
    :param timeout: the caller's: another total, or how long connecting and each read may take
        within the session's.
    """

    __slots__ = ("_begun", "_connect", "_read", "seconds")

    def __init__(
        self, total: float, timeout: float | tuple[float | None, float | None] | None
    ) -> None:
        self._connect = self._read = math.inf
        self.seconds: float = total
        if isinstance(timeout, tuple):
            self._connect, self._read = (math.inf if part is None else part for part in timeout)
        elif timeout is not None:
            self.seconds = timeout

    def limits(self) -> tuple[float, float]:
        """Give the time-outs for connecting and for a read."""
        return min(self._connect, self.seconds), min(self._read, self.seconds)

    def __enter__(self) -> None:
        self._begun = monotonic()

    def __exit__(self, *error: object) -> None:
        self.seconds -= monotonic() - self._begun
