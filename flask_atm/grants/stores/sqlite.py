"""Grants in an SQLite file: the default. Atomic for all threads and processes of one host."""

import math
import os
import sqlite3
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, Final, TypeAlias

from flask_atm.errors import StoreError
from flask_atm.grants import control as steps
from flask_atm.grants.control import Control, Stored
from flask_atm.grants.stores.stepped import Step, SteppedStore, T
from flask_atm.protocols import Clock

__all__ = ["SQLiteStore"]

_COLUMNS: Final = tuple(field.name for field in fields(Control))
#: Instants and lengths of time are kept in whole milliseconds: no time zone, no rounding.
_TIMES: Final = frozenset({"lease_until", "lease", "retry_at", "ends_at"})
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS "{prefix}_grants" (
    key TEXT PRIMARY KEY, version INTEGER NOT NULL, sealed_version INTEGER NOT NULL,
    lease_owner TEXT, lease_until INTEGER NOT NULL, lease INTEGER NOT NULL, intent TEXT,
    doubt INTEGER NOT NULL, suspect TEXT, dead TEXT, commit_id TEXT, retry_at INTEGER NOT NULL,
    failures INTEGER NOT NULL, ends_at INTEGER NOT NULL, tombstone INTEGER NOT NULL,
    sealed BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS "{prefix}_ends" ON "{prefix}_grants" (ends_at);
CREATE TABLE IF NOT EXISTS "{prefix}_index" (
    entry TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (entry, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS "{prefix}_index_key" ON "{prefix}_index" (key);
"""
_IDLE: Final = 16
#: Seconds that a fork waits for steps that run: a store that is locked must not stop it for good.
_LONGEST_STEP: Final = 5.0
_A_MOMENT: Final = 0.001
#: Which file is at a path: device and inode.
_File: TypeAlias = tuple[int, int] | None
_TRIMMED: Final = 20


class SQLiteStore(SteppedStore):
    """An atomic store in one SQLite file (WAL, mode 0600). Thread-safe and fork-safe.

    The file has to be on a local disk: SQLite's locks do not work over a network file system.

    :param path: the file; it is made at first use.
    :param prefix: in front of the names of the tables.
    :param timeout: seconds that one step waits for another writer, after half of that at most for
        a new connection; both are tried twice.
    :param clock: gives the present as epoch seconds.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        prefix: str = "flask_atm",
        timeout: float = 1.0,
        clock: Clock = time.time,
    ) -> None:
        self._path = Path(path)
        self._name = str(self._path)
        self._found: _File = None
        self._looked_at = -math.inf
        self._clock = clock
        self._timeout = timeout
        self._prefix = prefix
        # The prefix may have characters that only a quoted name may have.
        self._grants, self._entries = f'"{prefix}_grants"', f'"{prefix}_index"'
        self._connections = _Connections()
        weakref.finalize(self, self._connections.close)
        _around_forks(self._connections)
        columns = ", ".join(_COLUMNS)
        self._select = f"SELECT {columns}, sealed FROM {self._grants} WHERE key = ?"  # noqa: S608

    def __repr__(self) -> str:
        return f"<SQLiteStore {str(self._path)!r}>"

    # -- connections

    def close(self) -> None:
        """Close the idle connections of this process; later steps open new ones."""
        self._connections.close()

    def _connect(self) -> sqlite3.Connection:
        end = time.monotonic() + self._timeout / 2
        if not self._path.exists():
            # SQLite gives its -wal and -shm files the mode of this one.
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(
            self._path, timeout=self._timeout / 2, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection, end)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, end: float) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        last = f"{self._prefix}_index_key"
        # Looked at first: whoever only reads does not have to wait for a writer.
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (last,)).fetchone():
            _wait_at_most(connection, end - time.monotonic())
            schema = _SCHEMA.format(prefix=self._prefix)
            connection.executescript(f"BEGIN IMMEDIATE; {schema} COMMIT;")
        _wait_at_most(connection, self._timeout)

    def _file(self, *, writes: bool) -> _File:
        """Tell which file is there: looked at before each write, and for reads once a second."""
        now = time.monotonic()
        if writes or now - self._looked_at > 1.0:
            self._found = _file_at(self._name)
            self._looked_at = now
        return self._found

    def _run(self, step: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        """Do one step; every step is safe to repeat, so a locked file is tried twice."""
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
        self._connections.begin_step()
        try:
            file = self._file(writes=writes)
            connection = self._connections.take(file)
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
            self._connections.give(connection, file)
        finally:
            self._connections.end_step()
        return result

    def _cure(self, error: Exception) -> str:
        return (
            f"the grants in {self._path} cannot be used ({error}): ATM_STORE has to name a file on"
            " a local disk, in a folder that this process may write to"
        )

    def _write(self, step: Callable[[sqlite3.Connection, float], T]) -> T:
        """Do one step in one IMMEDIATE transaction: no other writer until it has ended."""

        def transaction(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = step(connection, self._clock())
            except BaseException:
                if connection.in_transaction:  # a full disk may have ended it
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return result

        return self._run(transaction, writes=True)

    # -- rows

    def _row(self, connection: sqlite3.Connection, key: str, now: float) -> Stored | None:
        row = connection.execute(self._select, (key,)).fetchone()
        return None if row is None else _stored(row, now)

    def _put(
        self, connection: sqlite3.Connection, key: str, control: Control, sealed: bytes
    ) -> None:
        values = [
            round(value * 1000) if name in _TIMES else value
            for name, value in zip(_COLUMNS, astuple(control), strict=True)
        ]
        marks = ", ".join("?" * (len(values) + 2))
        connection.execute(
            f"INSERT OR REPLACE INTO {self._grants}"  # noqa: S608
            f" (key, {', '.join(_COLUMNS)}, sealed) VALUES ({marks})",
            (key, *values, sealed),
        )

    def _remove(self, connection: sqlite3.Connection, key: str) -> None:
        connection.execute(f"DELETE FROM {self._entries} WHERE key = ?", (key,))  # noqa: S608
        connection.execute(f"DELETE FROM {self._grants} WHERE key = ?", (key,))  # noqa: S608

    def _enter(self, connection: sqlite3.Connection, key: str, index: Sequence[str]) -> None:
        connection.executemany(
            f"INSERT OR IGNORE INTO {self._entries} (entry, key) VALUES (?, ?)",  # noqa: S608
            [(entry, key) for entry in index],
        )

    def _trim(self, connection: sqlite3.Connection, now: float, limit: int) -> int:
        ended = connection.execute(
            f"SELECT key FROM {self._grants} WHERE ends_at <= ? LIMIT ?",  # noqa: S608
            (round(now * 1000), limit),
        ).fetchall()
        for (key,) in ended:
            self._remove(connection, key)
        return len(ended)

    # -- the steps

    def create(
        self,
        key: str,
        sealed: bytes,
        *,
        ends_at: float,
        index: Sequence[str] = (),
        doubt: bool = False,
        version: int = 1,
    ) -> bool:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""

        def step(connection: sqlite3.Connection, now: float) -> bool:
            self._trim(connection, now, _TRIMMED)
            if self._row(connection, key, now):
                return False
            self._remove(connection, key)
            control = steps.new(ends_at=ends_at, doubt=doubt, version=version)
            self._put(connection, key, control, sealed)
            self._enter(connection, key, index)
            return True

        return self._write(step)

    def read(self, key: str) -> Stored | None:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        return self._run(lambda connection: self._row(connection, key, self._clock()))

    def _step(self, key: str, step: Step[T], sealed: bytes | None = None) -> T:
        def transaction(connection: sqlite3.Connection, now: float) -> T:
            stored = self._row(connection, key, now)
            answer, new = step(None if stored is None else stored.control, now)
            if stored is not None and new is not None:
                self._put(connection, key, new, stored.sealed if sealed is None else sealed)
            return answer

        return self._write(transaction)

    def delete(
        self,
        key: str,
        *,
        keep: bytes | None = None,
        index: Sequence[str] = (),
        expected_version: int | None = None,
    ) -> bool:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""

        def step(connection: sqlite3.Connection, now: float) -> bool:
            stored = self._row(connection, key, now)
            if stored and expected_version not in (None, stored.control.version):
                return False
            self._remove(connection, key)
            if stored is None:
                return False
            if keep is not None:
                self._put(connection, key, steps.bury(stored.control), keep)
                self._enter(connection, key, index)
            return not stored.control.tombstone

        return self._write(step)

    def find(self, index: str, limit: int = 100) -> list[str]:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""

        def step(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute(
                f"SELECT g.key FROM {self._entries} i JOIN {self._grants} g"  # noqa: S608
                " ON g.key = i.key WHERE i.entry = ? AND g.ends_at > ? LIMIT ?",
                (index, round(self._clock() * 1000), limit),
            )
            return [key for (key,) in rows]

        return self._run(step)

    def scan(self, after: str, limit: int) -> list[tuple[str, Stored]]:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""

        def step(connection: sqlite3.Connection) -> list[tuple[str, Stored]]:
            now = self._clock()
            rows = connection.execute(
                f"SELECT key, {', '.join(_COLUMNS)}, sealed FROM {self._grants}"  # noqa: S608
                " WHERE key > ? AND ends_at > ? ORDER BY key LIMIT ?",
                (after, round(now * 1000), limit),
            )
            found = [(key, _stored(tuple(rest), now)) for key, *rest in rows]
            return [(key, stored) for key, stored in found if stored is not None]

        return self._run(step)

    def purge(self, limit: int) -> int:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        return self._write(lambda connection, now: self._trim(connection, now, limit))


def _file_at(path: str) -> _File:
    """Tell which file is there now, whatever its name."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _wait_at_most(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout = {max(1, round(seconds * 1000))}")


class _Connections:
    """The idle connections of a store; none of them comes through a fork.

    SQLite's locks do not survive one, but what SQLite knows of them does, and counts for every
    connection that the child opens later to the same file: it would lock nothing, and the log that
    it writes to could be deleted by whoever closes the file. So none is open at the moment of it.
    """

    def __init__(self) -> None:
        self._idle: deque[tuple[sqlite3.Connection, _File]] = deque()
        self._running: deque[None] = deque()
        self._forking = False

    def begin_step(self) -> None:
        """Keep this process from forking before :meth:`end_step`."""
        # Without a lock: either this sees the fork that is about to be, or the fork sees this.
        self._running.append(None)
        while self._forking:
            self._running.pop()
            while self._forking:
                time.sleep(_A_MOMENT)
            self._running.append(None)

    def end_step(self) -> None:
        """Let it fork again."""
        self._running.pop()

    def take(self, file: _File) -> sqlite3.Connection | None:
        """Give an idle connection to this very file; one to a file that is gone is closed."""
        while self._idle:
            try:
                connection, opened = self._idle.pop()
            except IndexError:
                break  # another thread was faster
            if file is not None and opened == file:
                return connection
            connection.close()
        return None

    def give(self, connection: sqlite3.Connection, file: _File) -> None:
        """Take a connection back."""
        if len(self._idle) < _IDLE:
            self._idle.append((connection, file))
        else:
            connection.close()

    def close(self) -> None:
        """Close the idle ones."""
        while self._idle:
            try:
                connection, _ = self._idle.pop()
            except IndexError:
                break
            connection.close()

    def before_fork(self) -> None:
        """Let no step begin, and wait for those that run."""
        self._forking = True
        give_up = time.monotonic() + _LONGEST_STEP
        while self._running and time.monotonic() < give_up:
            time.sleep(_A_MOMENT)
        self.close()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._forking = False

    def after_fork_in_child(self) -> None:
        """Begin anew: of the threads that were here none is left."""
        self._running.clear()
        self._forking = False


def _around_forks(connections: _Connections) -> None:
    """Let a store know of forks, for as long as it lives."""
    if not hasattr(os, "register_at_fork"):
        return
    reference = weakref.ref(connections)

    def call(step: Callable[[_Connections], None]) -> Callable[[], None]:
        def hook() -> None:
            alive = reference()
            if alive is not None:
                step(alive)

        return hook

    os.register_at_fork(
        before=call(_Connections.before_fork),
        after_in_parent=call(_Connections.after_fork_in_parent),
        after_in_child=call(_Connections.after_fork_in_child),
    )


def _stored(row: tuple[Any, ...], now: float) -> Stored | None:
    """Read a row; ``None`` for a grant that has ended."""
    # Written out, because every request comes by here: a loop over the names takes twice as long.
    control = Control(
        version=row[0],
        sealed_version=row[1],
        lease_owner=row[2],
        lease_until=row[3] / 1000,
        lease=row[4] / 1000,
        intent=row[5],
        doubt=bool(row[6]),
        suspect=row[7],
        dead=row[8],
        commit_id=row[9],
        retry_at=row[10] / 1000,
        failures=row[11],
        ends_at=row[12] / 1000,
        tombstone=bool(row[13]),
    )
    sealed = row[-1]
    if control.ends_at <= now or not isinstance(sealed, bytes):
        return None
    return Stored(control=control, sealed=sealed, now=now)
