# ruff: noqa: S608 -- the names of tables are those of the test
"""The SQL store: the contract on two databases, and what can go wrong between them and us."""

import gc
import logging
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import BigInteger, Integer, create_engine, event, text

from flask_atm.errors import ConfigurationError, StoreError
from flask_atm.grants.control import Stored
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.stores import BY_SCHEME
from flask_atm.grants.stores.sql import ddl
from flask_atm.protocols import AtomicGrantStore
from flask_atm.stores import SQLStore
from flask_atm.testing.clock import FakeClock
from tests.contracts.store_contract import END, START, StoreContract, everywhere
from tests.grants.sql_tools import (
    TableClock,
    engine_of,
    in_file,
    race,
    soon,
    statements,
    when_sending,
)
from tests.servers import refusing_url, silent_url
from tests.servers.postgres_server import PostgresServer
from tests.servers.tcp_proxy import TCPProxy

PASSWORD = "canary-8c1f0d62b7"
#: What one step may take: twice 0.5 s to connect and 1 s to answer, and a second of a busy machine.
LONGEST = 4.0
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
    store = SQLStore(postgres.url(), table=table)
    yield store
    store.close()


def read(store: AtomicGrantStore, key: str = "a") -> Stored:
    stored = store.read(key)
    assert stored is not None
    return stored


def begin(store: AtomicGrantStore, key: str = "a", version: int = 1) -> str:
    return store.begin(key, owner="x", expected_version=version, lease=9, intent="h").status


# -- the contract


