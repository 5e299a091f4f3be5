"""C1, C2: what happens when the store's server is killed, the same for all of them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest

from flask_atm.errors import StoreError
from tests.grants.tools import WAIT, World, refreshes, together
from tests.servers import RotatingTokenServer

__all__ = ["killed_during_the_request", "nothing_is_sent_while_it_is_away"]


class Server(Protocol):
    """The server of a store."""

    def start(self) -> None: ...

    def kill(self) -> None: ...


def nothing_is_sent_while_it_is_away(
    server: RotatingTokenServer, store: Server, world_of: Callable[[float], World]
) -> None:
    """C1.

    :param world_of: gives a process whose clock is so many seconds ahead.
    """
    grant_id = world_of(-1000).sign_in(server.issue("alice"))
    world, other = world_of(0), world_of(0)
    fresh = world.sign_in(server.issue("bob"))
    token = world.get(fresh).value
    store.kill()
    # What was read a moment ago is served, and nothing else is known.
    assert world.get(fresh).value == token
    with pytest.raises(StoreError, match="reachable"):
        other.get(fresh)
    with pytest.raises(StoreError):
        world.get(grant_id)
    assert refreshes(server) == []
    store.start()
    assert world.get(grant_id).value
    assert other.get(fresh).value == token
    assert len(refreshes(server)) == 1


def killed_during_the_request(
    server: RotatingTokenServer, store: Server, world_of: Callable[[float], World]
) -> None:
    """C2: killed while the token request is under way, and back afterwards."""
    grant_id = world_of(-1000).sign_in(server.issue("alice"))
    world, *others = [world_of(0) for _ in range(3)]
    server.hold()
    with ThreadPoolExecutor(1) as pool:
        refresher = pool.submit(world.get, grant_id)
        server.wait_held()
        store.kill()
        server.release()
        token = refresher.result(WAIT).value  # kept in memory, and served
    store.start()
    answers = together(8, lambda number: others[number % 2].get(grant_id).value)
    assert set(answers) == {token}
    assert len(refreshes(server)) == 1
    assert others[0].get(grant_id, force_renewal=True).value != token
    assert len(refreshes(server)) == 2
