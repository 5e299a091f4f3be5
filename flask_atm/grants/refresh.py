"""One refresh: begin, send, classify, commit. The heart of the project.

With rotating refresh tokens, whoever sends the same refresh token twice kills the grant and signs
the user out. So at most one process in the world may send it, and its answer must not be lost.
This is how one attempt goes, and what can happen between its steps:

1. **begin** takes the lease in the store and writes down which refresh token is about to be sent
   (the *intent*), in one atomic step. It succeeds only on the version that was read, so it is the
   second look too: whoever waited while somebody else refreshed finds the version moved.
   If the store does not take it, nothing is sent, and nothing is lost.
2. **send** writes the request. A process may be stopped between two steps for as long as the
   system likes (a laptop lid, a container that is moved), so the lease alone proves nothing. The
   *send window* does: a monotonic clock starts before ``begin``, and right before the first byte
   it is looked at once more. Too late, and nothing is written. Window and deadline together are
   shorter than the lease, so nobody else can be sending then.
3. **classify**: the answer says whether the refresh token was spent. Where nobody knows (a cut
   connection, a time-out, 502), the intent stays in the record. Whoever comes next finds a
   refresh token *in doubt*: as long as there is a valid access token for the caller it is not
   sent again, because a strict server would kill the grant at once. When there is none, one
   holder at a time sends it again: either the server never saw the first request, and all is well,
   or the grant had been lost anyhow.
4. **commit** is fenced by the version, not by the lease: a holder that overslept its lease meets
   a version that moved. It looks at what is stored. The refresh token that it had sent: then its
   answer goes on top (but without rotation, an access token that was asked for later stays).
   Another one: then somebody else won, and that is used. ``commit`` never makes a record, so a
   sign-out in the meantime wins, and the new tokens are revoked. If the store does not answer, the
   result is kept in memory and offered again.

An attempt without a result gives the lease back (**abort**) with a pause, which raises the version
too: whoever had read the record before looks again, and does not send before the pause is over.

The store's clock decides about leases and pauses, the monotonic clock about waits.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event as ThreadEvent
from typing import Any, Literal, Protocol, TypeAlias

from flask_atm.errors import (
    ATMError,
    InvalidTokenResponse,
    LoginRequired,
    ProtocolError,
    ServerUnavailable,
    StoreError,
    TokenEndpointError,
)
from flask_atm.grants.answers import Tokens, Verdict, classify
from flask_atm.grants.breaker import Breaker, Refusals
from flask_atm.grants.control import Begun, Control
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.record import Grant, Snapshot, Want, token_hash
from flask_atm.grants.vault import KeptAnswer, Vault
from flask_atm.oauth.back_channel import Result

__all__ = ["Event", "Exchange", "Refresher", "Renewal"]

log = logging.getLogger("flask_atm.refresh")

_Committed: TypeAlias = Literal["stored", "passed", "gone"]


class Exchange(Protocol):
    """A token request that is ready to be sent: nothing of it can block but the network."""

    def send(self, *, deadline: float, may_write: Callable[[], bool]) -> Result:
        """Send it once, over a fresh connection.

        :param deadline: the end of all of it, by ``time.monotonic()``.
        :param may_write: asked once, right before the first byte; ``False``: nothing is written.
        """
        ...


class Renewal(Protocol):
    """How the token of one slot is got: by a refresh token, or by client credentials."""

    @property
    def is_login(self) -> bool:
        """Whether the slot is the sign-in's own, for which the grant itself was given."""
        ...

    def prepare(self, grant: Grant) -> Exchange:
        """Make the request; whatever of the application may block or fail does so here."""
        ...

    def verify(self, grant: Grant, tokens: Tokens) -> Mapping[str, Any] | None:
        """Check the ID token of an answer and give its claims; ``None`` keeps the old one.

        :raises ProtocolError: it is proved bad, and with it the whole answer.
        """
        ...

    def revoke(self, grant: Grant, tokens: Tokens) -> None:
        """Revoke tokens of a grant that nobody will use; best effort."""
        ...

    def notify(self, event: "Event") -> None:
        """Tell the application of an event; called with no lock and no lease held."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something to tell the application once no lock is held."""

    name: Literal["token_refreshed", "token_refresh_failed", "grant_revoked", "user_logged_out"]
    details: Mapping[str, Any]