class TestSQLStoreOnSQLite(StoreContract):
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "grants.sqlite3"

    @pytest.fixture
    def clock(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
        return TableClock(START, in_file(path), monkeypatch)

    @pytest.fixture
    def store(self, path: Path, clock: FakeClock) -> Iterator[AtomicGrantStore]:
        store = SQLStore(f"sqlite:///{path}", timeout=5)
        yield store
        store.close()


class TestSQLStoreOnPostgreSQL(StoreContract):
    @pytest.fixture
    def clock(self, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
        return TableClock(START, postgres.execute, monkeypatch)

    @pytest.fixture
    def store(
        self, postgres: PostgresServer, clock: FakeClock, table: str
    ) -> Iterator[AtomicGrantStore]:
        store = SQLStore(postgres.url(), table=table)
        yield store
        store.close()


def test_each_step_is_done_by_one_of_64_threads_in_4_processes(
    postgres: PostgresServer, table: str
) -> None:
    race(postgres.url(), table=table)


def test_each_step_is_done_by_one_of_64_threads_in_4_processes_on_sqlite(tmp_path: Path) -> None:
    race(f"sqlite:///{tmp_path / 'grants.sqlite3'}", timeout=20)


# -- rows


def test_n8_reading_is_one_statement_and_a_step_two(store: SQLStore) -> None:
    store.create("a", b"", ends_at=soon())
    with statements(store) as sent:
        store.read("a")
        assert sent == ["SELECT"]
        begin(store)
        store.commit("a", b"", expected_version=1, commit_id="c")
        assert sent == ["SELECT", "SELECT", "UPDATE", "SELECT", "UPDATE"]


def test_what_has_ended_is_trimmed_while_others_come(
    postgres: PostgresServer, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = TableClock(START, postgres.execute, monkeypatch)
    store = SQLStore(postgres.url(), table=table)
    for number in range(50):
        store.create(f"old {number}", b"", ends_at=START + 10, index=["i", "j"])
    clock.advance(20)
    for number in range(10):
        store.create(f"new {number}", b"", ends_at=END, index=["i"])
    assert postgres.execute(f"SELECT count(*) FROM {table}") == [(10,)]
    assert postgres.execute(f"SELECT count(*) FROM {table}_index") == [(10,)]
    store.close()


def test_entries_of_an_index_without_their_record_are_no_find(
    postgres: PostgresServer, store: SQLStore
) -> None:
    # A process was killed after it wrote the index and before the record, or the other way round.
    store.create("b", b"", ends_at=soon(), index=["i"])
    postgres.execute(f"INSERT INTO {store.table}_index SELECT 'i', 'a', ends_at FROM {store.table}")
    assert store.find("i") == ["b"]


def test_a_name_that_is_no_plain_word(postgres: PostgresServer) -> None:
    store = BY_SCHEME["postgresql+"](
        postgres.url(), "b.i-l:l_%s", FakeClock(5.0), EngineParameters()
    )
    assert isinstance(store, SQLStore)
    assert store.create("a", b"1", ends_at=soon(), index=["i"])
    assert begin(store) == "held"
    assert (store.find("i"), len(store.scan("", 10))) == (["a"], 1)
    store.close()
    with pytest.raises(ConfigurationError, match="50 characters"):
        SQLStore(postgres.url(), table="t" * 51)


def test_the_file_is_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "grants.sqlite3"
    store = SQLStore(f"sqlite+pysqlite:///{path}")
    store.create("a", b"", ends_at=soon())
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    with engine_of(store).connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    store.close()


# -- clocks


def test_a3_the_clock_is_the_databases(postgres: PostgresServer, table: str) -> None:
    # ATM(clock=…) reaches a store through BY_SCHEME; this one has no use for it.
    store = BY_SCHEME["postgresql+"](postgres.url(), table, FakeClock(5.0), EngineParameters())
    store.create("a", b"", ends_at=soon())
    assert read(store).now == pytest.approx(time.time(), abs=1)
    assert begin(store) == "held"
    assert store.begin("a", owner="y", expected_version=1, lease=9, intent="h").wait > 8


@pytest.mark.parametrize("zone", ["America/St_Johns", "Pacific/Apia", "Etc/GMT+12"])
def test_k5_no_time_zone_changes_a_moment(postgres: PostgresServer, table: str, zone: str) -> None:
    store = SQLStore(postgres.url(f"?options={quote(f'-c timezone={zone}')}"))
    with engine_of(store).connect() as connection:
        assert connection.scalar(text("SHOW timezone")) == zone
    store.create(zone, b"", ends_at=soon())
    assert read(store, zone).now == pytest.approx(time.time(), abs=1)
    store.close()


def test_k5_instants_are_integers(store: SQLStore, postgres: PostgresServer) -> None:
    for one in store.metadata.tables.values():
        times = [column for column in one.columns if column.name.endswith(("_at", "_until"))]
        assert times
        assert all(isinstance(column.type, BigInteger) for column in times)
        kinds = {type(column.type) for column in one.columns}
        assert not [kind for kind in kinds if "DATE" in kind.__name__.upper()]
        assert all(issubclass(k, Integer) or "Int" not in k.__name__ for k in kinds)
    store.create("a", b"", ends_at=soon())
    kinds_there = postgres.execute(
        "SELECT DISTINCT data_type FROM information_schema.columns"
        f" WHERE table_name LIKE '{store.table}%'"
    )
    assert {kind for (kind,) in kinds_there} == {
        *("bigint", "integer", "smallint"),
        *("bytea", "character varying"),
    }


# -- C8: what a database does to those who talk to it


def fault(postgres: PostgresServer, table: str, code: str, times: int) -> None:
    """Let the next changes of a record fail; a sequence is not rolled back."""
    name = f"{table}_fault"
    postgres.execute(f"CREATE SEQUENCE {name}")
    postgres.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF nextval('{name}') <= {times} THEN"
        f" RAISE EXCEPTION 'no luck' USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$"
    )
    postgres.execute(
        f"CREATE TRIGGER {name} BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()"
    )


@pytest.mark.parametrize("code", ["40P01", "40001", "25006", "57P01"])
def test_c8_deadlock_serialization_failure_failover_and_shutdown_are_retried_twice(
    store: SQLStore, postgres: PostgresServer, code: str
) -> None:
    store.create("a", b"1", ends_at=soon())
    fault(postgres, store.table, code, times=2)
    assert begin(store) == "held"
    assert postgres.execute(f"SELECT last_value FROM {store.table}_fault") == [(3,)]


def test_c8_after_the_second_retry_the_error_names_the_cure(
    store: SQLStore, postgres: PostgresServer
) -> None:
    store.create("a", b"1", ends_at=soon())
    fault(postgres, store.table, "40P01", times=3)
    with pytest.raises(StoreError, match=r"DeadlockDetected 40P01: no luck.*only flask-atm writes"):
        begin(store)
    assert read(store).control.lease_owner is None
    assert begin(store) == "held"


def test_c8_what_is_no_accident_is_not_repeated(store: SQLStore, postgres: PostgresServer) -> None:
    store.create("a", b"1", ends_at=soon())
    fault(postgres, store.table, "22000", times=9)
    with pytest.raises(StoreError, match="no luck"):
        begin(store)
    assert postgres.execute(f"SELECT last_value FROM {store.table}_fault") == [(1,)]


def test_c8_connections_that_are_terminated_all_the_time_lose_and_double_nothing(
    store: SQLStore, postgres: PostgresServer
) -> None:
    store.create("a", b"0", ends_at=soon())
    stop = threading.Event()
    ended = []

    def terminate() -> None:
        while not stop.wait(0.02):
            ended.append(postgres.terminate_connections())

    def add_ten(number: int) -> None:
        for turn in range(10):
            done = False
            while not done:
                with suppress(StoreError):
                    stored = read(store)
                    total, _, last = stored.sealed.partition(b" ")
                    mine = b"%d.%d" % (number, turn)
                    # After an error nobody knows; what is there says so.
                    done = last == mine or f" {number}.{turn};".encode() in stored.sealed
                    if not done:
                        new = b"%d %b" % (int(total) + 1, stored.sealed.partition(b" ")[2])
                        new += b" %b;" % mine
                        version = stored.control.version
                        done = store.update("a", new, expected_version=version) == "ok"

    terminator = threading.Thread(target=terminate)
    terminator.start()
    try:
        everywhere(add_ten)
    finally:
        stop.set()
        terminator.join()
    total, _, entries = read(store).sealed.partition(b" ")
    words = entries.split()
    assert int(total) == len(words) == len(set(words)) == 160
    assert sum(ended) > 5


def test_c8_a_lock_of_somebody_else_is_waited_for_a_second_and_no_longer(
    store: SQLStore, postgres: PostgresServer
) -> None:
    store.create("a", b"1", ends_at=soon())
    with psycopg.connect(host="127.0.0.1", port=postgres.port, user="postgres") as other:
        other.execute(f"SELECT * FROM {store.table} FOR UPDATE".encode())
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"57014.*keeps rows of"):
            begin(store)
        assert 0.9 < time.monotonic() - started < LONGEST
        assert read(store).control.lease_owner is None
        threading.Timer(0.3, other.rollback).start()
        assert begin(store) == "held"


def test_c8_nobody_who_is_stopped_between_two_statements_holds_a_lock(
    store: SQLStore, postgres: PostgresServer
) -> None:
    store.create("a", b"1", ends_at=soon(), index=["i"])
    stopped, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        stopped.set()
        assert go_on.wait(20)

    with when_sending(store, f"DELETE FROM {store.table}_index", stop):
        late = threading.Thread(target=lambda: store.delete("a", keep=b"", index=["o"]))
        late.start()
        assert stopped.wait(10)
        rows = postgres.execute(
            "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
            f" WHERE c.relname LIKE '{store.table}%'"
        )
        assert rows == [(0,)]
        other = SQLStore(postgres.url(), table=store.table)
        assert other.create("b", b"", ends_at=soon(), index=["i"])
        assert other.find("o") == ["a"]
        assert not other.delete("a")
        other.close()
        go_on.set()
        late.join()


def test_c8_database_is_locked_is_a_store_error_with_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "grants.sqlite3"
    store = SQLStore(f"sqlite:///{path}", timeout=0.05)
    store.create("a", b"", ends_at=soon())
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"database is locked.*local disk"):
        begin(store)
    assert read(store).control.lease_owner is None
    other.execute("ROLLBACK")
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.07, lambda: other.execute("ROLLBACK")).start()
    assert begin(store) == "held"
    other.close()
    store.close()


