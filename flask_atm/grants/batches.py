"""Many records in one go, where the store can; one by one, where it cannot."""

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from flask_atm.grants.control import Stored
from flask_atm.protocols import AtomicGrantStore, BatchedGrantStore, Doomed

__all__ = ["BATCH", "batches", "delete_many", "read_many"]

T = TypeVar("T")

#: What a store is asked for at once, at most.
BATCH: Final = 500


def batches(items: Sequence[T], size: int = BATCH) -> Iterator[Sequence[T]]:
    """Cut a list into parts of ``size`` at most."""
    return (items[start : start + size] for start in range(0, len(items), size))


def read_many(store: AtomicGrantStore, keys: Sequence[str]) -> list[Stored | None]:
    """Read records, in the order of their keys.

    :raises StoreError: the store is silent.
    """
    if not isinstance(store, BatchedGrantStore):
        return [store.read(key) for key in keys]
    return [stored for batch in batches(keys) for stored in store.read_many(batch)]


def delete_many(store: AtomicGrantStore, doomed: Sequence[Doomed]) -> list[bool]:
    """Remove records, and tell of each whether it was removed.

    :raises StoreError: the store is silent; some may be removed.
    """
    if not isinstance(store, BatchedGrantStore):
        return [
            store.delete(
                one.key, keep=one.keep, index=one.index, expected_version=one.expected_version
            )
            for one in doomed
        ]
    return [done for batch in batches(doomed) for done in store.delete_many(batch)]
