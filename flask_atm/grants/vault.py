"""Grants in a store, sealed: reading, sealing, and what happens while the store is silent.

Two things are kept in memory, neither of them a cache that answers while the store does:

* a sealed copy of a record, a few seconds old at most, used only while the store does not answer;
* answers of a token endpoint that the store did not take. Losing one would sign a user out, so a
  thread offers it to the store until it takes it, also for a few seconds at exit.
"""

import atexit
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from threading import Event, Thread
from typing import TYPE_CHECKING, Final

from flask_atm.errors import StoreError
from flask_atm.grants.batches import delete_many, read_many
from flask_atm.grants.control import Stored
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.record import SCHEMA, Grant, Snapshot
from flask_atm.grants.seal import KeyRing, Unreadable
from flask_atm.grants.single_flight import ProcessLock
from flask_atm.protocols import AtomicGrantStore, Doomed

if TYPE_CHECKING:
    from flask_atm.grants.copies import Copies

__all__ = ["KeptAnswer", "Vault", "new_grant_id", "record_key"]

log = logging.getLogger("flask_atm.store")

_COPIES: Final = 512
_AT_EXIT: Final = 5.0
_PURPOSE: Final = "grant"


def new_grant_id(provider: str) -> str:
    """Make a grant id: the provider, so that a job needs nothing else, and 256 random bits."""
    return f"{provider}.{secrets.token_urlsafe(32)}"


