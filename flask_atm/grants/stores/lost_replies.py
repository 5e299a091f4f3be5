"""What was written without a reply: where it is found in the record, it was done after all."""

from typing import Generic, TypeVar

from flask_atm.grants.control import Control, Stored
from flask_atm.grants.stores.rows import to_row

__all__ = ["Written"]

T = TypeVar("T")


class Written(Generic[T]):
    """What one step has written, with its answers.

    A connection that breaks in the middle of a step leaves it open whether the step was done.
    Sealed bytes are never twice the same, so what is found is one's own.
    """

    def __init__(self) -> None:
        self._written: list[tuple[Control | None, bytes, T]] = []

    def add(self, new: Control | None, sealed: bytes, *, answer: T) -> None:
        """Remember what is about to be written; ``None``: the record is about to be removed."""
        self._written.append((new, sealed, answer))

    def drop(self) -> None:
        """Forget the last one: it was answered, and was not done."""
        self._written.pop()

    def found_in(self, stored: Stored | None) -> list[T]:
        """Give the answers of what is in a record."""
        if not self._written:
            return []
        there = None if stored is None else (to_row(stored.control), stored.sealed)
        return [
            answer
            for new, sealed, answer in self._written
            if (None if new is None else (to_row(new), sealed)) == there
        ]
