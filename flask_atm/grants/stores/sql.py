"""Grants in PostgreSQL, MySQL, MariaDB or SQLite by SQLAlchemy: for several hosts."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from flask_atm.errors import ConfigurationError, StoreError
from flask_atm.grants import control as steps
from flask_atm.grants.control import Stored
from flask_atm.grants.stores.lost_replies import Written
from flask_atm.grants.stores.stepped import Step, SteppedStore, T
from flask_atm.protocols import Doomed

if TYPE_CHECKING:
    from types import ModuleType

    from sqlalchemy import URL, Connection, Engine, MetaData

    from flask_atm.grants.stores.sql_link import SQLLink
    from flask_atm.grants.stores.sql_tables import Tables

__all__ = ["SQLStore", "ddl"]

log = logging.getLogger("flask_atm.store")

#: PostgreSQL cuts names after 63 characters, and the longest one here is "…_index_ends".
_LONGEST_NAME: Final = 50
_TURNS: Final = 16
_RESTLESS: Final = "a record changes faster than it can be read: a process goes round in circles"
_TRIMMED: Final = 20
#: One statement changes so many rows: it takes some milliseconds, and nobody waits for it longer.
_BATCH: Final = 200


class SQLStore(SteppedStore):
    """An atomic store in PostgreSQL, MySQL, MariaDB or SQLite. Thread-safe and fork-safe.

    It has an engine of its own, with connections of its own, so it works while the application
    holds its last connection, and commits nothing of the application's. Each step is one
    conditional ``UPDATE`` upon the record as it was read, in autocommit: no transaction stays
    open, no lock is held. All instants are by the clock of the database. PgBouncer may pool
    transactions.

    The two tables, ``table`` and ``table_index``, are made at first use. Where the user of the
    database may not do that, ``flask atm ddl`` prints them, and :attr:`metadata` shows them to
    Alembic.

    :param engine_or_url: a URL of SQLAlchemy, or the engine of the application: its URL is used
        then, and what its ``do_connect`` listeners do, but none of its connections.
    :param table: the name of the table, at most 50 characters.
    :param connect_timeout: seconds for connecting.
    :param timeout: seconds for one attempt at a step. A step is tried three times at most, in
        twice both time-outs together.
    :param pool_size: connections that are kept; up to twice as many are open.
    :param connect_args: further arguments for the driver, as ``create_engine`` takes them.
    :raises ConfigurationError: SQLAlchemy or a driver is missing, or it is another database.
    """

    def __init__(
        self,
        engine_or_url: "Engine | URL | str",
        *,
        table: str = "flask_atm_grants",
        connect_timeout: float = 0.5,
        timeout: float = 1.0,
        pool_size: int = 5,
        connect_args: Mapping[str, Any] | None = None,
    ) -> None:
        if len(table) > _LONGEST_NAME:
            raise ConfigurationError(
                f"the table {table!r} of the SQL store has a name of more than {_LONGEST_NAME}"
                " characters: shorten it (ATM_STORE_PREFIX is a part of it)"
            )
        parts = _parts()
        self._link: SQLLink = parts["sql_link"].SQLLink(
            engine_or_url,
            table=table,
            connect_timeout=connect_timeout,
            timeout=timeout,
            pool_size=pool_size,
            connect_args=connect_args or {},
        )
        self.table, self.dialect = table, self._link.dialect
        self._tables: Tables = parts["sql_tables"].Tables(table, self.dialect)
        self._link.tables = self._tables.statements.tables
        self._burials: Callable[..., Callable[[Connection], list[bool]]]
        self._burials = parts["sql_batches"].Burials
        self._entry: Callable[..., dict[str, Any]] = parts["sql_tables"].entry_row

    def __repr__(self) -> str:
        return f"<SQLStore {self._link.place!r}>"

    @property
    def metadata(self) -> "MetaData":
        """The tables, as ``target_metadata`` for Alembic."""
        return self._tables.statements.metadata

    def close(self) -> None:
        """Close the connections of this process; later steps open new ones."""
        self._link.close()

    # -- one record

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
        control = steps.new(ends_at=ends_at, doubt=doubt, version=version)
        entries = self._entries(index, key, ends_at, tombstone=False)
        tables, written = self._tables, Written[bool]()

        def act(connection: "Connection") -> bool:
            for _ in range(_TURNS):
                stored, _now = tables.row(connection, key)
                if stored is not None:
                    return bool(written.found_in(stored))
                # Before the record: a process that is killed here leaves nothing that counts.
                tables.enter(connection, entries)
                written.add(control, sealed, answer=True)
                if tables.insert(connection, key, control, sealed):
                    return True
                written.drop()
                # What is in the way has ended, or came just now.
                tables.clear_ended(connection, key)
            raise StoreError(_RESTLESS)

        made = self._link.run(act)
        if made:
            self._trim()
        return made

    def _entries(
        self, index: Sequence[str] | None, key: str, ends_at: float, *, tombstone: bool
    ) -> list[dict[str, Any]]:
        return [
            self._entry(one, key, ends_at, tombstone=tombstone)
            for one in dict.fromkeys(index or ())
        ]

    def _trim(self) -> None:
        """Remove some of what has ended; best effort, the next one tries again."""

        def act(connection: "Connection") -> None:
            self._tables.trim(connection, _TRIMMED)
            self._tables.trim_entries(connection, _TRIMMED)

        try:
            self._link.run(act, retries=0)
        except StoreError as error:
            log.debug("what has ended was not removed: %s", error)

    def read(self, key: str) -> Stored | None:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        stored, _now = self._link.run(lambda connection: self._tables.row(connection, key))
        return stored

    def _step(
        self,
        key: str,
        step: Step[T],
        sealed: bytes | None = None,
        index: Sequence[str] | None = None,
    ) -> T:
        tables, written = self._tables, Written[T]()

        def act(connection: "Connection") -> T:
            for _ in range(_TURNS):
                stored, now = tables.row(connection, key)
                for answer in written.found_in(stored):
                    tables.leave_alive(connection, key, index)
                    return answer
                answer, new = step(None if stored is None else stored.control, now)
                if stored is None or new is None:
                    return answer
                data = stored.sealed if sealed is None else sealed
                tables.enter(connection, self._entries(index, key, new.ends_at, tombstone=False))
                written.add(new, data, answer=answer)
                if tables.swap(connection, key, stored.control, new, data):
                    tables.leave_alive(connection, key, index)
                    return answer
                written.drop()
            raise StoreError(_RESTLESS)

        return self._link.run(act)

    def delete(
        self,
        key: str,
        *,
        keep: bytes | None = None,
        index: Sequence[str] = (),
        expected_version: int | None = None,
    ) -> bool:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        tables, written = self._tables, Written[bool]()
        kept = () if keep is None else index

        def act(connection: "Connection") -> bool:
            for _ in range(_TURNS):
                stored, _now = tables.row(connection, key)
                for removed in written.found_in(stored):
                    tables.leave(connection, key, kept)
                    return removed
                if stored is None or expected_version not in (None, stored.control.version):
                    return False
                was, removed = stored.control, not stored.control.tombstone
                # Before the record: what is to be revoked is never without its entry.
                tables.enter(connection, self._entries(kept, key, was.ends_at, tombstone=True))
                new = None if keep is None else steps.bury(was)
                written.add(new, keep or b"", answer=removed)
                if tables.swap(connection, key, was, new, keep or b""):
                    tables.leave(connection, key, kept)
                    return removed
                written.drop()
            raise StoreError(_RESTLESS)

        return self._link.run(act)

    # -- many records

    def read_many(self, keys: Sequence[str]) -> list[Stored | None]:
        """See :class:`~flask_atm.protocols.BatchedGrantStore`."""
        found = self._link.run(lambda connection: self._tables.rows(connection, keys))
        return [found.get(key) for key in keys]

    def delete_many(self, doomed: Sequence[Doomed]) -> list[bool]:
        """See :class:`~flask_atm.protocols.BatchedGrantStore`."""
        batches = [doomed[start : start + _BATCH] for start in range(0, len(doomed), _BATCH)]
        burials = (self._burials(self._tables, batch) for batch in batches)
        return [removed for burial in burials for removed in self._link.run(burial)]

    def find(self, index: str, limit: int = 100) -> list[str]:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        return self._link.run(lambda connection: self._tables.find(connection, index, limit))

    def scan(self, after: str, limit: int) -> list[tuple[str, Stored]]:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        return self._link.run(lambda connection: self._tables.scan(connection, after, limit))

    def purge(self, limit: int) -> int:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        removed = 0
        while removed < limit:
            batch = partial(self._tables.trim, most=min(limit - removed, _BATCH))
            done = self._link.run(batch)
            if done is None:
                break
            removed += done
        # Entries go with their records, but for those that a killed process has left alone.
        rest = partial(self._tables.trim_entries, most=_BATCH)
        while removed < limit and self._link.run(rest):
            pass
        return removed


def ddl(table: str, dialect: str) -> list[str]:
    """Give the statements that make the tables of a store.

    :param dialect: ``postgresql``, ``mysql``, ``mariadb`` or ``sqlite``.
    :raises ConfigurationError: SQLAlchemy is missing.
    """
    tables: Tables = _parts()["sql_tables"].Tables(table, dialect)
    return tables.statements.ddl(dialect)


def _parts() -> "dict[str, ModuleType]":
    """Import what needs SQLAlchemy: only who keeps grants in SQL has to have it."""
    try:
        from flask_atm.grants.stores import sql_batches, sql_link, sql_tables
    except ImportError as error:
        raise ConfigurationError(
            "the SQL store needs SQLAlchemy 2.0.43 or later, and a driver:"
            " pip install 'flask-atm[sql]' 'psycopg[binary]' (or PyMySQL)"
        ) from error
    return {"sql_batches": sql_batches, "sql_link": sql_link, "sql_tables": sql_tables}
