"""What of the benchmarks needs no quiet host: that they work, and what a process keeps of users."""

import gc
from collections import Counter
from pathlib import Path

from benchmarks.filling import fill, grant_id
from benchmarks.growth import Visitor, application
from benchmarks.setting import signed_in
from flask_atm.grants.control import Stored
from flask_atm.state import STATE_KEY
from flask_atm.tokens import TokenParameters
from tests.servers.redis_server import RedisServer

USERS = 900


def objects() -> Counter[str]:
    """Count what is alive, by type."""
    gc.collect()
    return Counter(type(one).__qualname__ for one in gc.get_objects())


def test_a_process_keeps_nothing_of_the_users_that_it_has_served(tmp_path: Path) -> None:
    others = objects()
    app = application(tmp_path, {"ATM_STORE": f"sqlite:///{tmp_path / 'grants.sqlite3'}"})
    fill(app.extensions[STATE_KEY], range(2 * USERS))
    visit = Visitor(app)
    for number in range(USERS):
        visit(number)
    before = objects()
    for number in range(USERS, 2 * USERS):
        visit(number)
    grown = objects() - before
    # Copies of records, for when the store is away, are as many as before.
    assert (before - others)[Stored.__qualname__] <= 512
    assert sum(grown.values()) < USERS / 4, grown.most_common(5)


def test_what_is_filled_in_is_what_a_sign_in_writes() -> None:
    with RedisServer() as server:
        for config in ({}, {"ATM_STORE": server.url}):
            with signed_in(**config) as (_, state, made):
                fill(state, range(30))
                tokens = state.provider().tokens
                user = tokens.get(grant_id(7), TokenParameters())
                assert (user.claims["sub"], user.refreshable) == ("user-7", True)
                assert len(state.store.scan("", 99)) == 32  # the signed-in user, the store's id
                assert tokens.end(grant_id(7)) is not None
                assert tokens.end(made) is not None
                assert len(state.store.scan("", 99)) == 32  # two are tombstones
                state.store.close()  # type: ignore[attr-defined]
