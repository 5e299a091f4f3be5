"""A MariaDB of the test's own, by Debian's ``mariadb-server``; for ``tox -e system``."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .faulty import NotInTimeError, reserve_port
from .postgres_server import janitor

__all__ = ["MariaDBServer"]

WAIT = 30.0
#: One statement per line.
GRANTS = """CREATE DATABASE app;
CREATE USER app@localhost;
GRANT ALL ON app.* TO app@localhost;
"""


class MariaDBServer:
    """A server on a free port of 127.0.0.1, with a folder of its own and the database ``app``.

    :param options: further ones, such as ``"--default-time-zone=-03:30"``.
    """

    def __init__(self, *options: str) -> None:
        self._options = options
        self._account = f"--user={pwd.getpwuid(os.getuid()).pw_name}"
        self._reserved: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._janitor: subprocess.Popen[bytes] | None = None
        self.folder = Path()
        self.port = 0

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="flask-atm-mariadb-"))
        self._janitor = janitor(self.folder)
        try:
            self._reserved = reserve_port() or socket.create_server(("127.0.0.1", 0))
            self.port = self._reserved.getsockname()[1]
            command = ["mariadb-install-db", "--no-defaults", self._account, "--skip-test-db"]
            command += [f"--datadir={self.folder / 'data'}"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            (self.folder / "grants.sql").write_text(GRANTS, "utf-8")
            self.start(f"--init-file={self.folder / 'grants.sql'}")
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
            self._janitor.communicate(timeout=WAIT)

    def url(self, *, driver: str = "mariadb+pymysql") -> str:
        """For SQLAlchemy."""
        return f"{driver}://app@127.0.0.1:{self.port}/app"

    def start(self, *options: str) -> None:
        """Start it, with the data of before; wait until it takes connections."""
        assert self._process is None
        program = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
        command = [program, "--no-defaults", self._account, *self._options, *options]
        command += [f"--datadir={self.folder / 'data'}", f"--socket={self.folder / 'socket'}"]
        command += [f"--port={self.port}", "--bind-address=127.0.0.1"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        (self.folder / "pid").write_text(str(self._process.pid), "ascii")
        give_up = time.monotonic() + WAIT
        while not self._takes_connections():
            if time.monotonic() > give_up or self._process.poll() is not None:
                raise NotInTimeError((self.folder / "log").read_text("utf-8", "replace"))
            time.sleep(0.05)

    def _takes_connections(self) -> bool:
        import pymysql

        with contextlib.suppress(pymysql.Error):
            self.execute("SELECT 1")
            return True
        return False

    def execute(self, statement: str) -> list[Any]:
        """Run a statement; give the rows."""
        import pymysql

        connection = pymysql.connect(
            host="127.0.0.1", port=self.port, user="app", database="app", autocommit=True
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def kill_connections(self) -> int:
        """End the connections of all others; give how many there were."""
        rows = self.execute(
            "SELECT id FROM information_schema.processlist WHERE id <> connection_id()"
        )
        for (number,) in rows:
            with contextlib.suppress(Exception):
                self.execute(f"KILL {number}")
        return len(rows)

    def kill(self) -> None:
        """End it at once, whatever it was doing."""
        process, self._process = self._process, None
        if process is not None:
            (self.folder / "pid").unlink(missing_ok=True)
            process.send_signal(signal.SIGKILL)
            process.wait(WAIT)
