"""The change of the first key of the ring: what older keys sealed is sealed anew, record by record.

Nothing is remembered between two runs. What is still sealed by an older key, or found by one, is
what is still to be done, so whoever runs it again goes on. One page of the store is in memory at a
time, and each record changes by one atomic step, beside the requests that are served meanwhile.

Records of a few minutes are left alone, because nobody misses them: used states, marks of logouts,
client tokens (their very keys are hashes by the first key, so new ones are got).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from flask_atm.grants import indexes
from flask_atm.grants.control import Stored
from flask_atm.grants.record import Grant, Snapshot
from flask_atm.grants.seal import KeyRing, Unreadable
from flask_atm.grants.user_tokens import UserTokens
from flask_atm.grants.vault import Vault
from flask_atm.protocols import AtomicGrantStore

__all__ = ["Progress", "Rotation", "is_current", "is_passing"]

#: A record of this kind of key lives for minutes only.
_PASSING: Final = ("state:", "logout:")
#: Nobody but a broken store changes a record so often between two looks at it.
_TURNS: Final = 4
_PAGE: Final = 100

Verdict: TypeAlias = Literal["sealed_anew", "current", "busy", "unreadable"]


def is_passing(key: str, stored: Stored) -> bool:
    """Tell whether a record is of no matter in a few minutes, or not sealed at all."""
    return not stored.sealed or key.startswith(_PASSING) or key == "store id"


def is_current(ring: KeyRing, stored: Stored, grant: Grant) -> bool:
    """Tell whether a grant is sealed with the first key, and found by it."""
    return ring.is_current(stored.sealed) and grant.indexed_by == ring.key_ids[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a rotation has come.

    :param after: the key of the last record that was looked at.
    :param sealed_anew: grants that were sealed anew.
    :param outbox: tombstones with tokens still to be revoked that were sealed anew.
    :param current: those with nothing to be done.
    :param busy: grants that are being refreshed, or are in doubt: they stay as they are for now.
    :param unreadable: what no key opens, or no provider that was asked for.
    """

    after: str = ""
    sealed_anew: int = 0
    outbox: int = 0
    current: int = 0
    busy: int = 0
    unreadable: int = 0

    @property
    def left(self) -> int:
        """How many records still need an older key, or one that is not there."""
        return self.busy + self.unreadable

    def with_one(self, key: str, verdict: Verdict) -> "Progress":
        """Count one more."""
        return replace(self, after=key, **{verdict: getattr(self, verdict) + 1})


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """Seals anew what older keys of the ring sealed.

    :param tokens: the grants of the providers whose records are to be sealed anew.
    :param passing: the vaults of client tokens, which are known and left alone.
    """

    store: AtomicGrantStore
    ring: KeyRing
    tokens: Sequence[UserTokens]
    passing: Sequence[Vault] = ()

    def run(self, after: str = "") -> Iterator[Progress]:
        """Go through the store, and tell after each page how far it is.

        :param after: where to begin; what comes before is not looked at.
        :raises StoreError: the store is silent; what was done is done.
        """
        progress = Progress(after=after, outbox=sum(map(self._outbox, self.tokens)))
        while page := self.store.scan(progress.after, _PAGE):
            for key, stored in page:
                progress = progress.with_one(key, self._look_at(key, stored))
            yield progress
        yield progress

    # -- grants

    def _look_at(self, key: str, stored: Stored) -> Verdict:
        if is_passing(key, stored):
            return "current"
        if not stored.control.tombstone:
            for tokens in self.tokens:
                snapshot = tokens.vault.recognise(key, stored)
                if snapshot is not None:
                    return self._seal_anew(tokens, snapshot, stored)
        is_known = any(vault.recognise(key, stored) for vault in self.passing)
        # A grant of a provider that nobody named may be found by an older key only.
        needs_no_other = self.ring.is_current(stored.sealed) and (
            stored.control.tombstone or len(self.ring.key_ids) == 1
        )
        return "current" if is_known or needs_no_other else "unreadable"

    def _seal_anew(self, tokens: UserTokens, snapshot: Snapshot, stored: Stored) -> Verdict:
        for _ in range(_TURNS):
            if is_current(self.ring, stored, snapshot.grant):
                return "current"
            version = snapshot.control.version
            grant = indexes.indexed(self.ring, snapshot.grant)
            outcome = tokens.vault.store.update(
                snapshot.key,
                tokens.vault.seal(snapshot.key, grant, version=version + 1),
                expected_version=version,
                index=indexes.of_grant(self.ring, grant),
            )
            if outcome == "ok":
                return "sealed_anew"
            if outcome == "busy":
                return "busy"
            now = None if outcome == "gone" else self.store.read(snapshot.key)
            if now is None or now.control.tombstone:
                return "current"  # nothing is left of it
            again = tokens.vault.recognise(snapshot.key, now)
            if again is None:
                return "unreadable"
            stored, snapshot = now, again
        return "busy"

    # -- what is still to be revoked

    def _outbox(self, tokens: UserTokens) -> int:
        """Seal the outbox of a provider anew; tell how many entries that were."""
        first, *older = tokens.outbox.entries
        done, stayed = 0, set[str]()
        for entry in older:
            while found := [
                key for key in self.store.find(entry, _PAGE + len(stayed)) if key not in stayed
            ]:
                for key in found:
                    if self._bury_anew(tokens, key, first):
                        done += 1
                    else:
                        stayed.add(key)
        return done

    def _bury_anew(self, tokens: UserTokens, key: str, entry: str) -> bool:
        stored = self.store.read(key)
        if stored is None or not stored.control.tombstone:
            return False
        place = {"purpose": indexes.OUTBOX, "record": key, "bound": tokens.name}
        try:
            data = self.ring.open(stored.sealed, **place)
        except Unreadable:
            return False
        self.store.delete(
            key,
            keep=self.ring.seal(data, **place),
            index=[entry],
            expected_version=stored.control.version,
        )
        now = self.store.read(key)
        return now is not None and self.ring.is_current(now.sealed)
