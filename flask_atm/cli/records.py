"""The records of a store, and whose they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from flask_atm.cli.group import Misconfigured, Problem
from flask_atm.cli.output import Row
from flask_atm.grants.client_tokens import ClientTokens
from flask_atm.grants.control import Stored, in_doubt, lease_left, pause_left
from flask_atm.grants.record import Snapshot
from flask_atm.grants.user_tokens import UserTokens
from flask_atm.grants.vault import Vault, record_key
from flask_atm.protocols import AtomicGrantStore
from flask_atm.state import Provider, State

__all__ = [
    "Reader",
    "Records",
    "describe",
    "find_record",
    "named_providers",
    "reader_of",
    "readers",
]

_PAGE: Final = 100
#: So many characters of a key name a record, if no other begins with them.
_SHORTEST: Final = 6


class Records:
    """The first records of a store, read in pages."""

    def __init__(self, store: AtomicGrantStore, limit: int) -> None:
        self._store = store
        self._left = limit
        self._last = ""

    def __iter__(self) -> Iterator[tuple[str, Stored]]:
        while self._left and (page := self._store.scan(self._last, min(self._left, _PAGE))):
            yield from page
            self._left -= len(page)
            self._last = page[-1][0]

    def has_more(self) -> bool:
        """Tell whether there are records after those that were read."""
        return bool(self._store.scan(self._last, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """Recognises the records of one provider or client."""

    kind: str
    name: str
    vault: Vault
    issuer: str
    client_id: str

    @classmethod
    def of(cls, kind: str, source: UserTokens | ClientTokens) -> "Reader":
        return cls(
            kind=kind,
            name=source.name,
            vault=source.engine.vault,
            issuer=source.issuer,
            client_id=source.client_id,
        )

    def is_present(self, snapshot: Snapshot) -> bool:
        """Tell whether a grant is of the issuer and client id that are configured now."""
        grant = snapshot.grant
        return (grant.issuer, grant.client_id) == (self.issuer, self.client_id)


def named_providers(state: State, names: Sequence[str]) -> list[Provider]:
    """Give the providers of these names, also of those that only a loader knows.

    Where none is named, all that are configured.
    """
    return [state.provider(name) for name in names or state.config.providers]


def readers(state: State, names: Sequence[str] = ()) -> Iterator[Reader]:
    """Give one reader per provider and client that is configured.

    :param names: of providers that only a loader knows.
    """
    for name in dict.fromkeys((*state.config.providers, *names)):
        provider = state.provider(name)
        yield Reader.of("grant", provider.tokens)
        yield Reader.of("client token", provider.client_tokens)
    for name in state.config.clients:
        yield Reader.of("client token", state.client(name))


def describe(key: str, stored: Stored, readers: Sequence[Reader]) -> Row:
    """Give what is shown of one record."""
    control = stored.control
    row = {
        "key": key[:8],
        "kind": "other",
        "provider": None,
        "state": None,
        "version": control.version,
        "failures": control.failures,
        "retry_pause": round(pause_left(control, stored.now), 1) or None,
        "ends_at": round(control.ends_at),
        "slots": None,
        "refreshable": None,
    }
    if control.tombstone:
        kind = "to revoke" if stored.sealed else "grant"
        return {**row, "kind": kind, "state": "ended"}
    found = reader_of(key, stored, readers)
    if found is None:
        return row
    reader, snapshot = found
    return {
        **row,
        "kind": reader.kind,
        "provider": reader.name,
        "state": _state(snapshot) if reader.is_present(snapshot) else "ended",
        "slots": len(snapshot.grant.slots),
        "refreshable": snapshot.grant.refresh_token is not None,
    }


def reader_of(
    key: str, stored: Stored, readers: Sequence[Reader]
) -> tuple[Reader, Snapshot] | None:
    """Give whose record this is, and what is inside; ``None``: nobody's, or it does not open."""
    if stored.sealed and not stored.control.tombstone:
        for reader in readers:
            snapshot = reader.vault.recognise(key, stored)
            if snapshot is not None:
                return reader, snapshot
    return None


def find_record(store: AtomicGrantStore, name: str) -> tuple[str, Stored]:
    """Find a record by its grant id, its key, or the beginning of its key.

    :raises Problem: there is none.
    :raises Misconfigured: there are several, or too few characters.
    """
    key = record_key(name) if "." in name else name
    stored = store.read(key)
    if stored is not None:
        return key, stored
    if len(key) < _SHORTEST:
        raise Misconfigured(f"name a record by {_SHORTEST} characters of its key at least.")
    found = [one for one in store.scan(key, 2) if one[0].startswith(key)]
    if not found:
        raise Problem("there is no such record in the store, or it has ended.")
    if len(found) > 1:
        raise Misconfigured("several records begin like this: give more of the key.")
    return found[0]


def _state(snapshot: Snapshot) -> str:
    if snapshot.is_dead:
        return "dead"
    if lease_left(snapshot.control, snapshot.now):
        return "refreshing"
    return "in doubt" if in_doubt(snapshot.control, snapshot.now) else "ok"
