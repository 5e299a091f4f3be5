"""A proxy between a client and a server that spoils what goes through: lost, late, or never.

It knows no protocol. One answer is what the server writes at once, so a client has to ask one
question at a time for "the next answer" to mean something.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

__all__ = ["TCPProxy", "tls_in_front"]

RESET = struct.pack("ii", 1, 0)


class TCPProxy:
    """A proxy on 127.0.0.1 in front of a port of 127.0.0.1.

    :ivar delay: seconds that each answer is late.
    :ivar silent: nothing goes through, and nothing is closed: a half-open connection.
    """

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self.silent = False
        self.connections = 0
        self._target = port
        self._lose = 0
        self._lost = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        with self._lock:
            sockets = [self._listener, *self._sockets]
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in sockets:
            one.close()

    @property
    def lost(self) -> int:
        """How many answers were lost."""
        return self._lost

    def lose(self, answers: int = 1) -> None:
        """Let the next answers be lost: what was asked is done, and the connection is reset."""
        with self._lock:
            self._lose = answers

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self.connections += 1
                self._sockets |= {client, server}
            self._start(self._pump, client, server, False)
            self._start(self._pump, server, client, True)

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if answers and self._takes():
                    sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    break
                if answers and self.delay:
                    self._closing.wait(self.delay)
                if not self.silent:
                    sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._sockets.discard(one)
            one.close()

    def _takes(self) -> bool:
        with self._lock:
            taken = self._lose > 0
            self._lose -= taken
            self._lost += taken
            return taken


@contextlib.contextmanager
def tls_in_front(port: int, context: ssl.SSLContext) -> Iterator[int]:
    """Speak TLS on a port of 127.0.0.1 for a server that does not; gives that port."""
    loop = asyncio.new_event_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        for source, sink in ((reader, inner_writer), (inner_reader, writer)):
            task = loop.create_task(pump(source, sink))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    loop.set_exception_handler(lambda loop, context: None)  # refused handshakes are meant
    listening = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(listening.close)
        for task in list(tasks):
            loop.call_soon_threadsafe(task.cancel)
        loop.call_soon_threadsafe(loop.call_later, 0.05, loop.stop)
        thread.join(10)
        loop.close()
