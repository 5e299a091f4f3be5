"""Copies of grants in a plain store, beside the atomic store that decides about them.

The atomic store, the *pair*, keeps the record of a grant for its whole life, and its tombstone
until its end. What a plain store has (the Flask session, a cache) may be old, cut, or of another
store: it counts only where the pair has lost the record, or was put back to an older one. It is
taken over *in doubt* then, because nobody knows whether its refresh token was spent meanwhile.

A copy is sealed for its record, like the record itself. Inside are the version and the end of the
record, the name of the pair, and the grant.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from flask_atm.errors import StoreError
from flask_atm.grants import indexes
from flask_atm.grants.control import Stored
from flask_atm.grants.copy_complaints import Complaints
from flask_atm.grants.copy_seal import Copy, CopySeal
from flask_atm.grants.record import Grant, Snapshot
from flask_atm.grants.seal import KeyRing
from flask_atm.protocols import AtomicGrantStore, Clock, GrantStore

__all__ = ["Copies", "PairName"]

log = logging.getLogger("flask_atm.store")

#: What a plain store raises where it does not answer.
_SILENT: Final = (StoreError, OSError)
#: Nobody but a broken store changes a record so often between two looks at it.
_TURNS: Final = 5

_Open: TypeAlias = Callable[[Stored], Snapshot | None]
_Seal: TypeAlias = Callable[[Grant, int], bytes]


class PairName:
    """The random name of the atomic store. It is read once, and again when something speaks
    against it. Thread-safe.

    :param read: reads it; may raise :exc:`~flask_atm.StoreError`.
    """

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._name: str | None = None

    def __call__(self) -> str:
        return self._name or self.again()

    def again(self) -> str:
        """Look whether it is still the same store."""
        self._name = self._read()
        return self._name


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    """What a plain store gave."""

    state: Literal["silent", "nothing", "unreadable", "copy"]
    copy: Copy | None = None


class Copies:
    """The copies of the grants of one provider. Thread-safe and fork-safe.

    :param plain: where they are.
    :param store: the pair.
    :param ring: seals and opens.
    :param provider: the name that is bound into the seal.
    :param pair: the name of the pair.
    :param is_ours: whether the grant of a copy may be taken over: it is of the present issuer and
        client id, and was not left alone for too long.
    :param trim: gives what is copied of a grant.
    :param forbid: whether the provider has ended the session of a grant lately.
    """

    def __init__(
        self,
        plain: GrantStore,
        store: AtomicGrantStore,
        ring: KeyRing,
        *,
        provider: str,
        pair: PairName,
        clock: Clock,
        is_ours: Callable[[Grant], bool],
        trim: Callable[[Grant], Grant] = lambda grant: grant,
        forbid: Callable[[Grant], bool] = lambda grant: False,
    ) -> None:
        self._plain = plain
        self._store = store
        self._ring = ring
        self._seal = CopySeal(ring=ring, provider=provider)
        self._pair = pair
        self._clock = clock
        self._is_ours = is_ours
        self._trim = trim
        self._forbid = forbid
        self._complaints = Complaints(plain)

    def settle(
        self, key: str, stored: Stored | None, *, open_: _Open, seal: _Seal
    ) -> Snapshot | None:
        """Give the grant that counts, and make its copy the same.

        :param stored: what the pair has just given.
        :param open_: opens a record of the pair; ``None``: it cannot be used.
        :param seal: seals a grant for a version of its record.
        :raises StoreError: the pair is silent.
        """
        for _ in range(_TURNS):
            loaded = self._load(key)
            copy = loaded.copy
            if stored is None:
                outcome = "none" if copy is None else self._take_over(key, copy, seal)
                stored = None if outcome == "none" else self._store.read(key)
                if stored is None and outcome != "there":
                    return None  # also what has ended by the clock of the pair
                continue
            if stored.control.tombstone:
                if loaded.state not in ("silent", "nothing"):
                    self._delete(key)
                return None
            snapshot = open_(stored)
            if snapshot is None:
                return None
            later = self._later(snapshot, copy)
            if copy is None or later is None:
                self._heal(snapshot, loaded)
                return snapshot
            self._put_over(snapshot, copy, later, seal)
            stored = self._store.read(key)
        raise StoreError(f"the record of a grant changes all the time. grant={key[:8]}")

    def save(self, snapshot: Snapshot) -> None:
        """Copy a grant as the pair has it. A plain store that is silent costs nothing but a line
        in the log."""
        lifetime = snapshot.control.ends_at - snapshot.now
        if lifetime <= 0:
            return
        try:
            self._plain.save(snapshot.key, self.sealed(snapshot), lifetime=lifetime)
        except _SILENT as error:
            self._complaints.silent(error)

    def sealed(self, snapshot: Snapshot) -> bytes:
        """Give the copy of a grant.

        :raises StoreError: the pair is silent, and was never asked for its name.
        """
        return self._seal.seal(snapshot, self._trim(snapshot.grant), pair=self._pair())

    # -- the plain store

    def _load(self, key: str) -> _Loaded:
        try:
            sealed = self._plain.load(key)
        except _SILENT as error:
            self._complaints.silent(error)
            return _Loaded(state="silent")
        if sealed is None:
            return _Loaded(state="nothing")
        copy = self._seal.open(key, sealed)
        if copy is None:
            log.debug("a copy of a grant does not open. grant=%s", key[:8])
        # One that a former key has sealed is made anew while that key still opens it.
        current = copy is not None and self._seal.is_current(sealed)
        return _Loaded(state="copy" if current else "unreadable", copy=copy)

    def _grant_of(self, copy: Copy) -> Grant | None:
        grant = copy.grant()
        return grant if grant is not None and self._is_ours(grant) else None

    def _heal(self, snapshot: Snapshot, loaded: _Loaded) -> None:
        """Make the copy the same as the record, if it is not."""
        copy = loaded.copy
        same_pair = copy is None or copy.pair == self._pair() or not self._is_foreign(copy)
        if not same_pair:
            self._complaints.two_pairs(snapshot.key)
        is_same = copy is not None and copy.version == snapshot.control.sealed_version
        if loaded.state == "silent" or (loaded.state == "copy" and is_same and same_pair):
            return
        self.save(snapshot)

    def _delete(self, key: str) -> None:
        try:
            self._plain.delete(key)
        except _SILENT as error:
            self._complaints.silent(error)

    # -- the pair has lost something

    def _take_over(self, key: str, copy: Copy, seal: _Seal) -> Literal["none", "taken", "there"]:
        """Put a copy where the pair has neither record nor tombstone.

        :returns: ``none``: not this one; ``there``: somebody else was faster.
        """
        grant = self._grant_of(copy)
        if grant is None or copy.ends_at <= self._clock():
            return "none"
        grant = indexes.indexed(self._ring, grant)
        taken = self._store.create(
            key,
            seal(grant, copy.version),
            ends_at=copy.ends_at,
            index=indexes.of_grant(self._ring, grant),
            doubt=True,
            version=copy.version,
        )
        # Only now, as at a sign-in: a logout that found no record has left its mark before.
        if self._forbid(grant):
            self._store.delete(key, keep=b"")
        if not taken:
            return "there"
        if self._is_foreign(copy):
            self._complaints.two_pairs(key)
        else:
            self._complaints.lost(key)
        return "taken"

    def _later(self, snapshot: Snapshot, copy: Copy | None) -> Grant | None:
        """Give the grant of a copy that is later than the record."""
        if copy is None or copy.version <= snapshot.control.sealed_version:
            return None
        return self._grant_of(copy)

    def _put_over(self, snapshot: Snapshot, copy: Copy, later: Grant, seal: _Seal) -> None:
        """Put a later copy over the record of a pair that was put back to an older one."""
        control = snapshot.control
        version = max(copy.version, control.version + 1)
        # The entries of the record stay as they are.
        grant = replace(later, indexed_by=snapshot.grant.indexed_by)
        adopted = self._store.adopt(
            snapshot.key,
            seal(grant, version),
            expected_version=control.version,
            version=version,
        )
        if adopted != "ok":
            return  # somebody has just renewed it: the copy is his
        if self._is_foreign(copy):
            self._complaints.two_pairs(snapshot.key)
        else:
            self._complaints.older(snapshot.key)

    def _is_foreign(self, copy: Copy) -> bool:
        return copy.pair != self._pair() and copy.pair != self._pair.again()
