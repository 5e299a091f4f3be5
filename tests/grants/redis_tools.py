"""A Redis store whose scripts ask a clock of the test's, and one in other processes."""

from collections.abc import Sequence
from typing import Any

from flask_atm.grants.stores.redis import _CLOCK, RedisStore
from flask_atm.grants.stores.redis_link import RedisLink
from flask_atm.protocols import Clock

__all__ = ["clocked"]

_OF_THE_TEST = b"\nlocal now = tonumber(ARGV[#ARGV])\n"


class ClockedLink(RedisLink):
    """Tells the scripts the time, in place of the server."""

    clock: Clock

    def run(self, script: str, key: bytes, *arguments: str | int | bytes) -> Any:
        return super().run(script, key, *arguments, round(self.clock() * 1000))

    def run_many(
        self, script: str, calls: Sequence[tuple[bytes, Sequence[str | int | bytes]]]
    ) -> list[Any]:
        now = round(self.clock() * 1000)
        return super().run_many(script, [(key, (*arguments, now)) for key, arguments in calls])


def clocked(url_or_client: Any, clock: Clock, *, prefix: str = "flask_atm") -> RedisStore:
    """Make a store with a clock; the rest of its scripts is what it is."""
    store = RedisStore(url_or_client, prefix=prefix)
    scripts = store._link._scripts
    assert all(text.startswith(_CLOCK.encode()) for text in scripts.values())
    mended = {n: text.replace(_CLOCK.encode(), _OF_THE_TEST) for n, text in scripts.items()}
    link = ClockedLink(url_or_client, mended, prefix=prefix, connect_timeout=0.5, timeout=1.0)
    link.clock = clock
    store._link = link
    return store
