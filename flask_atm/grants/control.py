"""The part of a record that decides who may refresh, and the atomic steps on it. All pure.

One record holds one grant. Its *control* part is in clear and small; the grant itself is sealed
bytes that only travel through here. Each function below is one atomic step of
:class:`~flask_atm.protocols.AtomicGrantStore`: the present control, the arguments and the store's
clock go in, the answer and the new control come out. A store adds nothing but atomicity, so what
holds for these functions holds for every store.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

__all__ = [
    "LONGEST_PAUSE",
    "Begun",
    "Control",
    "Outcome",
    "Stored",
    "abort",
    "adopt",
    "begin",
    "bury",
    "commit",
    "in_doubt",
    "lease_left",
    "new",
    "pause_left",
    "update",
]

#: No server and no clock can silence a grant for longer than this many seconds.
LONGEST_PAUSE: Final = 300.0

Outcome = Literal["ok", "moved", "busy", "gone"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """What decides about a refresh. Instants are epoch seconds by the store's clock.

    :param version: grows with every change; a commit is fenced by it.
    :param sealed_version: the version that the sealed bytes were sealed for.
    :param lease_owner: who refreshes now, until :attr:`lease_until`.
    :param lease: seconds that this lease was taken for.
    :param intent: hash of the refresh token that is about to be sent, or was.
    :param doubt: a request with the present refresh token was begun, and nobody knows its end.
    :param suspect: hash of a refresh token that got ``invalid_grant`` once, for other parameters
        than those of the sign-in: it may still serve the others.
    :param dead: hash of a refresh token that ended with ``invalid_grant``.
    :param commit_id: names the last commit, so that a repeated one is recognised.
    :param retry_at: nobody tries before.
    :param failures: attempts without success in a row.
    :param ends_at: the absolute end of the grant.
    :param tombstone: the grant is gone; the sealed bytes are what is left to revoke.
    """

    version: int = 1
    sealed_version: int = 1
    lease_owner: str | None = None
    lease_until: float = 0.0
    lease: float = 0.0
    intent: str | None = None
    doubt: bool = False
    suspect: str | None = None
    dead: str | None = None
    commit_id: str | None = None
    retry_at: float = 0.0
    failures: int = 0
    ends_at: float
    tombstone: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A record as a store gives it, with the instant of the store's clock at which it did."""

    control: Control
    sealed: bytes
    now: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """The answer to ``begin``.

    :param status: ``held``: go on; ``busy``: another one refreshes; ``moved``: read again;
        ``gone``: there is no such grant any more.
    :param version: the version to commit upon, if held.
    :param doubt: the refresh token may have been spent already.
    :param wait: seconds until the other lease lapses, if busy.
    :param now: the store's clock.
    """

    status: Literal["held", "busy", "moved", "gone"]
    now: float
    version: int = 0
    doubt: bool = False
    wait: float = 0.0


def new(*, ends_at: float, doubt: bool, version: int) -> Control:
    """Make the control of a new record."""
    return Control(version=version, sealed_version=version, ends_at=ends_at, doubt=doubt)


def lease_left(control: Control, now: float) -> float:
    """Give the seconds for which a lease still counts, or 0.

    A lease that ends later than it can have been taken for comes from a clock that jumped: void.
    The tenth on top is for a clock that is only being slowed down.
    """
    left = control.lease_until - now
    return left if control.lease_owner is not None and 0 < left <= 1.1 * control.lease else 0.0


def pause_left(control: Control, now: float) -> float:
    """Give the seconds before which no attempt is made, or 0 (also after a jump of the clock)."""
    left = control.retry_at - now
    # Stores round to milliseconds, also up.
    return left if 0 < left <= LONGEST_PAUSE + 0.001 else 0.0


def in_doubt(control: Control, now: float) -> bool:
    """Tell whether the present refresh token may have been spent by a request that was lost."""
    return control.doubt or (control.intent is not None and not lease_left(control, now))