@dataclass(kw_only=True, slots=True)
class _Attempt:
    """What one attempt knows; only ``written``, ``answered_at`` and ``result`` change."""

    snapshot: Snapshot
    want: Want
    renewal: Renewal
    exchange: Exchange
    owner: str
    intent: str | None
    begun: Begun
    started: float
    held_at: float
    window: float
    later: list[Callable[[], None]]
    checkpoint: Callable[[str], None]
    written: bool = False
    answered_at: float = 0.0
    result: Snapshot | None = None
    commit_id: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def key(self) -> str:
        return self.snapshot.key

    @property
    def now(self) -> float:
        """The store's clock, carried on by the monotonic one since ``begin`` had answered.

        However long that took: a token must not be dated into the future.
        """
        return self.begun.now + time.monotonic() - self.held_at

    def may_write(self) -> bool:
        """Look at the clock once more, right before the first byte."""
        self.checkpoint("write")
        self.written = time.monotonic() - self.started <= self.window
        return self.written


class Refresher:
    """Makes single attempts for the grants of one provider or client. Thread-safe.

    :param place: gives one of a limited number of places at the token endpoint.
    :param checkpoint: called with the name of each point at which a process may be stopped:
        ``begin``, ``begun``, ``doubt``, ``send``, ``write``, ``answered``, ``commit``,
        ``committed``. For tests.
    """

    def __init__(
        self,
        vault: Vault,
        *,
        parameters: EngineParameters,
        breaker: Breaker,
        refusals: Refusals,
        place: Callable[[float], AbstractContextManager[bool]],
        checkpoint: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._vault = vault
        self._store = vault.store
        self._parameters = parameters
        self._breaker = breaker
        self._refusals = refusals
        self._place = place
        self._checkpoint = checkpoint
        self._last_complaint = -60.0

    def run(
        self,
        snapshot: Snapshot,
        want: Want,
        renewal: Renewal,
        *,
        deadline: float,
        later: list[Callable[[], None]],
    ) -> Snapshot | Literal["look", "busy", "full"]:
        """Make one attempt upon a record as it was read.

        :param deadline: how long to wait for a place at the endpoint, by ``time.monotonic()``.
        :param later: what is to be done once nothing is held is added here.
        :returns: the record with the new token; ``look``: read what came of it; ``busy``: another
            process refreshes; ``full``: there was no place.
        :raises ATMError: why there is no new token.
        """
        exchange = renewal.prepare(snapshot.grant)
        with self._place(deadline) as granted:
            if not granted:
                return "full"
            if not self._breaker.enter():
                raise self._breaker.refusal(snapshot.grant.provider) or ServerUnavailable(
                    retry_after=self._breaker.left()
                )
            refresh_token = snapshot.grant.refresh_token
            intent = token_hash(refresh_token.reveal()) if refresh_token else None
            owner = secrets.token_hex(16)
            self._checkpoint("begin")
            started = time.monotonic()
            begun = self._begin(snapshot, owner, intent)
            held_at = time.monotonic()
            if begun.status != "held":
                self._breaker.withdraw()
                return "busy" if begun.status == "busy" else "look"
            parameters = self._parameters
            attempt = _Attempt(
                snapshot=snapshot,
                want=want,
                renewal=renewal,
                exchange=exchange,
                owner=owner,
                intent=intent,
                begun=begun,
                started=started,
                held_at=held_at,
                window=parameters.send_window + (parameters.doubt_wait if begun.doubt else 0.0),
                later=later,
                checkpoint=self._checkpoint,
            )
            self._hold(attempt)
            return attempt.result or "look"

    def _begin(self, snapshot: Snapshot, owner: str, intent: str | None) -> Begun:
        """Take the lease; if nobody knows whether that was done, it is taken back."""
        try:
            return self._store.begin(
                snapshot.key,
                owner=owner,
                expected_version=snapshot.control.version,
                lease=self._parameters.lease,
                intent=intent,
            )
        except BaseException:
            # Also where a worker is told to end in the middle of it.
            self._breaker.withdraw()
            self._give_back(snapshot, owner, clear_intent=True)
            raise

    def _hold(self, attempt: _Attempt) -> None:
        """Do what the lease was taken for; whatever happens, it is given back."""
        try:
            self._checkpoint("begun")
            if attempt.begun.doubt and not self._may_send_in_doubt(attempt):
                self._breaker.withdraw()
                self._abort(attempt, clear_intent=True)
                return
            self._checkpoint("send")
            result = attempt.exchange.send(
                deadline=time.monotonic() + self._parameters.timeout, may_write=attempt.may_write
            )
            self._checkpoint("answered")
            self._settle(attempt, classify(result, now=attempt.now))
        except BaseException:
            # A killed worker, an interrupt, a silent store, a bug: once a byte is out, nobody
            # knows how it ended. After an error that has given the lease back this does nothing.
            self._abort(attempt, clear_intent=not attempt.written)
            raise

    def _may_send_in_doubt(self, attempt: _Attempt) -> bool:
        """Decide whether a refresh token in doubt is sent again."""
        slot = attempt.snapshot.grant.slots.get(attempt.want.slot)
        if (
            slot is not None
            and slot.expires_at > attempt.now
            and slot.token.reveal() != attempt.want.rejected
        ):
            return False
        # An answer that somebody still holds in memory can land while this one waits.
        ThreadEvent().wait(self._parameters.doubt_wait)
        self._checkpoint("doubt")
        stored = self._store.read(attempt.key)
        return (
            stored is not None
            and stored.control.version == attempt.begun.version
            and stored.control.lease_owner == attempt.owner
        )

    # -- what the answer means

    def _settle(self, attempt: _Attempt, verdict: Verdict) -> None:
        if verdict.kind in ("unavailable", "bare", "unusable"):
            self._breaker_failed(verdict)
        elif verdict.kind not in ("client", "unsent"):
            self._breaker.succeeded()
        if verdict.kind == "unsent":
            self._breaker.withdraw()
            self._abort(attempt, clear_intent=True)
        elif verdict.tokens is not None:
            self._accept(attempt, verdict.tokens)
        elif verdict.kind == "invalid_grant" and attempt.intent is not None:
            self._invalid_grant(attempt)
        elif attempt.begun.doubt and verdict.kind in ("bare", "refused"):
            # The first sending did reach the server after all.
            self._end(attempt)
        else:
            self._fail(attempt, verdict)

    def _breaker_failed(self, verdict: Verdict) -> None:
        if verdict.status != 429 and (verdict.status is None or verdict.status >= 500):
            self._breaker.failed(verdict.error or f"http {verdict.status}")

    def _fail(self, attempt: _Attempt, verdict: Verdict) -> None:
        """Give the lease back and raise what the verdict means for the caller."""
        failures = attempt.snapshot.control.failures
        pause = 0.0
        if verdict.kind not in ("client", "interaction"):
            pause = self._parameters.pause(failures, verdict.retry_after)
            failures += 1
        self._abort(attempt, clear_intent=verdict.spent == "no", pause=pause, failures=failures)
        error = _error_for(verdict, attempt.snapshot.grant.provider, pause)
        if isinstance(error, TokenEndpointError) and verdict.kind == "client":
            self._breaker.refused_client(error)
        elif verdict.kind in ("refused", "interaction", "invalid_grant"):
            self._refusals.remember(attempt.key, attempt.want.slot, error)
        self._tell(attempt, "token_refresh_failed", error=error)
        log.warning(
            "no new token from %r: %s. grant=%s",
            attempt.snapshot.grant.provider,
            verdict.error or verdict.status or verdict.kind,
            attempt.key[:8],
        )
        raise error

    def _invalid_grant(self, attempt: _Attempt) -> None:
        """The server does not know the refresh token: lost, or another process was first."""
        # What the store says now: from memory it would be the record that this attempt began with.
        current = self._vault.read_stored(attempt.key)
        if current is None or _sent(current.grant) != attempt.intent:
            self._abort(attempt, clear_intent=True)
            return
        suspected = current.control.suspect == attempt.intent
        if attempt.renewal.is_login or attempt.begun.doubt or suspected:
            self._end(attempt)
            return
        self._abort(attempt, clear_intent=True, suspect=attempt.intent)
        error = LoginRequired(
            "The provider gives no token for these parameters: sign in to ask for it.",
            provider=current.grant.provider,
            reason="slot",
        )
        self._refusals.remember(attempt.key, attempt.want.slot, error)
        self._tell(attempt, "token_refresh_failed", error=error)
        raise error

    def _end(self, attempt: _Attempt) -> None:
        """Mark the refresh token dead: from now on every caller is sent to sign in."""
        grant = attempt.snapshot.grant
        self._abort(attempt, clear_intent=True, dead=attempt.intent)
        error = LoginRequired(
            "The provider has ended this sign-in.", provider=grant.provider, reason="invalid_grant"
        )
        self._tell(attempt, "token_refresh_failed", error=error)
        self._tell(attempt, "grant_revoked", claims=grant.claims)
        log.warning("%r has ended a sign-in. grant=%s", grant.provider, attempt.key[:8])
        raise error

    # -- success

    def _accept(self, attempt: _Attempt, tokens: Tokens) -> None:
        """Store the tokens, and keep them if the store is away."""
        claims: Mapping[str, Any] | None = None
        refused = False
        try:
            claims = attempt.renewal.verify(attempt.snapshot.grant, tokens)
        except ProtocolError as error:
            log.warning("an answer was refused as a whole: %s grant=%s", error, attempt.key[:8])
            refused = True
        except BaseException:
            # A check that breaks proves nothing, and must not cost the refresh token.
            self._put_away(attempt, tokens, None)
            raise
        if refused:
            attempt.later.append(partial(self._discard, attempt, tokens))
            self._end(attempt)
        if not self._put_away(attempt, tokens, claims):
            return
        grant = attempt.snapshot.grant
        self._tell(
            attempt, "token_refreshed", claims=claims or grant.claims, old_claims=grant.claims
        )
        if tokens.access_token is None:
            raise self._without_access_token(attempt)

    def _put_away(
        self, attempt: _Attempt, tokens: Tokens, claims: Mapping[str, Any] | None
    ) -> bool:
        """Commit the tokens, or keep them; tell whether they count for anything."""
        # A process that was stopped with the answer in its hands must not take it for younger.
        attempt.answered_at = attempt.now
        received_at = min(
            attempt.answered_at, attempt.begun.now + attempt.window + self._parameters.timeout
        )
        self._checkpoint("commit")

        def offer() -> Callable[[], None] | None:
            gone = self._commit(attempt, tokens, claims, received_at) == "gone"
            return partial(self._discard, attempt, tokens) if gone else None

        outcome: _Committed = "stored"
        try:
            outcome = self._commit(attempt, tokens, claims, received_at)
        except StoreError as error:
            log.error("the store does not take a renewed grant, it is kept: %s", error)  # noqa: TRY400
            self._keep(attempt, tokens, claims, received_at, offer)
        except BaseException:
            # Whatever a store of others raises, and also where the worker is told to go.
            self._keep(attempt, tokens, claims, received_at, offer)
            raise
        self._checkpoint("committed")
        if outcome == "gone":
            attempt.later.append(partial(self._discard, attempt, tokens))
        return outcome == "stored"

    def _without_access_token(self, attempt: _Attempt) -> InvalidTokenResponse:
        error = InvalidTokenResponse("the token endpoint answered 200 without an access token")
        self._refusals.remember(
            attempt.key, attempt.want.slot, error, pause=self._parameters.backoff
        )
        return error

    def _renewed(
        self,
        attempt: _Attempt,
        base: Grant,
        tokens: Tokens,
        claims: Mapping[str, Any] | None,
        received_at: float,
    ) -> Grant:
        return base.renewed(
            attempt.want.slot,
            tokens,
            claims=claims,
            rejected=attempt.want.rejected,
            requested_at=attempt.begun.now,
            now=received_at,
        )

    def _commit(
        self,
        attempt: _Attempt,
        tokens: Tokens,
        claims: Mapping[str, Any] | None,
        received_at: float,
    ) -> _Committed:
        """Store the result on top of whatever version is there; repeated without harm.

        :returns: ``passed``: it counts for nothing, somebody else's result does; ``gone``: signed
            out in the meantime, so what came is of no use to anybody.
        """
        base, version, now = attempt.snapshot.grant, attempt.begun.version, attempt.answered_at
        while True:
            grant = self._renewed(attempt, base, tokens, claims, received_at)
            sealed = self._vault.seal(attempt.key, grant, version=version + 1)
            outcome = self._store.commit(
                attempt.key, sealed, expected_version=version, commit_id=attempt.commit_id
            )
            if outcome == "ok":
                attempt.result = self._as_stored(attempt, grant, version + 1, now)
                self._vault.remember(replace(attempt.result, now=attempt.now), sealed)
                attempt.later.append(partial(self._vault.copy, attempt.result))
                return "stored"
            current = self._vault.read_stored(attempt.key) if outcome == "moved" else None
            if current is None:
                gone = outcome == "gone" or not self._vault.holds(attempt.key)
                return "gone" if gone else "passed"
            if _sent(current.grant) != attempt.intent:
                return "passed"
            base, version, now = current.grant, current.control.version, current.now
            there = base.slots.get(attempt.want.slot)
            if there is not None and there.requested_at > attempt.begun.now:
                # Without rotation the refresh token does not tell who came first: a later request
                # has brought a newer access token, and this one overslept.
                if tokens.refresh_token in (None, base.refresh_token):
                    return "passed"
                tokens, claims = replace(tokens, access_token=None), None

    def _keep(
        self,
        attempt: _Attempt,
        tokens: Tokens,
        claims: Mapping[str, Any] | None,
        received_at: float,
        offer: Callable[[], Callable[[], None] | None],
    ) -> None:
        grant = self._renewed(attempt, attempt.snapshot.grant, tokens, claims, received_at)
        snapshot = self._as_stored(attempt, grant, attempt.begun.version + 1, attempt.now)
        self._vault.keep(
            attempt.key, KeptAnswer(snapshot=snapshot, store=offer, at=time.monotonic())
        )

    def _discard(self, attempt: _Attempt, tokens: Tokens) -> None:
        """Revoke tokens that nobody will use; while the store is away they are kept for that."""
        revoke = partial(attempt.renewal.revoke, attempt.snapshot.grant, tokens)
        try:
            revoke()
        except StoreError as error:
            log.warning("tokens of a sign-in that has ended are revoked later: %s", error)
            self._vault.keep(
                # Under a name that no record has: nobody is served from it.
                f"{attempt.key} discarded",
                KeptAnswer(snapshot=attempt.snapshot, store=revoke, at=time.monotonic()),
            )

    def _as_stored(self, attempt: _Attempt, grant: Grant, version: int, now: float) -> Snapshot:
        """Give the record as a commit leaves it."""
        control = Control(
            version=version,
            sealed_version=version,
            commit_id=attempt.commit_id,
            ends_at=attempt.snapshot.control.ends_at,
        )
        return Snapshot(key=attempt.key, control=control, grant=grant, now=now)

    # -- the end of an attempt

    def _abort(self, attempt: _Attempt, *, clear_intent: bool, **more: Any) -> None:
        self._give_back(attempt.snapshot, attempt.owner, clear_intent=clear_intent, **more)

    def _give_back(
        self,
        snapshot: Snapshot,
        owner: str,
        *,
        clear_intent: bool,
        pause: float = 0.0,
        failures: int | None = None,
        suspect: str | None = None,
        dead: str | None = None,
    ) -> None:
        """Give the lease back; if the store is away, it lapses by itself."""
        try:
            self._store.abort(
                snapshot.key,
                owner=owner,
                clear_intent=clear_intent,
                pause=pause,
                failures=snapshot.control.failures if failures is None else failures,
                suspect=suspect,
                dead=dead,
            )
        except StoreError as error:
            # Said once a minute: while the store is away it is so for every user.
            now = time.monotonic()
            if now - self._last_complaint >= 60.0:
                self._last_complaint = now
                log.warning("a lease could not be given back, it lapses: %s", error)

    def _tell(
        self,
        attempt: _Attempt,
        name: Literal["token_refreshed", "token_refresh_failed", "grant_revoked"],
        **details: Any,
    ) -> None:
        event = Event(name=name, details=details)
        attempt.later.append(partial(attempt.renewal.notify, event))


def _sent(grant: Grant) -> str | None:
    return token_hash(grant.refresh_token.reveal() if grant.refresh_token else None)


def _error_for(verdict: Verdict, provider: str, pause: float) -> ATMError:
    if verdict.kind == "interaction":
        return LoginRequired(
            "The provider asks for a new sign-in.", provider=provider, reason=verdict.error
        )
    if verdict.kind == "unusable":
        return InvalidTokenResponse(
            f"the token endpoint of {provider!r} answered 200, but that is no token response"
        )
    if verdict.kind in ("refused", "client", "invalid_grant"):
        return TokenEndpointError(
            verdict.error, verdict.error_description, status=verdict.status, provider=provider
        )
    return ServerUnavailable(retry_after=pause, provider=provider)
