"""A plain store beside an atomic one, and the tombstones that this takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from flask_atm.protocols import AtomicGrantStore, BatchedGrantStore, Doomed

__all__ = ["PairedStore", "leaving_tombstones"]


@dataclass(frozen=True, slots=True)
class PairedStore:
    """A plain store with the atomic one that decides: ``ATM(store=PairedStore(…))``.

    The atomic store keeps every sign-in for its whole life, and answers each request. The plain one
    has a sealed copy of it, which counts only if the atomic store has lost the record.

    :param plain: a :class:`~flask_atm.protocols.GrantStore`, or a cache of cachelib or
        Flask-Caching.
    :param atomic: an :class:`~flask_atm.protocols.AtomicGrantStore`, or what ``ATM_STORE`` names
        one by (``"redis://…"``). Hosts that share the plain store have to share this one, too.
    """

    plain: object
    atomic: AtomicGrantStore | str = field(repr=False)


def leaving_tombstones(store: AtomicGrantStore) -> AtomicGrantStore:
    """Make every removed record leave a tombstone until its end, also where nothing is left of it.

    Without it a copy that somebody still has, of a grant that was signed out, would count again.
    """
    return _Batched(store) if isinstance(store, BatchedGrantStore) else _LeavesTombstones(store)


class _LeavesTombstones:
    """An atomic store whose removals all keep something, be it nothing."""

    def __init__(self, store: AtomicGrantStore) -> None:
        self._store = store
        # As they are: one step of the store is one step here.
        self.create = store.create
        self.read = store.read
        self.begin = store.begin
        self.commit = store.commit
        self.update = store.update
        self.adopt = store.adopt
        self.abort = store.abort
        self.find = store.find
        self.scan = store.scan
        self.purge = store.purge

    def __repr__(self) -> str:
        return repr(self._store)

    def delete(
        self,
        key: str,
        *,
        keep: bytes | None = None,
        index: Sequence[str] = (),
        expected_version: int | None = None,
    ) -> bool:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        return self._store.delete(
            key, keep=keep or b"", index=index, expected_version=expected_version
        )


class _Batched(_LeavesTombstones):
    """The same for a store that can do many records in one go."""

    def __init__(self, store: BatchedGrantStore) -> None:
        super().__init__(cast(AtomicGrantStore, store))
        self.read_many = store.read_many
        self._delete_many = store.delete_many

    def delete_many(self, doomed: Sequence[Doomed]) -> list[bool]:
        """See :class:`~flask_atm.protocols.BatchedGrantStore`."""
        return self._delete_many([replace(one, keep=one.keep or b"") for one in doomed])
