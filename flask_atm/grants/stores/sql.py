"""Grants in PostgreSQL, MySQL, MariaDB or SQLite by SQLAlchemy: for several hosts."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic

from flask_atm.errors import ConfigurationError, StoreError
from flask_atm.grants import control as steps
from flask_atm.grants.control import Control, Stored
from flask_atm.grants.stores.rows import from_row, to_milliseconds, to_row
from flask_atm.grants.stores.stepped import Step, SteppedStore, T

if TYPE_CHECKING:
    from types import ModuleType

    from sqlalchemy import URL, Connection, Engine, MetaData

    from flask_atm.grants.stores.sql_link import SQLLink
    from flask_atm.grants.stores.sql_statements import Statements

__all__ = ["SQLStore", "ddl"]

log = logging.getLogger("flask_atm.store")

#: PostgreSQL cuts names after 63 characters, and the longest one here is "…_index_ends".
_LONGEST_NAME: Final = 50
_TURNS: Final = 16
_RESTLESS: Final = "a record changes faster than it can be read: a process goes round in circles"


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
        sql_link, sql_statements = _sqlalchemy()
        self._insert = sql_link.insert
        self._link: SQLLink = sql_link.SQLLink(
            engine_or_url,
            table=table,
            connect_timeout=connect_timeout,
            timeout=timeout,
            pool_size=pool_size,
            connect_args=connect_args or {},
        )
        self.table, self.dialect = table, self._link.dialect
        self._sql: Statements = sql_statements.Statements(table, self._link.dialect)
        self._link.tables = self._sql.tables

    def __repr__(self) -> str:
        return f"<SQLStore {self._link.place!r}>"

    @property
    def metadata(self) -> "MetaData":
        """The tables, as ``target_metadata`` for Alembic."""
        return self._sql.metadata

    def close(self) -> None:
        """Close the connections of this process; later steps open new ones."""
        self._link.close()

    # -- rows

    def _row(self, connection: "Connection", key: str) -> tuple[Stored | None, float]:
        row = connection.execute(self._sql.read, {"at_key": key}).one()
        now = row.now / 1000
        return (None if row.version is None else from_row(row._asdict())), now

    def _swap(
        self, connection: "Connection", key: str, was: Control, new: Control, sealed: bytes
    ) -> bool:
        """Change a record if it is as it was; tell whether it did."""
        values = {**to_row(was, "was_"), **to_row(new, "new_")}
        changed = connection.execute(
            self._sql.swap, {"at_key": key, "new_sealed": sealed, **values}
        )
        return changed.rowcount == 1

    def _enter(
        self, connection: "Connection", key: str, index: Sequence[str], ends_at: float
    ) -> None:
        """Write the entries of an index; what is there already stays, unless it has ended."""
        for entry in index:
            row = {"entry": entry, "record_key": key, "ends_at": to_milliseconds(ends_at)}
            if not self._insert(connection, self._sql.enter, row):
                connection.execute(self._sql.leave_ended, {"at_key": key})
                self._insert(connection, self._sql.enter, row)

    # -- the steps

    def create(
        self,
        key: str,
        sealed: bytes,
        *,
        ends_at: float,
        index: Sequence[str] = (),
        doubt: bool = False,
    ) -> bool:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        control = Control(ends_at=ends_at, doubt=doubt)
        sent: _Sent[bool] = _Sent()

        def act(connection: "Connection") -> bool:
            for _ in range(_TURNS):
                stored, _now = self._row(connection, key)
                if stored is not None:
                    return bool(sent.found_in(stored))
                # Before the record: a process that is killed here leaves nothing that counts.
                self._enter(connection, key, index, ends_at)
                sent.add(control, sealed, answer=True)
                row = {"record_key": key, "sealed": sealed, **to_row(control)}
                if self._insert(connection, self._sql.insert, row):
                    return True
                sent.drop()
                # What is in the way has ended, or came just now.
                connection.execute(self._sql.clear_ended, {"at_key": key})
            raise StoreError(_RESTLESS)

        made = self._link.run(act)
        if made:
            self._trim()
        return made

    def _trim(self) -> None:
        """Remove some of what has ended; best effort, the next one tries again."""

        def act(connection: "Connection") -> None:
            sql = self._sql
            for ended, trim in ((sql.ended, sql.trim), (sql.ended_entries, sql.trim_entries)):
                keys = sorted(set(connection.scalars(ended)))
                if keys:
                    connection.execute(trim, {"keys": keys})

        try:
            self._link.run(act)
        except StoreError as error:
            log.debug("what has ended was not removed: %s", error)

    def read(self, key: str) -> Stored | None:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        stored, _now = self._link.run(lambda connection: self._row(connection, key))
        return stored

    def _step(self, key: str, step: Step[T], sealed: bytes | None = None) -> T:
        sent: _Sent[T] = _Sent()

        def act(connection: "Connection") -> T:
            for _ in range(_TURNS):
                stored, now = self._row(connection, key)
                for answer in sent.found_in(stored):
                    return answer
                answer, new = step(None if stored is None else stored.control, now)
                if stored is None or new is None:
                    return answer
                data = stored.sealed if sealed is None else sealed
                sent.add(new, data, answer=answer)
                if self._swap(connection, key, stored.control, new, data):
                    return answer
                sent.drop()
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
        sent: _Sent[bool] = _Sent()
        kept = () if keep is None else index

        def act(connection: "Connection") -> bool:
            for _ in range(_TURNS):
                stored, _now = self._row(connection, key)
                for removed in sent.found_in(stored):
                    self._leave(connection, key, kept)
                    return removed
                if stored is None or expected_version not in (None, stored.control.version):
                    return False
                was, removed = stored.control, not stored.control.tombstone
                if keep is not None:
                    # Before the record: what is to be revoked is never without its entry.
                    self._enter(connection, key, index, was.ends_at)
                new = None if keep is None else steps.bury(was)
                sent.add(new, keep or b"", answer=removed)
                if self._replace(connection, key, was, new, keep or b""):
                    self._leave(connection, key, kept)
                    return removed
                sent.drop()
            raise StoreError(_RESTLESS)

        return self._link.run(act)

    def _replace(
        self, connection: "Connection", key: str, was: Control, new: Control | None, sealed: bytes
    ) -> bool:
        if new is not None:
            return self._swap(connection, key, was, new, sealed)
        row = {"at_key": key, **to_row(was, "was_")}
        return connection.execute(self._sql.remove, row).rowcount == 1

    def _leave(self, connection: "Connection", key: str, kept: Sequence[str]) -> None:
        """Remove the entries of an index, but for some."""
        connection.execute(self._sql.leave, {"at_key": key, "kept": list(kept)})

    def find(self, index: str, limit: int = 100) -> list[str]:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        named = {"at_entry": index, "most": limit}
        return self._link.run(
            lambda connection: list(connection.scalars(self._sql.find, named).all())
        )

    def scan(self, after: str, limit: int) -> list[tuple[str, Stored]]:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        named = {"after": after, "most": limit}
        rows = self._link.run(lambda connection: connection.execute(self._sql.scan, named).all())
        return [(row.record_key, from_row(row._asdict())) for row in rows]


def ddl(table: str, dialect: str) -> list[str]:
    """Give the statements that make the tables of a store.

    :param dialect: ``postgresql``, ``mysql``, ``mariadb`` or ``sqlite``.
    :raises ConfigurationError: SQLAlchemy is missing.
    """
    _, sql_statements = _sqlalchemy()
    statements: Statements = sql_statements.Statements(table)
    return statements.ddl(dialect)


class _Sent(Generic[T]):
    """What was written without a reply so far: where it is in the record, it was done after all.

    A connection that breaks in the middle of a step leaves it open whether the step was done.
    Sealed bytes are never twice the same, so what is found is one's own.
    """

    def __init__(self) -> None:
        self._written: list[tuple[Mapping[str, Any] | None, T]] = []

    def add(self, new: Control | None, sealed: bytes, *, answer: T) -> None:
        """Remember what is about to be written; ``None``: the record is about to be removed."""
        self._written.append((None if new is None else to_row(new) | {"sealed": sealed}, answer))

    def drop(self) -> None:
        """Forget the last one: it was answered, and was not done."""
        self._written.pop()

    def found_in(self, stored: Stored | None) -> list[T]:
        """Give the answers of what is in a record."""
        there = None if stored is None else to_row(stored.control) | {"sealed": stored.sealed}
        return [answer for new, answer in self._written if new == there]


def _sqlalchemy() -> "tuple[ModuleType, ModuleType]":
    """Import what needs SQLAlchemy: only who keeps grants in SQL has to have it."""
    try:
        from flask_atm.grants.stores import sql_link, sql_statements
    except ImportError as error:
        raise ConfigurationError(
            "the SQL store needs SQLAlchemy 2.0.43 or later, and a driver:"
            " pip install 'flask-atm[sql]' 'psycopg[binary]' (or PyMySQL)"
        ) from error
    return sql_link, sql_statements
