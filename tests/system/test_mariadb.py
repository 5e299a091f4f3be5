"""The SQL store on MariaDB: the contract, and what is special about it."""

# ruff: noqa: S608 -- the names of tables are those of the test

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import pymysql
import pytest
from sqlalchemy import create_engine

from flask_atm.errors import StoreError
from flask_atm.grants.stores.sql import ddl
from flask_atm.protocols import AtomicGrantStore, Doomed
from flask_atm.stores import SQLStore
from flask_atm.testing.clock import FakeClock
from flask_atm.testing.store_contract import StoreContract
from tests.grants.api_calls import one_refresh
from tests.grants.sql_tools import (
    LONGEST,
    PATIENT,
    START,
    TableClock,
    engine_of,
    soon,
    statements,
    when_sending,
)
from tests.grants.support import Setup, config, grant_from
from tests.grants.tools import together
from tests.servers import OIDCServer
from tests.servers.mariadb_server import MariaDBServer
from tests.servers.proxy import FaultProxy, HalfOpen

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

_numbers = count()


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDBServer]:
    # With an hour twice a year that means two.
    with MariaDBServer("--default-time-zone=-03:30") as server:
        yield server


@pytest.fixture
def table() -> str:
    return f"t{next(_numbers)}"


@pytest.fixture
def store(mariadb: MariaDBServer, table: str) -> Iterator[SQLStore]:
    store = SQLStore(mariadb.url(), table=table, **PATIENT)
    yield store
    store.close()


