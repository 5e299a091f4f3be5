"""What the tests of the engine share: a store that is watched, and an application around it."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from flask_atm import signals
from flask_atm.errors import StoreError
from flask_atm.grants.control import Begun, Outcome, Stored
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.record import Snapshot
from flask_atm.grants.stores import MemoryStore, SQLiteStore
from flask_atm.grants.vault import record_key
from flask_atm.protocols import AtomicGrantStore, Clock
from flask_atm.state import State
from flask_atm.tokens import TokenParameters, UserToken
from tests.grants.support import SECRET_KEY, Setup, grant_from
from tests.servers import FaultyServer, Reply, RotatingTokenServer

#: L = 1.6 s, W = 2.5 s.
FAST = EngineParameters(
    timeout=0.7,
    send_window=0.4,
    doubt_wait=0.1,
    store_connect=0.05,
    store_operation=0.1,
    slack=0.1,
    backoff=0.1,
    poll_last=0.05,
    breaker_pause=0.05,
    keep_interval=0.02,
)
WAIT = 10.0


class WatchedStore:
    """A store in front of another: counts by thread, fails and stops where it is told to."""

    def __init__(self, store: AtomicGrantStore) -> None:
        self.store = store
        self.down = False
        #: Steps that are done, and whose answer is lost: by name, how often.
        self.lost: dict[str, int] = {}
        self.before: dict[str, Callable[[], object]] = {}
        self.calls: defaultdict[int, list[str]] = defaultdict(list)
        self.owners: list[str] = []

    @property
    def mine(self) -> list[str]:
        """The steps that this thread has made."""
        return self.calls[threading.get_ident()]

    def count(self, name: str) -> int:
        return sum(calls.count(name) for calls in self.calls.values())

    def _do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.mine.append(name)
        if name in self.before:
            self.before[name]()
        if self.down:
            raise StoreError("the store is down")
        answer = getattr(self.store, name)(*args, **kwargs)
        if self.lost.get(name):
            self.lost[name] -= 1
            raise StoreError("the answer was lost")
        return answer

    def create(
        self,
        key: str,
        sealed: bytes,
        *,
        ends_at: float,
        index: Sequence[str] = (),
        doubt: bool = False,
        version: int = 1,
    ) -> bool:
        more = {"ends_at": ends_at, "index": index, "doubt": doubt, "version": version}
        return bool(self._do("create", key, sealed, **more))

    def read(self, key: str) -> Stored | None:
        stored: Stored | None = self._do("read", key)
        return stored

    def begin(self, key: str, *, owner: str, **rest: Any) -> Begun:
        self.owners.append(owner)
        begun: Begun = self._do("begin", key, owner=owner, **rest)
        return begun

    def commit(self, key: str, sealed: bytes, **rest: Any) -> Outcome:
        outcome: Outcome = self._do("commit", key, sealed, **rest)
        return outcome

    def update(self, key: str, sealed: bytes, **rest: Any) -> Outcome:
        outcome: Outcome = self._do("update", key, sealed, **rest)
        return outcome

    def adopt(self, key: str, sealed: bytes, **rest: Any) -> Outcome:
        outcome: Outcome = self._do("adopt", key, sealed, **rest)
        return outcome

    def abort(self, key: str, **rest: Any) -> None:
        self._do("abort", key, **rest)

    def delete(self, key: str, **rest: Any) -> bool:
        return bool(self._do("delete", key, **rest))

    def find(self, index: str, limit: int = 100) -> list[str]:
        found: list[str] = self._do("find", index, limit)
        return found

    def scan(self, after: str, limit: int) -> list[tuple[str, Stored]]:
        found: list[tuple[str, Stored]] = self._do("scan", after, limit)
        return found

    def purge(self, limit: int) -> int:
        return int(self._do("purge", limit))


@dataclass(frozen=True, kw_only=True)
class WatchedSetup(Setup):
    """The same for other processes: each of them watches its own way to the file."""

    def state(self, **arguments: Any) -> State:
        path = self.config["ATM_STORE"].removeprefix("sqlite:///")
        store = WatchedStore(SQLiteStore(path, clock=self.clock))
        return Setup.state(self, store=store, **arguments)


class Stops:
    """Stops threads at the checkpoints of the engine, until they are let go."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._reached: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self._closed: dict[str, threading.Event] = {}
        self._then: dict[str, Callable[[], object]] = {}

    def __call__(self, point: str) -> None:
        self.seen.append(point)
        gate = self._closed.pop(point, None)
        self._reached[point].set()
        if gate is not None:
            assert gate.wait(WAIT), f"nobody let go at {point}"
        then = self._then.pop(point, None)
        if then is not None:
            then()

    def close(self, point: str) -> threading.Event:
        """Stop the next thread that gets there; give what lets it go."""
        self._reached[point].clear()
        gate = self._closed[point] = threading.Event()
        return gate

    def then(self, point: str, do: Callable[[], object]) -> None:
        """Let the next thread that gets there do this."""
        self._then[point] = do

    def wait(self, point: str) -> None:
        """Wait until a thread got there."""
        assert self._reached[point].wait(WAIT), f"nobody got to {point}"


