"""The way to an SQL database: an own engine, short time-outs, two retries, errors with a cure.

Every statement is a transaction of its own (autocommit) and no session keeps anything, so that
PgBouncer may hand each one to another connection, and a process that is stopped between two
statements holds no lock.
"""

import math
import os
import random
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from threading import Event as ThreadEvent
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, Dialect, Engine, Executable, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.schema import CreateTable

from flask_atm.errors import ConfigurationError, StoreError
from flask_atm.grants.single_flight import ProcessLock
from flask_atm.oauth.watchdog import Watchdog

__all__ = ["DIALECTS", "SQLLink", "insert"]

T = TypeVar("T")

#: The drivers that are known to end in time, best first, with their modules.
_DRIVERS: Final[Mapping[str, Mapping[str, str]]] = {
    "mariadb": {"pymysql": "pymysql", "mysqldb": "MySQLdb"},
    "mysql": {"pymysql": "pymysql", "mysqldb": "MySQLdb"},
    "postgresql": {"psycopg": "psycopg", "psycopg2": "psycopg2"},
    "sqlite": {"pysqlite": "sqlite3"},
}
_INSTALL: Final[Mapping[str, str]] = {
    "pymysql": "PyMySQL",
    "mysqldb": "mysqlclient",
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
}
DIALECTS: Final = tuple(_DRIVERS)

_RETRIES: Final = 2
#: A firewall forgets a connection that is idle for longer, and tells nobody.
_RECYCLE: Final = 300
_NO_TABLE: Final = re.compile(r"\b(42P01|1146):|no such table")
#: Two processes that made the same table at the same moment, in the words of PostgreSQL.
_RACE: Final = re.compile(r"\b(23505|42P07|42710):")
#: Passing by nature, but of a class of errors that is not: read-only while another one takes over.
_PASSING: Final = re.compile(r"\b(25006|40001|40P01):")
_CURES: Final = (
    (
        r"42501|1142|1044|permission denied|attempt to write a readonly",
        "its user lacks a right: it reads, inserts, updates and deletes in {table} and"
        " {table}_index; where it may not create tables, make them with `flask atm ddl`",
    ),
    (
        r"28P01|28000|1045|password|authentication",
        "user or password are wrong, or missing in the URL (special characters as %xx)",
    ),
    (
        r"53300|1040|1203|too many|remaining connection slots|QueuePool",
        "there are too many connections: raise its limit, or lower pool_size of SQLStore",
    ),
    (r"25006|1290|1836|read.only", "this server is a replica: name the primary"),
    (r"3D000|1049|does not exist|unknown database", "create the database that the URL names"),
    (
        r"database is locked|database table is locked",
        "somebody keeps the file locked for long; it has to be on a local disk",
    ),
    (
        r"unable to open|readonly database|not a database",
        "the URL has to name a file on a local disk, in a folder that this process may write to",
    ),
    (
        r"40001|40P01|1213|1205|57014|1969|3024|deadlock|could not serialize",
        "somebody else keeps rows of {table} locked: only flask-atm writes there",
    ),
    (
        r"certificate|SSL",
        "the way to it has to be encrypted with a certificate that this host trusts",
    ),
    (r"", "is it running, and reachable from this host, where the URL says?"),
)


@dataclass(eq=False, slots=True)
class _Watched:
    """A connection that is cut at its deadline, from another thread."""

    descriptor: int
    deadline: float

    def cut(self) -> None:
        with suppress(OSError), socket.socket(fileno=os.dup(self.descriptor)) as twin:
            twin.shutdown(socket.SHUT_RDWR)


class _Now(threading.local):
    """What a thread is doing: until when, and with which connection."""

    deadline: float = math.inf
    watched: _Watched | None = None


