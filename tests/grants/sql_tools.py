"""SQL stores that ask a clock of the test's, and what is done to them from many processes."""

import multiprocessing
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from flask_atm.grants.stores.sql import SQLStore
from flask_atm.grants.stores.sql_statements import CLOCKS
from flask_atm.testing.clock import FakeClock

__all__ = ["TableClock", "engine_of", "race", "soon", "statements", "when_sending"]

PROCESSES, THREADS = 4, 64


def soon(seconds: float = 100) -> float:
    return time.time() + seconds


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


# -- many threads in many processes


def _race(url: str, options: dict[str, Any], number: int, start: Any, results: Any) -> None:
    store = SQLStore(url, **options)
    start.wait(60)
    store.read("warm")  # makes the tables, at the same moment as the others
    barrier = threading.Barrier(THREADS, action=lambda: start.wait(60))

    def run(thread: int) -> None:
        me = f"{number}.{thread}"
        found: list[object] = []
        for turn in range(2):
            barrier.wait(60)
            key = str(turn)
            found.append(store.create(key, me.encode(), ends_at=soon(), index=["all"]))
            barrier.wait(60)
            begun = store.begin(key, owner=me, expected_version=1, lease=30, intent="h")
            found.append(begun.status)
            barrier.wait(60)
            found.append(
                store.commit(key, me.encode(), expected_version=1, commit_id=me)
                if turn
                else store.delete(key)
            )
        results.put(found)

    crowd = [threading.Thread(target=run, args=(thread,)) for thread in range(THREADS)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    store.close()


def race(url: str, **options: Any) -> None:
    """Let 64 threads in each of 4 processes do the same step at once: exactly one succeeds."""
    context = multiprocessing.get_context("forkserver")
    start, results = context.Barrier(PROCESSES), context.Queue()
    workers = [
        context.Process(target=_race, args=(url, options, number, start, results))
        for number in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    everything: Sequence[list[object]] = [
        results.get(timeout=90) for _ in range(PROCESSES * THREADS)
    ]
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == 0
    others = PROCESSES * THREADS - 1
    created, begun, deleted, again, held, committed = zip(*everything, strict=True)
    assert sorted(created) == sorted(again) == sorted(deleted) == [False] * others + [True]
    assert sorted(begun) == sorted(held) == ["busy"] * others + ["held"]
    assert sorted(committed) == ["moved"] * others + ["ok"]
