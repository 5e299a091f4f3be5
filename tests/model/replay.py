"""The real engine under a schedule of the model: one step at a time, compared at every one.

Each actor is a thread with an engine of its own, as if it were a process; they share a store and a
server. A thread stops before every step that the model knows: each step of the store, the look at
the clock before the first byte, the server's work, the answer. It goes on when the schedule says
so, and not before it stands where the model says that it does.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from typing import Any, Final

from flask_atm.errors import ATMError, LoginRequired
from flask_atm.grants.answers import Tokens
from flask_atm.grants.breaker import Breaker, Refusals
from flask_atm.grants.control import Begun, Control, Outcome, Stored
from flask_atm.grants.engine import Engine
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.record import Grant, Snapshot, Want
from flask_atm.grants.refresh import Event, Exchange, Refresher
from flask_atm.grants.seal import KeyRing
from flask_atm.grants.single_flight import SingleFlight
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.vault import Vault
from flask_atm.oauth.back_channel import Answer, Failure, Result
from flask_atm.testing.clock import FakeClock
from tests.model.machine import Machine, Move
from tests.model.world import LEAP, START, Server, State, grant_of

__all__ = ["Replay", "Times", "covering", "schedules"]

WAIT: Final = 20.0
KEY: Final = "k"
PARAMETERS: Final = EngineParameters(
    send_window=2.0, doubt_wait=0.001, poll_first=0.0005, poll_last=0.002
)


class Times:
    """The module ``time`` as the engine sees it: in an actor's thread, time passes as the schedule
    says and not while the machine is busy."""

    def __init__(self) -> None:
        self._own = threading.local()

    def follow(self, clock: Callable[[], float]) -> None:
        """In this thread the monotonic clock is this one."""
        self._own.clock = clock

    def monotonic(self) -> float:
        clock: Callable[[], float] = getattr(self._own, "clock", time.monotonic)
        return clock()


class Thread:
    """One actor: stands at a point until it is let go."""

    def __init__(self, run: Callable[["Thread"], str]) -> None:
        self.point = ""
        self.outcome = ""
        self._run = run
        self._go: SimpleQueue[type[BaseException] | str] = SimpleQueue()
        self._arrived: SimpleQueue[None] = SimpleQueue()
        self._over = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._arrived.get(timeout=WAIT)

    def _work(self) -> None:
        try:
            self.outcome = self._run(self)
        except SystemExit:
            self.outcome = "exit"
        except BaseException as error:
            self.outcome = repr(error)
            raise
        finally:
            self.point = "done"
            self._arrived.put(None)

    def stand(self, point: str) -> str:
        """Called by the actor: stop here; give what is to happen."""
        if self._over:
            return ""
        self.point = point
        self._arrived.put(None)
        what = self._go.get(timeout=WAIT)
        if isinstance(what, str):
            return what
        raise what

    def go(self, what: type[BaseException] | str = "") -> None:
        """Called by the schedule: let it do one step, and wait until it stands again."""
        self._go.put(what)
        self._arrived.get(timeout=WAIT)

    def end(self) -> None:
        """Let one whose process was killed go to its end: nobody looks any more."""
        self._over = True
        if self.point != "done":
            self._go.put("")
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


@dataclass
class SteppedStore:
    """The store as one actor sees it."""

    store: MemoryStore
    thread: Thread

    def read(self, key: str) -> Stored | None:
        self.thread.stand("read")
        return self.store.read(key)

    def begin(self, key: str, **arguments: Any) -> Begun:
        return self.store.begin(key, **arguments)

    def commit(self, key: str, sealed: bytes, **arguments: Any) -> Outcome:
        self.thread.stand("commit")
        return self.store.commit(key, sealed, **arguments)

    def abort(self, key: str, **arguments: Any) -> None:
        self.thread.stand("abort")
        self.store.abort(key, **arguments)

    def update(self, key: str, sealed: bytes, **arguments: Any) -> Outcome:
        raise AssertionError("a caller changes no record")

    def adopt(self, key: str, sealed: bytes, **arguments: Any) -> Outcome:
        raise AssertionError("a caller changes no record")

    def create(self, *arguments: Any, **rest: Any) -> bool:
        raise AssertionError("a caller makes no record")

    def delete(self, *arguments: Any, **rest: Any) -> bool:
        raise AssertionError("a caller deletes no record")

    def find(self, index: str, limit: int = 100) -> list[str]:
        raise AssertionError("a caller asks for its own record only")

    def scan(self, after: str, limit: int) -> list[tuple[str, Stored]]:
        raise AssertionError("a caller asks for its own record only")

    def purge(self, limit: int) -> int:
        raise AssertionError("a caller removes no record")


@dataclass
class SteppedRenewal:
    """A renewal at the model's server."""

    replay: "Replay"
    thread: Thread
    is_login: bool

    def prepare(self, grant: Grant) -> Exchange:
        assert grant.refresh_token is not None
        number = int(grant.refresh_token.reveal().partition("-")[2])
        return SteppedExchange(self.replay, self.thread, number)

    def verify(self, grant: Grant, tokens: Tokens) -> Mapping[str, Any] | None:
        return None

    def revoke(self, grant: Grant, tokens: Tokens) -> None:
        self.thread.stand("revoke")
        self.replay.server = self.replay.server._replace(alive=False)

    def notify(self, event: Event) -> None:
        pass


