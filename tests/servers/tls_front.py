"""TLS in front of a server that does not speak it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from .faulty import WAIT

__all__ = ["tls_in_front"]


@contextlib.contextmanager
def tls_in_front(port: int, context: ssl.SSLContext) -> Iterator[int]:
    """Speak TLS on a port of 127.0.0.1 for a server on another one; gives that port."""
    front = _Front(port, context)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, front.run())
        try:
            yield front.listening.result(WAIT)
        finally:
            front.end()
            running.result(WAIT)


class _Front:
    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.listening: Future[int] = Future()
        self._target = port
        self._context = context
        self._streams: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def end(self) -> None:
        """End it, from any thread."""
        self._loop.call_soon_threadsafe(self._ended.set)

    async def run(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(lambda loop, what: None)  # refused handshakes are meant
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.listening.set_result(server.sockets[0].getsockname()[1])
        await self._ended.wait()
        server.close()
        # A stream that is left to the garbage collector is closed when its loop is no more.
        for stream in self._streams:
            stream.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self._streams:
            with contextlib.suppress(OSError):
                await stream.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._streams.append(writer)
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._streams.append(inner_writer)
        for source, sink in ((reader, inner_writer), (inner_reader, writer)):
            task = self._loop.create_task(_pump(source, sink))
            self._tasks.add(task)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    sink.close()
