"""What many grants cost in SQLite and PostgreSQL: a read, and their removal while others write.

Run it with ``python -m benchmarks.many_grants``, with a number of grants if 100,000 are not enough.
The writer beside the purge is another process: it takes leases and gives them back.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.filling import fill, grant_id
from benchmarks.setting import interleaved, signed_in
from flask_atm.grants.stores import SQLiteStore, SQLStore
from flask_atm.grants.vault import record_key
from flask_atm.state import State
from flask_atm.tokens import TokenParameters
from tests.servers.postgres_server import PostgresServer

__all__ = ["MANY", "get_among", "measure", "purging"]

FEW, MANY = 1_000, 100_000
#: The limit of a wait for another one who writes, in milliseconds.
LONGEST = 50.0
#: What is removed in one call.
BATCH = 100
ROOT = Path(__file__).parent.parent


def get_among(states: dict[int, State]) -> float:
    """Give what a whole ``get`` among the most users takes against one among the fewest.

    :param states: by how many users each has; in each a thousand of them are read by turns.
    """
    calls = {str(number): _get(state, number) for number, state in states.items()}
    took = interleaved(calls, rounds=41, calls=500)
    for number, microseconds in took.items():
        print(f"  get among {number}: {microseconds:.1f} us")
    return took[str(max(states))] / took[str(min(states))]


def _get(state: State, number: int) -> Callable[[], object]:
    users = cycle([grant_id(n) for n in range(0, number, number // FEW)])
    tokens = state.provider().tokens
    return lambda: tokens.get(next(users), TokenParameters())


def purging(store: Any, write: Sequence[str]) -> float:
    """Remove what has ended while another process writes.

    :param write: the command of the writer: it writes until a line comes.
    :returns: milliseconds that a write takes meanwhile (p99): nobody may keep it out for longer.
    """
    with subprocess.Popen(
        write, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        purged = [_timed(lambda: store.purge(BATCH))]
        while purged[-1][1]:
            purged.append(_timed(lambda: store.purge(BATCH)))
        writes, _ = writer.communicate("stop\n")
    written = json.loads(writes)
    print(f"  removed {sum(found for _, found in purged)} in {sum(ms for ms, _ in purged):.0f} ms")
    for name, times in (("a batch", [ms for ms, _ in purged[1:]]), ("a write", written)):
        middle = sorted(times)[len(times) // 2]
        print(f"  {name}: {middle:.1f} ms, p99 {_p99(times):.1f}, longest {max(times):.1f}")
    return _p99(written)


def _timed(step: Callable[[], int]) -> tuple[float, int]:
    """Give the milliseconds that a step took, and what it gave."""
    begun = time.perf_counter()
    answer = step()
    return (time.perf_counter() - begun) * 1000, answer


def _p99(times: Sequence[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


def write_beside(store: Any, key: str) -> None:
    """Take a lease and give it back, all the time, until a line comes."""
    stop = threading.Event()

    def wait() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=wait).start()
    times = []
    print("ready", flush=True)
    while not stop.is_set():
        stored = store.read(key)
        version = stored.control.version
        begun = time.perf_counter()
        store.begin(key, owner="writer", expected_version=version, lease=9, intent="intent")
        times.append((time.perf_counter() - begun) * 1000)
        store.abort(key, owner="writer", clear_intent=True)
        time.sleep(0.005)
    print(json.dumps(times))


def measure(many: int = MANY) -> list[tuple[str, float, float]]:
    """Give ``(what, figure, limit)``."""
    with signed_in() as (_, smaller, _), signed_in() as (_, state, _):
        figures = _among_and_purged("SQLite", smaller, state, many)
    with PostgresServer() as few, PostgresServer() as server:
        small, large = few.url(), server.url()
        with (
            signed_in(ATM_STORE=small) as (_, smaller, _),
            signed_in(ATM_STORE=large) as (_, state, _),
        ):
            figures += _among_and_purged("PostgreSQL", smaller, state, many)
            for one in (smaller, state):
                one.store.close()  # type: ignore[attr-defined]
    return figures


def _among_and_purged(
    name: str, smaller: State, state: State, many: int
) -> list[tuple[str, float, float]]:
    print(f"  {name}")
    fill(smaller, range(FEW))
    fill(state, range(many))
    ratio = get_among({FEW: smaller, many: state})
    fill(state, range(many, 2 * many), lives=-60)
    write = [sys.executable, "-m", "benchmarks.many_grants", "--write", str(state.config.store)]
    took = purging(state.store, write)
    return [
        (f"{name}: get among {many} grants / among {FEW}", ratio, 1.3),
        (f"{name}: ms of a write, p99, while {many} grants that have ended go", took, LONGEST),
    ]


def _store(url: str) -> SQLiteStore | SQLStore:
    path = url.removeprefix("sqlite:///")
    return SQLStore(url) if path == url else SQLiteStore(path)


if __name__ == "__main__":
    if "--write" in sys.argv:
        write_beside(_store(sys.argv[2]), record_key(grant_id(0)))
    else:
        for what, figure, limit in measure(*map(int, sys.argv[1:])):
            print(f"{what}: {figure:.2f} (limit {limit})")
