"""Several processes with several threads each, all doing the same thing at the same moment."""

import multiprocessing
import threading
import traceback
from collections.abc import Callable
from typing import Any

from flask_atm.state import State
from tests.grants.support import Setup

__all__ = ["Job", "run_everywhere"]

#: Done by each thread, with the state of its process and its number; gives plain values.
Job = Callable[[State, int], Any]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.grants.support", "requests"])


def run_everywhere(setup: Setup, job: Job, *, processes: int, threads: int) -> list[Any]:
    """Run a job in all threads of all processes at once; give what each returned, or its error."""
    barrier = _context.Barrier(processes)
    results: Any = _context.Queue()
    workers = [
        _context.Process(
            target=_work, args=(setup, job, number * threads, threads, barrier, results)
        )
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        return [results.get(timeout=90) for _ in range(processes * threads)]
    finally:
        for worker in workers:
            worker.join(10)
            assert worker.exitcode == 0


def _work(setup: Setup, job: Job, first: int, threads: int, barrier: Any, results: Any) -> None:
    state = setup.state()
    # Everything that is done once per process: not part of the race.
    provider = state.provider()
    provider.id_tokens.warm()
    state.store.read("warm")
    start = threading.Barrier(threads, action=lambda: barrier.wait(60))

    def run(number: int) -> None:
        start.wait(60)
        try:
            results.put(job(state, number))
        except Exception:
            results.put(traceback.format_exc())

    crowd = [threading.Thread(target=run, args=(first + n,)) for n in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