def test_a_folder_that_is_not_there_is_a_store_error(tmp_path: Path) -> None:
    store = SQLStore(f"sqlite:///{tmp_path / 'none' / 'grants.sqlite3'}")
    with pytest.raises(StoreError, match="cannot be used"):
        store.read("a")


# -- lost replies: what was done is not done twice, and is told as it was


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[TCPProxy]:
    with TCPProxy(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy: TCPProxy, table: str) -> Iterator[SQLStore]:
    """A store behind the proxy, with a grant in it."""
    store = SQLStore(f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/postgres", table=table)
    store.create("a", b"1", ends_at=soon(), index=["i"])
    yield store
    store.close()


def losing(store: SQLStore, proxy: TCPProxy, word: str, step: Callable[[], Any]) -> Any:
    """Do a step; the reply to its statement that begins so is lost after it was executed."""
    lost = proxy.lost
    with when_sending(store, word, proxy.lose):
        found = step()
    assert proxy.lost == lost + 1
    return found


def test_a9_a_begin_whose_reply_is_lost_does_not_lock_its_owner_out(
    behind: SQLStore, proxy: TCPProxy
) -> None:
    begun = losing(
        behind,
        proxy,
        "UPDATE",
        lambda: behind.begin("a", owner="x", expected_version=1, lease=9, intent="h"),
    )
    assert (begun.status, begun.version, begun.doubt) == ("held", 1, False)
    again = behind.begin("a", owner="x", expected_version=1, lease=9, intent="h")
    assert (again.status, again.doubt) == ("held", False)


def test_a9_a_begin_in_doubt_whose_reply_is_lost_stays_in_doubt(
    behind: SQLStore, proxy: TCPProxy
) -> None:
    behind.begin("a", owner="killed", expected_version=1, lease=0.05, intent="h")
    time.sleep(0.1)  # the lease of a database cannot be advanced
    begun = losing(
        behind,
        proxy,
        "UPDATE",
        lambda: behind.begin("a", owner="x", expected_version=1, lease=9, intent="h"),
    )
    assert (begun.status, begun.version, begun.doubt) == ("held", 2, True)


def test_a8_a_commit_whose_reply_is_lost_is_made_once(behind: SQLStore, proxy: TCPProxy) -> None:
    begin(behind)
    assert (
        losing(
            behind,
            proxy,
            "UPDATE",
            lambda: behind.commit("a", b"2", expected_version=1, commit_id="c"),
        )
        == "ok"
    )
    stored = read(behind)
    assert (stored.sealed, stored.control.version) == (b"2", 2)


def test_an_update_whose_reply_is_lost_is_told_as_it_was(behind: SQLStore, proxy: TCPProxy) -> None:
    assert (
        losing(behind, proxy, "UPDATE", lambda: behind.update("a", b"2", expected_version=1))
        == "ok"
    )
    assert read(behind).control.version == 2


@pytest.mark.parametrize("table_of", ["", "_index"])
def test_a_create_whose_reply_is_lost_is_told_as_it_was(
    behind: SQLStore, proxy: TCPProxy, table_of: str
) -> None:
    word = f"INSERT INTO {behind.table}{table_of} "
    made = losing(
        behind, proxy, word, lambda: behind.create("b", b"2", ends_at=soon(), index=["j"])
    )
    assert made
    assert (read(behind, "b").sealed, behind.find("j")) == (b"2", ["b"])


@pytest.mark.parametrize("keep", [None, b"outbox"])
def test_a_delete_whose_reply_is_lost_is_told_as_it_was(
    behind: SQLStore, proxy: TCPProxy, keep: bytes | None
) -> None:
    word = f"DELETE FROM {behind.table} " if keep is None else "UPDATE"
    removed = losing(behind, proxy, word, lambda: behind.delete("a", keep=keep, index=["o"]))
    assert removed
    assert (behind.find("i"), behind.find("o")) == ([], ["a"] if keep else [])
    assert not behind.delete("a")


# -- C7: a network that is slow, or swallows everything


def test_c7_an_answer_that_is_late_ends_in_time(behind: SQLStore, proxy: TCPProxy) -> None:
    proxy.delay = 5.0
    started = time.monotonic()
    with pytest.raises(StoreError):
        behind.read("a")
    assert time.monotonic() - started < LONGEST


def test_c7_300_ms_are_slow_and_no_error(behind: SQLStore, proxy: TCPProxy) -> None:
    proxy.delay = 0.3
    assert read(behind).sealed == b"1"
    assert begin(behind) == "held"


def test_c7_half_open_connections_are_cut_and_leave_no_thread(
    behind: SQLStore, proxy: TCPProxy
) -> None:
    threads = threading.active_count()
    proxy.silent = True
    started = time.monotonic()
    errors = everywhere(lambda number: _error_of(lambda: behind.read("a")))
    assert time.monotonic() - started < LONGEST
    assert {type(error) for error in errors} == {StoreError}
    proxy.silent = False
    assert read(behind).sealed == b"1"
    give_up = time.monotonic() + 10
    while _of_ours(threading.enumerate()) > 1:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    assert threading.active_count() <= threads + 2 * proxy.connections + 1


def _of_ours(threads: list[threading.Thread]) -> int:
    return sum(thread.name.startswith("flask-atm") for thread in threads)


def _error_of(step: Callable[[], object]) -> BaseException | None:
    try:
        step()
    except StoreError as error:
        return error
    return None


@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_a_server_that_is_not_there_is_a_store_error_in_time(kind: str) -> None:
    with refusing_url() if kind == "refusing" else silent_url() as url:
        port = url.rpartition(":")[2].strip("/")
        store = SQLStore(f"postgresql+psycopg://app:{PASSWORD}@127.0.0.1:{port}/app")
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"postgresql://127.0.0.1:.*is it running") as caught:
            store.read("a")
        assert time.monotonic() - started < LONGEST
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        assert PASSWORD not in "".join(shown.format())
        assert PASSWORD not in repr(store)
        store.close()


