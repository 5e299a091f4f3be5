"""Gets a usable token for a caller: looks, decides, refreshes or waits, and looks again.

What a caller is to do is decided by :func:`flask_atm.grants.record.decide`, how one attempt goes
is in :mod:`flask_atm.grants.refresh`. Here is the loop between them. Waiting never means queueing
for a lock: one caller of a process leads, the others wait for its end and then read the record.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from threading import Event as ThreadEvent
from typing import Literal, NoReturn, TypeAlias

from flask_atm.errors import ATMError, LoginRequired, ServerUnavailable
from flask_atm.grants.breaker import Breaker, Refusals, again
from flask_atm.grants.control import lease_left
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.record import (
    Decision,
    Denied,
    Renew,
    Serve,
    Slot,
    Snapshot,
    Unavailable,
    Want,
    decide,
    is_too_old,
)
from flask_atm.grants.refresh import Refresher, Renewal
from flask_atm.grants.single_flight import Flight, SingleFlight
from flask_atm.grants.vault import Vault

__all__ = ["Engine"]

_Seen: TypeAlias = Snapshot | Literal["look", "busy", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """Gets tokens for the grants of one provider or client. Thread-safe and fork-safe.

    :param name: the provider or client, for errors.
    """

    name: str
    vault: Vault
    refresher: Refresher
    flights: SingleFlight
    breaker: Breaker
    refusals: Refusals
    parameters: EngineParameters

    def served(self, snapshot: Snapshot, want: Want) -> Slot | None:
        """Give the token of a record that was read just now, if it will do as it is."""
        decision = decide(snapshot, want, self.parameters, blocked=self.breaker.left())
        return decision.slot if isinstance(decision, Serve) else None

    def get(
        self,
        snapshot: Snapshot,
        want: Want,
        renewal: Renewal,
        *,
        force: bool = False,
        deadline: float | None = None,
    ) -> tuple[Snapshot, Slot]:
        """Give a token that is valid now, and the record that it comes from.

        :param snapshot: the record, read just now.
        :param force: a token is wanted whose request begins after that.
        :param deadline: the latest end of the wait, by ``time.monotonic()``.
        :raises LoginRequired: only a new sign-in helps.
        :raises ServerUnavailable: the authorization server is away, and no token is left.
        :raises TokenEndpointError: it refuses.
        :raises StoreError: the store is silent.
        """
        give_up = time.monotonic() + self.parameters.wait
        call = _Call(
            engine=self,
            key=snapshot.key,
            want=_forced(want, snapshot) if force else want,
            renewal=renewal,
            give_up=give_up if deadline is None else min(give_up, deadline),
        )
        return call.run(snapshot)


@dataclass(kw_only=True, slots=True)
class _Call:
    """One caller on the way to a token."""

    engine: Engine
    key: str
    want: Want
    renewal: Renewal
    give_up: float

    def read(self) -> Snapshot:
        snapshot = self.engine.vault.read(self.key)
        if snapshot is None:
            raise LoginRequired(
                "This sign-in has ended.", provider=self.engine.name, reason="ended"
            )
        return snapshot

    def decide(self, snapshot: Snapshot) -> Decision:
        engine = self.engine
        return decide(snapshot, self.want, engine.parameters, blocked=engine.breaker.left())

    def run(self, snapshot: Snapshot) -> tuple[Snapshot, Slot]:
        for turn in count():
            decision = self.decide(snapshot)
            if isinstance(decision, Serve):
                return snapshot, decision.slot
            refused = self.engine.refusals.get(self.key, self.want.slot)
            if isinstance(decision, Denied) or (isinstance(decision, Unavailable) and not refused):
                self.refuse(decision)
            if isinstance(decision, Renew) and decision.meanwhile is not None:
                # While the store is silent nothing can be begun, and to ask it again takes time.
                idle = refused is not None or snapshot.copied
                seen = "busy" if idle else self.renew_if_nobody_does(snapshot)
                if seen in ("busy", "full"):
                    return snapshot, decision.meanwhile
                snapshot = seen if isinstance(seen, Snapshot) else self.read()
                left = self.left(snapshot)
                if left is not None:
                    return snapshot, left
                # It ran out during the attempt: from here on as whoever has none.
                continue
            if refused is not None:
                raise refused
            if turn > 1:
                # Twice there was nothing to wait for: a record that goes on changing.
                self.sleep(self.engine.parameters.poll_first)
            outcome = self.renew_or_wait(snapshot)
            if isinstance(outcome, ATMError):
                return self.after_attempt(outcome)
            snapshot = outcome or self.read()
            if time.monotonic() >= self.give_up:
                return self.last_look(snapshot)
        raise AssertionError("unreachable")

    def refuse(self, decision: Unavailable | Denied) -> NoReturn:
        provider = self.engine.name
        if isinstance(decision, Unavailable):
            raise self.engine.breaker.refusal(provider) or ServerUnavailable(
                retry_after=decision.retry_after, provider=provider
            )
        if decision.reason == "expired":
            message = "The sign-in has no refresh token, and its access token has expired."
        else:
            message = "The provider has ended this sign-in."
        raise LoginRequired(message, provider=provider, reason=decision.reason)

    # -- the token is still good for a while: nobody waits

    def renew_if_nobody_does(self, snapshot: Snapshot) -> _Seen:
        """Refresh, unless somebody does already."""
        seen: _Seen = "busy"
        later: list[Callable[[], None]] = []
        with self.engine.flights.enter(self.key) as (leads, flight):
            if leads:
                seen = self.attempt(snapshot, flight, later, place_by=time.monotonic())
        self.finish(later)
        return seen

    # -- there is no token: everybody waits

    def renew_or_wait(self, snapshot: Snapshot) -> ATMError | Snapshot | None:
        """Refresh, or wait for who does; give why there is no token or what came, if known."""
        later: list[Callable[[], None]] = []
        seen: _Seen = "look"
        # Whoever gets a place later than this could not be done in time.
        place_by = self.give_up - self.engine.parameters.doubt_wait - self.engine.parameters.timeout
        with self.engine.flights.enter(self.key) as (leads, flight):
            if leads:
                seen = self.attempt(snapshot, flight, later, place_by=place_by)
                if seen == "busy":
                    self.watch()
                elif seen == "full":
                    error = ServerUnavailable(retry_after=1, provider=self.engine.name)
                    flight.fail(error, self.want.slot)
        self.finish(later)
        if not leads:
            flight.wait(max(0.0, self.give_up - time.monotonic()))
        return flight.error_for(self.want.slot) or (seen if isinstance(seen, Snapshot) else None)

    def attempt(
        self,
        snapshot: Snapshot,
        flight: Flight,
        later: list[Callable[[], None]],
        *,
        place_by: float,
    ) -> _Seen:
        """Make the attempt of this process; its failure is everybody's who waits for it."""
        try:
            return self.engine.refresher.run(
                snapshot, self.want, self.renewal, deadline=place_by, later=later
            )
        except ATMError as error:
            flight.fail(error, self.want.slot)
            return "look"

    def finish(self, later: list[Callable[[], None]]) -> None:
        """Do what may run code of the application, or take its time: now nothing is held."""
        for step in later:
            step()

    def watch(self) -> None:
        """Poll the record until no other process holds its lease, or no time is left."""
        parameters = self.engine.parameters
        pause = parameters.poll_first
        while time.monotonic() < self.give_up:
            self.sleep(pause)
            pause = min(2 * pause, parameters.poll_last / 5)
            snapshot = self.engine.vault.read(self.key)
            if snapshot is None or not lease_left(snapshot.control, snapshot.now):
                return

    def sleep(self, pause: float) -> None:
        ThreadEvent().wait(random.uniform(pause, 5 * pause))  # noqa: S311 - jitter

    # -- ends

    def after_attempt(self, error: ATMError) -> tuple[Snapshot, Slot]:
        """Look once more, and raise the error where nothing is left."""
        snapshot = self.read()
        left = self.left(snapshot)
        if left is None:
            raise again(error)
        return snapshot, left

    def left(self, snapshot: Snapshot) -> Slot | None:
        """Give what may be served after an attempt: what is still valid, to its last second."""
        decision = self.decide(snapshot)
        if isinstance(decision, Serve):
            return decision.slot
        if isinstance(decision, Denied):
            self.refuse(decision)
        slot = snapshot.grant.slots.get(self.want.slot)
        valid = slot is not None and slot.expires_at > snapshot.now and self.is_good(slot)
        return slot if valid else None

    def is_good(self, slot: Slot) -> bool:
        return slot.token.reveal() != self.want.rejected and not is_too_old(slot, self.want)

    def last_look(self, snapshot: Snapshot) -> tuple[Snapshot, Slot]:
        decision = self.decide(snapshot)
        if isinstance(decision, Serve):
            return snapshot, decision.slot
        if isinstance(decision, Renew):
            raise ServerUnavailable(
                "Another request is still renewing the token.",
                retry_after=1,
                provider=self.engine.name,
            )
        return self.refuse(decision)


def _forced(want: Want, snapshot: Snapshot) -> Want:
    slot = snapshot.grant.slots.get(want.slot)
    return replace(want, since=snapshot.now, seen=slot.token.reveal() if slot else None)
