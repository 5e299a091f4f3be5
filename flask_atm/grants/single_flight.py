"""One at a time within a process: who leads, who waits, and how a wait ends.

Nobody queues for a lock. The first caller leads; the others wait for the end of that flight, all
of them at once, and then look at the record again: what the leader stored is there.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock

from flask_atm.errors import ATMError, ServerUnavailable, StoreError

__all__ = ["Flight", "ProcessLock", "SingleFlight"]


class ProcessLock:
    """A lock that a child process finds free, whoever held it when the parent forked."""

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[int, Lock] = {}

    def __enter__(self) -> None:
        # One dict operation, so that two first threads of a new process share what they get.
        self._locks.setdefault(os.getpid(), Lock()).acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._locks[os.getpid()].release()


class Flight:
    """One refresh that others may wait for."""

    __slots__ = ("_ended", "_error", "_slot")

    def __init__(self) -> None:
        self._ended = Event()
        self._error: ATMError | None = None
        self._slot = ""

    def fail(self, error: ATMError, slot: str) -> None:
        """Remember why it failed, and for which slot."""
        self._error, self._slot = error, slot

    def error_for(self, slot: str) -> ATMError | None:
        """Give why it failed, if that ends the wait for this slot too.

        What a server says of the parameters of one slot means nothing to another one.
        """
        if self._slot == slot or isinstance(self._error, ServerUnavailable | StoreError):
            return self._error
        return None

    def wait(self, timeout: float) -> bool:
        """Wait for the end, at most ``timeout`` seconds; tell whether it came."""
        return self._ended.wait(timeout)

    def end(self) -> None:
        """Let everybody go on who waits."""
        self._ended.set()


class SingleFlight:
    """The flights of a process, by record. Thread-safe.

    A child process starts with none, whatever its parent was doing when it forked.
    """

    __slots__ = ("_flights", "_lock")

    def __init__(self) -> None:
        self._lock = ProcessLock()
        self._flights: dict[int, dict[str, Flight]] = {}

    @contextmanager
    def enter(self, key: str) -> Iterator[tuple[bool, Flight]]:
        """Give whether this caller leads, and the flight; the flight of a leader ends here."""
        with self._lock:
            flights = self._flights.setdefault(os.getpid(), {})
            flight = flights.get(key)
            leads = flight is None
            if flight is None:
                flight = flights[key] = Flight()
        try:
            yield leads, flight
        finally:
            if leads:
                with self._lock:
                    del flights[key]
                flight.end()