@dataclass(kw_only=True)
class World:
    """One process of an application, with everything that a test wants to look at."""

    state: State
    store: WatchedStore
    stops: Stops
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("token_refreshed", "token_refresh_failed", "grant_revoked"):
            signals.__dict__[name].connect(self._listener(name), sender=self.state.app, weak=False)

    def _listener(self, name: str) -> Callable[..., None]:
        return lambda sender, **details: self.events.append((name, details))

    def told(self, name: str) -> int:
        return sum(event == name for event, _ in self.events)

    def sign_in(self, response: dict[str, Any], **claims: Any) -> str:
        return grant_from(self.state, response, **claims)

    def get(self, grant_id: str, rejected: str | None = None, **parameters: Any) -> UserToken:
        return self.state.provider().tokens.get(
            grant_id, TokenParameters.of(**parameters), rejected=rejected
        )

    def stored(self, grant_id: str) -> Snapshot:
        snapshot = self.state.provider().tokens.vault.read_stored(record_key(grant_id))
        assert snapshot is not None
        return snapshot

    def seal(self, grant_id: str, snapshot: Snapshot, *, version: int) -> bytes:
        vault = self.state.provider().tokens.vault
        return vault.seal(record_key(grant_id), snapshot.grant, version=version)


def settings(server: FaultyServer, store: str = "memory", **more: Any) -> dict[str, Any]:
    return {
        "TESTING": True,
        "SECRET_KEY": SECRET_KEY,
        "ATM_ISSUER": server.url,
        "ATM_CLIENT_ID": "app",
        "ATM_CLIENT_SECRET": "secret",
        "ATM_STORE": store,
        **more,
    }


def metadata(server: FaultyServer) -> dict[str, Any]:
    return {
        "issuer": server.url,
        "authorization_endpoint": f"{server.url}/authorize",
        "token_endpoint": f"{server.url}/token",
        "revocation_endpoint": f"{server.url}/revoke",
        "jwks_uri": f"{server.url}/jwks",
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }


def tokens(number: int = 0, **members: Any) -> dict[str, Any]:
    """A token response for servers that do not care what was sent."""
    return {
        "access_token": f"access-{number}",
        "refresh_token": f"refresh-{number}",
        "token_type": "Bearer",
        "expires_in": 300,
        **members,
    }


def make_world(
    server: FaultyServer,
    *,
    store: AtomicGrantStore | None = None,
    clock: Clock = time.time,
    engine: EngineParameters = FAST,
    **more: Any,
) -> World:
    """Make an application; with the same store and clock, another process of the same one."""
    server.always(Reply(body={"keys": []}), "/jwks")
    server.always(Reply(body=metadata(server)), "/.well-known/openid-configuration")
    stops = Stops()
    watched = WatchedStore(store or MemoryStore(clock=clock))
    setup = Setup(config=settings(server, **more), engine=engine)
    state = setup.state(store=watched, clock=clock, checkpoint=stops)
    return World(state=state, store=watched, stops=stops)


def together(threads: int, job: Callable[[int], Any]) -> list[Any]:
    """Do it in so many threads at the same moment; give what each returned or raised."""
    barrier = threading.Barrier(threads)

    def run(number: int) -> Any:
        barrier.wait(WAIT)
        try:
            return job(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def refreshes(server: RotatingTokenServer) -> list[str | None]:
    """The refresh tokens that were sent, in order."""
    return [request.parameter("refresh_token") for request in server.token_requests]
