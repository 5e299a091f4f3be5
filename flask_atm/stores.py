"""The stores for grants, for ``ATM(store=…)``; a setting ``ATM_STORE`` names the same ones."""

from flask_atm.grants.stores.memory import MemoryStore
from flask_atm.grants.stores.redis import RedisStore
from flask_atm.grants.stores.sqlite import SQLiteStore

__all__ = ["MemoryStore", "RedisStore", "SQLiteStore"]
