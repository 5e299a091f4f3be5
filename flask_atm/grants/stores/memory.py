"""Grants in the memory of one process: for tests, and for applications with clients only."""

import time
from bisect import bisect_right
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import islice
from typing import Final

from flask_atm.grants import control as steps
from flask_atm.grants.control import Control, Stored
from flask_atm.grants.single_flight import ProcessLock
from flask_atm.grants.stores.stepped import Step, SteppedStore, T
from flask_atm.protocols import Clock, Doomed

__all__ = ["MemoryStore"]

_TRIMMED: Final = 20


class MemoryStore(SteppedStore):
    """An atomic store in the memory of one process. Thread-safe.

    What it holds is gone with the process and unknown to any other, so it suits a single process
    only. A forked child keeps what was there when it was forked.

    :param clock: gives the present as epoch seconds.
    """

    def __init__(self, *, clock: Clock = time.time) -> None:
        self._clock = clock
        self._lock = ProcessLock()
        self._records: dict[str, tuple[Control, bytes]] = {}
        self._ends: list[tuple[float, str]] = []
        self._entries: dict[str, tuple[str, ...]] = {}
        # A dictionary of keys is a set that remembers their order.
        self._index: dict[str, dict[str, None]] = {}

    def __repr__(self) -> str:
        return f"<MemoryStore of {len(self._records)}>"

    def _get(self, key: str, now: float) -> tuple[Control, bytes] | None:
        record = self._records.get(key)
        return record if record is not None and record[0].ends_at > now else None

    def create(
        self,
        key: str,
        sealed: bytes,
        *,
        ends_at: float,
        index: Sequence[str] = (),
        doubt: bool = False,
        version: int = 1,
    ) -> bool:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        with self._lock:
            self._trim(_TRIMMED)
            if self._get(key, self._clock()) is not None:
                return False
            self._remove(key)
            control = steps.new(ends_at=ends_at, doubt=doubt, version=version)
            self._records[key] = (control, sealed)
            self._enter(key, index)
            heappush(self._ends, (ends_at, key))
            return True

    def read(self, key: str) -> Stored | None:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        with self._lock:
            now = self._clock()
            record = self._get(key, now)
            return record and Stored(control=record[0], sealed=record[1], now=now)

    def _step(
        self,
        key: str,
        step: Step[T],
        sealed: bytes | None = None,
        index: Sequence[str] | None = None,
    ) -> T:
        with self._lock:
            now = self._clock()
            record = self._get(key, now)
            answer, new = step(record and record[0], now)
            if record is not None and new is not None:
                self._records[key] = (new, record[1] if sealed is None else sealed)
                if index is not None:
                    self._leave(key)
                    self._enter(key, index)
            return answer

    def delete(
        self,
        key: str,
        *,
        keep: bytes | None = None,
        index: Sequence[str] = (),
        expected_version: int | None = None,
    ) -> bool:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        with self._lock:
            return self._delete(key, keep, index, expected_version)

    def _delete(
        self, key: str, keep: bytes | None, index: Sequence[str], expected_version: int | None
    ) -> bool:
        record = self._get(key, self._clock())
        if record is None or expected_version not in (None, record[0].version):
            return False
        if keep is None:
            self._remove(key)
        else:
            self._leave(key)
            self._records[key] = (steps.bury(record[0]), keep)
            self._enter(key, index)
        return not record[0].tombstone

    def read_many(self, keys: Sequence[str]) -> list[Stored | None]:
        """See :class:`~flask_atm.protocols.BatchedGrantStore`."""
        return [self.read(key) for key in keys]

    def delete_many(self, doomed: Sequence[Doomed]) -> list[bool]:
        """See :class:`~flask_atm.protocols.BatchedGrantStore`."""
        with self._lock:
            return [
                self._delete(one.key, one.keep, one.index, one.expected_version) for one in doomed
            ]

    def _remove(self, key: str) -> None:
        self._leave(key)
        self._records.pop(key, None)

    def _enter(self, key: str, index: Sequence[str]) -> None:
        entries = self._entries[key] = tuple(dict.fromkeys(index))
        for entry in entries:
            self._index.setdefault(entry, {})[key] = None

    def _leave(self, key: str) -> None:
        for entry in self._entries.pop(key, ()):
            keys = self._index[entry]
            keys.pop(key, None)
            if not keys:
                del self._index[entry]

    def _trim(self, limit: int) -> int:
        now, removed = self._clock(), 0
        while removed < limit and self._ends and self._ends[0][0] <= now:
            _, key = heappop(self._ends)
            # The key may be that of a record which came later, or be gone.
            if key in self._records and self._get(key, now) is None:
                self._remove(key)
                removed += 1
        return removed

    def find(self, index: str, limit: int = 100) -> list[str]:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        with self._lock:
            now = self._clock()
            found = (key for key in self._index.get(index, ()) if self._get(key, now))
            return list(islice(found, limit))

    def scan(self, after: str, limit: int) -> list[tuple[str, Stored]]:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        with self._lock:
            now = self._clock()
            keys = sorted(key for key in self._records if self._get(key, now))
            page = keys[bisect_right(keys, after) :][:limit]
            return [
                (key, Stored(control=self._records[key][0], sealed=self._records[key][1], now=now))
                for key in page
            ]

    def purge(self, limit: int) -> int:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        with self._lock:
            return self._trim(limit)
