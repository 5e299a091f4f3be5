"""Processes that stop at a named point of the engine, to be killed or stopped exactly there.

::

    with Fleet() as fleet:
        victim = fleet.start(engine, stop_at="write")
        victim.ask(grant_id)
        victim.wait_at("write")
        victim.kill()

A child does what it is asked in a thread per call, so that it can be asked for many grants at
once. At its stop point it says so and stands still until :meth:`Child.go`; the other calls of the
same process go on. The signals are real ones.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

__all__ = ["POINTS", "Child", "Engine", "Fleet", "Outcome"]

#: In order; ``doubt`` only where a refresh token is in doubt.
POINTS: Final = ("begin", "begun", "send", "write", "answered", "commit", "committed")
WAIT: Final = 30.0

Get = Callable[[str], str]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.engines", "requests"])


class Engine(Protocol):
    """Makes, in a child process, what gets the token of a grant. Can be pickled."""

    def __call__(self, checkpoint: Callable[[str], None]) -> Get: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one call.

    :ivar value: the token, or the class and the reason of an error.
    :ivar at: when it ended, by ``time.monotonic()``, which all processes share.
    """

    grant_id: str
    value: str
    at: float
    failed: bool = False


class Child:
    """A process with an engine of its own."""

    def __init__(self, engine: Engine, stop_at: str | None) -> None:
        self._connection, theirs = _context.Pipe()
        self._process = _context.Process(target=_work, args=(engine, stop_at, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._asked = 0
        self._outcomes: list[Outcome] = []
        self._stands: list[str] = []

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    def ready(self) -> None:
        """Wait until it can be asked."""
        self._wait(lambda: "ready" in self._stands, "ready")

    def ask(self, grant_id: str, times: int = 1) -> None:
        """Have it get the token of a grant, in so many threads."""
        self._asked += times
        self._connection.send((grant_id, times))

    def wait_at(self, point: str) -> None:
        """Wait until one of its calls stands at the stop point."""
        ended = len(self._outcomes)
        self._wait(lambda: point in self._stands or len(self._outcomes) > ended, f"at {point}")
        assert point in self._stands, f"not stopped at {point}: {self._outcomes[-1]}"

    def go(self) -> None:
        """Let it go on; it does not stop again."""
        self._connection.send(None)

    def outcomes(self) -> list[Outcome]:
        """Wait until everything that was asked has ended."""
        self._wait(lambda: len(self._outcomes) >= self._asked, "all answers")
        return self._outcomes

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + WAIT
        while not done():
            if not self._connection.poll(max(0.0, end - time.monotonic())):
                raise AssertionError(f"in {WAIT} s process {self.pid} did not get to: {what}")
            said = self._connection.recv()
            if isinstance(said, Outcome):
                self._outcomes.append(said)
            else:
                self._stands.append(said)

    # -- signals

    def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join(WAIT)
        assert self._process.exitcode == -signal.SIGKILL

    def stop(self) -> None:
        """SIGSTOP; returns when none of its threads runs any more."""
        os.kill(self.pid, signal.SIGSTOP)
        end = time.monotonic() + WAIT
        while not all(self._stopped(task) for task in Path(f"/proc/{self.pid}/task").iterdir()):
            assert time.monotonic() < end
            time.sleep(0.001)

    def _stopped(self, task: Path) -> bool:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"

    def cont(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """Kill it if it is still there."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join(WAIT)
        self._connection.close()


@dataclass
class Fleet:
    """The children of one test: none of them outlives it."""

    children: list[Child] = field(default_factory=list)

    def start(self, engine: Engine, stop_at: str | None = None) -> Child:
        """Start a child; it is ready after :meth:`Child.ready`."""
        child = Child(engine, stop_at)
        self.children.append(child)
        return child

    def crew(self, engine: Engine, stops: Iterable[str | None]) -> list[Child]:
        """Start several, and wait until all of them are ready."""
        crew = [self.start(engine, stop) for stop in stops]
        for child in crew:
            child.ready()
        return crew

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for child in self.children:
            child.end()


# -- in the child


@dataclass
class _Stop:
    """The checkpoint of a child."""

    point: str | None
    say: Callable[[Any], None]
    gone_on: threading.Event = field(default_factory=threading.Event)

    def __call__(self, point: str) -> None:
        if point == self.point and not self.gone_on.is_set():
            self.say(point)
            self.gone_on.wait()


def _work(engine: Engine, stop_at: str | None, connection: Connection) -> None:
    lock = threading.Lock()

    def say(what: Any) -> None:
        with lock:
            connection.send(what)

    stop = _Stop(stop_at, say)
    get = engine(stop)
    say("ready")

    def call(grant_id: str) -> None:
        failed = False
        try:
            value = get(grant_id)
        except Exception as error:
            failed = True
            value = f"{type(error).__name__} {getattr(error, 'reason', None) or error}"
        say(Outcome(grant_id=grant_id, value=value, at=time.monotonic(), failed=failed))

    while True:
        try:
            asked = connection.recv()
        except (EOFError, OSError):
            return
        if asked is None:
            stop.gone_on.set()
            continue
        grant_id, times = asked
        for _ in range(times):
            threading.Thread(target=call, args=(grant_id,), daemon=True).start()
