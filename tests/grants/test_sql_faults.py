# ruff: noqa: S608 -- the names of tables are those of the test
"""The SQL store: what databases and networks do to those who talk to them."""

import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from flask_atm.errors import StoreError
from flask_atm.grants.control import lease_left
from flask_atm.protocols import Doomed
from flask_atm.stores import SQLStore
from tests.grants.sql_tools import (
    LONGEST,
    PATIENT,
    begin,
    engine_of,
    error_of,
    read,
    soon,
    when_sending,
)
from tests.grants.tools import together
from tests.servers import refusing_url, silent_url
from tests.servers.postgres_server import PostgresServer
from tests.servers.proxy import Delay, FaultProxy, HalfOpen

PASSWORD = "canary-8c1f0d62b7"

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
        together(16, add_ten)
    finally:
        stop.set()
        terminator.join()
    total, _, entries = read(store).sealed.partition(b" ")
    words = entries.split()
    assert int(total) == len(words) == len(set(words)) == 160
    assert sum(ended) > 5


def test_c8_a_lock_of_somebody_else_is_waited_for_a_second_and_no_longer(
    postgres: PostgresServer, table: str
) -> None:
    store = SQLStore(postgres.url(), table=table)  # with the time-outs that applications have
    store.create("a", b"1", ends_at=soon())
    with psycopg.connect(host="127.0.0.1", port=postgres.port, user="postgres") as other:
        other.execute(f"SELECT * FROM {store.table} FOR UPDATE".encode())
        started = time.monotonic()
        # Said by the server after 0.8 s, or, where that is late, by the watchdog after a second.
        with pytest.raises(StoreError, match=r"somebody else keeps rows of"):
            begin(store)
        assert 0.8 < time.monotonic() - started < LONGEST
        assert read(store).control.lease_owner is None
        release = threading.Timer(0.3, other.rollback)
        release.start()
        assert begin(store) == "held"
        release.join()
    store.close()


def test_c8_the_server_gives_up_before_the_connection_is_cut(
    postgres: PostgresServer, table: str
) -> None:
    store = SQLStore(postgres.url(), table=table, timeout=3)
    store.create("a", b"1", ends_at=soon())
    with psycopg.connect(host="127.0.0.1", port=postgres.port, user="postgres") as other:
        other.execute(f"SELECT * FROM {store.table} FOR UPDATE".encode())
        with pytest.raises(StoreError, match=r"57014: .*statement timeout.*only flask-atm"):
            store._link.run(
                lambda connection: connection.exec_driver_sql(f"DELETE FROM {table}"), retries=0
            )
    assert read(store).sealed == b"1"
    store.close()


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
        other = SQLStore(postgres.url(), table=store.table, **PATIENT)
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
    refused: list[object] = []

    def release(context: object) -> None:
        if not refused:
            other.execute("ROLLBACK")
        refused.append(context)

    event.listen(engine_of(store), "handle_error", release)
    assert begin(store) == "held"
    assert len(refused) == 1
    other.close()
    store.close()


def test_a_folder_that_is_not_there_is_a_store_error(tmp_path: Path) -> None:
    store = SQLStore(f"sqlite:///{tmp_path / 'none' / 'grants.sqlite3'}")
    with pytest.raises(StoreError, match="cannot be used"):
        store.read("a")


# -- lost replies: what was done is not done twice, and is told as it was


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[FaultProxy]:
    with FaultProxy(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy: FaultProxy, table: str) -> Iterator[SQLStore]:
    """A store behind the proxy, with a grant in it."""
    url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/postgres"
    store = SQLStore(url, table=table, **PATIENT)
    store.create("a", b"1", ends_at=soon(), index=["i"])
    yield store
    store.close()


@pytest.fixture
def hasty(behind: SQLStore) -> Iterator[SQLStore]:
    """The same one with the time-outs that applications have, and one connection that is open."""
    store = SQLStore(engine_of(behind).url, table=behind.table)
    store.read("a")
    yield store
    store.close()


def losing(store: SQLStore, proxy: FaultProxy, word: str, step: Callable[[], Any]) -> Any:
    """Do a step; the reply to its statement that begins so is lost after it was executed."""
    lost = proxy.spoilt
    with when_sending(store, word, proxy.lose):
        found = step()
    assert proxy.spoilt == lost + 1
    return found


