"""Fills a store with the grants of many users, quickly, each as a sign-in would have written it."""

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from flask_atm.grants import control as steps
from flask_atm.grants.answers import Tokens
from flask_atm.grants.record import Grant
from flask_atm.grants.stores import RedisStore, SQLiteStore, SQLStore
from flask_atm.grants.stores.redis import _listed, _member, _ms
from flask_atm.grants.stores.rows import to_row
from flask_atm.grants.user_tokens import NewGrant
from flask_atm.grants.vault import record_key
from flask_atm.state import State
from flask_atm.tokens import Secret

__all__ = ["fill", "grant_id"]

_BATCH = 2000
#: What is to be put there: key, sealed bytes, end, index.
_Row = tuple[str, bytes, float, list[str]]


def grant_id(number: int) -> str:
    """Give the grant id of a user: one that needs no list."""
    return f"oidc.{number:043d}"


def fill(state: State, numbers: range, *, lives: float | None = None, left: float = 3600) -> None:
    """Put the grants of these users there.

    :param lives: seconds until the end of the grants; negative: they have ended.
    :param left: seconds that the access tokens have left.
    """
    rows = _rows(state, numbers, lives, left)
    add = _ADDING[type(state.store)]
    store: Any = state.store
    if isinstance(store, SQLStore):  # one that has the time for so many at once
        store = SQLStore(str(state.config.store), table=store.table, timeout=60)
    while some := list(islice(rows, _BATCH)):
        add(store, some)
    if store is not state.store:
        store.close()


def _rows(state: State, numbers: range, lives: float | None, left: float) -> Iterator[_Row]:
    tokens = state.provider().tokens
    for number in numbers:
        grant: Grant = tokens._grant(
            NewGrant(
                tokens=Tokens(
                    access_token=Secret(f"{number:01000d}"),
                    token_type="Bearer",
                    lifetime=left,
                    refresh_token=Secret(f"r{number:042d}"),
                    id_token=Secret("i" * 900),
                ),
                claims={"sub": f"user-{number}", "email": f"user-{number}@example.com"},
                scope=("openid",),
                requested_at=state.clock(),
            )
        )
        key = record_key(grant_id(number))
        ends_at = grant.ends_at if lives is None else time.time() + lives
        yield key, tokens.vault.seal(key, grant, version=1), ends_at, tokens.index(grant)


def _add_to_sqlite(store: Any, rows: list[_Row]) -> None:
    def step(connection: Any, now: float) -> None:
        for key, sealed, ends_at, index in rows:
            control = steps.new(ends_at=ends_at, doubt=False, version=1)
            store._put(connection, key, control, sealed)
            store._enter(connection, key, index)

    store._write(step)


def _add_to_redis(store: Any, rows: list[_Row]) -> None:
    """Do what ``create`` does, in pipelines."""
    entries: list[tuple[str | bytes, ...]] = []
    for key, _, ends_at, index in rows:
        member = _member(key, _ms(ends_at))
        names = [store._all, *map(store._entry, index)]
        entries += [("ZADD", name, "0", member) for name in names]
        entries += [("PEXPIREAT", name, str(_ms(ends_at))) for name in names[1:]]
    store._link.run_all(entries)
    calls = [
        (
            store._name("grant", key),
            ("create", "c", _listed(index), _ms(ends_at), 0, 1, sealed),
        )
        for key, sealed, ends_at, index in rows
    ]
    store._link.run_many("step", calls)


def _add_to_sql(store: Any, rows: list[_Row]) -> None:
    tables = store._tables
    records = [
        {
            "record_key": key,
            "sealed": sealed,
            **to_row(steps.new(ends_at=ends_at, doubt=False, version=1)),
        }
        for key, sealed, ends_at, _ in rows
    ]
    entries = [
        entry
        for key, _, ends_at, index in rows
        for entry in store._entries(index, key, ends_at, tombstone=False)
    ]

    def add(connection: Any) -> None:
        tables.enter(connection, entries)
        connection.execute(tables.statements.insert, records)

    store._link.run(add)


_ADDING: Final[Mapping[type, Callable[[Any, list[_Row]], None]]] = {
    RedisStore: _add_to_redis,
    SQLStore: _add_to_sql,
    SQLiteStore: _add_to_sqlite,
}
