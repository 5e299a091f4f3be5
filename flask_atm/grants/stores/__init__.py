"""The stores for grants, and how the ``ATM_STORE`` setting names them."""

from collections.abc import Callable
from typing import Final

from flask_atm.grants.stores.memory import MemoryStore
from flask_atm.grants.stores.sqlite import SQLiteStore
from flask_atm.protocols import AtomicGrantStore, Clock

__all__ = ["BY_SCHEME", "MemoryStore", "SQLiteStore"]


def _memory(url: str, prefix: str, clock: Clock) -> AtomicGrantStore:
    return MemoryStore(clock=clock)


def _sqlite(url: str, prefix: str, clock: Clock) -> AtomicGrantStore:
    return SQLiteStore(url.removeprefix("sqlite:///"), prefix=prefix, clock=clock)


#: A new store is one file and one line here.
BY_SCHEME: Final[dict[str, Callable[[str, str, Clock], AtomicGrantStore]]] = {
    "memory": _memory,
    "sqlite": _sqlite,
}