def test_a9_a_begin_whose_reply_is_lost_does_not_lock_its_owner_out(
    behind: SQLStore, proxy: FaultProxy
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
    behind: SQLStore, proxy: FaultProxy
) -> None:
    behind.begin("a", owner="killed", expected_version=1, lease=0.05, intent="h")
    while lease_left((stored := read(behind)).control, stored.now):
        assert stored.control.lease_owner == "killed"
    begun = losing(
        behind,
        proxy,
        "UPDATE",
        lambda: behind.begin("a", owner="x", expected_version=1, lease=9, intent="h"),
    )
    assert (begun.status, begun.version, begun.doubt) == ("held", 2, True)


def test_a8_a_commit_whose_reply_is_lost_is_made_once(behind: SQLStore, proxy: FaultProxy) -> None:
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


def test_an_update_whose_reply_is_lost_is_told_as_it_was(
    behind: SQLStore, proxy: FaultProxy
) -> None:
    assert (
        losing(behind, proxy, "UPDATE", lambda: behind.update("a", b"2", expected_version=1))
        == "ok"
    )
    assert read(behind).control.version == 2


@pytest.mark.parametrize("table_of", ["", "_index"])
def test_a_create_whose_reply_is_lost_is_told_as_it_was(
    behind: SQLStore, proxy: FaultProxy, table_of: str
) -> None:
    word = f"INSERT INTO {behind.table}{table_of} "
    made = losing(
        behind, proxy, word, lambda: behind.create("b", b"2", ends_at=soon(), index=["j"])
    )
    assert made
    assert (read(behind, "b").sealed, behind.find("j")) == (b"2", ["b"])


@pytest.mark.parametrize("keep", [None, b"outbox"])
def test_a_delete_whose_reply_is_lost_is_told_as_it_was(
    behind: SQLStore, proxy: FaultProxy, keep: bytes | None
) -> None:
    word = f"DELETE FROM {behind.table} " if keep is None else "UPDATE"
    removed = losing(behind, proxy, word, lambda: behind.delete("a", keep=keep, index=["o"]))
    assert removed
    assert (behind.find("i"), behind.find("o")) == ([], ["a"] if keep else [])
    assert not behind.delete("a")


@pytest.mark.parametrize("was_read", [False, True])
@pytest.mark.parametrize("keep", [None, b"outbox"])
def test_a_batch_whose_reply_is_lost_is_told_as_it_was(
    behind: SQLStore, proxy: FaultProxy, keep: bytes | None, was_read: bool
) -> None:
    behind.create("b", b"1", ends_at=soon(), index=["i"])
    keys = ("a", "none", "b")
    doomed = [Doomed(key=key, keep=keep, index=["o"]) for key in keys]
    if was_read:
        read = [one.control.ends_at if one else soon() for one in behind.read_many(keys)]
        doomed = [
            replace(one, expected_version=1, ends_at=end)
            for one, end in zip(doomed, read, strict=True)
        ]
    answers = losing(behind, proxy, "UPDATE", lambda: behind.delete_many(doomed))
    assert answers == [True, False, True]
    assert (behind.find("i"), sorted(behind.find("o"))) == ([], ["a", "b"] if keep else [])
    assert len(behind.scan("", 9)) == (2 if keep else 0)
    assert behind.delete_many(doomed) == [False] * 3


# -- C7: a network that is slow, or swallows everything


def test_c7_an_answer_that_is_late_ends_in_time(hasty: SQLStore, proxy: FaultProxy) -> None:
    proxy.always(Delay(5.0))
    started = time.monotonic()
    with pytest.raises(StoreError):
        hasty.read("a")
    assert time.monotonic() - started < LONGEST


def test_c7_300_ms_are_slow_and_no_error(hasty: SQLStore, proxy: FaultProxy) -> None:
    proxy.always(Delay(0.3))
    assert read(hasty).sealed == b"1"
    assert begin(hasty) == "held"


def test_c7_half_open_connections_are_cut_and_leave_no_thread(
    hasty: SQLStore, proxy: FaultProxy
) -> None:
    before = set(threading.enumerate())
    proxy.always(HalfOpen())
    started = time.monotonic()
    errors = together(16, lambda number: error_of(lambda: hasty.read("a")))
    assert time.monotonic() - started < LONGEST
    assert {type(error) for error in errors} == {StoreError}
    proxy.always(None)
    assert read(hasty).sealed == b"1"
    give_up = time.monotonic() + 20
    while left := [name for name in _names(before) if name.startswith("flask-atm")]:
        assert time.monotonic() < give_up, left
        time.sleep(0.05)


def _names(before: set[threading.Thread]) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread not in before]


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
