"""What SQLite does to those who fork, delete its file, or let it wait."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flask_atm.errors import StoreError
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.stores import BY_SCHEME, SQLiteStore
from flask_atm.grants.stores.forks import ForkGate
from tests.grants.test_single_flight import Child, forks, needs_fork

END = time.time() + 9999


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "grants.sqlite3"


def seen_by_a_stranger(path: Path) -> list[str]:
    """What another program reads, which then closes the file: as the last one, or so it thinks."""
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "print(*[key for (key,) in c.execute('SELECT key FROM flask_atm_grants ORDER BY key')]);"
        "c.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


class Steps:
    """A child that does one step whenever it is told to."""

    def __init__(self, *steps: Callable[[], Any]) -> None:
        self._told, tell = os.pipe()
        go, self._go = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            for step in steps:
                os.read(go, 1)
                try:
                    os.write(tell, b"1" if step() else b"0")
                except BaseException:
                    os.write(tell, b"x")
            os._exit(0)

    def next(self) -> bytes:
        os.write(self._go, b".")
        return os.read(self._told, 1)

    def end(self) -> None:
        os.waitpid(self._pid, 0)


@needs_fork
@forks
def test_a15_what_a_child_writes_is_there_when_its_parent_has_closed_the_file(path: Path) -> None:
    """A daemon: the program has used the store, forks, and ends.

    SQLite's locks do not survive a fork, but it believes that they do. With a connection that came
    through one the child's own are not locked either; then anybody who closes the file takes
    himself for the last one, and deletes the log that the child writes to.
    """
    store = SQLiteStore(path)
    store.create("a", b"", ends_at=END)
    child = Steps(
        lambda: store.create("b", b"", ends_at=END), lambda: store.create("c", b"", ends_at=END)
    )
    assert child.next() == b"1"
    store.close()
    assert seen_by_a_stranger(path) == ["a", "b"]
    assert child.next() == b"1"
    assert seen_by_a_stranger(path) == ["a", "b", "c"]
    child.end()
    assert store.read("c") is not None


@needs_fork
@forks
def test_a15_a_child_forked_in_the_middle_of_a_step_can_write(path: Path) -> None:
    in_step, go_on = threading.Event(), threading.Event()

    def clock() -> float:
        if threading.current_thread().name == "writer":
            in_step.set()
            go_on.wait(0.3)
        return time.time()

    store = SQLiteStore(path, clock=clock)
    store.create("a", b"", ends_at=END)
    writer = threading.Thread(
        target=lambda: store.create("b", b"", ends_at=END), name="writer", daemon=True
    )
    writer.start()
    assert in_step.wait(10)
    child = Child(lambda: store.create("c", b"", ends_at=END))
    go_on.set()
    writer.join()
    assert child.result() is True
    assert [key for key, _ in store.scan("", 10)] == ["a", "b", "c"]


@needs_fork
@forks
def test_a15_a_store_that_is_gone_is_no_trouble_at_a_fork(path: Path) -> None:
    store = SQLiteStore(path)
    store.create("a", b"", ends_at=END)
    del store
    assert Child(lambda: SQLiteStore(path).read("a") is not None).result() is True


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_was_taken_away_is_not_written_to(path: Path, how: str) -> None:
    """By a deployment, or a backup that was restored: what goes on in it nobody else sees."""
    store = SQLiteStore(path)
    store.create("old", b"", ends_at=END)
    if how == "deleted":
        for file in path.parent.glob("grants.sqlite3*"):
            file.unlink()
        other = SQLiteStore(path)
    else:
        backup = path.with_name("backup")
        other = SQLiteStore(backup)
        other.create("backup", b"", ends_at=END)
        other.close()
        for file in path.parent.glob("grants.sqlite3-*"):
            file.unlink()  # or SQLite plays the old log into the new file
        backup.replace(path)
        other = SQLiteStore(path)
    other.create("new", b"", ends_at=END)
    assert store.create("more", b"", ends_at=END)
    assert other.read("more") is not None
    assert store.read("new") is not None
    assert store.read("old") is None
    assert "more" in seen_by_a_stranger(path)


def test_whoever_only_reads_notices_within_a_second(path: Path) -> None:
    store = SQLiteStore(path)
    store.create("a", b"", ends_at=END)
    assert store.read("a") is not None
    for file in path.parent.glob("grants.sqlite3*"):
        file.unlink()
    store._link._looked_at -= 1.0
    assert store.read("a") is None


def test_a_file_that_was_taken_away_comes_back_with_mode_0600(path: Path) -> None:
    store = SQLiteStore(path)
    store.create("old", b"", ends_at=END)
    path.unlink()
    assert store.delete("old") is False
    assert path.stat().st_mode & 0o777 == 0o600


# -- time


def locked(path: Path) -> sqlite3.Connection:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    return other


@pytest.mark.timed
@pytest.mark.parametrize("first", [True, False])
def test_nobody_waits_for_a_lock_beyond_the_budget(path: Path, first: bool) -> None:
    """(connect + operation) x 2, from which the lease is derived; also for a first connection,
    which has a table to make and a mode to set."""
    if first:
        path.touch()
    store = SQLiteStore(path, timeout=0.2)
    if not first:
        store.create("a", b"", ends_at=END)
    other = locked(path)
    started = time.monotonic()
    with pytest.raises(StoreError, match="locked"):
        store.create("b", b"", ends_at=END)
    took = time.monotonic() - started
    other.execute("ROLLBACK")
    other.close()
    assert took < (0.1 + 0.2) * 2 + 0.15
    assert first or took > 0.3
    assert store.create("b", b"", ends_at=END)


@pytest.mark.timed
def test_the_time_out_is_that_of_the_engine(path: Path) -> None:
    parameters = EngineParameters(store_operation=0.05, store_connect=0.05)
    store = BY_SCHEME["sqlite"](f"sqlite:///{path}", "flask_atm", time.time, parameters)
    store.create("a", b"", ends_at=END)
    other = locked(path)
    started = time.monotonic()
    with pytest.raises(StoreError):
        store.create("b", b"", ends_at=END)
    assert time.monotonic() - started < 0.5
    other.close()


def with_each_connection(store: SQLiteStore, act: Callable[[sqlite3.Connection], object]) -> None:
    """Do something to every new connection of a store."""
    connect = store._link._connect

    def connected() -> sqlite3.Connection:
        connection = connect()
        act(connection)
        return connection

    store._link._connect = connected  # type: ignore[method-assign]


# -- a full disk


def test_a_full_disk_is_called_a_full_disk(path: Path) -> None:
    """SQLite has rolled back by itself then, and a second time is an error of its own."""
    store = SQLiteStore(path)
    store.create("a", b"", ends_at=END)

    def stay_small(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    store.close()
    with_each_connection(store, stay_small)
    with pytest.raises(StoreError, match="full"):
        store.create("b", bytes(10**6), ends_at=END)
    assert store.read("a") is not None


# -- many grants


class Traced(SQLiteStore):
    """Keeps what is said to SQLite."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.said: list[str] = []
        with_each_connection(self, lambda opened: opened.set_trace_callback(self.said.append))


