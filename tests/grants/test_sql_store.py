# ruff: noqa: S608 -- the names of tables are those of the test
"""The SQL store: the contract on two databases, its rows, clocks, tables and settings."""

import logging
import secrets
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import BigInteger, Integer, create_engine, text

from flask_atm.errors import ConfigurationError, StoreError
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.stores import BY_SCHEME, MemoryStore
from flask_atm.grants.stores.sql import ddl
from flask_atm.protocols import AtomicGrantStore, BatchedGrantStore, Doomed
from flask_atm.stores import SQLStore
from flask_atm.testing.clock import FakeClock
from flask_atm.testing.store_contract import StoreContract
from tests.grants.sql_tools import (
    PATIENT,
    START,
    TableClock,
    begin,
    engine_of,
    in_file,
    read,
    soon,
    statements,
    when_sending,
)
from tests.grants.tools import together
from tests.servers.postgres_server import PostgresServer

PASSWORD = "canary-8c1f0d62b7"
END = START + 1000

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
        store = SQLStore(f"sqlite:///{path}", **PATIENT)
        yield store
        store.close()

    @pytest.fixture
    def open_store(self, path: Path) -> Callable[[], AtomicGrantStore]:
        return partial(SQLStore, f"sqlite:///{path}", connect_timeout=30, timeout=30)


