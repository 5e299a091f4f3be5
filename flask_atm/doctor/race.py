"""A race for one lease, and for one commit, on a record that is made for it and removed after it.

Threads, and processes that are forked from this one, ask the store at the same moment. Exactly one
of them may get the lease, and exactly one may commit.
"""

import json
import multiprocessing
import secrets
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from flask_atm.errors import StoreError
from flask_atm.protocols import AtomicGrantStore

__all__ = ["Race", "race"]

_LEASE: Final = 30.0
_LIFE: Final = 300.0
_PATIENCE: Final = 20.0
_IN_VAIN: Final = "somebody did not answer in time"
#: What each of them answers: whether it got the lease, and whether it committed.
_Answers = list[tuple[bool, bool]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Race:
    """What came of it.

    :param members: how many took part.
    :param leases: how many got the lease.
    :param commits: how many committed.
    """

    members: int
    leases: int
    commits: int

    @property
    def is_fair(self) -> bool:
        """Whether there was one winner of each."""
        return (self.leases, self.commits) == (1, 1)


def race(store: AtomicGrantStore, *, processes: int, threads: int) -> Race:
    """Run it.

    :param processes: besides this one; 0: in the threads of this one.
    :raises StoreError: the store does not answer, or somebody did not answer in time.
    """
    key = f"doctor:{secrets.token_hex(16)}"
    if not store.create(key, b"", ends_at=time.time() + _LIFE):
        raise StoreError("the store did not take a new record")
    try:
        answers = (
            _in_processes(store, key, processes, threads)
            if processes
            else _in_threads(store, key, threads, "0", lambda: None)
        )
    finally:
        store.delete(key)
    return Race(
        members=len(answers),
        leases=sum(lease for lease, _ in answers),
        commits=sum(commit for _, commit in answers),
    )


def _in_threads(
    store: AtomicGrantStore, key: str, threads: int, name: str, meet: Callable[[], None]
) -> _Answers:
    start = threading.Barrier(threads, action=meet)
    with ThreadPoolExecutor(threads) as pool:
        futures = [
            pool.submit(_compete, store, key, f"{name}.{number}", start)
            for number in range(threads)
        ]
    errors = [error for future in futures if (error := future.exception())]
    # One that waited for another one in vain says less than that one.
    errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if errors and isinstance(errors[0], threading.BrokenBarrierError):
        raise StoreError(_IN_VAIN)
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


def _compete(
    store: AtomicGrantStore, key: str, name: str, start: threading.Barrier
) -> tuple[bool, bool]:
    try:
        start.wait(_PATIENCE)
        begun = store.begin(key, owner=name, expected_version=1, lease=_LEASE, intent="doctor")
        start.wait(_PATIENCE)
        outcome = store.commit(key, b"", expected_version=1, commit_id=name)
    except BaseException:
        start.abort()  # so that nobody waits for this one
        raise
    return begun.status == "held", outcome == "ok"


def _in_processes(store: AtomicGrantStore, key: str, processes: int, threads: int) -> _Answers:
    context = multiprocessing.get_context("fork")
    meeting = context.Barrier(processes)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    children = [
        context.Process(
            target=_child, args=(store, key, threads, str(number), meeting, pipe), daemon=True
        )
        for number, (_, pipe) in enumerate(pipes)
    ]
    with warnings.catch_warnings():
        # What is forked here takes no lock that a thread of this process could hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        for child, (_, theirs) in zip(children, pipes, strict=True):
            child.start()
            theirs.close()
    try:
        found = [_received(ours) for ours, _ in pipes]
    finally:
        for child, (ours, _) in zip(children, pipes, strict=True):
            child.kill()
            child.join()
            ours.close()
    # One that waited for another one in vain says less than that one.
    problems = sorted((one for one in found if isinstance(one, str)), key=_IN_VAIN.__eq__)
    if problems:
        raise StoreError(problems[0])
    return [answer for one in found if not isinstance(one, str) for answer in one]


def _received(pipe: Any) -> _Answers | str:
    """Give what a process sent: what its threads got, or why they got nothing."""
    try:
        found = json.loads(pipe.recv_bytes()) if pipe.poll(2 * _PATIENCE) else _IN_VAIN
    except EOFError:
        return "a process ended without an answer"
    return found if isinstance(found, str) else [(lease, commit) for lease, commit in found]


def _child(
    store: AtomicGrantStore, key: str, threads: int, name: str, meeting: Any, pipe: Any
) -> None:
    def meet() -> None:
        meeting.wait(_PATIENCE)

    answer: _Answers | str
    try:
        answer = _in_threads(store, key, threads, name, meet)
    except StoreError as error:
        meeting.abort()
        answer = str(error)
    pipe.send_bytes(json.dumps(answer).encode())
