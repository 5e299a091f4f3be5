"""What the log says of copies and of the two stores that they lie in: each thing once a minute."""

import logging
import time

__all__ = ["Complaints"]

log = logging.getLogger("flask_atm.store")


class Complaints:
    """Says each thing once a minute, however many users it is true of. Thread-safe.

    :param plain: the store that has the copies.
    """

    def __init__(self, plain: object) -> None:
        self._plain = plain
        self._said: dict[str, float] = {}

    def silent(self, error: Exception) -> None:
        """Say that the plain store does not answer."""
        self._say(
            "silent",
            logging.WARNING,
            "the plain store %r does not answer, the atomic store goes on alone: %s",
            self._plain,
            error,
        )

    def two_pairs(self, key: str) -> None:
        """Say that a copy was made beside another atomic store."""
        self._say(
            "two",
            logging.ERROR,
            "a grant was copied beside another atomic store than this one: either that one was"
            " lost, or there are two paired stores. Several hosts have to share one: set"
            " ATM_PAIRED_STORE to redis://… or to an SQL database. grant=%s",
            key[:8],
        )

    def lost(self, key: str) -> None:
        """Say that the atomic store has lost a record."""
        self._say(
            "lost",
            logging.WARNING,
            "the atomic store had lost a grant, which was taken over from its copy: look"
            " whether it evicts records. grant=%s",
            key[:8],
        )

    def older(self, key: str) -> None:
        """Say that the atomic store has an older record than the copy."""
        self._say(
            "older",
            logging.WARNING,
            "a copy of a grant is later than its record in the atomic store, and was taken"
            " over: that store seems to be an older one that was restored. grant=%s",
            key[:8],
        )

    def _say(self, kind: str, level: int, text: str, *values: object) -> None:
        now = time.monotonic()
        if now - self._said.get(kind, -60.0) >= 60.0:
            self._said[kind] = now
            log.log(level, text, *values)
