"""A server program of the test's own, on a free port of 127.0.0.1, with a folder of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self

from .faulty import NotInTimeError, reserve_port

__all__ = ["Program"]

#: Waits for the end of its input, which is the end of the test process, even if that is killed;
#: ends the process whose number is in ``pid``, and removes the folder.
_JANITOR: Final = """
cat >/dev/null
pid=$(cat "$0/pid" 2>/dev/null) && kill -"$1" "$pid" && kill -CONT "$pid" && sleep 0.3
rm -rf "$0"
"""


class Program(ABC):
    """A program that is started, killed and started again, and ends with its context.

    :param options: further ones of its command line.
    :ivar folder: its own, gone afterwards.
    :ivar port: the same for all of its starts, and nobody else's while it is down.
    """

    name: ClassVar[str]
    #: Seconds for a start or an end.
    patience: ClassVar[float] = 20.0
    #: What ends it when the test process was killed.
    last_signal: ClassVar[str] = "KILL"

    def __init__(self, *options: str) -> None:
        self._options = options
        self._reserved: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._janitor: subprocess.Popen[bytes] | None = None
        self.folder = Path()
        self.port = 0

    # -- what each of them knows

    def prepare(self) -> None:  # noqa: B027 -- not all have something to prepare
        """Make what it needs, before its first start."""

    @abstractmethod
    def command(self) -> list[str]:
        """Give its command line, without the further options."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Tell whether it takes connections."""

    def settings(self) -> dict[str, Any]:
        """Give further arguments for the process."""
        return {}

    # -- the context

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix=f"flask-atm-{self.name}-"))
        self._janitor = subprocess.Popen(
            ["sh", "-c", _JANITOR, str(self.folder), self.last_signal],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self.reserve()
            self.prepare()
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self.kill()
        if self._reserved is not None:
            self._reserved.close()
        if self._janitor is not None:
            self._janitor.communicate(timeout=self.patience)

    def reserve(self) -> None:
        """Keep a port, also while the server is down."""
        self._reserved = reserve_port() or socket.create_server(("127.0.0.1", 0))
        self.port = self._reserved.getsockname()[1]
        if self._reserved.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._reserved.close()  # no Linux: the port is ours by luck alone

    # -- up and down

    @property
    def pid(self) -> int:
        """The process that runs."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What it has written."""
        return (self.folder / "log").read_text("utf-8", "replace")

    def start(self, *options: str) -> None:
        """Start it, with the data of before; wait until it takes connections."""
        assert self._process is None
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self.command(), *self._options, *options],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.settings(),
            )
        (self.folder / "pid").write_text(str(self.pid), "ascii")
        give_up = time.monotonic() + self.patience
        while not self.is_ready():
            if time.monotonic() > give_up or self._process.poll() is not None:
                raise NotInTimeError(self.log())
            time.sleep(0.01)

    def stop(self) -> None:
        """Let it end properly."""
        self._finish(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, whatever it was doing."""
        self._finish(signal.SIGKILL)

    def restart(self) -> None:
        """End it at once, and start it with the data of before."""
        self.kill()
        self.start()

    def _finish(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # Or the janitor would end whatever gets that number next.
        (self.folder / "pid").unlink(missing_ok=True)
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(how)
        try:
            process.wait(self.patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(self.patience)

    def pause(self) -> None:
        """Let it hang: connections stay open, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def takes_connections(self) -> bool:
        """Tell whether somebody listens at the port."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False
