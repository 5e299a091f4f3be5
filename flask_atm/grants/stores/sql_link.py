"""The way to an SQL database: tables at first use, two retries in time, errors with a cure.

Every statement is a transaction of its own (autocommit) and no session keeps anything, so that
PgBouncer may hand each one to another connection, and a process that is stopped between two
statements holds no lock.
"""

import os
import random
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import Event as ThreadEvent
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, Engine, Executable
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.schema import CreateTable

from flask_atm.errors import StoreError
from flask_atm.grants.single_flight import ProcessLock
from flask_atm.grants.stores.forks import ForkGate
from flask_atm.grants.stores.sql_connections import Connections
from flask_atm.grants.stores.sql_errors import (
    cure_for,
    described,
    is_race,
    may_pass,
    misses_table,
)
from flask_atm.grants.stores.sql_url import url_of

__all__ = ["SQLLink"]

T = TypeVar("T")

_RETRIES: Final = 2


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
        url, engine = url_of(engine_or_url)
        self._table = table
        self._longest = connect_timeout + timeout
        self._budget = 2 * self._longest
        self._lock = ProcessLock()
        self._owned: dict[int, Connections] = {}
        weakref.finalize(self, _close, self._owned)
        self._make = partial(
            Connections,
            url,
            theirs=engine,
            connect_timeout=connect_timeout,
            timeout=timeout,
            pool_size=pool_size,
            connect_args=connect_args,
        )
        self.dialect = url.get_backend_name()
        self.place = URL.create(
            self.dialect, host=url.host, port=url.port, database=url.database
        ).render_as_string()
        # Connections to servers are left alone by a child; those to a file must not be open at all.
        self._gate: AbstractContextManager[None] = (
            ForkGate(partial(_close, self._owned)) if self.dialect == "sqlite" else nullcontext()
        )
        self._own()

    def close(self) -> None:
        """Close the connections of this process; later steps open new ones."""
        _close(self._owned)

    def _own(self) -> Connections:
        own = self._owned.get(os.getpid())
        if own is None:
            with self._lock:
                own = self._owned.get(os.getpid())
                if own is None:
                    own = self._owned[os.getpid()] = self._make()
        return own

    def run(self, act: Callable[[Connection], T], *, retries: int = _RETRIES) -> T:
        """Do a step, which has to be safe to repeat.

        :raises StoreError: the database did not answer, or refused.
        """
        deadline = time.monotonic() + self._budget
        problem = ""
        for retry in range(retries + 1):
            try:
                with self._gate:
                    return self._try(act, deadline)
            except (DBAPIError, PoolTimeout, OSError) as error:
                problem = self._problem(error)
                late = time.monotonic() > deadline - self._longest
                if retry == retries or late or not may_pass(error):
                    break
            ThreadEvent().wait(random.uniform(0.005, 0.025))  # noqa: S311 - jitter
        # Out here, because the frames of the error above hold the password.
        raise StoreError(problem)

    def _try(self, act: Callable[[Connection], T], deadline: float) -> T:
        own = self._own()
        try:
            return own.run(act, deadline)
        except DBAPIError as error:
            if not misses_table(error):
                raise
        self._make_tables(own, deadline)
        return own.run(act, deadline)

    def _make_tables(self, own: Connections, deadline: float) -> None:
        """Make the tables, at the same moment as others may."""
        for statement in self.tables:
            for again in (True, True, False):
                try:
                    own.run(partial(_execute, statement), deadline)
                    break
                except DBAPIError as error:
                    if not again or not is_race(error):
                        raise

    def _problem(self, error: BaseException) -> str:
        found = described(error)
        return (
            f"the grants in {self.place} cannot be used ({found}): {cure_for(found, self._table)}"
        )


def _execute(statement: Executable, connection: Connection) -> None:
    connection.execute(statement)


def _close(owned: dict[int, Connections]) -> None:
    own = owned.pop(os.getpid(), None)
    if own is not None:
        own.close()