def record_key(grant_id: str) -> str:
    """Give the key of a grant in the store, of no use to get at the grant."""
    return sha256(grant_id.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptAnswer:
    """An answer that the store has not taken yet.

    :param snapshot: the record as it will be.
    :param store: offers it to the store once; raises :exc:`~flask_atm.StoreError` if it is silent.
        It may give something to do once the answer is not kept any more.
    :param at: when it was kept, by ``time.monotonic()``.
    """

    snapshot: Snapshot
    store: Callable[[], Callable[[], None] | None]
    at: float


class Vault:
    """Reads and seals the grants of one provider or client. Thread-safe and fork-safe.

    :param store: the atomic store.
    :param ring: seals and opens.
    :param provider: the name that is bound into the seal.
    :param is_ours: whether a grant belongs to the present issuer and client id; any other one is
        no record, and nothing of it is ever sent.
    :param copies: what a plain store has beside this one.
    """

    def __init__(
        self,
        store: AtomicGrantStore,
        ring: KeyRing,
        *,
        provider: str,
        parameters: EngineParameters,
        is_ours: Callable[[Grant], bool],
        copies: "Copies | None" = None,
    ) -> None:
        self.store = store
        self.copies = copies
        self._ring = ring
        self._provider = provider
        self._parameters = parameters
        self._is_ours = is_ours
        self._copies: dict[str, tuple[Stored, float]] = {}
        self._keeper = _Keeper(parameters.keep_interval)
        self._last_complaint = -60.0

    def read(self, key: str) -> Snapshot | None:
        """Give a grant; ``None`` where there is none that can be used.

        :raises StoreError: the store is silent, and there is no copy young enough.
        """
        kept = self._keeper.get(key)
        if kept is not None:
            return self._read_kept(key, kept)
        try:
            stored = self.store.read(key)
        except StoreError:
            stored = self._copy(key)
            if stored is None:
                raise
            copied = self._open(key, stored)
            return copied and replace(copied, copied=True)
        else:
            self._remember(key, stored)
            if self.copies is not None:
                return self.copies.settle(
                    key, stored, open_=partial(self._open, key), seal=partial(self._seal_for, key)
                )
        return None if stored is None else self._open(key, stored)

    def copy(self, snapshot: Snapshot) -> None:
        """Copy a grant that the store has just taken, where there are copies."""
        if self.copies is not None:
            self.copies.save(snapshot)

    def copy_new(self, key: str) -> None:
        """Copy a grant that was just made, where there are copies."""
        snapshot = None if self.copies is None else self.read_stored(key)
        if snapshot is not None:
            self.copy(snapshot)

    def read_stored(self, key: str) -> Snapshot | None:
        """Give a grant as the store has it now, with no help from memory.

        :raises StoreError: the store is silent.
        """
        stored = self.store.read(key)
        return None if stored is None else self._open(key, stored)

    def read_many(self, keys: Sequence[str]) -> list[tuple[Stored | None, Snapshot | None]]:
        """Give records as the store has them now: whatever is there, and the grant that it is.

        :raises StoreError: the store is silent.
        """
        found = read_many(self.store, keys)
        return [
            (
                stored,
                self.recognise(key, stored) if stored and not stored.control.tombstone else None,
            )
            for key, stored in zip(keys, found, strict=True)
        ]

    def delete_many(self, doomed: Sequence[Doomed]) -> list[bool]:
        """Remove grants from the store and from memory; tell of each whether it was there."""
        done = delete_many(self.store, doomed)
        for one, deleted in zip(doomed, done, strict=True):
            self._forget(one.key, deleted=deleted)
        return done

    def can_open(self, stored: Stored) -> bool:
        """Tell whether the ring has the key that sealed a record, whatever is inside."""
        return self._ring.knows(stored.sealed)

    def holds(self, key: str) -> bool:
        """Tell whether the store has a record, whoever may be able to open it."""
        stored = self.store.read(key)
        return stored is not None and not stored.control.tombstone

    def _read_kept(self, key: str, kept: KeptAnswer) -> Snapshot | None:
        """Offer a kept answer once more; serve from it while the store is silent."""
        try:
            self._keeper.offer(key, kept)
        except StoreError:
            return replace(kept.snapshot, now=kept.snapshot.now + time.monotonic() - kept.at)
        return self.read(key)

    def _open(self, key: str, stored: Stored) -> Snapshot | None:
        if stored.control.tombstone:
            return None
        try:
            snapshot = self._unseal(key, stored)
        except (Unreadable, ValueError) as error:
            self._complain(key, error)
            return None
        return snapshot if self._is_ours(snapshot.grant) else None

    def recognise(self, key: str, stored: Stored) -> Snapshot | None:
        """Open a record that may be anything; ``None`` where it is no grant under this name.

        For overviews: a grant of a former issuer or client id is given too, and nothing is logged.
        """
        try:
            return self._unseal(key, stored)
        except (Unreadable, ValueError):
            return None

    def _unseal(self, key: str, stored: Stored) -> Snapshot:
        control = stored.control
        value = self._ring.open_json(
            stored.sealed,
            purpose=_PURPOSE,
            record=key,
            bound=self._bound(control.sealed_version),
        )
        grant = Grant.from_json(value)
        return Snapshot(key=key, control=control, grant=grant, now=stored.now)

    def _complain(self, key: str, error: Exception) -> None:
        """Say it once a minute: the same cause makes every record unreadable."""
        now = time.monotonic()
        if now - self._last_complaint >= 60.0:
            self._last_complaint = now
            log.error(
                "a grant of %r cannot be read (%s): its user has to sign in again. Put the key"
                " that sealed it back into ATM_ENCRYPTION_KEYS or SECRET_KEY_FALLBACKS; the record"
                " was kept. grant=%s",
                self._provider,
                error,
                key[:8],
            )

    def seal(self, key: str, grant: Grant, *, version: int) -> bytes:
        """Seal a grant for the version that it will have in the store."""
        return self._ring.seal_json(
            grant.as_json(),
            purpose=_PURPOSE,
            record=key,
            bound=self._bound(version),
        )

    def _seal_for(self, key: str, grant: Grant, version: int) -> bytes:
        return self.seal(key, grant, version=version)

    def _bound(self, version: int) -> str:
        return f"{self._provider}\0{version}\0{SCHEMA}"

    def replace(self, snapshot: Snapshot, grant: Grant) -> bool:
        """Store anything but the result of a refresh; ``False``: it is not as it was read.

        :raises StoreError: the store is silent.
        """
        version = snapshot.control.version
        sealed = self.seal(snapshot.key, grant, version=version + 1)
        return self.store.update(snapshot.key, sealed, expected_version=version) == "ok"

    def delete(
        self,
        key: str,
        *,
        keep: bytes | None,
        index: Sequence[str],
        expected_version: int | None = None,
    ) -> bool:
        """Remove a grant from the store and from memory."""
        deleted = self.store.delete(key, keep=keep, index=index, expected_version=expected_version)
        self._forget(key, deleted=deleted)
        return deleted

    def _forget(self, key: str, *, deleted: bool) -> None:
        self._copies.pop(key, None)
        if deleted:
            self._keeper.end(key)

    def keep(self, key: str, answer: KeptAnswer) -> None:
        """Serve from an answer that the store did not take, until it does."""
        self._keeper.keep(key, answer)

    # -- copies

    def remember(self, snapshot: Snapshot, sealed: bytes) -> None:
        """Take a record that the store has just taken for one that was just read."""
        stored = Stored(control=snapshot.control, sealed=sealed, now=snapshot.now)
        self._remember(snapshot.key, stored)

    def _remember(self, key: str, stored: Stored | None) -> None:
        if stored is None:
            self._copies.pop(key, None)
            return
        known = self._copies.pop(key, None)  # so that the oldest come first
        new = (stored, time.monotonic())
        if known and known[0].control.version > stored.control.version and new[1] - known[1] < 1.0:
            new = known  # another thread has read it, or renewed it, since this one was read
        self._copies[key] = new
        if len(self._copies) > _COPIES:
            for old in list(self._copies)[: _COPIES // 8]:
                self._copies.pop(old, None)

    def _copy(self, key: str) -> Stored | None:
        stored, at = self._copies.get(key, (None, 0.0))
        age = time.monotonic() - at
        if stored is None or age > self._parameters.copy_age:
            return None
        return Stored(control=stored.control, sealed=stored.sealed, now=stored.now + age)


class _Keeper:
    """Offers kept answers to the store until it takes them. One thread per process, on demand."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._lock = ProcessLock()
        self._answers: dict[str, KeptAnswer] = {}
        self._pid = os.getpid()
        self._thread: Thread | None = None
        self._registered = False
        self._wake = Event()

    def get(self, key: str) -> KeptAnswer | None:
        # A child leaves the answers to the process that got them.
        return self._answers.get(key) if self._answers and self._pid == os.getpid() else None

    def keep(self, key: str, answer: KeptAnswer) -> None:
        with self._lock:
            if self._pid != os.getpid():
                self._answers, self._thread = {}, None
                self._pid = os.getpid()
            self._answers[key] = answer
            if not self._registered:
                self._registered = True
                atexit.register(self._finish)
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        thread = Thread(target=self._run, name="flask-atm-kept", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # It is offered by whoever reads the record, by the next thread, and at exit.
            log.warning("no thread can be started to store a renewed grant: %s", error)
        else:
            self._thread = thread

    def end(self, key: str) -> None:
        """Serve an answer no more; it is still offered, so that its tokens are revoked."""
        with self._lock:
            answer = self._answers.pop(key, None)
            if answer is not None:
                self._answers[f"{key} ended"] = answer

    def offer(self, key: str, answer: KeptAnswer) -> None:
        later = answer.store()
        with self._lock:
            if self._answers.get(key) is answer:
                del self._answers[key]
        if later is not None:
            later()

    def _offer_all(self) -> bool:
        """Offer every answer; tell whether none is left."""
        for key, answer in list(self._answers.items()):
            try:
                self.offer(key, answer)
            except StoreError as error:
                log.debug("the store does not take an answer yet: %s", error)
                return False
            except BaseException:
                self._last(key)  # so that it does not stand in the way of the others
                raise
        return not self._answers

    def _last(self, key: str) -> None:
        with self._lock:
            # Replaced as a whole: nobody who looks for an answer may miss it.
            others = {name: one for name, one in self._answers.items() if name != key}
            self._answers = others | {key: self._answers[key]} if key in self._answers else others

    def _run(self) -> None:
        try:
            while self._wait():
                self._offer_all()
        except BaseException:
            with self._lock:
                self._thread = None
                if self._answers:
                    self._start()
            raise

    def _wait(self) -> bool:
        """Wait for the next turn; tell whether there is one."""
        self._wake.wait(self._interval)
        with self._lock:
            if not self._answers:
                self._thread = None
            return self._thread is not None

    def _finish(self) -> None:
        if self._pid != os.getpid():
            return  # a child that ends: the answers are its parent's
        give_up = time.monotonic() + _AT_EXIT
        while not self._offer_all() and time.monotonic() < give_up:
            time.sleep(self._interval)
        if self._answers:
            log.error(
                "%d renewed sign-ins are lost, because the store did not answer before this"
                " process ended",
                len(self._answers),
            )
