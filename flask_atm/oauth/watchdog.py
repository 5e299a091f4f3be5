"""The thread that ends requests at their deadline; a timer for each would cost 800 us."""

import math
import threading
from time import monotonic
from typing import Protocol

__all__ = ["Watchdog"]


class _Watched(Protocol):
    deadline: float

    def cut(self) -> None: ...


class Watchdog:
    """Cuts what is past its deadline. Thread-safe; a child process has to make a new one.

    The thread begins with the first request and ends when there are none.
    """

    def __init__(self) -> None:
        #: Held while something is cut.
        self.changed = threading.Condition(threading.Lock())
        self._watched: set[_Watched] = set()
        self._wakes_at = math.inf

    def begin(self, watched: _Watched) -> None:
        """Cut this at its deadline, by ``time.monotonic()``, unless it has ended before."""
        with self.changed:
            self._watched.add(watched)
            if watched.deadline < self._wakes_at:
                asleep = self._wakes_at < math.inf
                self._wakes_at = watched.deadline
                if asleep:
                    self.changed.notify()
                else:
                    self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="flask-atm-watchdog", daemon=True)
        try:
            thread.start()
        except BaseException:
            # Nobody watches, so nobody may count on it: the next one tries again.
            self._watched.clear()
            self._wakes_at = math.inf
            raise

    def end(self, watched: _Watched) -> None:
        """It has ended by itself."""
        with self.changed:
            self._watched.discard(watched)

    def _run(self) -> None:
        with self.changed:
            while True:
                now = monotonic()
                for late in [one for one in self._watched if one.deadline <= now]:
                    self._watched.discard(late)
                    late.cut()
                self._wakes_at = min((one.deadline for one in self._watched), default=math.inf)
                if self._wakes_at == math.inf:
                    return
                self.changed.wait(min(self._wakes_at - now, threading.TIMEOUT_MAX))
