"""A clock for tests: it stands still until it is told to go on."""

import time
from threading import Lock
from typing import Any, Self

__all__ = ["FakeClock"]


class FakeClock:
    """Epoch seconds that change only by :meth:`advance` and :meth:`set`. Thread-safe.

    Give one and the same to ``ATM(clock=…)`` and :class:`FakeProvider`. A deep copy goes on by
    itself.

    :param now: epoch seconds at the beginning; the real present if left out.
    """

    __slots__ = ("_lock", "_now")

    def __init__(self, now: float | None = None) -> None:
        self._lock = Lock()
        self._now = time.time() if now is None else float(now)

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Go on by so many seconds, back if negative; return the new present."""
        with self._lock:
            self._now += seconds
            return self._now

    def set(self, now: float) -> None:
        """Jump to an instant, in epoch seconds."""
        with self._lock:
            self._now = float(now)

    def __repr__(self) -> str:
        return f"<FakeClock {self._now}>"

    def __copy__(self) -> Self:
        return type(self)(self._now)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self._now)
