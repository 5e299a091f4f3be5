"""Grants in an SQLite file: the default. Atomic for all threads and processes of one host."""

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from flask_atm.grants import control as steps
from flask_atm.grants.control import Control, Stored
from flask_atm.grants.stores.rows import COLUMNS, to_milliseconds, to_row
from flask_atm.grants.stores.sqlite_link import SQLiteLink
from flask_atm.grants.stores.stepped import Step, SteppedStore, T
from flask_atm.protocols import Clock, Doomed

__all__ = ["SQLiteStore"]

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
_TRIMMED: Final = 20
#: So many removals take some milliseconds: others who write do not wait longer than that.
_BATCH: Final = 100
_PURGED: Final = 50
_LONGEST_GAP: Final = 0.05


class SQLiteStore(SteppedStore):
    """An atomic store in one SQLite file (WAL, mode 0600). Thread-safe and fork-safe.

    The file has to be on a local disk: SQLite's locks do not work over a network file system.

    :param path: the file; it is made at first use.
    :param prefix: in front of the names of the tables.
    :param timeout: seconds that one step waits for another writer, after half of that at most for
        a new connection (half as long again while a new file is made); both are tried twice.
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
        self._clock = clock
        # The prefix may have characters that only a quoted name may have.
        self._grants, self._entries = f'"{prefix}_grants"', f'"{prefix}_index"'
        self._link = SQLiteLink(
            Path(path),
            schema=_SCHEMA.format(prefix=prefix),
            last=f"{prefix}_index_key",
            timeout=timeout,
        )
        columns = ", ".join(COLUMNS)
        self._select = f"SELECT {columns}, sealed FROM {self._grants} WHERE key = ?"  # noqa: S608

    def __repr__(self) -> str:
        return f"<SQLiteStore {str(self.path)!r}>"

    @property
    def path(self) -> Path:
        """The file."""
        return self._link.path

    def close(self) -> None:
        """Close the idle connections of this process; later steps open new ones."""
        self._link.close()

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

        return self._link.run(transaction, writes=True)

    # -- rows

    def _row(self, connection: sqlite3.Connection, key: str, now: float) -> Stored | None:
        row = connection.execute(self._select, (key,)).fetchone()
        return None if row is None else _stored(row, now)

    def _put(
        self, connection: sqlite3.Connection, key: str, control: Control, sealed: bytes
    ) -> None:
        values = to_row(control).values()
        marks = ", ".join("?" * (len(values) + 2))
        connection.execute(
            f"INSERT OR REPLACE INTO {self._grants}"  # noqa: S608
            f" (key, {', '.join(COLUMNS)}, sealed) VALUES ({marks})",
            (key, *values, sealed),
        )

    def _leave(self, connection: sqlite3.Connection, key: str) -> None:
        connection.execute(f"DELETE FROM {self._entries} WHERE key = ?", (key,))  # noqa: S608

    def _remove(self, connection: sqlite3.Connection, key: str) -> None:
        self._leave(connection, key)
        connection.execute(f"DELETE FROM {self._grants} WHERE key = ?", (key,))  # noqa: S608

    def _enter(self, connection: sqlite3.Connection, key: str, index: Sequence[str]) -> None:
        connection.executemany(
            f"INSERT OR IGNORE INTO {self._entries} (entry, key) VALUES (?, ?)",  # noqa: S608
            [(entry, key) for entry in index],
        )

    def _trim(self, connection: sqlite3.Connection, now: float, limit: int) -> int:
        ended = connection.execute(
            f"SELECT key FROM {self._grants} WHERE ends_at <= ? LIMIT ?",  # noqa: S608
            (to_milliseconds(now), limit),
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
        return self._link.run(lambda connection: self._row(connection, key, self._clock()))

    def _step(
        self,
        key: str,
        step: Step[T],
        sealed: bytes | None = None,
        index: Sequence[str] | None = None,
    ) -> T:
        def transaction(connection: sqlite3.Connection, now: float) -> T:
            stored = self._row(connection, key, now)
            answer, new = step(None if stored is None else stored.control, now)
            if stored is not None and new is not None:
                self._put(connection, key, new, stored.sealed if sealed is None else sealed)
                if index is not None:
                    self._leave(connection, key)
                    self._enter(connection, key, index)
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
        one = Doomed(key=key, keep=keep, index=index, expected_version=expected_version)
        return self._write(lambda connection, now: self._delete(connection, now, one))

    def _delete(self, connection: sqlite3.Connection, now: float, doomed: Doomed) -> bool:
        key = doomed.key
        stored = self._row(connection, key, now)
        if stored and doomed.expected_version not in (None, stored.control.version):
            return False
        self._remove(connection, key)
        if stored is None:
            return False
        if doomed.keep is not None:
            self._put(connection, key, steps.bury(stored.control), doomed.keep)
            self._enter(connection, key, doomed.index)
        return not stored.control.tombstone

    def read_many(self, keys: Sequence[str]) -> list[Stored | None]:
        """See :class:`~flask_atm.protocols.BatchedGrantStore`."""

        def step(connection: sqlite3.Connection) -> list[Stored | None]:
            now = self._clock()
            return [self._row(connection, key, now) for key in keys]

        return self._link.run(step)

    def delete_many(self, doomed: Sequence[Doomed]) -> list[bool]:
        """See :class:`~flask_atm.protocols.BatchedGrantStore`."""

        def delete(batch: Sequence[Doomed]) -> list[bool]:
            return self._write(
                lambda connection, now: [self._delete(connection, now, one) for one in batch]
            )

        starts = range(0, len(doomed), _BATCH)
        return [done for start in starts for done in delete(doomed[start : start + _BATCH])]

    def find(self, index: str, limit: int = 100) -> list[str]:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""

        def step(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute(
                f"SELECT g.key FROM {self._entries} i JOIN {self._grants} g"  # noqa: S608
                " ON g.key = i.key WHERE i.entry = ? AND g.ends_at > ? LIMIT ?",
                (index, to_milliseconds(self._clock()), limit),
            )
            return [key for (key,) in rows]

        return self._link.run(step)

    def scan(self, after: str, limit: int) -> list[tuple[str, Stored]]:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""

        def step(connection: sqlite3.Connection) -> list[tuple[str, Stored]]:
            now = self._clock()
            rows = connection.execute(
                f"SELECT key, {', '.join(COLUMNS)}, sealed FROM {self._grants}"  # noqa: S608
                " WHERE key > ? AND ends_at > ? ORDER BY key LIMIT ?",
                (after, to_milliseconds(now), limit),
            )
            found = [(key, _stored(tuple(rest), now)) for key, *rest in rows]
            return [(key, stored) for key, stored in found if stored is not None]

        return self._link.run(step)

    def purge(self, limit: int) -> int:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        removed = 0
        while removed < limit:
            batch = min(_PURGED, limit - removed)
            begun = time.monotonic()
            found = self._write(partial(self._trim, limit=batch))
            removed += found
            if found < batch:
                break
            # SQLite has no queue: whoever waits to write looks now and then, and must find a gap.
            time.sleep(min(time.monotonic() - begun, _LONGEST_GAP))
        return removed


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
