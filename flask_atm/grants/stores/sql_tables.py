"""What is done to the two tables of the SQL store, statement by statement."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Executable
from sqlalchemy.exc import IntegrityError

from flask_atm.grants.control import Control, Stored
from flask_atm.grants.stores.rows import from_row, to_milliseconds, to_row
from flask_atm.grants.stores.sql_statements import Statements

__all__ = ["Tables", "entry_row"]


def entry_row(entry: str, key: str, ends_at: float, *, tombstone: bool) -> dict[str, Any]:
    """Give an entry of the index as a row."""
    return {
        "entry": entry,
        "record_key": key,
        "tombstone": int(tombstone),
        "ends_at": to_milliseconds(ends_at),
    }


def _stored(row: Any) -> Stored:
    """Read a row; SQLAlchemy's own way to a dictionary takes five times as long."""
    return from_row(dict(zip(row._fields, row, strict=True)))


def _until_done(
    connection: Connection, statement: Executable, row: Mapping[str, Any] | None = None
) -> None:
    """Insert or change rows, at the same moment as others may insert the same ones."""
    for again in (True, True, False):
        try:
            connection.execute(statement, row)
            break
        except IntegrityError:
            # PostgreSQL looks for rows that are there by one constraint only, and what came just
            # now may violate another one first.
            if not again:
                raise


class Tables:
    """The two tables. Each method sends statements on a connection that it is given."""

    def __init__(self, table: str, dialect: str) -> None:
        self.statements = Statements(table, dialect)

    # -- records

    def row(self, connection: Connection, key: str) -> tuple[Stored | None, float]:
        """Give a record that has not ended, and the clock of the database."""
        row = connection.execute(self.statements.read, {"at_key": key}).one()
        now = row.now / 1000
        return (None if row.version is None else _stored(row)), now

    def rows(self, connection: Connection, keys: Iterable[str]) -> dict[str, Stored]:
        """Give those records that have not ended, by key."""
        rows = connection.execute(self.statements.read_many, {"keys": list(keys)}).all()
        return {row.record_key: _stored(row) for row in rows}

    def scan(self, connection: Connection, after: str, most: int) -> list[tuple[str, Stored]]:
        """Give records by the order of their keys."""
        rows = connection.execute(self.statements.scan, {"after": after, "most": most}).all()
        return [(row.record_key, _stored(row)) for row in rows]

    def insert(self, connection: Connection, key: str, control: Control, sealed: bytes) -> bool:
        """Write a record; ``False`` where there is one already, be it one that has ended."""
        row = {"record_key": key, "sealed": sealed, **to_row(control)}
        try:
            connection.execute(self.statements.insert, row)
        except IntegrityError:
            return False
        return True

    def clear_ended(self, connection: Connection, key: str) -> None:
        """Remove a record if it has ended."""
        connection.execute(self.statements.clear_ended, {"at_key": key})

    def swap(
        self, connection: Connection, key: str, was: Control, new: Control | None, sealed: bytes
    ) -> bool:
        """Change a record if it is as it was, or remove it; tell whether it did."""
        named: dict[str, Any] = {"at_key": key, **to_row(was, "was_")}
        statement: Executable = self.statements.remove
        if new is not None:
            named |= {"new_sealed": sealed, **to_row(new, "new_")}
            statement = self.statements.swap
        return connection.execute(statement, named).rowcount == 1

    def bury(
        self, connection: Connection, found: Mapping[str, Control], sealed: Mapping[str, bytes]
    ) -> int:
        """Make tombstones of records that are as they were found; tell how many were."""
        return connection.execute(*self.statements.bury(found, sealed)).rowcount

    def remove_buried(self, connection: Connection, keys: Sequence[str], mark: bytes) -> None:
        """Remove the tombstones that have a mark in place of something to keep."""
        connection.execute(self.statements.remove_buried, {"keys": list(keys), "mark": mark})
        connection.execute(self.statements.leave_for_good, {"keys": list(keys)})

    # -- index

    def enter(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write entries; those that are there already get the end of the new ones."""
        if len(rows) > 3:
            _until_done(connection, *self.statements.enter_many(rows))
            return
        for row in rows:
            _until_done(connection, self.statements.enter, row)

    def leave(self, connection: Connection, key: str, kept: Iterable[str]) -> None:
        """Remove the entries of a record, but for some of its tombstone."""
        connection.execute(self.statements.leave, {"at_key": key, "kept": list(kept)})

    def leave_alive(self, connection: Connection, key: str, kept: Iterable[str] | None) -> None:
        """Remove the entries that a record has while it is alive, but for some; ``None``: none."""
        # Those of its tombstone stay: somebody may be just about to bury it.
        if kept is not None:
            named = {"at_key": key, "kept": list(kept)}
            connection.execute(self.statements.leave_alive, named)

    def leave_many(self, connection: Connection, keys: Iterable[str]) -> None:
        """Remove the entries that tombstones had when they were alive."""
        connection.execute(self.statements.leave_many, {"keys": list(keys)})

    def find(self, connection: Connection, entry: str, most: int) -> list[str]:
        """Give the keys under an entry."""
        named = {"at_entry": entry, "most": most}
        return list(connection.scalars(self.statements.find, named).all())

    # -- what has ended

    def trim(self, connection: Connection, most: int) -> int | None:
        """Remove so many records that have ended, with their entries.

        :returns: how many, which are fewer where others do the same; ``None``: there were none.
        """
        keys = list(connection.scalars(self.statements.ended, {"most": most}).all())
        if not keys:
            return None
        removed = connection.execute(self.statements.trim, {"keys": keys}).rowcount
        connection.execute(self.statements.trim_entries, {"keys": keys})
        return removed

    def trim_entries(self, connection: Connection, most: int) -> bool:
        """Remove so many entries that have ended; tell whether there were any."""
        keys = set(connection.scalars(self.statements.ended_entries, {"most": most}).all())
        if keys:
            connection.execute(self.statements.trim_entries, {"keys": sorted(keys)})
        return bool(keys)
