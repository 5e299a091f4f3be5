"""The stores for grants, and how the ``ATM_STORE`` setting names them."""

from collections.abc import Callable
from typing import Final, TypeAlias

from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.stores.memory import MemoryStore
from flask_atm.grants.stores.redis import RedisStore
from flask_atm.grants.stores.sql import SQLStore
from flask_atm.grants.stores.sqlite import SQLiteStore
from flask_atm.protocols import AtomicGrantStore, Clock

__all__ = ["BY_SCHEME", "MemoryStore", "RedisStore", "SQLStore", "SQLiteStore"]


_Make: TypeAlias = Callable[[str, str, Clock, EngineParameters], AtomicGrantStore]


def _memory(url: str, prefix: str, clock: Clock, parameters: EngineParameters) -> AtomicGrantStore:
    return MemoryStore(clock=clock)


def _sqlite(url: str, prefix: str, clock: Clock, parameters: EngineParameters) -> AtomicGrantStore:
    path, timeout = url.removeprefix("sqlite:///"), parameters.store_operation
    return SQLiteStore(path, prefix=prefix, timeout=timeout, clock=clock)


def _redis(url: str, prefix: str, clock: Clock, parameters: EngineParameters) -> AtomicGrantStore:
    connect, operation = parameters.store_connect, parameters.store_operation
    return RedisStore(url, prefix=prefix, connect_timeout=connect, timeout=operation)


def _sql(url: str, prefix: str, clock: Clock, parameters: EngineParameters) -> AtomicGrantStore:
    connect, operation = parameters.store_connect, parameters.store_operation
    return SQLStore(url, table=f"{prefix}_grants", connect_timeout=connect, timeout=operation)


#: A new store is one file and one line here. A plus stands for any driver.
BY_SCHEME: Final[dict[str, _Make]] = {
    "mariadb": _sql,
    "mariadb+": _sql,
    "memory": _memory,
    "mysql": _sql,
    "mysql+": _sql,
    "postgresql": _sql,
    "postgresql+": _sql,
    "redis": _redis,
    "rediss": _redis,
    "sqlite": _sqlite,
    "sqlite+": _sql,
}
