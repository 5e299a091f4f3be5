"""The refresh tokens of grants that have ended, until they are revoked (RFC 7009).

Each is in the tombstone of its grant, sealed. A server that is away does not hold up a logout: who
comes later revokes it.
"""

import logging
import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from flask_atm.grants import indexes
from flask_atm.grants.answers import Tokens
from flask_atm.grants.record import Grant, Snapshot
from flask_atm.grants.seal import KeyRing, Unreadable
from flask_atm.grants.vault import Vault
from flask_atm.oauth.token_endpoint import TokenEndpoint
from flask_atm.tokens import AS_CONFIGURED, TokenParameters

__all__ = ["Drained", "Outbox"]

log = logging.getLogger("flask_atm.user_tokens")

#: Of so many entries, so many are looked at in one go.
_FOUND: Final = 10_000
_LOOKED_AT: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Drained:
    """What became of the outbox.

    :param revoked: how many tokens were revoked.
    :param answered: ``False``: the server did not, so it is of no use to go on now.
    """

    revoked: int
    answered: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Outbox:
    """What is still to be revoked for one registration. Thread-safe and fork-safe.

    :param name: the provider's, which is bound into the seal.
    """

    name: str
    issuer: str
    client_id: str
    endpoint: TokenEndpoint
    vault: Vault
    ring: KeyRing

    @property
    def entries(self) -> list[str]:
        """Its names in the index of the store: by the first key of the ring, and the others."""
        return indexes.outboxes(self.ring, self.issuer, self.client_id)

    def sealed(self, snapshot: Snapshot, *, wait: float) -> bytes | None:
        """Seal what is still to be revoked of a grant; ``None``: nothing.

        :param wait: seconds before it may be.
        """
        grant = snapshot.grant
        if grant.refresh_token is None or snapshot.is_dead:
            return None
        entry = {
            "refresh_token": grant.refresh_token.reveal(),
            "subject": grant.subject,
            "session_id": grant.session_id,
            "signed_in_at": grant.signed_in_at,
            "not_before": snapshot.now + wait,
        }
        return self.ring.seal_json(
            entry, purpose=indexes.OUTBOX, record=snapshot.key, bound=self.name
        )

    def drain(
        self,
        *,
        due: Collection[str] = (),
        parameters: TokenParameters = AS_CONFIGURED,
        limit: int = 10,
    ) -> Drained:
        """Revoke what is there; stop at the first revocation that has to be repeated.

        :param due: keys of ended grants that are not to wait any longer.
        :param parameters: of the revocation of these.
        :param limit: revoke no more than so many.
        :raises StoreError: the store is silent; what was revoked is revoked.
        """
        done = 0
        found = {key for outbox in self.entries for key in self.vault.store.find(outbox, _FOUND)}
        # Those that have to wait, for as long as a newer sign-in lives, must not hide the others.
        waiting = list(found.difference(due))
        some = random.sample(waiting, min(len(waiting), _LOOKED_AT))
        for key in [*found.intersection(due), *some]:
            if done >= limit:
                break
            outcome = self._revoke_entry(key, parameters if key in due else None)
            if outcome is None:
                return Drained(revoked=done, answered=False)
            done += outcome
        return Drained(revoked=done, answered=True)

    def _revoke_entry(self, key: str, due: TokenParameters | None) -> bool | None:
        """Revoke one entry; ``False``: not yet; ``None``: the server did not answer."""
        stored = self.vault.store.read(key)
        if stored is None or not stored.control.tombstone:
            return False
        try:
            entry = self.ring.open_json(
                stored.sealed, purpose=indexes.OUTBOX, record=key, bound=self.name
            )
        except Unreadable as error:
            log.warning("an entry of the outbox cannot be read (%s): it is kept", error)
            return False
        waits = entry["not_before"] > stored.now and due is None
        if waits or self._has_newer(entry["session_id"], entry["subject"], entry["signed_in_at"]):
            return False
        parameters = due or AS_CONFIGURED
        if not self.endpoint.revoke(
            entry["refresh_token"],
            token_type_hint="refresh_token",
            extra=parameters.extra,
            client_assertion=parameters.client_assertion,
        ):
            return None
        self.vault.store.delete(key)
        return True

    def _has_newer(self, session_id: str | None, subject: str, signed_in_at: float) -> bool:
        """Tell whether a newer grant shares the server's session, which revoking would end."""
        entry = ("sid", session_id) if session_id else ("sub", subject)
        for index in indexes.entries(self.ring, self.issuer, self.client_id, *entry):
            for key in self.vault.store.find(index):
                snapshot = self.vault.read_stored(key)
                # One that the server has ended is none, and may be the very one that this is about.
                alive = snapshot is not None and not snapshot.is_dead
                if snapshot and alive and snapshot.grant.signed_in_at >= signed_in_at:
                    return True
        return False

    def revoke_unused(self, grant: Grant, tokens: Tokens) -> None:
        """Revoke what came for a grant that had ended, unless a newer one would suffer."""
        token = tokens.refresh_token or tokens.access_token
        if token is None:
            return
        if tokens.refresh_token and self._has_newer(
            grant.session_id, grant.subject, grant.signed_in_at
        ):
            return
        hint = "refresh_token" if tokens.refresh_token else "access_token"
        self.endpoint.revoke(token.reveal(), token_type_hint=hint)
