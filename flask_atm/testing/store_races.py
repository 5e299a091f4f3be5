"""The part of the store contract where many do the same at once, in several processes."""

import multiprocessing
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, ClassVar, Final

import pytest

from flask_atm.protocols import AtomicGrantStore

__all__ = ["Crowd", "StoreRaces"]

_LONG = 600.0
_PATIENCE = 60.0
_TRIES = 4
#: What each member of a crowd does: with the store, its own number, and what it was told.
_Job = Callable[..., Any]


class Crowd:
    """Many threads, in this process alone or in several others, that do the same at once."""

    def __init__(
        self,
        store: AtomicGrantStore,
        threads: int,
        workers: "_Workers | None",
        wait: Callable[[float], object],
    ) -> None:
        self.store = store
        #: Lets so many seconds go by, by the clock of the store.
        self.wait = wait
        self.size = threads * (workers.number if workers else 1)
        self._threads = threads
        self._workers = workers

    def do(self, job: _Job, *told: Any) -> list[Any]:
        """Give what each of them returned, in the order of their numbers; errors are failures."""
        if self._workers is None:
            answers = _all_at_once(self.store, job, told, range(self._threads), lambda: 0)
        else:
            answers = self._workers.do(job, told)
        failed = [answer.text for answer in answers if isinstance(answer, _Failed)]
        assert not failed, f"{len(failed)} of {self.size} failed, the first one so:\n{failed[0]}"
        return answers


@dataclass(frozen=True, slots=True)
class _Failed:
    text: str


def _all_at_once(
    store: AtomicGrantStore, job: _Job, told: Any, members: range, meet: Callable[[], Any]
) -> list[Any]:
    start = threading.Barrier(len(members), action=meet)

    def run(member: int) -> Any:
        start.wait(_PATIENCE)
        return job(store, member, *told)

    with ThreadPoolExecutor(len(members)) as pool:
        return [_outcome(future) for future in [pool.submit(run, member) for member in members]]


def _outcome(future: Future[Any]) -> Any:
    error = future.exception()
    if error is None:
        return future.result()
    return _Failed("".join(traceback.format_exception(error)))