class _Own:
    """What one process has: an engine, and who watches its connections.

    A child makes a new one: sharing a connection would mix two conversations, and even closing it
    would tell the server that the parent has gone.
    """

    def __init__(
        self,
        url: URL,
        *,
        engine: Engine | None,
        connect_timeout: float,
        timeout: float,
        pool_size: int,
        connect_args: Mapping[str, Any],
    ) -> None:
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._theirs = engine
        self._watchdog = Watchdog()
        self._now = _Now()
        self._takes_options = True
        known = _arguments(url, connect_timeout, timeout)
        backend = url.get_backend_name()
        hstore = {"use_native_hstore": False} if backend == "postgresql" else {}
        self.engine = create_engine(
            url,
            connect_args={**known, **connect_args},
            hide_parameters=True,
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=connect_timeout,
            pool_recycle=_RECYCLE,
            pool_use_lifo=True,
            **hstore,
        )
        event.listen(self.engine, "do_connect", self._connect)
        if backend == "sqlite":
            event.listen(self.engine, "connect", _prepare_sqlite)
        elif backend != "postgresql":
            event.listen(self.engine, "connect", _prepare_mysql)

    def run(self, act: Callable[[Connection], T], deadline: float) -> T:
        """Do something with a connection, which does not outlive an error.

        :param deadline: the end of it, by ``time.monotonic()``.
        """
        self._now.deadline = deadline
        try:
            with self.engine.connect() as connection:
                try:
                    self._watch(connection.connection.driver_connection)
                    return act(connection)
                except BaseException:
                    connection.invalidate()  # nobody knows its state
                    raise
                finally:
                    # Before it goes back into the pool: there it may be another thread's at once.
                    self._unwatch()
        finally:
            self._unwatch()
            self._now.deadline = math.inf

    def _watch(self, connection: Any) -> None:
        """Cut the connection later; libpq itself would wait for an answer for ever."""
        if (
            hasattr(connection, "fileno")
            and self._now.deadline < math.inf
            and not self._now.watched
        ):
            deadline = min(self._now.deadline, time.monotonic() + self._timeout)
            watched = _Watched(connection.fileno(), deadline)
            self._watchdog.begin(watched)
            self._now.watched = watched

    def _unwatch(self) -> None:
        watched, self._now.watched = self._now.watched, None
        if watched is not None:
            self._watchdog.end(watched)

    # -- connecting

    def _connect(
        self, dialect: Dialect, record: Any, arguments: list[Any], options: dict[str, Any]
    ) -> Any:
        """Connect in time. What the application does when its own engine connects comes first."""
        theirs = self._theirs.dialect.dispatch.do_connect if self._theirs is not None else ()
        for listener in theirs:
            connection = listener(dialect, record, arguments, options)
            if connection is not None:
                return connection
        if dialect.name == "postgresql":
            return self._connect_postgresql(dialect, arguments, options)
        if dialect.name == "sqlite":
            _make_file(arguments[0])
        return dialect.connect(*arguments, **options)

    def _connect_postgresql(
        self, dialect: Dialect, arguments: list[Any], options: dict[str, Any]
    ) -> Any:
        # The server gives up a little earlier than the connection is cut: then nobody has to wonder
        # what came of it.
        limit = self._timeout * 800
        limited = f"{options.get('options', '')} -c statement_timeout={limit:.0f}"
        error = dialect.loaded_dbapi.Error
        if self._takes_options:
            try:
                return self._connect_in_time(
                    dialect, arguments, {**options, "options": limited.strip()}
                )
            except error as refusal:
                if "unsupported startup parameter" not in str(refusal):
                    raise
            # PgBouncer does not pass options on. The connection is still cut in time.
            self._takes_options = False
        return self._connect_in_time(dialect, arguments, options)

    def _connect_in_time(
        self, dialect: Dialect, arguments: list[Any], options: dict[str, Any]
    ) -> Any:
        """Connect in a thread of its own: libpq waits for two seconds at least."""
        timeout = min(self._connect_timeout, self._now.deadline - time.monotonic())
        thread = ThreadPoolExecutor(1, "flask-atm-connect")
        connecting = thread.submit(dialect.connect, *arguments, **options)
        thread.shutdown(wait=False)
        try:
            connection = connecting.result(max(0.0, timeout))
        except TooLate:
            connecting.add_done_callback(_close_late)
            late = f"no connection within {max(0.0, timeout):.1f} s"
            raise dialect.loaded_dbapi.OperationalError(late) from None
        self._watch(connection)
        return connection


