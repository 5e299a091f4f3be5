"""SQL stores that ask a clock of the test's, and what is done to them while they work."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from sqlalchemy import event

from flask_atm.errors import StoreError
from flask_atm.grants.control import Stored
from flask_atm.grants.stores.sql import SQLStore
from flask_atm.grants.stores.sql_statements import CLOCKS
from flask_atm.protocols import AtomicGrantStore, Clock
from flask_atm.testing.clock import FakeClock

__all__ = [
    "LONGEST",
    "PATIENT",
    "START",
    "TableClock",
    "begin",
    "clocked_sql",
    "engine_of",
    "error_of",
    "in_file",
    "read",
    "soon",
    "statements",
    "when_sending",
]

START = 1_700_000_000.0
#: For tests that are about something else than time, on a busy machine.
PATIENT: Final[dict[str, Any]] = {"connect_timeout": 10.0, "timeout": 10.0}
#: What one step may take: twice 0.5 s to connect and 1 s to answer, and some of a busy machine.
LONGEST = 8.0


def soon(seconds: float = 100) -> float:
    return time.time() + seconds


def read(store: AtomicGrantStore, key: str = "a") -> Stored:
    stored = store.read(key)
    assert stored is not None
    return stored


def begin(store: AtomicGrantStore, key: str = "a", version: int = 1) -> str:
    return store.begin(key, owner="x", expected_version=version, lease=60, intent="h").status


def error_of(step: Callable[[], object]) -> BaseException | None:
    try:
        step()
    except StoreError as error:
        return error
    return None


class TableClock(FakeClock):
    """A clock that the database can read: in place of its own, the stores ask a table.

    :param execute: runs a statement in the database.
    """

    __slots__ = ("_execute",)

    def __init__(
        self, now: float, execute: Callable[[str], object], patch: pytest.MonkeyPatch
    ) -> None:
        super().__init__(now)
        self._execute = execute
        execute("DROP TABLE IF EXISTS test_clock")
        execute("CREATE TABLE test_clock (ms BIGINT NOT NULL)")
        execute(f"INSERT INTO test_clock VALUES ({round(now * 1000)})")  # noqa: S608
        for dialect in CLOCKS:
            patch.setitem(CLOCKS, dialect, "(SELECT ms FROM test_clock)")

    def set(self, now: float) -> None:
        super().set(now)
        self._execute(f"UPDATE test_clock SET ms = {round(now * 1000)}")  # noqa: S608

    def advance(self, seconds: float) -> float:
        self.set(self() + seconds)
        return self()


#: What a clock of the test takes the place of, right before a statement is sent.
_NO_TIME: Final = "CAST(4242424242424 AS BIGINT)"


def clocked_sql(url: str, clock: Clock, *, table: str = "flask_atm_grants") -> SQLStore:
    """Make a store with a clock of the test's, in any process; its statements are what they are."""
    dialect = "postgresql"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CLOCKS, dialect, _NO_TIME)
        store = SQLStore(url, table=table, **PATIENT)

    def tell(
        connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any
    ) -> tuple[str, Any]:
        now = f"CAST({round(clock() * 1000)} AS BIGINT)"
        return statement.replace(_NO_TIME, now), parameters

    assert store.dialect == dialect
    event.listen(engine_of(store), "before_cursor_execute", tell, retval=True)
    return store


def in_file(path: Any) -> Callable[[str], object]:
    """Give what runs statements in an SQLite file."""

    def execute(statement: str) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute(statement)
        connection.close()

    return execute


# -- what a store sends


def engine_of(store: SQLStore) -> Any:
    """Give the engine of a store in this process."""
    return store._link._own().engine


@contextmanager
def statements(store: SQLStore) -> Iterator[list[str]]:
    """Write down the first words of what is sent."""
    sent: list[str] = []

    def see(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        sent.append(statement.partition(" ")[0])

    engine = engine_of(store)
    event.listen(engine, "before_cursor_execute", see)
    yield sent
    event.remove(engine, "before_cursor_execute", see)


@contextmanager
def when_sending(store: SQLStore, word: str, do: Callable[[], object]) -> Iterator[list[str]]:
    """Do something once, right before a statement that begins so is sent."""
    done: list[str] = []

    def see(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith(word) and not done:
            done.append(statement)
            do()

    engine = engine_of(store)
    event.listen(engine, "before_cursor_execute", see)
    yield done
    event.remove(engine, "before_cursor_execute", see)
    assert done, f"nothing that begins with {word} was sent"
