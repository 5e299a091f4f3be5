"""The connections of a process to one SQLite file: made, kept, and closed before a fork."""

import math
import os
import sqlite3
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from flask_atm.errors import StoreError
from flask_atm.grants.stores.forks import ForkGate

__all__ = ["SQLiteLink"]

T = TypeVar("T")

_IDLE: Final = 16
_A_MOMENT: Final = 0.005
#: Which file is at a path: device and inode.
_File: TypeAlias = tuple[int, int] | None


class SQLiteLink:
    """Runs steps on connections to one file. Thread-safe and fork-safe.

    :param path: the file; it is made at first use, for its owner only.
    :param schema: statements that make the tables.
    :param last: the name of what the schema makes last.
    :param timeout: seconds that one step waits for another writer, after half of that at most for
        a new connection (half as long again while a new file is made); both are tried twice.
    """

    def __init__(self, path: Path, *, schema: str, last: str, timeout: float) -> None:
        self.path = path
        self._name = str(path)
        self._schema = schema
        self._last = last
        self._timeout = timeout
        self._found: _File = None
        self._looked_at = -math.inf
        self._idle = _Idle()
        # What SQLite keeps of an open file in a child could even delete the log of its parent.
        self._forks = ForkGate(self._idle.close)
        weakref.finalize(self, self._idle.close)

    def close(self) -> None:
        """Close the idle connections of this process; later steps open new ones."""
        self._idle.close()

    def run(self, step: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        """Do one step; every step is safe to repeat, so a locked file is tried twice.

        :raises StoreError: the file cannot be used.
        """
        try:
            return self._try(step, writes=writes)
        except (sqlite3.Error, OSError) as error:
            if not isinstance(error, sqlite3.OperationalError):
                raise StoreError(self._cure(error)) from error
        try:
            return self._try(step, writes=writes)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(self._cure(error)) from error

    def _try(self, step: Callable[[sqlite3.Connection], T], *, writes: bool) -> T:
        with self._forks:
            file = self._file(writes=writes)
            connection = self._idle.take(file)
            if connection is None:
                connection = self._connect()
                there = _file_at(self._name)
                if file != there:
                    # Made, or replaced, meanwhile: nobody knows which one this connection is to.
                    self._found, file = there, None
            try:
                result = step(connection)
            except BaseException:
                connection.close()  # nobody knows its state
                raise
            self._idle.give(connection, file)
        return result

    def _cure(self, error: Exception) -> str:
        return (
            f"the grants in {self.path} cannot be used ({error}): ATM_STORE has to name a file on"
            " a local disk, in a folder that this process may write to"
        )

    def _file(self, *, writes: bool) -> _File:
        """Tell which file is there: looked at before each write, and for reads once a second."""
        now = time.monotonic()
        if writes or now - self._looked_at > 1.0:
            self._found = _file_at(self._name)
            self._looked_at = now
        return self._found

    # -- a new connection

    def _connect(self) -> sqlite3.Connection:
        end = time.monotonic() + 1.5 * self._timeout
        if not self.path.exists():
            # SQLite gives its -wal and -shm files the mode of this one.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        # As long as a file is not written by way of a log, whoever writes keeps readers out too.
        is_new = not self.path.stat().st_size
        connection = sqlite3.connect(
            self.path,
            timeout=self._timeout * (1.5 if is_new else 0.5),
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._prepare(connection, end)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, end: float) -> None:
        """Make the connection ready, and the file if it is new: that may take longer.

        No lease depends on it: a new file has no record that one could be taken of.
        """
        _use_log(connection, end)
        connection.execute("PRAGMA synchronous = FULL")
        # Looked at first: whoever only reads does not have to wait for a writer.
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (self._last,))
        if not found.fetchone():
            _wait_at_most(connection, end - time.monotonic())
            connection.executescript(f"BEGIN IMMEDIATE; {self._schema} COMMIT;")
        _wait_at_most(connection, self._timeout)


class _Idle:
    """The idle connections; none of them comes through a fork."""

    def __init__(self) -> None:
        self._connections: deque[tuple[sqlite3.Connection, _File]] = deque()

    def take(self, file: _File) -> sqlite3.Connection | None:
        """Give one to this very file; one to a file that is gone is closed."""
        while self._connections:
            try:
                connection, opened = self._connections.pop()
            except IndexError:
                break  # another thread was faster
            if file is not None and opened == file:
                return connection
            connection.close()
        return None

    def give(self, connection: sqlite3.Connection, file: _File) -> None:
        """Take a connection back."""
        if len(self._connections) < _IDLE:
            self._connections.append((connection, file))
        else:
            connection.close()

    def close(self) -> None:
        """Close them all."""
        while self._connections:
            try:
                connection, _ = self._connections.pop()
            except IndexError:
                break
            connection.close()


def _file_at(path: str) -> _File:
    """Tell which file is there now, whatever its name."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _use_log(connection: sqlite3.Connection, end: float) -> None:
    """Have the file written by way of a log; the switch to it needs the file for itself."""
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            # At once, whatever the time-out: somebody else switches or makes the tables.
            if time.monotonic() >= end:
                raise
            time.sleep(_A_MOMENT)


def _wait_at_most(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout = {max(1, round(seconds * 1000))}")
