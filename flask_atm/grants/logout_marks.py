"""What the provider has ended lately: a grant that is just being made is not to survive it.

A sign-in and a logout token of the same session may come at the same moment. The mark is written
before grants are looked for, and looked at after a new grant is there. So one of the two sees the
other, whatever the order: either the search finds the grant, or the sign-in finds the mark.
"""

from dataclasses import dataclass
from typing import Any, Final

from flask_atm.grants.batches import read_many
from flask_atm.grants.record import Grant
from flask_atm.grants.seal import KeyRing, Unreadable
from flask_atm.oauth.logout_token import LogoutToken
from flask_atm.protocols import AtomicGrantStore

__all__ = ["LogoutMarks", "ends"]

_PURPOSE: Final = "logout mark"
#: Seconds for which a mark is kept: ten minutes, and five for clocks that differ.
_KEPT: Final = 900.0
#: Seconds by which a sign-in may seem to be younger than the logout that ends it.
_TOLERANCE: Final = 60.0
_MOST: Final = 1000


def ends(token: LogoutToken, grant: Grant) -> bool:
    """Tell whether a logout token ends a grant: that session, or that subject, and not since.

    A grant is as old as the ID token of its sign-in; one that came with a refresh says nothing.
    """
    kind, value = token.entry
    found = grant.session_id if kind == "sid" else grant.subject
    return found == value and (grant.issued_at or grant.signed_in_at) <= (
        token.issued_at + _TOLERANCE
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LogoutMarks:
    """The logout tokens of the last minutes, of one registration. Thread-safe.

    :param issuer: the provider's.
    :param client_id: ours.
    """

    store: AtomicGrantStore
    ring: KeyRing
    issuer: str
    client_id: str

    def put(self, token: LogoutToken, *, now: float) -> None:
        """Remember a logout token; one that comes again is remembered already.

        :raises StoreError: the store did not take it.
        """
        # Not by its identifier alone: providers have been seen that use one twice.
        said = (token.token_id, *token.entry, str(token.issued_at))
        key = f"logout:{self.ring.digest(_PURPOSE, self.issuer, self.client_id, *said)}"
        members = {"j": token.token_id, "i": token.issued_at, "e": token.entry}
        sealed = self.ring.seal_json(members, purpose=_PURPOSE, record=key)
        self.store.create(key, sealed, ends_at=now + _KEPT, index=self._entries(*token.entry))

    def forbid(self, grant: Grant) -> bool:
        """Tell whether the provider has ended the session of a grant meanwhile.

        :raises StoreError: the store is silent.
        """
        named = [("sub", grant.subject)] if grant.subject else []
        named += [("sid", grant.session_id)] if grant.session_id else []
        entries = [entry for kind, value in named for entry in self._entries(kind, value)]
        keys = [key for entry in entries for key in self.store.find(entry, _MOST)]
        marks = zip(keys, read_many(self.store, keys), strict=True)
        opened = [self._open(key, stored.sealed) for key, stored in marks if stored is not None]
        return any(token is not None and ends(token, grant) for token in opened)

    def _entries(self, kind: str, value: str) -> list[str]:
        # By every key of the ring: another process may have another first one.
        return self.ring.digests(_PURPOSE, self.issuer, self.client_id, kind, value)

    def _open(self, key: str, sealed: bytes) -> LogoutToken | None:
        try:
            members: Any = self.ring.open_json(sealed, purpose=_PURPOSE, record=key)
        except Unreadable:
            return None
        kind, value = members["e"]
        return LogoutToken(
            token_id=members["j"],
            issued_at=members["i"],
            subject=value if kind == "sub" else None,
            session_id=value if kind == "sid" else None,
        )
