"""Servers that do what a correct one does not: cut, drip, hang, redirect, answer far too much.

:class:`FaultyServer` follows a script, one behaviour per request::

    with FaultyServer(Reply(body={"access_token": "a"}), Cut(), default=Reply(503)) as server:
        ...
        server.wait_for(2)

A behaviour is any callable that takes the :class:`Exchange`; :func:`respond` makes one of a
function that takes the :class:`Request` and returns a behaviour. The server runs in threads of this
process.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import struct
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self
from urllib.parse import parse_qs, urlsplit

WAIT = 10.0
BLOCK = bytes(64 * 1024)
POLL = 0.05


class NotInTimeError(AssertionError):
    """What the test waited for did not happen."""


# ---- what is seen


@dataclass(kw_only=True)
class Request:
    """A request as it arrived; all instants are of the monotonic clock.

    :ivar connection: number of the TCP connection, from 1: two requests with one number shared it.
    :ivar ended_at: when the server was done with it; `gone`: the client had closed by then.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    arrived_at: float
    connection: int
    peer_certificate: Mapping[str, Any] | None = field(default=None, repr=False)
    ended_at: float | None = None
    gone: bool = False

    @property
    def path(self) -> str:
        """The path of the target, without the query."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's parameters."""
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def form(self) -> dict[str, list[str]]:
        """The body's parameters."""
        return parse_qs(self.body.decode(), keep_blank_values=True)

    def header(self, name: str) -> str | None:
        """The first header of that name, in any case."""
        return next((value for known, value in self.headers if known.lower() == name.lower()), None)

    def parameter(self, name: str) -> str | None:
        """The first value of a form parameter."""
        return next(iter(self.form.get(name, ())), None)


@dataclass(kw_only=True)
class Exchange:
    """A request, and the means to answer it."""

    request: Request
    connection: socket.socket
    server: FaultyServer
    number: int
    """Which request of its connection this is, from 1."""
    keep_alive: bool = True

    def send(self, data: bytes) -> None:
        """Write bytes; raises :exc:`OSError` once the client is gone."""
        self.connection.sendall(data)

    def pause(self, seconds: float) -> None:
        """Wait, but not past the end of the server or of the client's patience."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.server.closing.is_set() or self.client_gone():
                raise ConnectionAbortedError
            self.server.closing.wait(min(left, POLL))

    def client_gone(self) -> bool:
        """Whether the client has closed its side."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        if not readable:
            return False
        try:
            if isinstance(self.connection, ssl.SSLSocket):
                return self.connection.recv(1) == b""
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def close(self, *, reset: bool = False) -> None:
        """Close the connection, with a RST if so wished."""
        self.keep_alive = False
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Behaviour = Callable[[Exchange], None]


# ---- behaviours


@dataclass(frozen=True, kw_only=True)
class Message:
    """Head and body of an answer, ready to be sent whole or in parts."""

    head: bytes
    body: bytes


@dataclass(frozen=True)
class Reply:
    """An ordinary answer; a body that is neither text nor bytes is sent as JSON."""

    status: int = 200
    body: object = b""
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = ()
    delay: float = 0

    def message(self) -> Message:
        """What goes over the wire."""
        fields = list(self.headers.items() if isinstance(self.headers, Mapping) else self.headers)
        given = {name.lower() for name, _ in fields}
        body = self.body
        if not isinstance(body, str | bytes):
            body = json.dumps(body)
            if "content-type" not in given:
                fields.append(("Content-Type", "application/json"))
        data = body.encode() if isinstance(body, str) else body
        if not given & {"content-length", "transfer-encoding"}:
            fields.append(("Content-Length", str(len(data))))
        known = self.status in HTTPStatus.__members__.values()
        phrase = HTTPStatus(self.status).phrase if known else "Whatever"
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{name}: {text}" for name, text in fields)]
        return Message(head="\r\n".join([*lines, "", ""]).encode("latin-1"), body=data)

    def __call__(self, exchange: Exchange) -> None:
        exchange.pause(self.delay)
        message = self.message()
        exchange.send(message.head + message.body)


NOT_FOUND = Reply(404)


def redirect(status: int, location: str, body: object = b"") -> Reply:
    """A redirect."""
    return Reply(status, body, {"Location": location})


@dataclass(frozen=True)
class Drip:
    """An answer whose head or body comes one byte per `interval` seconds."""

    interval: float
    where: Literal["headers", "body"] = "body"
    reply: Reply = Reply(200, {"access_token": "dripped", "token_type": "Bearer"})

    def __call__(self, exchange: Exchange) -> None:
        message = self.reply.message()
        slow = message.body
        if self.where == "body":
            exchange.send(message.head)
        else:
            slow = message.head + slow
        for byte in slow:
            exchange.pause(self.interval)
            exchange.send(bytes([byte]))