class TestSQLStoreOnMariaDB(StoreContract):
    @pytest.fixture
    def clock(self, mariadb: MariaDBServer, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
        return TableClock(START, mariadb.execute, monkeypatch)

    @pytest.fixture(params=["mariadb+pymysql", "mysql+pymysql"])
    def store(
        self,
        mariadb: MariaDBServer,
        clock: FakeClock,
        table: str,
        request: pytest.FixtureRequest,
    ) -> Iterator[AtomicGrantStore]:
        store = SQLStore(mariadb.url(driver=request.param), table=table, **PATIENT)
        yield store
        store.close()

    @pytest.fixture
    def open_store(self, mariadb: MariaDBServer, table: str) -> Callable[[], AtomicGrantStore]:
        return partial(SQLStore, mariadb.url(), table=table, connect_timeout=30, timeout=30)

    def test_keys_differ_by_case_and_are_sorted_by_bytes(self, store: AtomicGrantStore) -> None:
        for key in ("a", "B", "A", "b"):
            assert store.create(key, key.encode(), ends_at=START + 9)
        assert [key for key, _ in store.scan("", 10)] == ["A", "B", "a", "b"]


def test_n8_reading_is_one_statement_and_a_step_two(
    store: SQLStore, mariadb: MariaDBServer
) -> None:
    store.create("a", b"", ends_at=soon())
    before = _questions(mariadb)
    with statements(store) as sent:
        store.read("a")
        store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
        assert sent == ["SELECT", "SELECT", "UPDATE"]
    # No COMMIT, ROLLBACK or SET beside them; connecting and asking are the other ones.
    assert _questions(mariadb) - before <= 3 + 4


def _questions(mariadb: MariaDBServer) -> int:
    ((_, value),) = mariadb.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
    return int(value)


def test_a3_k5_the_clock_is_the_databases_in_any_time_zone(store: SQLStore) -> None:
    store.create("a", b"", ends_at=soon())
    stored = store.read("a")
    assert stored is not None
    assert stored.now == pytest.approx(time.time(), abs=1)


def test_sealed_bytes_may_be_longer_than_a_blob(store: SQLStore) -> None:
    data = bytes(range(256)) * 1000
    assert store.create("a", data, ends_at=soon())
    stored = store.read("a")
    assert stored is not None
    assert stored.sealed == data


def test_the_ddl_makes_the_tables(mariadb: MariaDBServer, table: str) -> None:
    for statement in ddl(table, "mysql"):
        mariadb.execute(statement)
    store = SQLStore(mariadb.url(), table=table)
    store.metadata.create_all(create_engine(mariadb.url()))
    assert store.create("a", b"", ends_at=soon(), index=["i"])
    assert store.find("i") == ["a"]
    engines = mariadb.execute(
        f"SELECT DISTINCT engine FROM information_schema.tables WHERE table_name LIKE '{table}%'"
    )
    assert engines == [("InnoDB",)]
    store.close()


def test_first_use_by_many_at_once(mariadb: MariaDBServer, table: str) -> None:
    stores = [SQLStore(mariadb.url(), table=table, pool_size=1, **PATIENT) for _ in range(16)]
    made = together(16, lambda number: stores[number].create(str(number), b"", ends_at=soon()))
    assert made == [True] * 16
    for one in stores:
        one.close()


def test_a_batch_is_one_statement_for_each_thing(store: SQLStore) -> None:
    keys = [f"{number:03}" for number in range(150)]
    for key in keys:
        store.create(key, b"grant", ends_at=soon(), index=["user"])
    store.commit("007", b"newer", expected_version=1, commit_id="c")
    doomed = [
        Doomed(
            key=key, keep=key.encode() if key > "099" else None, index=["out"], expected_version=1
        )
        for key in keys
    ]
    with statements(store) as sent:
        assert store.delete_many(doomed) == [key != "007" for key in keys]
    # Once more it is read and buried, because of the one that had changed.
    assert len(sent) <= 9
    assert store.find("user", 999) == ["007"]
    assert sorted(store.find("out", 999)) == keys[100:]
    assert [key for key, _ in store.scan("", 999)] == ["007", *keys[100:]]
    assert store.delete_many(doomed) == [False] * 150


def test_purge_goes_in_batches(store: SQLStore, mariadb: MariaDBServer) -> None:
    store.create("alive", b"1", ends_at=soon(), index=["i"])
    columns = [column.name for column in store.metadata.tables[store.table].columns]
    values = ["seq" if name in ("record_key", "ends_at") else name for name in columns]
    mariadb.execute(
        f"INSERT INTO {store.table} ({', '.join(columns)})"
        f" SELECT {', '.join(values)} FROM {store.table}, seq_1_to_1000"
    )
    mariadb.execute(
        f"INSERT INTO {store.table}_index (entry, record_key, tombstone, ends_at)"
        " SELECT 'i', seq, 0, seq FROM seq_1_to_1300"
    )
    assert [store.purge(600) for _ in range(3)] == [600, 400, 0]
    for name in (store.table, f"{store.table}_index"):
        assert mariadb.execute(f"SELECT record_key FROM {name}") == [("alive",)]


# -- C8


def test_c8_connections_that_are_killed_all_the_time_lose_and_double_nothing(
    store: SQLStore, mariadb: MariaDBServer
) -> None:
    store.create("a", b"0", ends_at=soon())
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.05):
            mariadb.kill_connections()

    def add_ten(number: int) -> None:
        for turn in range(10):
            mine = b" %d.%d;" % (number, turn)
            done = False
            while not done:
                with suppress(StoreError):
                    stored = store.read("a")
                    assert stored is not None
                    # After an error nobody knows; what is there says so.
                    done = (
                        mine in stored.sealed
                        or store.update(
                            "a", stored.sealed + mine, expected_version=stored.control.version
                        )
                        == "ok"
                    )

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        together(16, add_ten)
    finally:
        stop.set()
        killer.join()
    stored = store.read("a")
    assert stored is not None
    words = stored.sealed.split()[1:]
    assert len(words) == len(set(words)) == 160


