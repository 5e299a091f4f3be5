"""Processes that call for the tokens of many users, over a store that goes away and comes back."""

import contextlib
import logging
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from flask_atm.errors import ATMError
from flask_atm.state import State
from flask_atm.tokens import TokenParameters
from tests.grants.processes import _context
from tests.grants.support import Setup

__all__ = ["Call", "Load", "Report"]

PAUSE = 0.01
#: What a token has left is told by the clock of the caller, a little later than it was read.
A_MOMENT = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call for a token, and what came of it.

    :param outcome: ``ok``, or the name of the error.
    :param begun: by the monotonic clock, which is the same in all processes of a host.
    :param left: seconds that the token had left when the call returned.
    """

    process: int
    user: int
    outcome: str
    begun: float
    ended: float
    token: str = ""
    left: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What all processes have seen.

    :param last: a token of each user, which each process was given in the end.
    """

    calls: Sequence[Call]
    last: Sequence[Sequence[str]]

    def outcomes(self, after: float = 0.0, before: float = float("inf")) -> Counter[str]:
        return Counter(one.outcome for one in self.calls if after <= one.begun <= before)

    def converged(self, after: float) -> float:
        """How long after this moment each process had served each user."""
        first: dict[tuple[int, int], float] = {}
        for one in self.calls:
            if one.outcome == "ok" and one.begun >= after:
                who = (one.process, one.user)
                first[who] = min(one.ended, first.get(who, one.ended))
        return max(first.values()) - after

    def refused_in_vain(self, gone: float, copy_age: float) -> list[Call]:
        """Calls that failed although their process had a token that was good enough.

        :param gone: when the store went away: what was read before that is a copy of it.
        """
        seen: dict[tuple[int, int], Call] = {}
        for one in self.calls:
            who = (one.process, one.user)
            if one.outcome == "ok" and one.ended < gone:
                seen[who] = max(one, seen.get(who, one), key=lambda call: call.begun)
        return [
            one
            for one in self.calls
            if one.outcome != "ok"
            and one.ended > gone
            and (copy := seen.get((one.process, one.user)))
            and one.ended < min(copy.begun + copy_age, copy.ended + copy.left - A_MOMENT)
        ]


class Load:
    """So many processes with so many threads each, which call for a random user's token.

    When told to end, each process first calls for every user until it is served::

        with Load(setup, grant_ids, processes=3, threads=6) as load:
            ...
        report = load.report()
    """

    def __init__(
        self, setup: Setup, grant_ids: Sequence[str], *, processes: int, threads: int, wait: float
    ) -> None:
        self._ready = _context.Barrier(processes + 1)
        self._stop = _context.Event()
        self._results: Any = _context.Queue()
        self._wait = wait
        self._report: Report | None = None
        self._workers = [
            _context.Process(
                target=_work,
                args=(
                    setup,
                    list(grant_ids),
                    number,
                    threads,
                    wait,
                    self._ready,
                    self._stop,
                    self._results,
                ),
            )
            for number in range(processes)
        ]

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        self._ready.wait(60)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        try:
            results = [self._results.get(timeout=3 * self._wait) for _ in self._workers]
        finally:
            for worker in self._workers:
                worker.join(20)
                if worker.exitcode is None:
                    worker.kill()
                    worker.join()
        assert [one for one in results if isinstance(one, str)] == []
        self._report = Report(
            calls=[call for calls, _ in results for call in calls],
            last=[last for _, last in results],
        )

    def report(self) -> Report:
        assert self._report is not None
        return self._report


def _work(
    setup: Setup,
    grant_ids: Sequence[str],
    process: int,
    threads: int,
    wait: float,
    ready: Any,
    stop: Any,
    results: Any,
) -> None:
    logging.getLogger("flask_atm").addHandler(logging.NullHandler())  # what is read is the report
    state = setup.state()
    state.provider().id_tokens.warm()
    for grant_id in grant_ids:
        _call(state, process, 0, grant_id)
    ready.wait(60)
    calls: list[Call] = []
    problems: list[str] = []

    def run(thread: int) -> None:
        chosen = random.Random(f"{process} {thread}")
        with _told(problems):
            while not stop.is_set():
                user = chosen.randrange(len(grant_ids))
                calls.append(_call(state, process, user, grant_ids[user]))
                time.sleep(PAUSE)

    crowd = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    last: list[str] = []
    give_up = time.monotonic() + wait
    with _told(problems):
        for user, grant_id in enumerate(grant_ids):
            calls.append(_call(state, process, user, grant_id))
            while not calls[-1].token and time.monotonic() < give_up:
                time.sleep(PAUSE)
                calls.append(_call(state, process, user, grant_id))
            last.append(calls[-1].token)
    results.put("\n".join(problems) if problems else (calls, last))


@contextlib.contextmanager
def _told(problems: list[str]) -> Iterator[None]:
    """Note what no caller of a token may see."""
    try:
        yield
    except Exception:
        problems.append(traceback.format_exc())


def _call(state: State, process: int, user: int, grant_id: str) -> Call:
    begun = time.monotonic()
    outcome, token, left = "ok", "", 0.0
    try:
        found = state.provider().tokens.get(grant_id, TokenParameters())
    except ATMError as error:
        outcome = type(error).__name__
    else:
        token, left = found.value, (found.expires_at or 0.0) - time.time()
    return Call(
        process=process,
        user=user,
        outcome=outcome,
        begun=begun,
        ended=time.monotonic(),
        token=token,
        left=left,
    )
