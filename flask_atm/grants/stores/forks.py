"""Keeps a process from forking in the middle of a step, for what must not come through a fork."""

import os
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["ForkGate"]

#: Seconds that a fork waits for steps that run: a store that is locked must not stop it for good.
_LONGEST_STEP: Final = 5.0
_A_MOMENT: Final = 0.001


class ForkGate:
    """Lets no step run while this process forks. Thread-safe.

    SQLite's locks do not survive a fork, but what it knows of them does, and counts for every
    connection that the child opens later to the same file: it would lock nothing. So none may be
    open at the moment of it.

    :param close: closes all connections; called before each fork, when no step runs.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._running: deque[None] = deque()
        #: One for each thread that is about to fork: several may be at the same moment.
        self._forks: deque[None] = deque()
        if hasattr(os, "register_at_fork"):
            self._register()

    def __enter__(self) -> None:
        # Without a lock: either this sees the fork that is about to be, or the fork sees this.
        self._running.append(None)
        while self._forks:
            self._running.pop()
            while self._forks:
                time.sleep(_A_MOMENT)
            self._running.append(None)

    def __exit__(self, *exc_info: object) -> None:
        self._running.pop()

    def _register(self) -> None:
        """Let this one know of forks, for as long as it lives."""
        reference = weakref.ref(self)

        def call(step: Callable[[ForkGate], None]) -> Callable[[], None]:
            def hook() -> None:
                alive = reference()
                if alive is not None:
                    step(alive)

            return hook

        os.register_at_fork(
            before=call(ForkGate._before),
            after_in_parent=call(ForkGate._after_in_parent),
            after_in_child=call(ForkGate._after_in_child),
        )

    def _before(self) -> None:
        self._forks.append(None)
        give_up = time.monotonic() + _LONGEST_STEP
        while self._running and time.monotonic() < give_up:
            time.sleep(_A_MOMENT)
        self._close()

    def _after_in_parent(self) -> None:
        if self._forks:  # none where this was made while another thread forked
            self._forks.pop()

    def _after_in_child(self) -> None:
        """Begin anew: of the threads that were here none is left."""
        self._running.clear()
        self._forks.clear()
