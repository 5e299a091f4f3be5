"""The connections of one process to an SQL database: an own engine, and an end to every wait."""

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from flask_atm.grants.stores.sql_url import driver_arguments
from flask_atm.oauth.watchdog import Watchdog

__all__ = ["Connections"]

T = TypeVar("T")

#: A firewall forgets a connection that is idle for longer, and tells nobody.
_RECYCLE: Final = 300
#: How PgBouncer and RDS Proxy say that they do not pass settings on.
_NO_OPTIONS: Final = ("unsupported startup parameter", "command-line options")


@dataclass(eq=False, slots=True)
class _Watched:
    """A connection that is cut at its deadline, from another thread."""

    descriptor: int
    deadline: float
    was_cut: bool = False

    def cut(self) -> None:
        self.was_cut = True
        with suppress(OSError), socket.socket(fileno=os.dup(self.descriptor)) as twin:
            twin.shutdown(socket.SHUT_RDWR)


class _Now(threading.local):
    """What a thread is doing: until when, and with which connection."""

    deadline: float = math.inf
    watched: _Watched | None = None


class Connections:
    """What one process has: an engine, and who watches its connections. Thread-safe.

    A child makes a new one: sharing a connection would mix two conversations, and even closing it
    would tell the server that the parent has gone.

    :param theirs: the engine of the application, for what it does when it connects.
    """

    def __init__(
        self,
        url: URL,
        *,
        theirs: Engine | None,
        connect_timeout: float,
        timeout: float,
        pool_size: int,
        connect_args: Mapping[str, Any],
    ) -> None:
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._theirs = theirs
        self._watchdog = Watchdog()
        self._now = _Now()
        self._takes_options = True
        self._is_closed = False
        known = driver_arguments(url, connect_timeout, timeout)
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

    def close(self) -> None:
        """Close those that are idle, and each of the others once its step is done.

        Who waits for a place at that moment may get it at the end of the connect time-out only.
        """
        self._is_closed = True
        self.engine.pool.dispose()

    def run(self, act: Callable[[Connection], T], deadline: float) -> T:
        """Do something with a connection, which does not outlive an error.

        :param deadline: the end of it, by ``time.monotonic()``.
        :raises TimeoutError: there was no answer in time.
        """
        self._now.deadline = deadline
        try:
            with self.engine.connect() as connection:
                try:
                    self._watch(connection.connection.driver_connection)
                    return act(connection)
                except BaseException:
                    # Before it is closed: its descriptor may be somebody else's at once.
                    self._unwatch()
                    connection.invalidate()  # nobody knows its state
                    raise
                finally:
                    # Before it goes back into the pool: there it may be another thread's at once.
                    self._unwatch()
        except DBAPIError:
            # Of a connection that was cut the driver knows no more than that it has ended.
            if self._now.watched is None or not self._now.watched.was_cut:
                raise
        finally:
            self._unwatch()
            self._now.deadline, self._now.watched = math.inf, None
            if self._is_closed:  # while this one was not idle
                self.engine.pool.dispose()
        raise TimeoutError(f"no answer within {self._timeout:g} s")

    def _watch(self, connection: Any) -> None:
        """Cut the connection later; libpq itself would wait for an answer for ever."""
        if (
            hasattr(connection, "fileno")
            and self._now.deadline < math.inf
            and self._now.watched is None
        ):
            deadline = min(self._now.deadline, time.monotonic() + self._timeout)
            watched = _Watched(connection.fileno(), deadline)
            self._watchdog.begin(watched)
            self._now.watched = watched

    def _unwatch(self) -> None:
        if self._now.watched is not None:
            self._watchdog.end(self._now.watched)

    # -- connecting

    def _connect(
        self, dialect: Dialect, record: Any, arguments: list[Any], options: dict[str, Any]
    ) -> Any:
        """Connect in time. What the application does when its own engine connects comes first."""
        # Copies, because listeners change them, and SQLAlchemy 2.0 gives the same ones every time.
        arguments, options = list(arguments), dict(options)
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
                if not any(words in str(refusal) for words in _NO_OPTIONS):
                    raise
            # The connection is still cut in time.
            self._takes_options = False
        return self._connect_in_time(dialect, arguments, options)

    def _connect_in_time(
        self, dialect: Dialect, arguments: list[Any], options: dict[str, Any]
    ) -> Any:
        """Connect in a thread of its own: libpq waits for two seconds at least."""
        timeout = max(0.0, min(self._connect_timeout, self._now.deadline - time.monotonic()))
        thread = ThreadPoolExecutor(1, "flask-atm-connect")
        connecting = thread.submit(dialect.connect, *arguments, **options)
        thread.shutdown(wait=False)
        try:
            connection = connecting.result(timeout)
        except TooLate:
            connecting.add_done_callback(_close_late)
            late = f"no connection within {timeout:.1f} s"
            raise dialect.loaded_dbapi.OperationalError(late) from None
        except BaseException:
            connecting.add_done_callback(_close_late)  # this thread was told to end, say
            raise
        self._watch(connection)
        return connection


def _close_late(connecting: "Future[Any]") -> None:
    if connecting.exception() is None:
        connecting.result().close()


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
