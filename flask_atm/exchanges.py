"""One request to an API and its answer: over at its deadline, whatever the API does.

The time-outs of ``requests`` begin anew with every byte that arrives, so a server that drips holds
a call for as long as it likes. Here one thread cuts the connections of exchanges that are late.
"""

import math
import socket
import threading
from contextlib import suppress
from contextvars import ContextVar
from time import monotonic
from types import TracebackType
from typing import Any, Final

import requests
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

__all__ = ["Exchange", "Watchdog", "watch_pools"]


class Exchange:
    """One request and its answer: a context that ends at a fixed moment, whatever the API does.

    :raises requests.ReadTimeout: at that moment, from the context.
    """

    __slots__ = ("_token", "_watchdog", "connection", "deadline", "expired")

    def __init__(self, watchdog: "Watchdog", deadline: float) -> None:
        self._watchdog = watchdog
        self.deadline = deadline
        self.expired = False
        self.connection: _HTTPConnection | _HTTPSConnection | None = None

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
        self._watchdog.hold(self, connection)

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
        """End it: the thread that waits for the API sees the end of the stream."""
        self.expired = True
        connection = self.connection
        if connection is None or connection.exchange is not self:
            return
        sock: Any = getattr(connection.sock, "socket", connection.sock)  # TLS in TLS has an inner
        if isinstance(sock, socket.socket):
            with suppress(OSError):
                # Not SSLSocket.shutdown: that first makes it a plain one under the other thread,
                # which would then write in clear.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _DeadlinePassed(Exception):
    """Unlike a time-out it is no reason for urllib3 to try again."""


_CURRENT: Final[ContextVar[Exchange | None]] = ContextVar("flask_atm.exchange", default=None)


class Watchdog:
    """The thread that cuts exchanges at their deadline; it ends when there are none."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._exchanges: set[Exchange] = set()
        self._wakes_at = math.inf

    def begin(self, exchange: Exchange) -> None:
        with self._changed:
            self._exchanges.add(exchange)
            if exchange.deadline < self._wakes_at:
                asleep = self._wakes_at < math.inf
                self._wakes_at = exchange.deadline
                if asleep:
                    self._changed.notify()
                else:
                    threading.Thread(target=self._run, name="flask-atm-apis", daemon=True).start()

    def end(self, exchange: Exchange) -> None:
        with self._changed:
            self._exchanges.discard(exchange)

    def hold(self, exchange: Exchange, connection: "_HTTPConnection | _HTTPSConnection") -> None:
        # Under the lock: a connection that went back to the pool and out again is never cut for
        # the exchange that had it before.
        with self._changed:
            exchange.left()
            exchange.connection = connection
            connection.exchange = exchange

    def _run(self) -> None:
        with self._changed:
            while True:
                now = monotonic()
                for exchange in [e for e in self._exchanges if e.deadline <= now]:
                    self._exchanges.discard(exchange)
                    exchange.cut()
                self._wakes_at = min((e.deadline for e in self._exchanges), default=math.inf)
                if self._wakes_at == math.inf:
                    return
                self._changed.wait(self._wakes_at - now)


class _HTTPConnection(HTTPConnection):
    exchange: Exchange | None = None

    def connect(self) -> None:
        if exchange := _CURRENT.get():
            self.timeout = exchange.left()
        super().connect()

    def request(self, *args: Any, **kwargs: Any) -> None:
        if exchange := _CURRENT.get():
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