class TestSQLStoreOnPostgreSQL(StoreContract):
    @pytest.fixture
    def clock(self, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
        return TableClock(START, postgres.execute, monkeypatch)

    @pytest.fixture
    def store(
        self, postgres: PostgresServer, clock: FakeClock, table: str
    ) -> Iterator[AtomicGrantStore]:
        store = SQLStore(postgres.url(), table=table, **PATIENT)
        yield store
        store.close()

    @pytest.fixture
    def open_store(self, postgres: PostgresServer, table: str) -> Callable[[], AtomicGrantStore]:
        return partial(SQLStore, postgres.url(), table=table, connect_timeout=30, timeout=30)


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
    postgres.execute(
        f"INSERT INTO {store.table}_index SELECT 'i', 'a', 0, ends_at FROM {store.table}"
    )
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


def test_the_same_entries_at_the_same_moment(postgres: PostgresServer, table: str) -> None:
    store = SQLStore(postgres.url(), table=table, pool_size=16, **PATIENT)
    together_now = threading.Barrier(16)

    def create(number: int) -> int:
        made = 0
        for turn in range(60):
            together_now.wait(30)
            made += store.create(
                str(turn), b"%d" % number, ends_at=soon(), index=["i", "j", f"only {turn}"]
            )
        return made

    assert sum(together(16, create)) == 60
    assert len(store.find("i")) == len(store.find("j")) == 60
    store.close()


# -- batches


@pytest.fixture(params=["postgresql", "sqlite"])
def batched(
    request: pytest.FixtureRequest, postgres: PostgresServer, table: str, tmp_path: Path
) -> Iterator[SQLStore]:
    urls = {"postgresql": postgres.url(), "sqlite": f"sqlite:///{tmp_path / 'grants.sqlite3'}"}
    store = SQLStore(urls[request.param], table=table, **PATIENT)
    yield store
    store.close()


def graveyard(store: BatchedGrantStore) -> list[Doomed]:
    """Make records of all kinds; give what is to be removed."""
    assert isinstance(store, SQLStore | MemoryStore)
    for number in range(12):
        store.create(f"a{number}", b"grant", ends_at=soon(), index=["user"])
    store.begin("a1", owner="x", expected_version=1, lease=60, intent="h")
    store.commit("a2", b"newer", expected_version=1, commit_id="c")
    store.delete("a3", keep=b"outbox", index=["outbox"])
    store.delete("a4", keep=b"outbox", index=["other"])
    store.delete("a5", keep=b"outbox", index=["outbox"])
    return [
        Doomed(key="a0", keep=b"0", index=["outbox"], expected_version=1),
        Doomed(key="a1", keep=b"1", index=["outbox"], expected_version=1),
        Doomed(key="a2", keep=b"2", index=["outbox"], expected_version=1),
        Doomed(key="a3", keep=b"3", index=["again"]),
        Doomed(key="a4"),
        Doomed(key="a5", expected_version=1),
        Doomed(key="a6"),
        Doomed(key="a7", expected_version=1),
        Doomed(key="none", keep=b"8", index=["outbox"]),
        Doomed(key="a8", keep=b"9", index=["outbox", "outbox", "besides"]),
        Doomed(key="a9", keep=b""),
    ]


def what_is_left(store: BatchedGrantStore) -> Any:
    assert isinstance(store, SQLStore | MemoryStore)
    records = [
        (key, stored.sealed, stored.control.version, stored.control.tombstone)
        for key, stored in store.scan("", 99)
    ]
    entries = ("user", "outbox", "other", "again", "besides")
    return records, [sorted(store.find(entry)) for entry in entries]


def test_a_batch_does_what_the_single_steps_do(batched: SQLStore) -> None:
    example = MemoryStore()
    assert batched.delete_many(graveyard(batched)) == example.delete_many(graveyard(example))
    assert what_is_left(batched) == what_is_left(example)
    keys = ["a0", "none", "a6", "a10", "a2"]
    found, wanted = batched.read_many(keys), example.read_many(keys)
    assert [one and one.sealed for one in found] == [one and one.sealed for one in wanted]
    assert (batched.delete_many([]), batched.read_many([])) == ([], [])


def test_a_batch_of_records_that_are_no_longer_as_they_were_read(batched: SQLStore) -> None:
    """The caller says how they were, and is believed only where that is still so."""
    example = MemoryStore()

    def remove(store: SQLStore | MemoryStore) -> list[bool]:
        graveyard(store)
        keys = ("a0", "a1", "a2", "a3", "a5", "a7", "none")
        versions = {"a3": 2, "a5": 1}  # tombstones: as it is, and as it was when it was alive
        kept = {key: None if key == "a7" else key.encode() for key in keys}
        read = dict(zip(keys, store.read_many(keys), strict=True))
        ends = {key: one.control.ends_at for key, one in read.items() if one is not None}
        return store.delete_many(
            [
                Doomed(
                    key=key,
                    keep=kept[key],
                    index=["outbox"],
                    expected_version=versions.get(key, 1),
                    ends_at=ends.get(key, soon()),
                )
                for key in keys
            ]
        )

    assert remove(batched) == remove(example) == [True, True, False, False, False, True, False]
    assert what_is_left(batched) == what_is_left(example)


@pytest.mark.parametrize(("was_read", "each"), [(True, 3), (False, 4)])
def test_a_thousand_grants_end_in_few_statements(
    batched: SQLStore, was_read: bool, each: int
) -> None:
    keys = [f"{number:04}" for number in range(1000)]
    control = read_after(batched, keys)
    doomed = [
        Doomed(
            key=key,
            keep=secrets.token_bytes(100),
            index=["outbox"],
            expected_version=1,
            ends_at=soon() if was_read else None,
        )
        for key in keys
    ]
    with statements(batched) as sent:
        assert batched.delete_many(doomed) == [True] * 1000
    assert len(sent) == 5 * each
    assert batched.find("outbox", 2000) == control(batched) == keys
    assert batched.find("user", 2000) == []
    assert batched.delete_many(doomed) == [False] * 1000


def read_after(store: SQLStore, keys: list[str]) -> Callable[[SQLStore], list[str]]:
    """Make grants; give what tells the keys of those that are tombstones."""
    for key in keys[:2]:
        store.create(key, b"grant", ends_at=soon(), index=["user"])
    with engine_of(store).connect() as connection:
        names = [column.name for column in store.metadata.tables[store.table].columns]
        of_entries = [
            column.name for column in store.metadata.tables[f"{store.table}_index"].columns
        ]
        for key in keys[2:]:
            for table, columns in ((store.table, names), (f"{store.table}_index", of_entries)):
                values = [f"'{key}'" if name == "record_key" else name for name in columns]
                connection.execute(
                    text(
                        f"INSERT INTO {table} ({', '.join(columns)})"
                        f" SELECT {', '.join(values)} FROM {table} WHERE record_key = '0000'"
                    )
                )
    return lambda store: sorted(
        key for key, stored in store.scan("", 2000) if stored.control.tombstone
    )


def test_a_batch_leaves_who_is_refreshed_meanwhile(
    postgres: PostgresServer, store: SQLStore
) -> None:
    for key in "abc":
        store.create(key, b"grant", ends_at=soon(), index=["user"])
    other = SQLStore(postgres.url(), table=store.table, **PATIENT)
    doomed = [
        Doomed(key=key, keep=key.encode(), index=["outbox"], expected_version=1) for key in "abc"
    ]
    with when_sending(
        store, "UPDATE", lambda: other.commit("b", b"new", expected_version=1, commit_id="c")
    ):
        assert store.delete_many(doomed) == [True, False, True]
    assert read(store, "b").sealed == b"new"
    # The entry in the outbox that was written for it counts for its tombstone only.
    assert (store.find("user"), sorted(store.find("outbox"))) == (["b"], ["a", "c"])
    other.close()


def test_purge_goes_in_batches_and_holds_no_lock_for_long(
    postgres: PostgresServer, table: str
) -> None:
    store = SQLStore(postgres.url(), table=table, **PATIENT)
    store.create("alive", b"1", ends_at=soon(), index=["i"])
    ended = f"SELECT to_char(n, 'FM00000'), {{}} FROM generate_series(1, 20000) n, {table}"
    columns = [column.name for column in store.metadata.tables[table].columns]
    values = ["1000 + n" if name == "ends_at" else name for name in columns[1:]]
    postgres.execute(
        f"INSERT INTO {table} ({', '.join(columns)}) " + ended.format(", ".join(values))
    )
    postgres.execute(
        f"INSERT INTO {table}_index (record_key, entry, tombstone, ends_at)"
        f" SELECT to_char(n, 'FM00000'), 'i', 0, 1000 + n FROM generate_series(1, 20500) n"
    )
    with statements(store) as sent:
        assert store.purge(5000) == 5000
        assert sent.count("DELETE") == 2 * 25
    removed = [store.purge(5000) for _ in range(4)]
    assert removed == [5000, 5000, 5000, 0]
    for name in (table, f"{table}_index"):
        assert postgres.execute(f"SELECT record_key FROM {name}") == [("alive",)]
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


# -- tables


def test_first_use_by_many_at_once(postgres: PostgresServer, table: str) -> None:
    stores = [SQLStore(postgres.url(), table=table, pool_size=1, **PATIENT) for _ in range(16)]
    made = together(16, lambda number: stores[number].create(str(number), b"", ends_at=soon()))
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


def test_j1_no_parameter_is_logged_by_sqlalchemy(
    store: SQLStore, caplog: pytest.LogCaptureFixture
) -> None:
    """As with ``echo=True``. At DEBUG it shows rows besides: hashes and sealed bytes."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("sqlalchemy.engine").setLevel(logging.INFO)
    try:
        fresh = SQLStore(engine_of(store).url, table=store.table)
        fresh.create("canary-key", b"canary-bytes", ends_at=soon(), index=["canary-index"])
        fresh.find("canary-index")
        fresh.delete_many([Doomed(key="canary-key", keep=b"canary-kept", index=["canary-out"])])
        fresh.close()
    finally:
        logging.getLogger("sqlalchemy.engine").setLevel(logging.NOTSET)
    assert "INSERT INTO" in caplog.text
    assert "UPDATE" in caplog.text
    assert "canary" not in caplog.text


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
    for name in ("sql_batches", "sql_link", "sql_tables"):
        monkeypatch.delitem(sys.modules, f"flask_atm.grants.stores.{name}")
        monkeypatch.delattr(f"flask_atm.grants.stores.{name}")
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'flask-atm\[sql\]'"):
        SQLStore("postgresql://h/x")


def test_who_has_another_store_imports_no_sqlalchemy() -> None:
    script = "import sys, flask_atm, flask_atm.stores, flask_atm.cli\n"
    script += "assert not [m for m in sys.modules if m.startswith(('sqlalchemy', 'psycopg'))]"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
