"""A WSGI server on 127.0.0.1 that can go down and come back on the same port.

HTTP/1.1 with keep-alive, and one write per answer: Werkzeug's own closes every connection, and
``http.server`` as it comes waits 40 ms for a delayed acknowledgement.
"""

import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["CUT", "LoopbackServer"]

#: An application that sets this in its WSGI environment has the connection cut without an answer.
CUT: Final = "flask_atm.testing.cut"

_HOST: Final = "127.0.0.1"
_LINE_LIMIT: Final = 65536
_NOT_PASSED_ON: Final = {"content-type", "content-length", "transfer-encoding"}


class LoopbackServer:
    """Serves a WSGI application from daemon threads, one per connection.

    :param app: the application; called by many threads at once.
    :param port: the port, or 0 to let the system choose one.
    """

    def __init__(self, app: "WSGIApplication", *, port: int = 0) -> None:
        self.app = app
        self._port = port
        self._lock = Lock()
        self._listener: socket.socket | None = None
        self._keeper: socket.socket | None = None
        self._thread: Thread | None = None
        self._connections: set[socket.socket] = set()

    @property
    def port(self) -> int:
        """The port; chosen when first asked for."""
        if not self._port:
            self._keep_port()
        return self._port

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``, without a slash at the end."""
        return f"http://{_HOST}:{self.port}"

    def start(self) -> None:
        """Accept connections; on the port of the last time, if there was one."""
        if self._listener is not None:
            return
        self._free_port()
        listener = _bind(self._port)
        listener.listen(512)
        self._port = listener.getsockname()[1]
        self._listener = listener
        self._thread = Thread(target=self._accept, args=(listener,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse and cut all connections, but keep the port for the next :meth:`start`."""
        listener, self._listener = self._listener, None
        if listener is None or self._thread is None:
            return
        with suppress(OSError):  # wakes accept() on Linux, in forked processes too …
            listener.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):  # … and this does elsewhere
            socket.create_connection((_HOST, self._port), timeout=1).close()
        self._thread.join()
        listener.close()
        self._keep_port()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop and give the port back."""
        self.stop()
        self._free_port()

    def _keep_port(self) -> None:
        """Bind the port without listening: connections are refused, and nobody else gets it."""
        self._keeper = _bind(self._port)
        self._port = self._keeper.getsockname()[1]

    def _free_port(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, address = listener.accept()
            except OSError:
                return
            if self._listener is not listener:
                connection.close()
                return
            with self._lock:
                self._connections.add(connection)
            Thread(target=self._serve, args=(connection, address), daemon=True).start()

    def _serve(self, connection: socket.socket, address: Any) -> None:
        try:
            with suppress(OSError):
                _Connection(connection, address, self)
        finally:
            with self._lock:
                self._connections.discard(connection)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _bind(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((_HOST, port))
    except OSError:
        bound.close()
        raise
    return bound


class _Connection(BaseHTTPRequestHandler):
    """Serves one connection: everything happens in the constructor."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # buffered: head and body leave in one write

    def __init__(self, connection: socket.socket, address: Any, server: LoopbackServer) -> None:
        self._app = server.app
        self._port = server.port
        super().__init__(connection, address, server)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: request lines hold codes and states."""

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(_LINE_LIMIT + 1)
        if not self.raw_requestline:
            self.close_connection = True
            return
        if self.parse_request():
            self._answer(self._environ(self._read_body()))
        self.wfile.flush()

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(_LINE_LIMIT).split(b";")[0] or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline(_LINE_LIMIT)
        while self.rfile.readline(_LINE_LIMIT).strip():  # trailers
            pass
        return body

    def _environ(self, body: bytes) -> "WSGIEnvironment":
        path, _, query = self.path.partition("?")
        environ: WSGIEnvironment = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "REMOTE_ADDR": self.client_address[0],
            "SERVER_NAME": _HOST,
            "SERVER_PORT": str(self._port),
            "SERVER_PROTOCOL": self.request_version,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name in {name.lower() for name in self.headers} - _NOT_PASSED_ON:
            key = "HTTP_" + name.upper().replace("-", "_")
            environ[key] = ",".join(self.headers.get_all(name, ()))
        return environ

    def _answer(self, environ: "WSGIEnvironment") -> None:
        status, headers, body = _call(self._app, environ)
        if environ.get(CUT):
            self.close_connection = True
            return
        code, _, reason = status.partition(" ")
        self.send_response_only(int(code), reason)
        self.send_header("Date", self.date_time_string())
        for name, value in headers:
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _call(
    app: "WSGIApplication", environ: "WSGIEnvironment"
) -> tuple[str, list[tuple[str, str]], bytes]:
    head: list[Any] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        head[:] = status, headers
        return lambda data: None

    start: StartResponse = start_response
    chunks: Iterable[bytes] = app(environ, start)
    try:
        body = b"".join(chunks)
    finally:
        if hasattr(chunks, "close"):
            chunks.close()
    return head[0], head[1], body