def test_a_database_that_was_killed_has_all_it_said_yes_to(table: str) -> None:
    with PostgresServer() as own:
        store = SQLStore(own.url(), table=table)
        store.create("a", b"1", ends_at=soon(), index=["i"])
        assert begin(store) == "held"
        own.kill()
        with pytest.raises(StoreError, match="is it running"):
            store.commit("a", b"2", expected_version=1, commit_id="c")
        own.start()
        assert store.commit("a", b"2", expected_version=1, commit_id="c") == "ok"
        assert (read(store).sealed, store.find("i")) == (b"2", ["a"])
        store.close()


# -- the application's own connections


def test_given_an_engine_it_has_another_one(postgres: PostgresServer, table: str) -> None:
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

    store = SQLStore(theirs, table=table)
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


def test_no_connection_goes_through_a_fork(store: SQLStore, postgres: PostgresServer) -> None:
    store.create("a", b"1", ends_at=soon())

    def pid() -> int:
        with engine_of(store).connect() as connection:
            found = connection.scalar(text("SELECT pg_backend_pid()"))
            assert isinstance(found, int)
            return found

    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def child(number: int) -> None:
        results.put((read(store).sealed, pid()))
        store.create(f"of child {number}", b"", ends_at=soon())
        store.close()

    before = pid()
    children = [context.Process(target=child, args=(number,)) for number in range(4)]
    for one in children:
        one.start()
    found = [results.get(timeout=30) for _ in children]
    for one in children:
        one.join(10)
        assert one.exitcode == 0
    assert {sealed for sealed, _ in found} == {b"1"}
    assert len({before, *(number for _, number in found)}) == 5
    assert pid() == before
    assert len(store.scan("", 10)) == 5
    # Nobody has closed it, or told the server that it is no longer needed.
    assert "unexpected EOF" not in postgres.log()