def begin(
    control: Control,
    now: float,
    *,
    owner: str,
    expected_version: int,
    lease: float,
    intent: str | None,
) -> tuple[Begun, Control | None]:
    """Take the lease and write down the intent.

    Repeated by the same owner (its reply was lost) it gives the same answer. Doubt is found here,
    inside the step: an intent for the same token that somebody else left, or that was aborted.
    """
    if control.tombstone:
        return Begun(status="gone", now=now), None
    left = lease_left(control, now)
    if left and control.lease_owner == owner:
        return Begun(status="held", version=control.version, doubt=control.doubt, now=now), None
    if left:
        return Begun(status="busy", wait=left, now=now), None
    if control.version != expected_version:
        return Begun(status="moved", now=now), None
    # A lapsed lease that is taken over raises the version, which fences its late owner.
    taken_over = control.lease_owner is not None
    left_behind = intent is not None and control.intent == intent and control.lease_owner != owner
    new = replace(
        control,
        version=control.version + taken_over,
        lease_owner=owner,
        lease_until=now + lease,
        lease=lease,
        intent=intent,
        doubt=control.doubt or left_behind,
    )
    return Begun(status="held", version=new.version, doubt=new.doubt, now=now), new


def commit(
    control: Control, now: float, *, expected_version: int, commit_id: str
) -> tuple[Outcome, Control | None]:
    """Store the result of a refresh: fenced by the version, never by the lease."""
    if control.tombstone:
        return "gone", None
    if control.commit_id == commit_id:
        return "ok", None
    if control.version != expected_version:
        return "moved", None
    version = expected_version + 1
    return "ok", Control(
        version=version, sealed_version=version, commit_id=commit_id, ends_at=control.ends_at
    )


def update(
    control: Control, now: float, *, expected_version: int
) -> tuple[Outcome, Control | None]:
    """Store anything but the result of a refresh; lease, intent and doubt stay as they are."""
    if control.tombstone:
        return "gone", None
    if control.version != expected_version:
        return "moved", None
    if lease_left(control, now) or in_doubt(control, now):
        return "busy", None
    version = expected_version + 1
    return "ok", replace(control, version=version, sealed_version=version)


def adopt(
    control: Control, now: float, *, expected_version: int, version: int
) -> tuple[Outcome, Control | None]:
    """Put a newer copy of the grant over a record that was restored from a backup.

    What has happened to the copy's refresh token since it was made is unknown: that is doubt.
    """
    if control.tombstone:
        return "gone", None
    if control.version != expected_version or version <= expected_version:
        return "moved", None
    return "ok", Control(
        version=version, sealed_version=version, doubt=True, ends_at=control.ends_at
    )


def abort(
    control: Control,
    now: float,
    *,
    owner: str,
    clear_intent: bool,
    pause: float,
    failures: int,
    suspect: str | None,
    dead: str | None,
) -> Control | None:
    """Free the lease. An intent is cleared only by who set it, and never out of a doubt.

    A refresh token that is suspected for the second time without a success between is dead. The
    version grows, so that whoever read before looks again, and learns of the pause or the death.
    """
    if control.tombstone or control.lease_owner != owner:
        return None
    cleared = clear_intent and not control.doubt
    return replace(
        control,
        version=control.version + 1,
        lease_owner=None,
        lease_until=0.0,
        lease=0.0,
        intent=None if cleared else control.intent,
        doubt=control.doubt or (control.intent is not None and not cleared),
        retry_at=now + min(pause, LONGEST_PAUSE) if pause > 0 else control.retry_at,
        failures=failures,
        suspect=suspect or control.suspect,
        dead=dead or (suspect if suspect == control.suspect else None) or control.dead,
    )


def bury(control: Control) -> Control:
    """Turn a record into its tombstone."""
    return Control(version=control.version + 1, ends_at=control.ends_at, tombstone=True)
