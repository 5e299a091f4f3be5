"""Which databases and drivers the SQL store works with, and what it tells them of time-outs."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final

from sqlalchemy import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError

from flask_atm.errors import ConfigurationError

__all__ = ["driver_arguments", "url_of"]

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


def url_of(engine_or_url: Any) -> tuple[URL, Engine | None]:
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
    url = url.set(drivername=f"{backend}+{_driver(backend, driver)}")
    database = url.database or ":memory:"
    if backend == "sqlite" and (":memory:" in database or url.query.get("mode") == "memory"):
        raise ConfigurationError(
            "SQLStore cannot share an SQLite database in memory with the application: name a file,"
            " or use MemoryStore"
        )
    return url, engine


def _driver(backend: str, driver: str) -> str:
    """Give the driver that was named, or the first one that is installed."""
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
    return driver


def driver_arguments(url: URL, connect_timeout: float, timeout: float) -> dict[str, Any]:
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