class _Workers:
    """The other processes; they open the store that they are given, and do what they are told."""

    def __init__(self, number: int, threads: int) -> None:
        context = multiprocessing.get_context("forkserver")
        self.number = number
        # Kept: without it here there is none for the others.
        self._meet = meet = context.Barrier(number)
        pipes = [context.Pipe() for _ in range(number)]
        self._pipes: list[Any] = [mine for mine, _ in pipes]
        self._processes = [
            context.Process(
                target=_work,
                args=(theirs, meet, range(place * threads, (place + 1) * threads)),
                daemon=True,
            )
            for place, (_, theirs) in enumerate(pipes)
        ]
        for process, (_, theirs) in zip(self._processes, pipes, strict=True):
            process.start()
            theirs.close()

    def open(self, open_store: Callable[[], AtomicGrantStore]) -> None:
        self._tell("open", open_store)

    def do(self, job: _Job, told: Any) -> list[Any]:
        return [answer for part in self._tell("do", job, told) for answer in part]

    def close(self) -> None:
        self._tell("close")

    def end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_PATIENCE)

    def _tell(self, *words: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(words)
        answers = []
        for pipe in self._pipes:
            assert pipe.poll(2 * _PATIENCE), f"{words[0]}: a process does not answer"
            answers.append(pipe.recv())
        failed = [answer.text for answer in answers if isinstance(answer, _Failed)]
        assert not failed, f"{words[0]} failed in another process:\n{failed[0]}"
        return answers


def _work(pipe: "Connection[Any, Any]", meet: Any, members: range) -> None:
    store: Any = None

    def obey(word: str, *rest: Any) -> Any:
        nonlocal store
        if word == "do":
            return _all_at_once(store, rest[0], rest[1], members, partial(meet.wait, _PATIENCE))
        if word == "open":
            store = rest[0]()
            store.read("warm")
        else:
            _close(store)
        return None

    with ThreadPoolExecutor(1) as pool, suppress(EOFError):
        while True:
            pipe.send(_outcome(pool.submit(obey, *pipe.recv())))


def _close(store: Any) -> None:
    if hasattr(store, "close"):
        store.close()


_WORKERS: Final = pytest.StashKey[_Workers]()


class StoreRaces:
    """Each step is done once, whoever else does it at the same moment."""

    #: The store lives in one process: the crowd has threads only.
    one_process: ClassVar[bool] = False
    processes: ClassVar[int] = 4
    threads: ClassVar[int] = 64

    @pytest.fixture
    def open_store(self) -> Callable[[], AtomicGrantStore]:
        """Give what opens the same data in another process: a function of a module, or a partial.

        It is sent there, so it can be no lambda and no function inside another one.
        """
        raise NotImplementedError("override the fixture open_store, or set one_process = True")

    @pytest.fixture
    def crowd(self, request: pytest.FixtureRequest) -> Iterator[Crowd]:
        """Give the crowd, and the store that it works upon."""
        if self.one_process:
            clock = request.getfixturevalue("clock")
            yield Crowd(request.getfixturevalue("store"), self.threads, None, clock.advance)
            return
        open_store = request.getfixturevalue("open_store")
        store, workers = open_store(), self._workers(request.node.getparent(pytest.Class))
        workers.open(open_store)
        yield Crowd(store, self.threads, workers, partial(_wait, store))
        workers.close()
        _close(store)

    def _workers(self, node: Any) -> _Workers:
        """Give the processes of this test class; they end with it."""
        if _WORKERS not in node.stash:
            node.stash[_WORKERS] = _Workers(self.processes, self.threads)
            node.addfinalizer(node.stash[_WORKERS].end)
        workers: _Workers = node.stash[_WORKERS]
        return workers

    def test_one_create_of_many_wins(self, crowd: Crowd) -> None:
        made = crowd.do(_create, _now(crowd.store) + _LONG)
        assert made.count(True) == 1, "two made the same record"
        assert made.count(False) == crowd.size - 1
        assert _sealed(crowd.store) == b"%d" % made.index(True), "what is there was written over"
        assert crowd.store.find("all") == ["a"]

    def test_one_begin_of_many_wins(self, crowd: Crowd) -> None:
        _put(crowd.store)
        begun = crowd.do(_begin, 1, _LONG)
        assert [answer[0] for answer in begun].count("held") == 1, "two refresh at once"
        assert [answer[0] for answer in begun].count("busy") == crowd.size - 1
        assert ("held", 1, False) in begun
        stored = crowd.store.read("a")
        assert stored is not None
        assert stored.control.lease_owner == str(begun.index(("held", 1, False)))

    def test_one_of_many_takes_a_lapsed_lease_over(self, crowd: Crowd) -> None:
        _put(crowd.store)
        crowd.store.begin("a", owner="dead", expected_version=1, lease=0.001, intent="h")
        crowd.wait(0.01)
        begun = crowd.do(_begin, 1, _LONG)
        assert [answer[0] for answer in begun].count("held") == 1, "two refresh at once"
        # The version fences the late owner, and what it had begun is in doubt.
        assert ("held", 2, True) in begun
        assert crowd.store.commit("a", b"", expected_version=1, commit_id="dead") == "moved"

    def test_one_commit_of_many_wins(self, crowd: Crowd) -> None:
        _put(crowd.store)
        outcomes = crowd.do(_commit, 1)
        assert outcomes.count("ok") == 1, "two answers were stored on top of the same version"
        assert outcomes.count("moved") == crowd.size - 1
        assert _sealed(crowd.store) == b"%d" % outcomes.index("ok")

    def test_one_adopt_of_many_wins(self, crowd: Crowd) -> None:
        _put(crowd.store)
        outcomes = crowd.do(_adopt, 1)
        assert outcomes.count("ok") == 1, "two copies went over the same version"
        assert _sealed(crowd.store) == b"%d" % outcomes.index("ok")

    def test_one_delete_of_many_removes(self, crowd: Crowd) -> None:
        _put(crowd.store)
        removed = crowd.do(_delete)
        assert removed.count(True) == 1, "one sign-out counts twice"
        assert _sealed(crowd.store) == b"%d" % removed.index(True), "an outbox was written over"

    def test_no_update_is_lost(self, crowd: Crowd) -> None:
        _put(crowd.store)
        added = crowd.do(_add)
        stored = crowd.store.read("a")
        assert stored is not None
        assert int(stored.sealed) == sum(added), "an update was written over"
        assert stored.control.version == 1 + sum(added)
        assert sum(added) >= 1

    def test_whoever_repeats_gets_the_same_answer(self, crowd: Crowd) -> None:
        for number in range(0, crowd.size, 8):
            _put(crowd.store, str(number))
        found = [answer for answer in crowd.do(_repeat) if answer]
        assert found == [(["held"] * 3, [(1, False)] * 3, ["ok"] * 3, 2)] * (crowd.size // 8)

    def test_a_reader_sees_one_version_and_not_a_mixture(self, crowd: Crowd) -> None:
        _put(crowd.store, sealed=_page(1))
        found = crowd.do(_read_or_write)
        assert found == [True] * crowd.size, "control and sealed bytes of different versions"

    def test_purge_counts_each_record_once(self, crowd: Crowd) -> None:
        ends_at = _now(crowd.store) + 0.001
        for number in range(20):
            crowd.store.create(str(number), b"", ends_at=ends_at)
        _put(crowd.store)
        crowd.wait(0.01)
        assert sum(crowd.do(_purge)) in (20, 0)  # 0: the store does it by itself
        assert [key for key, _ in crowd.store.scan("", 100)] == ["a"]


def _wait(store: AtomicGrantStore, seconds: float) -> None:
    end, give_up = _now(store) + seconds, time.monotonic() + seconds + _PATIENCE
    while _now(store) < end:
        assert time.monotonic() < give_up, "the clock of the store stands still"
        threading.Event().wait(seconds / 10)


def _now(store: AtomicGrantStore) -> float:
    """Ask the store what time it is."""
    return store.begin("none", owner="x", expected_version=1, lease=1.0, intent=None).now


def _put(store: AtomicGrantStore, key: str = "a", sealed: bytes = b"0") -> None:
    assert store.create(key, sealed, ends_at=_now(store) + _LONG)


def _sealed(store: AtomicGrantStore) -> bytes:
    stored = store.read("a")
    assert stored is not None
    return stored.sealed


def _page(version: int) -> bytes:
    return b"%d," % version * 500


# -- what the members of a crowd do


def _create(store: AtomicGrantStore, me: int, ends_at: float) -> bool:
    return store.create("a", b"%d" % me, ends_at=ends_at, index=["all"])


def _begin(store: AtomicGrantStore, me: int, version: int, lease: float) -> tuple[str, int, bool]:
    begun = store.begin("a", owner=str(me), expected_version=version, lease=lease, intent="h")
    return begun.status, begun.version, begun.doubt


def _commit(store: AtomicGrantStore, me: int, version: int) -> str:
    return store.commit("a", b"%d" % me, expected_version=version, commit_id=str(me))


def _adopt(store: AtomicGrantStore, me: int, version: int) -> str:
    return store.adopt("a", b"%d" % me, expected_version=version, version=version + 5)


def _delete(store: AtomicGrantStore, me: int) -> bool:
    return store.delete("a", keep=b"%d" % me, expected_version=1)


def _add(store: AtomicGrantStore, me: int) -> int:
    added = 0
    for _ in range(_TRIES):
        stored = store.read("a")
        assert stored is not None
        new, version = b"%d" % (int(stored.sealed) + 1), stored.control.version
        added += store.update("a", new, expected_version=version) == "ok"
    return added


def _repeat(store: AtomicGrantStore, me: int) -> Any:
    if me % 8:
        return None
    key = str(me)
    begun = [
        store.begin(key, owner=key, expected_version=1, lease=_LONG, intent="h") for _ in range(3)
    ]
    outcomes = [store.commit(key, b"", expected_version=1, commit_id=key) for _ in range(3)]
    stored = store.read(key)
    version = stored and stored.control.version
    return (
        [one.status for one in begun],
        [(one.version, one.doubt) for one in begun],
        outcomes,
        (version),
    )


def _read_or_write(store: AtomicGrantStore, me: int) -> bool:
    whole = True
    for turn in range(_TRIES):
        stored = store.read("a")
        assert stored is not None
        control = stored.control
        whole &= stored.sealed == _page(control.sealed_version)
        if me % 4 == 0:
            store.commit(
                "a",
                _page(control.version + 1),
                expected_version=control.version,
                commit_id=f"{me}.{turn}",
            )
    return whole


def _purge(store: AtomicGrantStore, me: int) -> int:
    return store.purge(3)
