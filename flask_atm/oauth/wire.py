"""Connections that connect and write as the attempt that they serve says."""

import socket
from collections.abc import Mapping
from http.client import HTTPResponse
from io import BufferedReader, RawIOBase
from types import MappingProxyType
from typing import Any, Final

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from flask_atm.oauth.deadline import CURRENT, Stop

__all__ = ["POOLS"]


class _Wire(RawIOBase):
    """The bytes of one answer, up to a limit: http.client reads a chunk of size -1 to the end."""

    def __init__(self, raw: RawIOBase, limit: int) -> None:
        self._raw = raw
        self._left = limit
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._raw.readinto(buffer)
        self.ended = count == 0
        self._left -= count or 0
        if self._left < 0:
            raise Stop("too_large")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Head, chunk sizes and body: twice the body's limit is enough for sane ones.
        limit = 2 * CURRENT.get().max_bytes + 64 * 1024
        self._wire = _Wire(self.fp.detach(), limit)
        self.fp = BufferedReader(self._wire)

    def begin(self) -> None:
        super().begin()
        if self._wire.ended:  # for http.client a head that is cut is one with fewer headers
            raise ConnectionResetError


class _Connection(HTTPConnection):
    """A connection that connects and writes as the attempt says."""

    response_class = _Response
    debuglevel = 0  # http.client prints what it sends where an application has set it globally
    _connecting = False

    def _new_conn(self) -> socket.socket:
        # A private name of urllib3, but the one that all who bring sockets of their own override.
        return CURRENT.get().connect(self.host, self.port or 80, self.socket_options or ())

    def connect(self) -> None:
        self._connecting = True
        try:
            super().connect()
        finally:
            self._connecting = False

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        if not self._connecting:  # then it is the CONNECT for a proxy, nothing of the request
            CURRENT.get().before_write(self.sock)
        super().send(data)


class _TLSConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


POOLS: Final[Mapping[str, type[HTTPConnectionPool]]] = MappingProxyType(
    {"http": _Pool, "https": _TLSPool}
)
