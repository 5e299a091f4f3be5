"""The grant and its slots, and what a caller who wants a token is to do. All pure.

A *grant* is what one sign-in gave: one refresh token, and a *slot* with an access token for each
set of parameters that callers asked for. :func:`decide` is steps 1 to 3, 8 and 9 of the refresh
algorithm as one function without any I/O.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from typing import Any, Final, Self
from zlib import crc32

from flask_atm.grants.answers import Tokens
from flask_atm.grants.control import Control, in_doubt, lease_left, pause_left
from flask_atm.grants.parameters import EngineParameters
from flask_atm.tokens import FrozenDict, Secret, TokenParameters

__all__ = [
    "MAX_SLOTS",
    "SCHEMA",
    "Decision",
    "Denied",
    "Grant",
    "Renew",
    "Serve",
    "Slot",
    "Snapshot",
    "Unavailable",
    "Want",
    "decide",
    "is_too_old",
    "slot_key",
    "token_hash",
    "token_request",
]

MAX_SLOTS: Final = 16
_LONGEST_REJECTED_PAUSE: Final = 300.0
#: Grows when an older version of this library could not read a record any more.
SCHEMA: Final = 1


def token_hash(token: str | None) -> str | None:
    """Give the hash by which the control part names a refresh token."""
    return None if token is None else sha256(token.encode()).hexdigest()


def slot_key(parameters: TokenParameters) -> str:
    """Give the name of the slot for these parameters: equal for equal sets, in any order."""
    if not (parameters.scope or parameters.resource or parameters.audience or parameters.extra):
        return ""
    return json.dumps(
        [
            sorted(parameters.scope or ()),
            sorted(set(parameters.resource or ())),
            parameters.audience,
            sorted(parameters.extra.items()),
        ],
        separators=(",", ":"),
    )


class _Form(dict[str, str | Sequence[str]]):
    """A form whose values do not show in the frames of an error."""

    def __repr__(self) -> str:
        return f"<form of {', '.join(self)}>"


def token_request(parameters: TokenParameters, **members: str) -> dict[str, str | Sequence[str]]:
    """Give the form of a token request; a named parameter wins over the same name in ``extra``."""
    form = _Form({**parameters.extra, **members})
    if parameters.scope:
        form["scope"] = " ".join(parameters.scope)
    if parameters.resource:
        form["resource"] = parameters.resource
    if parameters.audience:
        form["audience"] = parameters.audience
    return form


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """The access token for one set of parameters. Instants by the store's clock.

    :param lifetime: seconds, as the server gave it, or the default.
    :param requested_at: when the request for it began.
    :param scope: what the server said it granted; ``None``: what was asked for (RFC 6749, 5.1).
    :param renewals: how often in a row it was renewed because an API had refused it.
    :param other: members of a newer version of this library, kept as they are.
    """

    token: Secret
    token_type: str
    expires_at: float
    lifetime: float
    requested_at: float
    obtained_at: float
    scope: str | None = None
    renewals: int = 0
    other: Mapping[str, Any] = field(default_factory=FrozenDict)

    def as_json(self) -> dict[str, Any]:
        """Give the members that are sealed."""
        return {
            **self.other,
            "token": self.token.reveal(),
            "token_type": self.token_type,
            "expires_at": self.expires_at,
            "lifetime": self.lifetime,
            "requested_at": self.requested_at,
            "obtained_at": self.obtained_at,
            "scope": self.scope,
            "renewals": self.renewals,
        }

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> Self:
        """Read the members that were sealed."""
        return cls(
            token=Secret(members["token"]),
            token_type=members["token_type"],
            expires_at=members["expires_at"],
            lifetime=members["lifetime"],
            requested_at=members["requested_at"],
            obtained_at=members["obtained_at"],
            scope=members["scope"],
            renewals=members["renewals"],
            other=_unknown(members, _SLOT_MEMBERS),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """What one sign-in gave, as it is sealed into a record.

    :param provider: the name of the provider, or of the client.
    :param issuer: the issuer, or the token endpoint of a server without one.
    :param scope: what was granted at the sign-in, if the server said so.
    :param resources: the resources named at the sign-in; empty: not known.
    :param slots: by :func:`slot_key`.
    :param issued_at: when the ID token of the sign-in was issued, by the provider; 0: unknown.
    :param used_at: when somebody used it last, more or less; 0: unknown.
    :param indexed_by: the name of the key that its index entries were made with; ``None``: unknown.
    :param other: members of a newer version of this library, kept as they are.
    """

    provider: str
    issuer: str
    client_id: str
    subject: str = ""
    session_id: str | None = None
    refresh_token: Secret | None = None
    id_token: Secret | None = None
    claims: Mapping[str, Any] = field(default_factory=FrozenDict)
    scope: str | None = None
    resources: tuple[str, ...] = ()
    signed_in_at: float = 0.0
    ends_at: float = 0.0
    slots: Mapping[str, Slot] = field(default_factory=FrozenDict)
    issued_at: float = 0.0
    used_at: float = 0.0
    indexed_by: str | None = None
    other: Mapping[str, Any] = field(default_factory=FrozenDict)

    def as_json(self) -> dict[str, Any]:
        """Give what is sealed: a schema version and the members."""
        return {
            **self.other,
            "schema": SCHEMA,
            "provider": self.provider,
            "issuer": self.issuer,
            "client_id": self.client_id,
            "subject": self.subject,
            "session_id": self.session_id,
            "refresh_token": self.refresh_token.reveal() if self.refresh_token else None,
            "id_token": self.id_token.reveal() if self.id_token else None,
            "claims": self.claims,
            "scope": self.scope,
            "resources": self.resources,
            "signed_in_at": self.signed_in_at,
            "ends_at": self.ends_at,
            "slots": {key: slot.as_json() for key, slot in self.slots.items()},
            "issued_at": self.issued_at,
            "used_at": self.used_at,
            "indexed_by": self.indexed_by,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what was sealed.

        :raises ValueError: a schema that this version does not know, or members that are missing.
        """
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise ValueError("a record of another schema version")
        try:
            return cls(
                provider=value["provider"],
                issuer=value["issuer"],
                client_id=value["client_id"],
                subject=value["subject"],
                session_id=value["session_id"],
                refresh_token=_secret(value["refresh_token"]),
                id_token=_secret(value["id_token"]),
                claims=FrozenDict(value["claims"]),
                scope=value["scope"],
                resources=tuple(value["resources"]),
                signed_in_at=value["signed_in_at"],
                ends_at=value["ends_at"],
                slots={key: Slot.from_json(slot) for key, slot in value["slots"].items()},
                # Records from before there were these have none.
                issued_at=value.get("issued_at", 0.0),
                used_at=value.get("used_at", 0.0),
                indexed_by=value.get("indexed_by"),
                other=_unknown(value, _MEMBERS),
            )
        except (KeyError, TypeError, AttributeError):
            pass
        raise ValueError("a record with members missing")

    def with_slot(self, key: str, slot: Slot, *, now: float) -> Self:
        """Give this grant with a new access token; expired slots go, then the oldest ones."""
        kept = {
            other: kept_slot
            for other, kept_slot in self.slots.items()
            if other != key and kept_slot.expires_at > now
        }
        newest = sorted(kept, key=lambda other: kept[other].obtained_at)[-(MAX_SLOTS - 1) :]
        return replace(self, slots={**{other: kept[other] for other in newest}, key: slot})

    def renewed(
        self,
        key: str,
        tokens: Tokens,
        *,
        claims: Mapping[str, Any] | None,
        rejected: str | None,
        requested_at: float,
        now: float,
    ) -> Self:
        """Give this grant with the result of a refresh; what the answer left out stays.

        :param claims: those of the new ID token, if it was checked; ``None`` keeps the old one.
        :param rejected: the token that an API had refused, if that was the reason.
        """
        # Nothing is renewed but for somebody who uses it.
        grant = replace(self, used_at=now)
        if tokens.refresh_token is not None:
            grant = replace(grant, refresh_token=tokens.refresh_token)
        if claims is not None:
            grant = replace(grant, id_token=tokens.id_token, claims=FrozenDict(claims))
        if tokens.access_token is None:
            return grant
        old = self.slots.get(key)
        slot = Slot(
            token=tokens.access_token,
            token_type=tokens.token_type,
            expires_at=now + tokens.lifetime,
            lifetime=tokens.lifetime,
            requested_at=requested_at,
            obtained_at=now,
            scope=tokens.scope,
            renewals=_renewals(old, rejected, now),
        )
        return grant.with_slot(key, slot, now=now)


