"""A TCP proxy that spoils answers: drops, delays, resets, half-opens, drips.

::

    with FaultProxy(server.port) as proxy:
        proxy.spoil(Drop(), at=2)       # the second answer from now on
        proxy.always(Delay(0.3))        # and all the others are late
        ...
        proxy.wait_spoilt()

It knows no protocol. An answer is what the server writes between two things that the client
writes, over all connections together; so one client at a time, or faults for all answers. It runs
in threads of this process.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from .faulty import WAIT, NotInTimeError

__all__ = ["Delay", "Drip", "Drop", "FaultProxy", "HalfOpen", "Link", "Reset", "Spoil"]

_BLOCK = 64 * 1024
_RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Link:
    """One connection through the proxy.

    :ivar number: which one, from 1.
    :ivar asked: how many times the client has begun to write after the server had.
    """

    number: int
    client: socket.socket
    server: socket.socket
    proxy: FaultProxy
    asked: int = 0
    answering: bool = True
    resets: bool = False
    spoil: Spoil | None = None
    left: threading.Event = field(default_factory=threading.Event)

    def pass_on(self, data: bytes) -> None:
        """Give the client what the server wrote."""
        self.client.sendall(data)

    def pause(self, seconds: float) -> None:
        """Wait, but not past the end of the proxy."""
        if self.proxy.closing.wait(seconds):
            raise ConnectionAbortedError

    def reset(self) -> None:
        """End the client's connection with a RST."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.resets = True
        raise ConnectionAbortedError


#: Called with each block of an answer; gives it on by :meth:`Link.pass_on`, or does not.
Spoil = Callable[[Link, bytes], None]


@dataclass(frozen=True)
class Drop:
    """The server has done it, and the client sees the connection end in order."""

    def __call__(self, link: Link, data: bytes) -> None:
        raise ConnectionAbortedError


@dataclass(frozen=True)
class Reset:
    """The same by a RST, after so many bytes of the answer."""

    after: int = 0

    def __call__(self, link: Link, data: bytes) -> None:
        if self.after:
            link.pass_on(data[: self.after])
        link.reset()


@dataclass(frozen=True)
class Delay:
    """Each block of the answer comes so many seconds late."""

    seconds: float

    def __call__(self, link: Link, data: bytes) -> None:
        link.pause(self.seconds)
        link.pass_on(data)


@dataclass(frozen=True)
class Drip:
    """One byte per so many seconds."""

    interval: float

    def __call__(self, link: Link, data: bytes) -> None:
        for byte in data:
            link.pause(self.interval)
            link.pass_on(bytes([byte]))


@dataclass(frozen=True)
class HalfOpen:
    """From here on nothing comes, and nothing ends: the client's own time-out has to."""

    def __call__(self, link: Link, data: bytes) -> None:
        link.left.wait()
        raise ConnectionAbortedError


class FaultProxy:
    """A proxy on 127.0.0.1 in front of a port of 127.0.0.1. All methods from any thread.

    :ivar connections: how many were made.
    :ivar spoilt: how many answers were.
    """

    def __init__(self, port: int) -> None:
        self.connections = 0
        self.answers = 0
        self.spoilt = 0
        self.closing = threading.Event()
        self._target = port
        self._planned: dict[int, Spoil] = {}
        self._default: Spoil | None = None
        self._refusing = False
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        """The origin, for HTTP."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join(WAIT)
        self._listener.close()

    # -- what goes wrong

    def spoil(self, fault: Spoil, at: int = 1) -> None:
        """Spoil one answer.

        :param at: the n-th from now on.
        """
        with self._changed:
            self._planned[self.answers + at] = fault

    def lose(self, answers: int = 1) -> None:
        """Lose the next ones: what was asked is done, and the connection is reset."""
        for at in range(answers):
            self.spoil(Reset(), at=at + 1)

    def always(self, fault: Spoil | None) -> None:
        """Spoil all others, or none any more."""
        with self._changed:
            self._default = fault

    def refuse(self, refusing: bool = True) -> None:
        """End new connections at once."""
        self._refusing = refusing

    def cut(self) -> None:
        """End all connections that are there."""
        with self._changed:
            sockets = list(self._sockets)
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def wait_spoilt(self, n: int = 1, timeout: float = WAIT) -> None:
        """Wait until so many answers were spoilt."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.spoilt >= n, timeout):
                raise NotInTimeError(self.spoilt, n, timeout)

    @property
    def open_connections(self) -> int:
        """How many go through it now."""
        with self._changed:
            return len(self._sockets) // 2

    # -- running

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        name = f"FaultProxy {self.port}"
        thread = threading.Thread(target=target, args=arguments, daemon=True, name=name)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target), WAIT)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._changed:
                self.connections += 1
                self._sockets |= {client, server}
                link = Link(self.connections, client, server, self)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._ask, link)
            self._start(self._answer, link)

    def _ask(self, link: Link) -> None:
        with contextlib.suppress(OSError):
            while data := link.client.recv(_BLOCK):
                with self._changed:
                    if link.answering:
                        link.answering, link.asked = False, link.asked + 1
                link.server.sendall(data)
            # The client has said all; what the server still has to say goes through.
            link.server.shutdown(socket.SHUT_WR)
        link.left.set()

    def _answer(self, link: Link) -> None:
        with contextlib.suppress(OSError):
            while data := link.server.recv(_BLOCK):
                spoil = self._fault_for(link)
                if spoil is None:
                    link.pass_on(data)
                else:
                    spoil(link, data)
        for one in (link.client, link.server):
            # Shutting down the way out would send a FIN; the way in only wakes who reads from it.
            how = socket.SHUT_RD if link.resets and one is link.client else socket.SHUT_RDWR
            with contextlib.suppress(OSError):
                one.shutdown(how)
            with self._changed:
                self._sockets.discard(one)
            one.close()

    def _fault_for(self, link: Link) -> Spoil | None:
        """Give what is to happen to the answer that this block belongs to."""
        with self._changed:
            if not link.answering:
                link.answering = True
                self.answers += 1
                link.spoil = self._planned.pop(self.answers, self._default)
                self.spoilt += link.spoil is not None
                self._changed.notify_all()
            return link.spoil