def test_a_fork_while_a_thread_connects_waits_for_nothing_of_it(
    postgres: PostgresServer, table: str
) -> None:
    with silent_url() as url:
        port = url.rpartition(":")[2].strip("/")
        store = SQLStore(f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres", table=table)
        busy = threading.Thread(target=lambda: _error_of(lambda: store.read("a")))
        busy.start()
        time.sleep(0.1)  # it is connecting, for half a second
        pid = os.fork()
        if pid == 0:
            error = _error_of(lambda: store.read("a"))
            os._exit(0 if isinstance(error, StoreError) else 1)
        give_up = time.monotonic() + 20
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < give_up, "the child waits for ever"
            time.sleep(0.05)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
        busy.join()
        store.close()


def test_nothing_is_left_open(postgres: PostgresServer, table: str) -> None:
    store = SQLStore(postgres.url("?application_name=left"), table=table)
    everywhere(lambda number: store.create(str(number), b"", ends_at=soon()))
    named = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'left'"
    ((most,),) = postgres.execute(named)
    assert 1 <= most <= 10
    store.close()
    give_up = time.monotonic() + 10
    while postgres.execute(named) != [(0,)]:
        assert time.monotonic() < give_up
    assert read(store, "1").sealed == b""  # close() is no end
    store.close()


def test_a_store_that_is_forgotten_leaves_no_connection(
    postgres: PostgresServer, table: str
) -> None:
    SQLStore(postgres.url("?application_name=forgotten"), table=table).read("a")
    gc.collect()
    give_up = time.monotonic() + 10
    while postgres.execute("SELECT 1 FROM pg_stat_activity WHERE application_name = 'forgotten'"):
        assert time.monotonic() < give_up


# -- tables


def test_first_use_by_many_at_once(postgres: PostgresServer, table: str) -> None:
    stores = [SQLStore(postgres.url(), table=table, pool_size=1) for _ in range(16)]
    made = everywhere(lambda number: stores[number].create(str(number), b"", ends_at=soon()))
    assert made == [True] * 16
    for one in stores:
        one.close()


def test_a_user_who_may_not_make_tables(postgres: PostgresServer, table: str) -> None:
    postgres.execute(f"CREATE USER {table}_user")
    url = postgres.url().replace("postgres@", f"{table}_user@")
    store = SQLStore(url, table=table)
    with pytest.raises(StoreError, match=r"42501.*`flask atm ddl`"):
        store.create("a", b"", ends_at=soon())
    for statement in ddl(table, "postgresql"):
        postgres.execute(statement)
    for name in (table, f"{table}_index"):
        postgres.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO {table}_user")
    assert store.create("a", b"1", ends_at=soon(), index=["i"])
    assert begin(store) == "held"
    assert store.delete("a")
    store.close()


def test_the_tables_of_the_metadata_are_the_same(postgres: PostgresServer, store: SQLStore) -> None:
    engine = create_engine(postgres.url())
    store.metadata.create_all(engine)
    engine.dispose()
    assert store.create("a", b"1", ends_at=soon(), index=["i"])
    names = postgres.execute(
        f"SELECT indexname FROM pg_indexes WHERE tablename LIKE '{store.table}%' ORDER BY 1"
    )
    assert [name.removeprefix(store.table) for (name,) in names] == [
        "_ends",
        "_index_ends",
        "_index_key",
        "_index_pkey",
        "_pkey",
    ]


# -- D10, J1


def test_d10_a_dump_shows_keys_hashes_and_sealed_bytes_only(
    postgres: PostgresServer, store: SQLStore
) -> None:
    store.create("a", b"sealed bytes", ends_at=soon(), index=["i"])
    begin(store)
    dump = postgres.dump()
    assert b"sealed bytes" in dump  # so the dump would show what is in clear


def test_j1_nothing_that_is_stored_is_logged(
    store: SQLStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("sqlalchemy.engine").setLevel(logging.DEBUG)
    try:
        fresh = SQLStore(engine_of(store).url, table=store.table)
        fresh.create("canary-key", b"canary-bytes", ends_at=soon(), index=["canary-index"])
        fresh.find("canary-index")
        fresh.close()
    finally:
        logging.getLogger("sqlalchemy.engine").setLevel(logging.NOTSET)
    assert "INSERT INTO" in caplog.text
    shown = [line for line in caplog.text.splitlines() if "canary" in line and "Row (" not in line]
    assert shown == []


# -- configuration


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("oracle://h/x", "not in oracle"),
        ("mssql+pyodbc://h/x", "PostgreSQL, MySQL, MariaDB or SQLite, not in mssql"),
        ("postgres://h/x", "write postgresql://"),
        ("postgresql+asyncpg://h/x", r"driver asyncpg: write postgresql\+psycopg://"),
        ("postgresql+psycopg2://h/x", "pip install 'flask-atm.sql.' psycopg2-binary"),
        ("mysql+mysqldb://h/x", "pip install 'flask-atm.sql.' mysqlclient"),
        ("sqlite+aiosqlite:///x", "driver aiosqlite"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "in memory"),
        ("no url", "not one that SQLAlchemy understands"),
    ],
)
def test_what_cannot_work_is_refused_with_its_cure(url: str, problem: str) -> None:
    url = url.replace("//h", f"//app:{PASSWORD}@h")
    with pytest.raises(ConfigurationError, match=problem) as caught:
        SQLStore(url)
    shown = traceback.TracebackException.from_exception(caught.value)
    assert PASSWORD not in "".join(shown.format())


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://h/x", "psycopg"),
        ("mysql://h/x", "pymysql"),
        ("mariadb://h/x", "pymysql"),
        ("sqlite:///x", "pysqlite"),
    ],
)
def test_the_driver_that_is_installed_is_taken(url: str, driver: str) -> None:
    assert engine_of(SQLStore(url)).url.get_driver_name() == driver


def test_what_is_neither_a_url_nor_an_engine_is_refused() -> None:
    with pytest.raises(TypeError, match="a URL or an engine"):
        SQLStore(object())  # type: ignore[arg-type]


def test_without_sqlalchemy_the_error_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("sql_link", "sql_statements"):
        monkeypatch.delitem(sys.modules, f"flask_atm.grants.stores.{name}")
        monkeypatch.delattr(f"flask_atm.grants.stores.{name}")
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'flask-atm\[sql\]'"):
        SQLStore("postgresql://h/x")


def test_who_has_another_store_imports_no_sqlalchemy() -> None:
    script = "import sys, flask_atm, flask_atm.stores, flask_atm.cli\n"
    script += "assert not [m for m in sys.modules if m.startswith(('sqlalchemy', 'psycopg'))]"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
