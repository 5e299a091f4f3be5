"""C8: the SQL store behind PgBouncer, which hands each statement to another connection."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import pytest

from flask_atm.protocols import AtomicGrantStore
from flask_atm.stores import SQLStore
from flask_atm.testing.store_races import StoreRaces
from tests.grants.sql_tools import LONGEST, PATIENT, engine_of, soon
from tests.grants.tools import together
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres_server import PostgresServer

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


_numbers = count()


@pytest.fixture(scope="module")
def url(postgres: PostgresServer) -> Iterator[str]:
    with PgBouncer(postgres, connections=3) as pool:
        yield pool.url()


class TestC8ManyThreadsInSeveralProcessesShareThreeConnections(StoreRaces):
    @pytest.fixture
    def open_store(self, url: str) -> Callable[[], AtomicGrantStore]:
        table = f"t{next(_numbers)}"
        return partial(SQLStore, url, table=table, connect_timeout=30, timeout=30)


def test_c8_nothing_is_kept_in_a_session(postgres: PostgresServer) -> None:
    with PgBouncer(postgres, connections=2) as pool:
        store = SQLStore(pool.url(), table="kept", **PATIENT)
        store.create("a", b"0", ends_at=soon())

        def add(number: int) -> None:
            for _ in range(20):  # more often than psycopg prepares a statement after
                while True:
                    stored = store.read("a")
                    assert stored is not None
                    new = b"%d" % (int(stored.sealed) + 1)
                    if store.update("a", new, expected_version=stored.control.version) == "ok":
                        break

        assert together(16, add) == [None] * 16
        stored = store.read("a")
        assert stored is not None
        assert stored.sealed == b"320"
        with engine_of(store).connect() as connection:
            found = connection.exec_driver_sql("SHOW statement_timeout").scalar()
            prepared = connection.exec_driver_sql("SELECT * FROM pg_prepared_statements").all()
        assert (found, prepared) == ("0", [])
        store.close()


def test_c8_the_connection_is_cut_in_time_where_options_are_not_passed_on(
    postgres: PostgresServer,
) -> None:
    with PgBouncer(postgres, connections=2) as pool:
        store = SQLStore(pool.url(), table="cut")
        store.create("a", b"", ends_at=soon())
        started = time.monotonic()
        release = threading.Event()

        def lock() -> None:
            import psycopg

            with psycopg.connect(host="127.0.0.1", port=postgres.port, user="postgres") as other:
                other.execute("SELECT * FROM cut FOR UPDATE")
                locked.set()
                release.wait(30)

        locked = threading.Event()
        holder = threading.Thread(target=lock)
        holder.start()
        assert locked.wait(10)
        try:
            with pytest.raises(Exception, match="cannot be used"):
                store.begin("a", owner="x", expected_version=1, lease=9, intent="h")
            assert time.monotonic() - started < LONGEST
        finally:
            release.set()
            holder.join()
        store.close()