@dataclass(frozen=True)
class Cut:
    """The connection ends before a byte of the answer, within its headers, or within its body."""

    where: Literal["before", "headers", "body"] = "before"
    reply: Reply = Reply(200, {"access_token": "cut short", "token_type": "Bearer"})
    reset: bool = False

    def __call__(self, exchange: Exchange) -> None:
        message = self.reply.message()
        if self.where == "headers":
            exchange.send(message.head[: len(message.head) // 2])
        elif self.where == "body":
            exchange.send(message.head + message.body[: len(message.body) // 2])
        exchange.close(reset=self.reset)


@dataclass(frozen=True)
class Hang:
    """Nothing, until the client or the server closes."""

    def __call__(self, exchange: Exchange) -> None:
        exchange.pause(threading.TIMEOUT_MAX)


@dataclass(frozen=True)
class Flood:
    """A body of `size` bytes, by Content-Length or in chunks, made while it is sent."""

    size: int = 100 * 1024 * 1024
    chunked: bool = False
    prefix: bytes = b'{"access_token": "'

    def __call__(self, exchange: Exchange) -> None:
        how = "Transfer-Encoding: chunked" if self.chunked else f"Content-Length: {self.size}"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{how}\r\n\r\n"
        exchange.send(head.encode())
        for block in self._blocks():
            exchange.send(b"%x\r\n%s\r\n" % (len(block), block) if self.chunked else block)
        if self.chunked:
            exchange.send(b"0\r\n\r\n")

    def _blocks(self) -> Iterator[bytes]:
        yield self.prefix
        left = self.size - len(self.prefix)
        while left > 0:
            block = BLOCK.replace(b"\0", b"x")[:left]
            left -= len(block)
            yield block


@dataclass(frozen=True)
class GzipBomb:
    """A small gzip body that becomes `size` bytes."""

    size: int = 100 * 1024 * 1024

    def __call__(self, exchange: Exchange) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        packed = b"".join(packer.compress(BLOCK) for _ in range(self.size // len(BLOCK)))
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        Reply(200, packed + packer.flush(), headers)(exchange)


@dataclass(frozen=True)
class CloseIdle:
    """Answers the first request of a connection and closes on the second without an answer."""

    reply: Reply = Reply(200, {"access_token": "first", "token_type": "Bearer"})

    def __call__(self, exchange: Exchange) -> None:
        if exchange.number == 1:
            self.reply(exchange)
        else:
            exchange.close()


@dataclass(frozen=True)
class Raw:
    """These bytes, whatever they are."""

    data: bytes
    close: bool = True

    def __call__(self, exchange: Exchange) -> None:
        exchange.send(self.data)
        if self.close:
            exchange.close()


@dataclass
class Held:
    """An answer that is kept until :meth:`release`; :meth:`wait` waits for the request."""

    reply: Behaviour = Reply()
    _asked: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)

    def __call__(self, exchange: Exchange) -> None:
        self._asked.set()
        while not self._released.wait(POLL):
            if exchange.server.closing.is_set():
                raise ConnectionAbortedError
        self.reply(exchange)

    def wait(self, timeout: float = WAIT) -> None:
        """Wait until the request is there."""
        if not self._asked.wait(timeout):
            raise NotInTimeError(timeout)

    def release(self) -> None:
        """Answer."""
        self._released.set()


def respond(function: Callable[[Request], Behaviour]) -> Behaviour:
    """A behaviour from a function that looks at the request and chooses one."""
    return lambda exchange: function(exchange.request)(exchange)


# ---- the server


def _read_head(stream: BinaryIO) -> tuple[str, str, list[tuple[str, str]]] | None:
    first = stream.readline(65537).decode("latin-1").split()
    # A greeting in TLS is random bytes, which may look like three words.
    if len(first) != 3 or not first[2].startswith("HTTP/"):
        return None
    headers = []
    while line := stream.readline(65537).decode("latin-1").rstrip("\r\n"):
        name, _, value = line.partition(":")
        headers.append((name, value.strip()))
    return first[0], first[1], headers


def _read_body(stream: BinaryIO, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return stream.read(int(headers.get("content-length", 0)))
    chunks = []
    while size := int(stream.readline(), 16):
        chunks.append(stream.read(size))
        stream.readline()
    stream.readline()
    return b"".join(chunks)


def _peer_certificate(connection: socket.socket) -> Mapping[str, Any] | None:
    return connection.getpeercert() if isinstance(connection, ssl.SSLSocket) else None


def reserve_port() -> socket.socket | None:
    """Keep a port of 127.0.0.1 also while nobody listens on it.

    Linux lets another socket listen on the port of one that is bound and does not listen, and gives
    that port to nobody who asks for any: a server that is down stays down, whatever else runs.
    """
    if sys.platform != "linux":
        return None
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


class FaultyServer:
    """An HTTP/1.1 server on 127.0.0.1 that does as the script says.

    :param script: what the next requests meet, one after the other, whatever their path.
    :param default: what the others meet.
    :param tls: serve https with this context; a client's certificate is kept with its requests.

    Scripts go before defaults, those of a path (:meth:`add`, :meth:`always`) before those of all.
    All methods may be called from any thread.
    """

    def __init__(
        self,
        *script: Behaviour,
        default: Behaviour = NOT_FOUND,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.connections_opened = 0
        self.max_in_flight: Counter[str] = Counter()
        self.closing = threading.Event()
        self._tls = tls
        self._scripts: defaultdict[str | None, deque[Behaviour]] = defaultdict(deque)
        self._defaults: dict[str | None, Behaviour] = {None: default}
        self._in_flight: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket
        self._reserved: socket.socket | None = None
        self._port = 0
        self.add(*script)

    # -- running

    def __enter__(self) -> Self:
        self._reserved = reserve_port()
        self._port = self._reserved.getsockname()[1] if self._reserved else 0
        self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closing.set()
        self.stop_listening()
        for thread in self._threads:
            thread.join(WAIT)
        if self._reserved:
            self._reserved.close()

    def listen(self) -> None:
        """Accept connections, at the port of before."""
        listener = socket.create_server(("127.0.0.1", self._port), backlog=256)
        self._port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accept, listener)

    def stop_listening(self) -> None:
        """Close all connections, and refuse new ones until :meth:`listen`."""
        with self._changed:
            sockets = [self._listener, *self._sockets]
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def url(self) -> str:
        """The origin, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._changed:
                self.connections_opened += 1
                self._sockets.add(connection)
                number = self.connections_opened
            self._start(self._converse, connection, number)

    def _converse(self, plain: socket.socket, number: int) -> None:
        connection = plain
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                connection = self._tls.wrap_socket(plain, server_side=True)
                with self._changed:
                    self._sockets.discard(plain)
                    self._sockets.add(connection)
            with connection.makefile("rb") as stream:
                self._exchanges(connection, stream, number)
        except (OSError, ValueError):
            pass  # the client, or the test, has ended it
        finally:
            with self._changed:
                self._sockets.discard(connection)
            connection.close()
            with self._changed:
                self._changed.notify_all()

    def _exchanges(self, connection: socket.socket, stream: BinaryIO, number: int) -> None:
        count = 0
        while head := _read_head(stream):
            method, target, headers = head
            fields = {name.lower(): value for name, value in headers}
            request = Request(
                method=method,
                target=target,
                headers=headers,
                body=_read_body(stream, fields),
                arrived_at=time.monotonic(),
                connection=number,
                peer_certificate=_peer_certificate(connection),
            )
            count += 1
            exchange = Exchange(request=request, connection=connection, server=self, number=count)
            self._answer(exchange)
            if not exchange.keep_alive or fields.get("connection", "").lower() == "close":
                return

    def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        with self._changed:
            behaviour = self._next(request.path)
            self.requests.append(request)
            self._in_flight[request.path] += 1
            most = max(self.max_in_flight[request.path], self._in_flight[request.path])
            self.max_in_flight[request.path] = most
            self._changed.notify_all()
        try:
            behaviour(exchange)
        except OSError:
            request.gone = not self.closing.is_set()
            raise
        finally:
            with self._changed:
                self._in_flight[request.path] -= 1
                request.ended_at = time.monotonic()
                self._changed.notify_all()

    def _next(self, path: str) -> Behaviour:
        for key in (path, None):
            if self._scripts[key]:
                return self._scripts[key].popleft()
        return self._defaults.get(path, self._defaults[None])

    # -- the script

    def add(self, *behaviours: Behaviour, path: str | None = None) -> None:
        """What the next requests (to that path) meet, one after the other."""
        with self._changed:
            self._scripts[path].extend(behaviours)

    def always(self, behaviour: Behaviour, path: str | None = None) -> None:
        """What every other request (to that path) meets."""
        with self._changed:
            self._defaults[path] = behaviour

    # -- what has happened

    def wait_for(self, n: int, timeout: float = WAIT, path: str | None = None) -> list[Request]:
        """Wait until `n` requests (to that path) have arrived; returns them."""

        def found() -> list[Request]:
            return [one for one in self.requests if path is None or one.path == path]

        with self._changed:
            if not self._changed.wait_for(lambda: len(found()) >= n, timeout):
                raise NotInTimeError(len(found()), n, timeout)
            return found()

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        with self._changed:
            return len(self._sockets)

    def wait_closed(self, timeout: float = WAIT) -> None:
        """Wait until no connection is open."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._sockets, timeout):
                raise NotInTimeError(len(self._sockets), timeout)

    @property
    def bytes_received(self) -> int:
        """The size of all bodies that arrived: nothing may reach the target of a redirect."""
        return sum(len(request.body) for request in self.requests)


@contextlib.contextmanager
def refusing_url() -> Iterator[str]:
    """An origin that refuses connections, for as long as the context lasts."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


@contextlib.contextmanager
def silent_url() -> Iterator[str]:
    """An origin that does not even refuse: connecting ends by one's own time-out only (Linux)."""
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}"
