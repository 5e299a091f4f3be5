"""Which key of the ring is needed by how many records: counts only."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flask_atm.grants.control import Stored
from flask_atm.grants.record import Grant
from flask_atm.grants.rotation import is_passing
from flask_atm.grants.seal import KeyRing
from flask_atm.grants.vault import Vault
from flask_atm.protocols import AtomicGrantStore

__all__ = ["KeyUse", "key_use"]

_PAGE: Final = 100
#: Of keys that are not in the ring, so many are told apart: garbage may look like any key.
_STRANGE: Final = 16
_OTHERS: Final = "others"


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyUse:
    """What one key is needed for.

    :param role: ``seals``, ``opens``, or ``missing``: it is not in the ring.
    :param grants: sign-ins and connected accounts that it sealed.
    :param indexed: grants that are found by it.
    :param to_revoke: tombstones that it sealed, with tokens that are still to be revoked.
    :param passing: records of some minutes, and client tokens.
    :param unreadable: records that do not open, for want of the key, of the provider, or because
        they were changed.
    """

    key_id: str
    role: str
    grants: int = 0
    indexed: int = 0
    to_revoke: int = 0
    passing: int = 0
    unreadable: int = 0


def key_use(
    store: AtomicGrantStore, ring: KeyRing, grants: Sequence[Vault], passing: Sequence[Vault]
) -> list[KeyUse]:
    """Count what each key is needed for; a page of the store is in memory at a time.

    :param grants: the vaults of the providers.
    :param passing: the vaults of client tokens.
    :raises StoreError: the store is silent.
    """
    census = _Census(ring=ring, grants=grants, passing=passing, counts=Counter(), strange=set())
    after = ""
    while page := store.scan(after, _PAGE):
        for key, stored in page:
            census.count(key, stored)
        after = page[-1][0]
    return census.result()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Census:
    ring: KeyRing
    grants: Sequence[Vault]
    passing: Sequence[Vault]
    counts: Counter[tuple[str, str]]
    strange: set[str]

    def count(self, key: str, stored: Stored) -> None:
        if not stored.sealed or key == "store id":
            return
        name = self.name(stored)
        grant = self.opened(key, stored)
        kind = "grants" if grant else self.kind(key, stored)
        self.counts[name, kind] += 1
        if grant is not None:
            # A grant from before that was written down may have the entries of any key.
            last = self.ring.key_ids[-1]
            self.counts[grant.indexed_by or last, "indexed"] += 1

    def name(self, stored: Stored) -> str:
        name = self.ring.key_id(stored.sealed)
        if name not in self.ring.key_ids and name not in self.strange:
            if len(self.strange) >= _STRANGE:
                return _OTHERS
            self.strange.add(name)
        return name

    def opened(self, key: str, stored: Stored) -> Grant | None:
        if stored.control.tombstone:
            return None
        found = (vault.recognise(key, stored) for vault in self.grants)
        return next((snapshot.grant for snapshot in found if snapshot is not None), None)

    def kind(self, key: str, stored: Stored) -> str:
        if not self.ring.knows(stored.sealed):
            return "unreadable"
        if stored.control.tombstone:
            return "to_revoke"
        if is_passing(key, stored) or any(vault.recognise(key, stored) for vault in self.passing):
            return "passing"
        return "unreadable"

    def result(self) -> list[KeyUse]:
        ids = self.ring.key_ids
        named = {name for name, _ in self.counts}
        rows = [*ids, *sorted(named.difference(ids, [_OTHERS])), *named.intersection([_OTHERS])]
        return [
            KeyUse(
                key_id=name,
                role="seals" if name == ids[0] else "opens" if name in ids else "missing",
                **{
                    kind: self.counts[name, kind]
                    for kind in ("grants", "indexed", "to_revoke", "passing", "unreadable")
                },
            )
            for name in rows
        ]
