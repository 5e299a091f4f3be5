"""The names under which a store finds the grants of a user, a session at the provider, an outbox.

They are keyed hashes: without the ring they say nothing, and they change with its first key. Which
key the entries of a grant were made with is sealed into the grant.
"""

from dataclasses import replace
from typing import Final

from flask_atm.grants.record import Grant
from flask_atm.grants.seal import KeyRing

__all__ = ["OUTBOX", "entries", "indexed", "of_grant", "outboxes"]

#: What the sealed bytes of a tombstone are for, and the name of the entry.
OUTBOX: Final = "outbox"


def entries(ring: KeyRing, issuer: str, client_id: str, kind: str, value: str) -> list[str]:
    """Give the entries of a subject or of a session, by every key of the ring, the first first.

    :param kind: ``sub`` or ``sid``.
    """
    return ring.digests("index", issuer, client_id, kind, value)


def of_grant(ring: KeyRing, grant: Grant) -> list[str]:
    """Give the entries of a grant, by the first key of the ring."""
    named = (("sub", grant.subject), ("sid", grant.session_id))
    return [
        entries(ring, grant.issuer, grant.client_id, kind, value)[0]
        for kind, value in named
        if value
    ]


def indexed(ring: KeyRing, grant: Grant) -> Grant:
    """Give a grant as it is sealed together with the entries of :func:`of_grant`."""
    return replace(grant, indexed_by=ring.key_ids[0])


def outboxes(ring: KeyRing, issuer: str, client_id: str) -> list[str]:
    """Give the entries of what is still to be revoked, by every key of the ring."""
    return ring.digests(OUTBOX, issuer, client_id)
