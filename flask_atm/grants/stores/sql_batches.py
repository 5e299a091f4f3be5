"""The end of many grants at once in the SQL store: a few statements for hundreds of records."""

import secrets
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from flask_atm.errors import StoreError
from flask_atm.grants import control as steps
from flask_atm.grants.control import Control
from flask_atm.grants.stores.lost_replies import Written
from flask_atm.grants.stores.sql_tables import Tables, entry_row
from flask_atm.protocols import Doomed

__all__ = ["Burials"]

_TURNS: Final = 16


class Burials:
    """Removes one batch of records. May be run again after an error, and goes on then.

    Each record becomes a tombstone by one statement for all of them, fenced by their versions. What
    is not to be kept has a mark in its place, and is removed right after.
    """

    def __init__(self, tables: Tables, doomed: Sequence[Doomed]) -> None:
        self._tables = tables
        self._doomed = {one.key: one for one in doomed}
        self._mark = secrets.token_bytes(16)
        self._written: dict[str, Written[bool]] = {one.key: Written() for one in doomed}
        self._answers: dict[str, bool] = {}
        self._buried: set[str] = set()
        self._has_begun = False

    def __call__(self, connection: Connection) -> list[bool]:
        for _ in range(_TURNS):
            open_ones = self._as_read() or self._look(connection)
            if not open_ones:
                self._clear(connection)
                return [self._answers[key] for key in self._doomed]
            self._enter(connection, open_ones)
            self._bury(connection, open_ones)
        raise StoreError("records change faster than they can be read")

    def _as_read(self) -> dict[str, Control]:
        """Give the records as the caller has read them, if it has: to read them again takes half
        of the time, and the fence finds those that are no longer so."""
        if self._has_begun:
            return {}
        self._has_begun = True
        read = {
            key: Control(version=one.expected_version, ends_at=one.ends_at)
            for key, one in self._doomed.items()
            if one.expected_version is not None and one.ends_at is not None
        }
        return read if len(read) == len(self._doomed) else {}

    def _look(self, connection: Connection) -> dict[str, Control]:
        """Read what has no answer yet; give what is still to be buried."""
        waiting = self._doomed.keys() - self._answers.keys()
        if not waiting:
            return {}
        stored = self._tables.rows(connection, sorted(waiting))
        open_ones = {}
        for key in sorted(waiting):
            found, version = stored.get(key), self._doomed[key].expected_version
            done = self._written[key].found_in(found)
            if done:
                self._answer(key, done[0])
            elif found is None or version not in (None, found.control.version):
                self._answers[key] = False
            else:
                open_ones[key] = found.control
        return open_ones

    def _enter(self, connection: Connection, open_ones: dict[str, Control]) -> None:
        """Write the entries of tombstones before these are there."""
        rows = [
            entry_row(entry, key, found.ends_at, tombstone=True)
            for key, found in open_ones.items()
            if self._doomed[key].keep is not None
            for entry in dict.fromkeys(self._doomed[key].index)
        ]
        self._tables.enter(connection, rows)

    def _bury(self, connection: Connection, open_ones: dict[str, Control]) -> None:
        sealed = {key: self._sealed(key) for key in open_ones}
        for key, found in open_ones.items():
            self._written[key].add(steps.bury(found), sealed[key], answer=not found.tombstone)
        number = self._tables.bury(connection, open_ones, sealed)
        if number == len(open_ones):
            for key, found in open_ones.items():
                self._answer(key, not found.tombstone)
            return
        # Somebody else has changed some of them: which are ours now? None, if none was changed:
        # what looks like ours is of a call before, with the same bytes.
        stored = self._tables.rows(connection, sorted(open_ones)) if number else {}
        for key in open_ones:
            for answer in self._written[key].found_in(stored.get(key)):
                self._answer(key, answer)
            self._written[key].drop()

    def _sealed(self, key: str) -> bytes:
        keep = self._doomed[key].keep
        return self._mark if keep is None else keep

    def _answer(self, key: str, answer: bool) -> None:
        self._answers[key] = answer
        self._buried.add(key)

    def _clear(self, connection: Connection) -> None:
        """Remove what the tombstones make needless."""
        kept = sorted(key for key in self._buried if self._doomed[key].keep is not None)
        gone = sorted(self._buried.difference(kept))
        if kept:
            self._tables.leave_many(connection, kept)
        for key in kept:
            if not self._answers[key]:  # it was a tombstone before, and may have had entries
                self._tables.leave(connection, key, self._doomed[key].index)
        if gone:
            self._tables.remove_buried(connection, gone, self._mark)