def test_c8_a_lock_of_somebody_else_is_waited_for_a_second_and_no_longer(
    mariadb: MariaDBServer, table: str
) -> None:
    store = SQLStore(mariadb.url(), table=table)  # with the time-outs that applications have
    store.create("a", b"1", ends_at=soon())
    other = pymysql.connect(host="127.0.0.1", port=mariadb.port, user="app", database="app")
    with other, other.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {store.table} FOR UPDATE")
        started = time.monotonic()
        with pytest.raises(StoreError):
            store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
        assert time.monotonic() - started < LONGEST
        other.rollback()
        begun = store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
        assert begun.status == "held"
    store.close()


@pytest.mark.parametrize("word", ["begin", "commit", "update", "create", "delete", "bury", "batch"])
def test_a8_a9_a_step_whose_reply_is_lost_is_told_as_it_was(
    mariadb: MariaDBServer, table: str, word: str
) -> None:
    with FaultProxy(mariadb.port) as proxy:
        url = f"mysql+pymysql://app@127.0.0.1:{proxy.port}/app"
        store = SQLStore(url, table=table, **PATIENT)
        store.create("a", b"1", ends_at=soon(), index=["i"])
        steps: dict[str, tuple[str, Callable[[], Any], Any]] = {
            "begin": (
                "UPDATE",
                lambda: store.begin("a", owner="x", expected_version=1, lease=9, intent="h").status,
                "held",
            ),
            "commit": (
                "UPDATE",
                lambda: store.commit("a", b"2", expected_version=1, commit_id="c"),
                "ok",
            ),
            "update": ("UPDATE", lambda: store.update("a", b"2", expected_version=1), "ok"),
            "create": (
                f"INSERT INTO {table} ",
                lambda: store.create("b", b"2", ends_at=soon(), index=["j"]),
                True,
            ),
            "delete": (f"DELETE FROM {table} ", lambda: store.delete("a"), True),
            "batch": (
                "UPDATE",
                lambda: store.delete_many([Doomed(key="a"), Doomed(key="none")]),
                [True, False],
            ),
            "bury": ("UPDATE", lambda: store.delete("a", keep=b"k", index=["o"]), True),
        }
        begins, step, answer = steps[word]
        with when_sending(store, begins, proxy.lose):
            assert step() == answer
        assert proxy.spoilt == 1
        store.close()


def test_c7_half_open_connections_end_in_time(mariadb: MariaDBServer, table: str) -> None:
    with FaultProxy(mariadb.port) as proxy:
        store = SQLStore(f"mysql+pymysql://app@127.0.0.1:{proxy.port}/app", table=table)
        store.create("a", b"1", ends_at=soon())
        proxy.always(HalfOpen())
        started = time.monotonic()
        with pytest.raises(StoreError):
            store.read("a")
        assert time.monotonic() - started < LONGEST
        proxy.always(None)
        assert store.read("a") is not None
        store.close()


def test_a_server_that_was_killed_has_all_it_said_yes_to(
    mariadb: MariaDBServer, store: SQLStore
) -> None:
    store.create("a", b"1", ends_at=soon(), index=["i"])
    assert store.commit("a", b"2", expected_version=1, commit_id="c") == "ok"
    mariadb.kill()
    with pytest.raises(StoreError, match="is it running"):
        store.read("a")
    mariadb.start()
    stored = store.read("a")
    assert stored is not None
    assert (stored.sealed, store.find("i")) == (b"2", ["a"])
    assert engine_of(store).url.get_driver_name() == "pymysql"


# -- A1


def test_a1_8_processes_with_16_threads_over_mariadb_make_one_refresh(
    oidc: OIDCServer, mariadb: MariaDBServer, table: str
) -> None:
    client = oidc.add_client("http://localhost/oidc/callback")
    response = oidc.sign_in_directly(client)
    configured = config(oidc, client, mariadb.url(driver="mysql"), ATM_STORE_PREFIX=table)
    state = Setup(config=configured, ahead=-1000).state()
    grant_id = grant_from(state, response)
    oidc.reset()
    oidc.latency(token=0.2)
    one_refresh(oidc, Setup(config=configured), grant_id)
