"""What is still to be revoked: revokes it now, and tells what is left."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from flask_atm.cli.output import line, note
from flask_atm.errors import ATMError
from flask_atm.grants.outbox import Drained as OutboxDrained
from flask_atm.state import Provider, State

__all__ = ["Drained", "drain"]

#: More than these are not counted.
_COUNTED: Final = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Drained:
    """What came of it.

    :param revoked: tokens that were revoked.
    :param waiting: those that are left.
    :param failed: whether a provider could not be asked.
    """

    revoked: int
    waiting: int
    failed: bool


def drain(state: State, providers: Sequence[Provider], batch: int) -> Drained:
    """Revoke in batches until nothing more can be revoked now."""
    revoked, failed = 0, False
    for provider in providers:
        try:
            for done in _batches(provider, batch):
                revoked += done.revoked
                if done.revoked == batch:
                    note(f"{revoked} revoked so far.")
                if not done.answered:
                    failed = True
                    note(f"Revocations at {provider.name} have to wait: it does not answer.")
        except ATMError as error:
            failed = True
            note(line(f"Revocations at {provider.name} have to wait: {error}"))
    return Drained(revoked=revoked, waiting=_waiting(state, providers), failed=failed)


def _batches(provider: Provider, batch: int) -> Iterator[OutboxDrained]:
    """Drain the outbox of a provider, until nothing more is revoked or it does not answer."""
    more = True
    while more:
        done = provider.tokens.outbox.drain(limit=batch)
        yield done
        more = done.answered and done.revoked > 0


def _waiting(state: State, providers: Iterable[Provider]) -> int:
    # Providers with one registration have one outbox.
    outboxes = {entry for provider in providers for entry in provider.tokens.outbox.entries}
    return sum(len(state.store.find(entry, _COUNTED)) for entry in outboxes)