@dataclass
class SteppedExchange:
    replay: "Replay"
    thread: Thread
    refresh_token: int

    def send(self, *, deadline: float, may_write: Callable[[], bool]) -> Result:
        if not may_write():
            return Failure(written=False, reason="window")
        how = self.thread.stand("wire")
        if how == "503":
            return Answer(status=503, headers={}, body=b'{"error": "temporarily_unavailable"}')
        if how == "lost":
            return Failure(written=True, reason="timeout")
        number = self.replay.serve(self.refresh_token)
        if self.thread.stand("wired") == "lost":
            return Failure(written=True, reason="timeout")
        if number < 0:
            return Answer(status=400, headers={}, body=b'{"error": "invalid_grant"}')
        body = (
            f'{{"access_token": "access-{number}", "refresh_token": "refresh-{number}",'
            ' "token_type": "Bearer", "expires_in": 300}'
        )
        return Answer(status=200, headers={}, body=body.encode())


@dataclass
class Replay:
    """A store, a server and as many engines as the model has actors."""

    start: State
    times: Times
    server: Server = field(init=False)
    threads: list[Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = self.start.server
        self.clock = FakeClock(START)
        self.store = MemoryStore(clock=self.clock)
        self.ring = KeyRing([bytes(32)])
        self.vault = self._vault(self.store)
        sealed = self.vault.seal(KEY, grant_of(self.start.data), version=1)
        self.store.create(KEY, sealed, ends_at=START + 1e6)

    def _vault(self, store: Any) -> Vault:
        return Vault(
            store, self.ring, provider="p", parameters=PARAMETERS, is_ours=lambda grant: True
        )

    def serve(self, refresh_token: int) -> int:
        number, self.server = self.server.answer(refresh_token)
        return number

    # -- an actor

    def _caller(self, slot: str, rejects: int) -> Callable[[Thread], str]:
        def run(thread: Thread) -> str:
            self.times.follow(self.clock)
            vault = self._vault(SteppedStore(self.store, thread))
            breaker, refusals = Breaker("p", PARAMETERS), Refusals(60.0)
            refresher = Refresher(
                vault,
                parameters=PARAMETERS,
                breaker=breaker,
                refusals=refusals,
                place=_place,
                checkpoint=partial(_checkpoint, thread),
            )
            engine = Engine(
                name="p",
                vault=vault,
                refresher=refresher,
                flights=SingleFlight(),
                breaker=breaker,
                refusals=refusals,
                parameters=PARAMETERS,
            )
            want = Want(slot=slot, leeway=60.0, rejected=f"access-{rejects}" if rejects else None)
            renewal = SteppedRenewal(self, thread, is_login=not slot)
            try:
                snapshot = vault.read(KEY)
                if snapshot is None:
                    return "login"
                engine.get(snapshot, want, renewal)
            except LoginRequired:
                return "login"
            except ATMError:
                return "unavailable"
            return "served"

        return run

    # -- the schedule

    def run(self, schedule: Sequence[tuple[State, Move]]) -> None:
        """Do every step of a schedule, and compare what the model says with what is."""
        self.threads = [
            Thread(self._caller(actor.slot, actor.rejects)) for actor in self.start.actors
        ]
        for thread in self.threads:
            thread.start()
        try:
            for state, move in schedule:
                self._step(state, move)
                self._compare(move)
        finally:
            self.clock.advance(10 * LEAP)
            for thread in self.threads:
                thread.end()

    def _step(self, state: State, move: Move) -> None:
        if move.who < 0:
            self._world(state, move)
            return
        thread, what = self.threads[move.who], move.what
        at = state.actors[move.who].at
        if "is killed" in what:
            if what.endswith("takes its request"):
                self.serve(state.actors[move.who].sent)
            return
        first = {"idle": "read", "wait": "read", "doubt": "read", "reread": "read", "moved": "read"}
        assert thread.point == first.get(at, at), f"{move}: it stands at {thread.point}"
        if what.startswith("SystemExit"):
            thread.go(SystemExit)
            return
        thread.go("503" if "503" in what else "lost" if "lost" in what else "")
        if at == "wait" or what == "moved: gone":
            # It reads twice: once to see that it need not wait, once to see what there is.
            thread.go()
        aborting = state.actors[move.who].aborting
        if at == "abort" and aborting and aborting.error in ("login", "unavailable"):
            # The error goes through the place that aborts after any error, which does nothing more.
            assert thread.point == "abort", f"{move}: it stands at {thread.point}"
            thread.go()

    def _world(self, state: State, move: Move) -> None:
        after = move.after
        if after.leaps > state.leaps:
            self.clock.advance(LEAP)
        elif move.what == "logout":
            entry = str(state.data.refresh_token).encode()
            assert self.store.delete(KEY, keep=entry)
        else:
            assert move.what == "another writer: ok", move.what
            snapshot = self.vault.read_stored(KEY)
            assert snapshot is not None
            version = snapshot.control.version
            sealed = self.vault.seal(KEY, snapshot.grant, version=version + 1)
            assert self.store.update(KEY, sealed, expected_version=version) == "ok"

    # -- the comparison

    def _compare(self, move: Move) -> None:
        state = move.after
        stored = self.store.read(KEY)
        assert stored is not None
        assert _essence(stored.control) == _essence(state.control), str(move)
        if not state.control.tombstone:
            snapshot: Snapshot | None = self.vault.read_stored(KEY)
            assert snapshot is not None
            token = snapshot.grant.refresh_token
            assert token is not None
            assert token.reveal() == f"refresh-{state.data.refresh_token}", str(move)
            real = {name: slot.token.reveal() for name, slot in snapshot.grant.slots.items()}
            modelled = {one.slot: f"access-{one.number}" for one in state.data.slots}
            assert {name: real[name] for name in modelled if name in real} == real, str(move)
        assert self.server == state.server, str(move)
        for thread, actor in zip(self.threads, state.actors, strict=True):
            if actor.at == "done":
                assert (thread.point, thread.outcome) == ("done", actor.outcome), str(move)


def _checkpoint(thread: Thread, point: str) -> None:
    """Stand at those checkpoints that are no steps of the store: the others are there already.

    At ``begin`` a clock is started, so a thread stands before that, not before the step itself.
    """
    if point in ("begin", "write"):
        thread.stand(point)


@contextmanager
def _place(_: float) -> Iterator[bool]:
    yield True


def _essence(control: Control) -> Control:
    """Give what is the same in both: not the names of attempts, nor the jitter of pauses."""
    return replace(
        control,
        lease_owner=None if control.lease_owner is None else "x",
        lease=0.0,
        lease_until=float(bool(control.lease_until)),
        commit_id=None if control.commit_id is None else "x",
        retry_at=float(bool(control.retry_at)),
    )


# -- schedules


def schedules(machine: Machine, state: State) -> Iterator[list[tuple[State, Move]]]:
    """Give every schedule there is, from here to the end."""
    found = False
    for move in _moves(machine, state):
        found = True
        for rest in schedules(machine, move.after):
            yield [(state, move), *rest]
    if not found:
        yield []


def covering(machine: Machine, start: State) -> Iterator[list[tuple[State, Move]]]:
    """Give schedules that together make every move from every state."""
    came: dict[State, tuple[State, Move] | None] = {start: None}
    left: dict[State, list[Move]] = {}
    queue = [start]
    for state in queue:
        left[state] = list(_moves(machine, state))
        for move in left[state]:
            if move.after not in came:
                came[move.after] = (state, move)
                queue.append(move.after)
    for state in queue:
        while left[state]:
            path = _way_to(came, state)
            here = state
            while True:
                onward = left[here].pop() if left[here] else next(_moves(machine, here), None)
                if onward is None:
                    break
                path.append((here, onward))
                here = onward.after
            yield path


def _way_to(came: dict[State, tuple[State, Move] | None], state: State) -> list[tuple[State, Move]]:
    path = []
    step = came[state]
    while step is not None:
        path.append(step)
        step = came[step[0]]
    return path[::-1]


def _moves(machine: Machine, state: State) -> Iterator[Move]:
    """Give the moves that a real engine can be made to do: it waits by its own clock."""
    for move in machine.moves(state):
        # What was kept is offered by a thread that no schedule knows.
        kept = move.what == "SystemExit before commit"
        if not kept and all(actor.waited < 2 for actor in move.after.actors):
            yield move