def _unknown(value: Mapping[str, Any], known: frozenset[str]) -> Mapping[str, Any]:
    """Give the members that only a newer version knows, or that say what a copy has left out."""
    if known.issuperset(value):
        return _NOTHING
    return {name: value[name] for name in value.keys() - known}


_NOTHING: Final = FrozenDict()
_SLOT_MEMBERS: Final = frozenset(one.name for one in fields(Slot)) - {"other"}
_MEMBERS: Final = frozenset(Grant(provider="", issuer="", client_id="").as_json())


def _renewals(old: Slot | None, rejected: str | None, now: float) -> int:
    """Count the renewals in a row that an API caused; an old refusal has nothing to do with it."""
    if old is None or rejected is None or old.token.reveal() != rejected:
        return 0
    recent = now - old.obtained_at < 2 * _LONGEST_REJECTED_PAUSE
    return old.renewals + 1 if recent else 1


def _secret(text: str | None) -> Secret | None:
    return None if text is None else Secret(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A record as it was read and opened, with the instant of the store's clock.

    :param copied: it comes from memory, because the store does not answer.
    """

    key: str
    control: Control
    grant: Grant
    now: float
    copied: bool = False

    @property
    def is_dead(self) -> bool:
        """Whether the present refresh token ended with ``invalid_grant``."""
        dead = self.control.dead
        refresh_token = self.grant.refresh_token
        return (
            dead is not None
            and refresh_token is not None
            and (dead == token_hash(refresh_token.reveal()))
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Want:
    """What one caller wants.

    :param slot: the name of the slot.
    :param leeway: seconds before the expiry from which on a token is renewed.
    :param rejected: a token that an API has just refused.
    :param since: a token is wanted whose request began at or after this instant,
    :param seen: and which, if it began at this very instant, is not this one.
    :param by_refresh_token: whether a refresh token is needed to get one.
    """

    slot: str
    leeway: float
    rejected: str | None = field(default=None, repr=False)
    since: float | None = None
    seen: str | None = field(default=None, repr=False)
    by_refresh_token: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Serve:
    """Return this token."""

    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class Renew:
    """Refresh, and wait for whoever does; with ``meanwhile`` return that instead of waiting."""

    meanwhile: Slot | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Unavailable:
    """No token now, and no attempt for so many seconds."""

    retry_after: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Denied:
    """No token, and only a sign-in helps."""

    reason: str


Decision = Serve | Renew | Unavailable | Denied


def decide(
    snapshot: Snapshot, want: Want, parameters: EngineParameters, *, blocked: float = 0.0
) -> Decision:
    """Say what a caller is to do.

    :param blocked: seconds for which this process makes no attempt (the breaker of the endpoint).
    """
    control, now = snapshot.control, snapshot.now
    if snapshot.is_dead:
        return Denied(reason="invalid_grant")
    slot = snapshot.grant.slots.get(want.slot)
    doubt = in_doubt(control, now)
    if want.by_refresh_token and snapshot.grant.refresh_token is None:
        return _without_refresh_token(slot, want, now)
    if slot is not None and slot.expires_at > now:
        asked_for_another = _is_refused(slot, want, now, parameters) or (
            # In doubt a forced renewal has to make do with the present token.
            is_too_old(slot, want) and not doubt
        )
        if not asked_for_another:
            return _with_token(snapshot, slot, want, parameters, doubt=doubt, blocked=blocked)
    pause = max(pause_left(control, now), blocked)
    return Unavailable(retry_after=pause) if pause else Renew(meanwhile=None)


def _without_refresh_token(slot: Slot | None, want: Want, now: float) -> Decision:
    if slot is None or slot.expires_at <= now or is_too_old(slot, want):
        return Denied(reason="expired")
    return Serve(slot=slot)


def _with_token(
    snapshot: Snapshot,
    slot: Slot,
    want: Want,
    parameters: EngineParameters,
    *,
    doubt: bool,
    blocked: float,
) -> Decision:
    """Decide for a slot with a token that is valid for at least a moment."""
    control, now = snapshot.control, snapshot.now
    left = slot.expires_at - now
    # A token from the future comes from a clock that jumped: nobody knows how old it is.
    trusted = slot.obtained_at <= now + 1.0
    if trusted and left > _leeway(snapshot, slot, want):
        return Serve(slot=slot)
    if doubt or blocked or pause_left(control, now):
        return Serve(slot=slot)
    if left > min(parameters.min_ttl, 0.05 * slot.lifetime):
        return Serve(slot=slot) if lease_left(control, now) else Renew(meanwhile=slot)
    return Renew(meanwhile=None)


def _leeway(snapshot: Snapshot, slot: Slot, want: Want) -> float:
    """Give the leeway: the same in all processes, but not the same for all grants."""
    longest = min(want.leeway, 0.2 * slot.lifetime)
    seed = f"{snapshot.key}{want.slot}{snapshot.control.sealed_version}".encode()
    return longest * (1.0 - 0.1 * (crc32(seed) / 0xFFFFFFFF))


def _is_refused(slot: Slot, want: Want, now: float, parameters: EngineParameters) -> bool:
    """Tell whether an API refused this token, and it is time to make another one."""
    if want.rejected is None or slot.token.reveal() != want.rejected:
        return False
    age = now - slot.obtained_at
    if 0 <= age < parameters.young:
        return False
    if slot.renewals < 1:
        return True
    pause = parameters.rejected_pause * 2.0 ** min(slot.renewals - 1, 10)
    return not 0 <= age < min(_LONGEST_REJECTED_PAUSE, pause)


def is_too_old(slot: Slot, want: Want) -> bool:
    """Tell whether a renewal was forced that this token does not come from."""
    if want.since is None or slot.requested_at > want.since:
        return False
    # A clock that stands still, as in tests, does not tell before from after.
    return slot.requested_at < want.since or slot.token.reveal() == want.seen
