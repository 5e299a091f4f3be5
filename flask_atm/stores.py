"""The stores for grants, for ``ATM(store=…)``; a setting ``ATM_STORE`` names the same ones.

What needs a library that is not always there, or takes long to load, is loaded at its first use.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from flask_atm.grants.stores.memory import MemoryStore
from flask_atm.grants.stores.paired import PairedStore
from flask_atm.grants.stores.redis import RedisStore
from flask_atm.grants.stores.session import SessionStore
from flask_atm.grants.stores.sql import SQLStore
from flask_atm.grants.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from flask_atm.grants.stores.caching import CacheStore

__all__ = [
    "CacheStore",
    "MemoryStore",
    "PairedStore",
    "RedisStore",
    "SQLStore",
    "SQLiteStore",
    "SessionStore",
]

_HOMES: Final = MappingProxyType({"CacheStore": "caching"})


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"flask_atm.grants.stores.{home}"), name)