def test_no_step_looks_at_every_row(path: Path) -> None:
    """However many grants there are: what a step looks for is found by an index."""
    store = Traced(path)
    store.create("a", b"1", ends_at=END, index=["i"])
    store.begin("a", owner="o", expected_version=1, lease=9, intent="h")
    store.commit("a", b"2", expected_version=1, commit_id="c")
    store.update("a", b"3", expected_version=2)
    store.adopt("a", b"3", expected_version=3, version=7)
    store.abort("a", owner="o", clear_intent=True)
    assert (store.find("i"), len(store.scan("", 10)), store.purge(9)) == (["a"], 1, 0)
    store.delete("a", keep=b"t", index=["o"])
    with sqlite3.connect(path) as connection:
        plans = {
            said: [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {said}")]
            for said in store.said
            if said.startswith(("SELECT", "DELETE", "INSERT", "UPDATE"))
        }
    connection.close()
    steps = [step for plan in plans.values() for step in plan]
    assert len(steps) >= 8
    assert [step for step in steps if not step.startswith("SEARCH")] == []


@needs_fork
def test_a15_no_step_runs_until_all_threads_that_fork_have_forked() -> None:
    gate = ForkGate(lambda: None)
    gate._before()
    gate._before()
    gate._after_in_parent()
    entered = threading.Event()

    def step() -> None:
        with gate:
            entered.set()

    thread = threading.Thread(target=step)
    thread.start()
    assert not entered.wait(0.2)
    gate._after_in_parent()
    assert entered.wait(30)
    thread.join()


def test_a_large_purge_lets_others_write_in_between(path: Path) -> None:
    now = time.time()
    store = Traced(path)
    with_clock = SQLiteStore(path, clock=lambda: now - 100)
    for number in range(250):
        with_clock.create(f"{number}", b"", ends_at=now - 50, index=["i"])
    assert store.purge(240) == 240
    removed = 0
    for said in store.said:
        if said.startswith("BEGIN"):
            removed = 0
        removed += said.startswith('DELETE FROM "flask_atm_grants"')
        assert removed <= 100
    assert store.said.count("COMMIT") >= 3
    assert (store.purge(240), store.purge(240)) == (10, 0)
