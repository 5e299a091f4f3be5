"""The SQL store: the application's own connections, and children of its processes."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from flask_atm.stores import SQLStore
from tests.grants.sql_tools import PATIENT, begin, engine_of, error_of, read, soon, when_sending
from tests.grants.test_single_flight import Child, forks, needs_fork
from tests.grants.test_sqlite import Steps
from tests.grants.tools import together
from tests.servers import silent_url
from tests.servers.postgres_server import PostgresServer

_numbers = count()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def table() -> str:
    return f"t{next(_numbers)}"


@pytest.fixture
def store(postgres: PostgresServer, table: str) -> Iterator[SQLStore]:
    store = SQLStore(postgres.url(), table=table, **PATIENT)
    yield store
    store.close()


# -- the application's own connections


def test_c9_c10_given_an_engine_it_has_another_one(postgres: PostgresServer, table: str) -> None:
    theirs = create_engine(
        postgres.url().replace("postgres@", "nobody@"),
        pool_size=1,
        max_overflow=0,
        pool_timeout=0.1,
    )
    asked = []

    @event.listens_for(theirs, "do_connect")
    def sign(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> None:
        asked.append(options["user"])  # as tokens of a cloud's database are put in
        options["user"] = "postgres"

    store = SQLStore(theirs, table=table, **PATIENT)
    with theirs.begin() as held:
        held.execute(text(f"CREATE TABLE pending_{table} (x int)"))
        assert store.create("a", b"1", ends_at=soon())
        assert begin(store) == "held"
        held.rollback()
    assert len(asked) > 1
    assert set(asked) == {"nobody"}
    assert read(store).control.lease_owner == "x"
    assert postgres.execute(f"SELECT to_regclass('pending_{table}')") == [(None,)]
    store.close()
    with theirs.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    theirs.dispose()


def test_what_listeners_of_the_application_change_is_for_one_connection_only(
    postgres: PostgresServer, table: str
) -> None:
    theirs = create_engine(postgres.url().replace("postgres@", "nobody@"))
    asked = []

    @event.listens_for(theirs, "do_connect")
    def sign(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> None:
        asked.append((options["user"], options.get("application_name")))
        options.update(user="postgres", application_name="signed")

    store = SQLStore(theirs, table=table, **PATIENT)
    for turn in range(3):
        store.close()  # the next step connects anew
        assert store.create(str(turn), b"", ends_at=soon())
    assert len(asked) >= 3
    assert set(asked) == {("nobody", None)}
    store.close()
    theirs.dispose()


# -- children


@needs_fork
@forks
def test_a15_no_connection_goes_through_a_fork(store: SQLStore, postgres: PostgresServer) -> None:
    store.create("a", b"1", ends_at=soon())

    def backend() -> Any:
        with engine_of(store).connect() as connection:
            return connection.scalar(text("SELECT pg_backend_pid()"))

    def work(number: int) -> Any:
        found = (read(store).sealed, backend())
        store.create(f"of child {number}", b"", ends_at=soon())
        store.close()
        return found

    before = backend()
    children = [Child(partial(work, number)) for number in range(4)]
    found = [child.result() for child in children]
    assert [sealed for sealed, _ in found] == [b"1"] * 4
    assert len({before, *(number for _, number in found)}) == 5
    assert backend() == before
    assert len(store.scan("", 10)) == 5
    # Nobody has closed it, or told the server that it is no longer needed.
    assert "unexpected EOF" not in postgres.log()


@needs_fork
@forks
def test_a15_a_fork_while_a_thread_connects_waits_for_nothing_of_it(table: str) -> None:
    with silent_url() as url:
        port = url.rpartition(":")[2].strip("/")
        theirs = create_engine(f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres")
        connecting = threading.Event()
        event.listen(theirs, "do_connect", lambda *arguments: connecting.set())
        store = SQLStore(theirs, table=table)
        busy = threading.Thread(target=lambda: error_of(lambda: store.read("a")))
        busy.start()
        assert connecting.wait(10)
        child = Child(lambda: str(error_of(lambda: store.read("a"))))
        assert "is it running" in child.result()
        busy.join()
        store.close()


@needs_fork
@forks
def test_a15_a_fork_while_a_thread_is_in_a_step_changes_nothing_of_it(
    store: SQLStore, postgres: PostgresServer
) -> None:
    store.create("a", b"1", ends_at=soon(), index=["i"])
    children = []

    def fork() -> None:
        children.append(Child(lambda: (begin(store), store.find("i"))))

    with when_sending(store, "UPDATE", fork):
        assert store.update("a", b"2", expected_version=1) == "ok"
    assert children[0].result() in [("held", ["a"]), ("moved", ["a"])]
    assert "unexpected EOF" not in postgres.log()


# What SQLite believes to have locked comes through a fork, the locks do not: see test_sqlite.py.


def seen_by_a_stranger(path: Path) -> list[str]:
    """What another program reads, which then closes the file: as the last one, or so it thinks."""
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "print(*[k for (k,) in c.execute('SELECT record_key FROM flask_atm_grants ORDER BY 1')]);"
        "c.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@needs_fork
@forks
def test_a15_what_a_child_writes_is_there_when_its_parent_has_closed_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "grants.sqlite3"
    store = SQLStore(f"sqlite:///{path}", **PATIENT)
    store.create("a", b"", ends_at=soon())
    child = Steps(
        lambda: store.create("b", b"", ends_at=soon()),
        lambda: store.create("c", b"", ends_at=soon()),
    )
    assert child.next() == b"1"
    store.close()
    assert seen_by_a_stranger(path) == ["a", "b"]
    assert child.next() == b"1"
    assert seen_by_a_stranger(path) == ["a", "b", "c"]
    child.end()
    assert store.read("c") is not None
    store.close()


@needs_fork
@forks
def test_a15_a_child_forked_in_the_middle_of_a_step_can_write(tmp_path: Path) -> None:
    store = SQLStore(f"sqlite:///{tmp_path / 'grants.sqlite3'}", **PATIENT)
    store.create("a", b"", ends_at=soon())
    in_step, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        in_step.set()
        go_on.wait(0.3)

    with when_sending(store, "INSERT", stop):
        writer = threading.Thread(target=lambda: store.create("b", b"", ends_at=soon()))
        writer.start()
        assert in_step.wait(10)
        child = Child(lambda: store.create("c", b"", ends_at=soon()))
        go_on.set()
        writer.join()
    assert child.result() is True
    assert [key for key, _ in store.scan("", 10)] == ["a", "b", "c"]
    store.close()


# -- what is left


def test_nothing_is_left_open(postgres: PostgresServer, table: str) -> None:
    store = SQLStore(postgres.url("?application_name=left"), table=table, **PATIENT)
    made = together(16, lambda number: store.create(str(number), b"", ends_at=soon()))
    assert made == [True] * 16
    named = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'left'"
    ((most,),) = postgres.execute(named)
    assert 1 <= most <= 10
    store.close()
    give_up = time.monotonic() + 10
    while postgres.execute(named) != [(0,)]:
        assert time.monotonic() < give_up
    assert read(store, "1").sealed == b""  # close() is no end
    store.close()


def test_a_connection_that_is_at_work_when_the_store_closes_is_closed_after_its_step(
    postgres: PostgresServer, table: str
) -> None:
    store = SQLStore(postgres.url(), table=table, **PATIENT)
    used: list[Any] = []
    event.listen(engine_of(store), "checkout", lambda *given: used.append(given[0]))
    with when_sending(store, "INSERT", store.close):
        assert store.create("a", b"", ends_at=soon())
    assert used
    assert [connection.closed for connection in used] == [True] * len(used)
    assert read(store, "a").sealed == b""  # by a new one
    store.close()


def test_a_store_that_is_forgotten_leaves_no_connection(
    postgres: PostgresServer, table: str
) -> None:
    SQLStore(postgres.url("?application_name=forgotten"), table=table, **PATIENT).read("a")
    gc.collect()
    give_up = time.monotonic() + 10
    while postgres.execute("SELECT 1 FROM pg_stat_activity WHERE application_name = 'forgotten'"):
        assert time.monotonic() < give_up