class SQLLink:
    """Runs statements on a database, with errors as :exc:`~flask_atm.StoreError`.

    Thread-safe and fork-safe.

    :param table: the name of the table, for messages.
    :ivar tables: the statements that make the tables, at first use.
    """

    tables: Sequence[CreateTable] = ()

    def __init__(
        self,
        engine_or_url: "Engine | URL | str",
        *,
        table: str,
        connect_timeout: float,
        timeout: float,
        pool_size: int,
        connect_args: Mapping[str, Any],
    ) -> None:
        url, engine = _url_of(engine_or_url)
        self._table = table
        self._budget = 2 * (connect_timeout + timeout)
        self._longest = connect_timeout + timeout
        self._lock = ProcessLock()
        self._owned: dict[int, _Own] = {}
        weakref.finalize(self, _dispose, self._owned)

        def make() -> _Own:
            return _Own(
                url,
                engine=engine,
                connect_timeout=connect_timeout,
                timeout=timeout,
                pool_size=pool_size,
                connect_args=connect_args,
            )

        self._make = make
        self.dialect = url.get_backend_name()
        self.place = URL.create(
            self.dialect, host=url.host, port=url.port, database=url.database
        ).render_as_string()
        self._own()

    def close(self) -> None:
        """Close the connections of this process; later steps open new ones."""
        _dispose(self._owned)

    def _own(self) -> _Own:
        own = self._owned.get(os.getpid())
        if own is None:
            with self._lock:
                own = self._owned.get(os.getpid())
                if own is None:
                    own = self._owned[os.getpid()] = self._make()
        return own

    def run(self, act: Callable[[Connection], T]) -> T:
        """Do a step, which has to be safe to repeat.

        :raises StoreError: the database did not answer, or refused.
        """
        deadline = time.monotonic() + self._budget
        problem = ""
        for retry in range(_RETRIES + 1):
            try:
                return self._try(act, deadline)
            except (DBAPIError, PoolTimeout, OSError) as error:
                problem = self._problem(error)
                late = time.monotonic() > deadline - self._longest
                if retry == _RETRIES or late or not _may_pass(error):
                    break
            ThreadEvent().wait(random.uniform(0.005, 0.025))  # noqa: S311 - jitter
        # Out here, because the frames of the error above hold the password.
        raise StoreError(problem)

    def _try(self, act: Callable[[Connection], T], deadline: float) -> T:
        own = self._own()
        try:
            return own.run(act, deadline)
        except DBAPIError as error:
            if not _NO_TABLE.search(_described(error)):
                raise
        self._make_tables(own, deadline)
        return own.run(act, deadline)

    def _make_tables(self, own: _Own, deadline: float) -> None:
        """Make the tables, at the same moment as others may."""
        for statement in self.tables:
            for again in (True, True, False):
                try:
                    own.run(partial(_execute, statement), deadline)
                    break
                except DBAPIError as error:
                    if not again or not _RACE.search(_described(error)):
                        raise

    def _problem(self, error: BaseException) -> str:
        found = _described(error)
        cure = next(cure for pattern, cure in _CURES if re.search(pattern, found, re.IGNORECASE))
        return (
            f"the grants in {self.place} cannot be used ({found}): {cure.format(table=self._table)}"
        )


def _execute(statement: Executable, connection: Connection) -> None:
    connection.execute(statement)


def insert(connection: Connection, statement: Executable, row: Mapping[str, Any]) -> bool:
    """Insert a row; ``False`` where there is one already."""
    try:
        connection.execute(statement, row)
    except IntegrityError:
        return False
    return True


