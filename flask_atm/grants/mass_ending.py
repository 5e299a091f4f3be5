"""The end of many grants: in batches, so that ten thousand sign-ins of one user end in a second."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from flask_atm.grants.batches import BATCH, batches
from flask_atm.grants.control import Stored
from flask_atm.grants.record import Grant, Snapshot
from flask_atm.grants.user_tokens import EndedGrant, UserTokens
from flask_atm.protocols import Doomed

__all__ = ["end_found", "end_many"]

#: So often a grant is read again that somebody has just renewed.
_TURNS: Final = 4


def end_found(
    tokens: UserTokens,
    kind: str,
    value: str,
    *,
    revoke: bool,
    only: Callable[[Grant], bool] = lambda grant: True,
) -> Iterator[list[EndedGrant]]:
    """End the grants of a subject or of a session at the provider, batch by batch.

    :param kind: ``sub`` or ``sid``.
    :param revoke: whether their refresh tokens are to be revoked.
    :param only: which of them.
    :raises StoreError: the store is silent; what it gave before has ended.
    """
    end = _Ending(tokens=tokens, revoke=revoke, only=only, unreadable=True)
    for entry in tokens.entries(kind, value):
        seen: set[str] = set()
        stayed = 0
        # Those that stay are found again each time: they must not hide the others.
        while found := [
            key for key in tokens.vault.store.find(entry, BATCH + stayed) if key not in seen
        ]:
            seen.update(found)
            ended = [one for batch in batches(found) for one in end.batch(batch)]
            stayed += len(found) - len(ended)
            yield ended


def end_many(
    tokens: UserTokens,
    keys: Sequence[str],
    *,
    revoke: bool,
    only: Callable[[Grant], bool] = lambda grant: True,
) -> Iterator[list[EndedGrant]]:
    """End grants by the keys of their records, batch by batch.

    What is no grant of this provider, or cannot be read, stays as it is.

    :param revoke: whether their refresh tokens are to be revoked.
    :param only: which of them.
    :raises StoreError: the store is silent; what it gave before has ended.
    """
    end = _Ending(tokens=tokens, revoke=revoke, only=only, unreadable=False)
    return (end.batch(batch) for batch in batches(keys))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ending:
    """What is to be done to each batch.

    :param unreadable: whether those go too that no key of the ring has sealed.
    """

    tokens: UserTokens
    revoke: bool
    only: Callable[[Grant], bool]
    unreadable: bool

    def batch(self, keys: Sequence[str]) -> list[EndedGrant]:
        ended: list[EndedGrant] = []
        for turn in range(1, _TURNS + 1):
            chosen = self.choose(keys, as_read=turn < _TURNS)
            done = self.tokens.vault.delete_many([doomed for doomed, _ in chosen])
            pairs = list(zip(chosen, done, strict=True))
            ended += [self.tokens.ended(was) for (_, was), gone in pairs if gone and was]
            # Not as they were read: renewed meanwhile, or ended by somebody else.
            keys = [doomed.key for (doomed, _), gone in pairs if not gone]
            if not keys:
                break
        return ended

    def choose(self, keys: Sequence[str], *, as_read: bool) -> list[tuple[Doomed, Snapshot | None]]:
        """Read records and say what is to be removed of them."""
        chosen: list[tuple[Doomed, Snapshot | None]] = []
        for key, (stored, was) in zip(keys, self.tokens.vault.read_many(keys), strict=True):
            if was is not None:
                if self.only(was.grant):
                    doomed = self.tokens.doom(was, revoke=self.revoke, as_read=as_read)
                    chosen.append((doomed, was))
            elif stored is not None and self.is_lost(stored):
                chosen.append((Doomed(key=key), None))
        return chosen

    def is_lost(self, stored: Stored) -> bool:
        """Tell whether a record has to go although nobody knows what is inside.

        Its key may come back into the ring, but its user must not come back with it. One that does
        not open although the key is there is another provider's, for the same registration.
        """
        return (
            self.unreadable
            and not stored.control.tombstone
            and not self.tokens.vault.can_open(stored)
        )
