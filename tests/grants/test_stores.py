"""The stores: the contract, and what is special about SQLite."""

import gc
import sqlite3
import stat
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from flask_atm.errors import StoreError
from flask_atm.grants.stores import MemoryStore, SQLiteStore
from flask_atm.protocols import AtomicGrantStore
from flask_atm.testing.clock import FakeClock
from flask_atm.testing.store_contract import StoreContract
from tests.grants.tools import together

START = 1_700_000_000.0
END = START + 1000.0


class TestMemoryStore(StoreContract):
    one_process = True

    @pytest.fixture
    def store(self, clock: FakeClock) -> AtomicGrantStore:
        return MemoryStore(clock=clock)


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "grants.sqlite3"

    @pytest.fixture
    def store(self, path: Path, clock: FakeClock) -> AtomicGrantStore:
        return SQLiteStore(path, clock=clock, timeout=5)

    @pytest.fixture
    def open_store(self, path: Path) -> Callable[[], AtomicGrantStore]:
        return partial(SQLiteStore, path, timeout=30)

    def test_files_are_for_the_owner_only(self, store: AtomicGrantStore, path: Path) -> None:
        store.create("a", b"", ends_at=END)
        files = sorted(path.parent.glob("grants.sqlite3*"))
        assert len(files) == 3
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    def test_it_is_as_durable_as_sqlite_can_be(self, store: AtomicGrantStore, path: Path) -> None:
        store.create("a", b"", ends_at=END)
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.close()

    def test_c8_database_is_locked_is_a_store_error_with_its_cure(
        self, path: Path, clock: FakeClock
    ) -> None:
        store = SQLiteStore(path, clock=clock, timeout=0.01)
        store.create("a", b"", ends_at=END)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"locked.*ATM_STORE.*local disk"):
            store.begin("a", owner="x", expected_version=1, lease=9, intent=None)
        assert store.read("a") is not None
        other.execute("ROLLBACK")
        other.close()
        begun = store.begin("a", owner="x", expected_version=1, lease=9, intent=None)
        assert begun.status == "held"

    def test_c8_a_short_lock_is_waited_for(self, path: Path, clock: FakeClock) -> None:
        store = SQLiteStore(path, clock=clock, timeout=5)
        store.create("a", b"", ends_at=END)
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.1, lambda: other.execute("ROLLBACK"))
        release.start()
        assert store.update("a", b"", expected_version=1) == "ok"
        release.join()
        other.close()

    def test_first_use_by_many_at_once(self, path: Path, clock: FakeClock) -> None:
        stores = [SQLiteStore(path, clock=clock, timeout=1) for _ in range(16)]
        made = together(16, lambda n: stores[n].create(str(n), b"", ends_at=END))
        assert made == [True] * 16

    def test_c8_whoever_makes_the_file_is_waited_for(self, path: Path, clock: FakeClock) -> None:
        """On a busy machine that takes longer than a step, and readers are kept out too."""
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(1.5, lambda: other.execute("ROLLBACK"))
        release.start()
        assert SQLiteStore(path, clock=clock).create("a", b"", ends_at=END)
        release.join()
        other.close()

    def test_a_folder_that_is_not_there_is_a_store_error(self, tmp_path: Path) -> None:
        store = SQLiteStore(tmp_path / "none" / "grants.sqlite3")
        with pytest.raises(StoreError, match="a folder that this process may write to"):
            store.read("a")

    def test_something_else_than_a_database_is_a_store_error(self, path: Path) -> None:
        path.write_bytes(b"no database" * 1000)
        with pytest.raises(StoreError, match="ATM_STORE"):
            SQLiteStore(path).read("a")

    def test_errors_and_crowds_leave_no_connection_open(self, path: Path, clock: FakeClock) -> None:
        store = SQLiteStore(path, clock=clock, timeout=0.01)
        store.create("a", b"", ends_at=END)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(40):
            with pytest.raises(StoreError):
                store.update("a", b"", expected_version=1)
        other.execute("ROLLBACK")
        other.close()
        gc.collect()
        open_now = [
            link
            for link in Path("/proc/self/fd").iterdir()
            if link.is_symlink() and str(path) == _target(link)
        ]
        assert len(open_now) <= 2

    def test_a_row_that_is_cut_is_no_record(self, path: Path, clock: FakeClock) -> None:
        store = SQLiteStore(path, clock=clock)
        store.create("a", b"sealed", ends_at=END)
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE flask_atm_grants SET sealed = 'text'")
        connection.close()
        assert store.read("a") is None
        assert store.scan("", 10) == []

    def test_two_prefixes_share_a_file(self, path: Path, clock: FakeClock) -> None:
        one = SQLiteStore(path, clock=clock)
        two = SQLiteStore(path, prefix="x-y", clock=clock)
        one.create("a", b"1", ends_at=END)
        two.create("a", b"2", ends_at=END)
        assert [stored and stored.sealed for stored in (one.read("a"), two.read("a"))] == [
            b"1",
            b"2",
        ]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""