def _url_of(engine_or_url: Any) -> tuple[URL, Engine | None]:
    """Give the URL with its driver, and the engine if there is one.

    :raises ConfigurationError: for what cannot work.
    """
    engine = engine_or_url if isinstance(engine_or_url, Engine) else None
    found = getattr(engine_or_url, "url", engine_or_url)
    if not isinstance(found, str | URL):
        raise TypeError("SQLStore takes a URL or an engine of SQLAlchemy")
    try:
        url = make_url(found)
    except (ArgumentError, ValueError):
        url = None
    if url is None:  # the frames of the error above hold the password
        raise ConfigurationError(
            "the URL of the SQL store is not one that SQLAlchemy understands:"
            " postgresql+psycopg://user:password@host/database, special characters as %xx"
        )
    backend, _, driver = url.drivername.partition("+")
    if backend not in _DRIVERS:
        cure = ": write postgresql://" if backend == "postgres" else ""
        raise ConfigurationError(
            f"SQLStore keeps grants in PostgreSQL, MySQL, MariaDB or SQLite, not in {backend}{cure}"
        )
    known = _DRIVERS[backend]
    if driver and driver not in known:
        raise ConfigurationError(
            f"SQLStore does not work with the driver {driver}: write"
            f" {' or '.join(f'{backend}+{one}://…' for one in known)}"
        )
    driver = driver or next((one for one, module in known.items() if find_spec(module)), "")
    if not driver or not find_spec(known[driver]):
        missing = _INSTALL[driver or next(iter(known))]
        raise ConfigurationError(
            f"SQLStore needs a driver for {backend}: pip install 'flask-atm[sql]' {missing}"
        )
    url = url.set(drivername=f"{backend}+{driver}")
    database = url.database or ":memory:"
    if backend == "sqlite" and (":memory:" in database or url.query.get("mode") == "memory"):
        raise ConfigurationError(
            "SQLStore cannot share an SQLite database in memory with the application: name a file,"
            " or use MemoryStore"
        )
    return url, engine


def _arguments(url: URL, connect_timeout: float, timeout: float) -> dict[str, Any]:
    """Give what the driver has to know of time-outs, and what PgBouncer needs."""
    driver = url.get_driver_name()
    if driver == "pysqlite":
        return {"timeout": timeout}
    if driver == "psycopg":
        return {"connect_timeout": math.ceil(connect_timeout), "prepare_threshold": None}
    if driver == "psycopg2":
        return {"connect_timeout": math.ceil(connect_timeout)}
    whole = {"connect_timeout": math.ceil(connect_timeout)}
    whole |= {"read_timeout": math.ceil(timeout), "write_timeout": math.ceil(timeout)}
    if driver == "mysqldb":
        return whole
    exact = {"connect_timeout": connect_timeout, "read_timeout": timeout, "write_timeout": timeout}
    return {**exact, "binary_prefix": True}


def _prepare_sqlite(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _prepare_mysql(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    # No gap locks: deleting what is not there would stop others from inserting.
    cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
    cursor.close()


def _make_file(name: str) -> None:
    """Make the file for the owner only; SQLite gives its -wal and -shm files the mode of it."""
    if not name.startswith("file:") and not os.path.exists(name):
        os.close(os.open(name, os.O_CREAT | os.O_RDWR, 0o600))


def _close_late(connecting: "Future[Any]") -> None:
    if connecting.exception() is None:
        connecting.result().close()


def _dispose(owned: dict[int, _Own]) -> None:
    own = owned.pop(os.getpid(), None)
    if own is not None:
        own.engine.dispose()


def _may_pass(error: BaseException) -> bool:
    """Tell whether another connection, a moment later, may do better."""
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return True
    kinds = {kind.__name__ for kind in type(error.orig).__mro__}
    passing = kinds & {"OperationalError", "InterfaceError"}
    return bool(passing) or bool(_PASSING.search(_described(error)))


def _described(error: BaseException) -> str:
    """Name an error of a driver with its code and the first line of its text."""
    orig = getattr(error, "orig", None) or error
    code = getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)
    if code is None and orig.args and isinstance(orig.args[0], int):
        code = orig.args[0]
    text = str(orig.args[-1] if orig.args else orig).strip().partition("\n")[0]
    return f"{type(orig).__name__}{f' {code}' if code else ''}: {text[:200]}"
