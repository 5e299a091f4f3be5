"""The steps of the engine and of the world around it, each from one state to the next.

One step is one thing that others can see: an atomic step of the store, a byte on the wire, an
answer. What a process does between two of them is part of the first. Any process may be stopped or
killed between any two steps; that, like everything else that goes wrong, costs a fault.

The steps that touch the record call the functions of the rules: the real ones, unless a test has
taken a rule away. What is *never* to happen is checked where it would.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Final, NamedTuple

from flask_atm.grants.control import Begun, Control, Outcome, lease_left, pause_left
from flask_atm.grants.record import Denied, Renew, Serve, Snapshot, Want
from tests.model.rules import Rules
from tests.model.world import (
    LEAP,
    LOGIN,
    PARAMETERS,
    Aborting,
    Actor,
    Data,
    State,
    grant_of,
    hash_of,
    renewed,
)

__all__ = ["Machine", "Move", "Violation"]

#: More turns or rounds than this are a process that goes round in circles.
MOST_TURNS: Final = 9
MOST_LEAPS: Final = 8

#: Steps between taking a lease and giving it back.
HOLDING: Final = frozenset(
    {"doubt", "write", "wire", "wired", "reread", "commit", "moved", "revoke", "abort"}
)
KEPT_AT_EXIT: Final = "exit, kept"


class Violation(Exception):
    """Something that must never happen."""


class Move(NamedTuple):
    """One step.

    :ivar who: the actor; -1: the world.
    :ivar fault: whether it costs one.
    """

    who: int
    what: str
    after: State
    fault: bool = False

    def __str__(self) -> str:
        who = "world" if self.who < 0 else "ABCDEF"[self.who]
        return f"{who}: {self.what}"


Moves = Iterator[Move]


class Machine:
    """All that can happen next, by the given rules. Nothing in it changes.

    :param faults: the kinds of faults that there are.
    """

    FAULTS: Final = frozenset(
        {"crash", "stop", "lost reply", "lost answer", "503", "down", "logout", "writer", "exit"}
    )

    def __init__(self, rules: Rules, faults: frozenset[str] = FAULTS) -> None:
        self.rules = rules
        self.faults = faults
        # The real functions are pure: asked once for each question.
        self._begin = cache(self._real_begin)
        self._commit = cache(self._real_commit)
        self._update = cache(self._real_update)
        self._abort = cache(self._real_abort)
        self._decide = cache(self._real_decide)
        self._steps: dict[str, Callable[[State, int, Actor], Moves]] = {
            "idle": self._start,
            "read": self._read,
            "begin": self._begins,
            "wait": self._wait,
            "doubt": self._doubt,
            "write": self._write,
            "wire": self._wire,
            "wired": self._wired,
            "reread": self._reread,
            "commit": self._commits,
            "kept": self._kept,
            "moved": self._moved,
            "revoke": self._revoke,
            "abort": self._aborts,
            "update": self._updates,
            "delete": self._deletes,
        }

    # -- the real functions

    def _real_begin(
        self, control: Control, now: float, owner: str, version: int, intent: str | None
    ) -> tuple[Begun, Control | None]:
        return self.rules.begin(
            control,
            now,
            owner=owner,
            expected_version=version,
            lease=PARAMETERS.lease,
            intent=intent,
        )

    def _real_commit(
        self, control: Control, now: float, version: int, commit_id: str
    ) -> tuple[Outcome, Control | None]:
        return self.rules.commit(control, now, expected_version=version, commit_id=commit_id)

    def _real_update(
        self, control: Control, now: float, version: int
    ) -> tuple[Outcome, Control | None]:
        return self.rules.update(control, now, expected_version=version)

    def _real_abort(
        self, control: Control, now: float, owner: str, how: Aborting, sent: str, failures: int
    ) -> Control | None:
        return self.rules.abort(
            control,
            now,
            owner=owner,
            clear_intent=how.clear_intent,
            pause=PARAMETERS.backoff * 2.0**failures if how.pause else 0.0,
            failures=failures + how.pause,
            suspect=sent if how.suspect else None,
            dead=sent if how.dead else None,
        )

    def _real_decide(
        self, control: Control, data: Data, slot: str, rejects: int, now: float
    ) -> tuple[str, bool]:
        """Give what the caller is to do, and whether there is a token meanwhile."""
        decision = self.rules.decide(
            Snapshot(key="k", control=control, grant=grant_of(data), now=now),
            Want(slot=slot, leeway=60.0, rejected=f"access-{rejects}" if rejects else None),
            PARAMETERS,
        )
        if isinstance(decision, Serve):
            return "serve", False
        if isinstance(decision, Renew):
            return "renew", decision.meanwhile is not None
        return ("login" if isinstance(decision, Denied) else "unavailable"), False

    # -- all that can happen

    def moves(self, state: State) -> Moves:
        """Give every step from here."""
        started: set[tuple[str, str, int]] = set()
        for number, actor in enumerate(state.actors):
            if actor.at == "idle":
                # Actors of one kind are the same until they start: the first of them goes first.
                kind = (actor.kind, actor.slot, actor.rejects)
                if kind in started:
                    continue
                started.add(kind)
            if not actor.over:
                yield from self._steps[actor.at](state, number, actor)
                yield from self._accidents(state, number, actor)
        if all(actor.over for actor in state.actors):
            return
        yield from self._time(state)
        yield from self._world(state)

    def _fault(self, state: State, kind: str) -> State | None:
        """Pay for a fault, if there is one left."""
        if state.faults and kind in self.faults:
            return state._replace(faults=state.faults - 1)
        return None

    def _accidents(self, state: State, number: int, actor: Actor) -> Moves:
        paid = self._fault(state, "crash")
        if paid and actor.at != "idle":
            crashed = Actor(kind=actor.kind, slot=actor.slot, rejects=actor.rejects, at="crashed")
            lost = is_out(actor) or actor.at == "revoke"
            paid = paid._replace(excused=state.excused or lost)
            after = put(paid, number, crashed)
            yield Move(number, f"is killed before {actor.at}", after, True)
            if actor.at == "wire":
                _, server = state.server.answer(actor.sent)
                after = after._replace(server=server)
                yield Move(number, "is killed, and the server takes its request", after, True)
        paid = self._fault(state, "exit")
        if paid and actor.at in ("doubt", "write", "wired", "commit"):
            written = is_out(actor)
            paid = paid._replace(excused=state.excused or written)
            how = Aborting(
                clear_intent=not written or not self.rules.unknown_keeps_intent,
                # An answer is kept first, and offered once more at the exit.
                error=KEPT_AT_EXIT if actor.at == "commit" else "exit",
            )
            stopped = actor._replace(at="abort", aborting=how)
            yield Move(number, f"SystemExit before {actor.at}", put(paid, number, stopped), True)

    def _time(self, state: State) -> Moves:
        """Let a lease and all shorter times pass: whoever holds something has to be stopped."""
        if state.leaps >= MOST_LEAPS:
            raise Violation("time passes, and still not everybody has ended")
        now, control = state.now, state.control
        awake = [
            number
            for number, actor in enumerate(state.actors)
            if not actor.late and (actor.at in HOLDING or (actor.at == "kept" and not state.down))
        ]
        matters = (
            awake
            or lease_left(control, now)
            or pause_left(control, now)
            or any(now < one.expires_at <= now + LEAP for one in state.data.slots)
        )
        if not matters or len(awake) > (state.faults if "stop" in self.faults else 0):
            return
        actors = tuple(
            actor
            if actor.over or actor.at == "idle"
            else actor._replace(waited=actor.waited + 1, late=actor.late or number in awake)
            for number, actor in enumerate(state.actors)
        )
        after = state._replace(
            actors=actors,
            leaps=state.leaps + 1,
            faults=state.faults - len(awake),
            excused=state.excused or any(is_out(state.actors[number]) for number in awake),
        )
        names = " and ".join("ABCDEF"[number] for number in awake)
        text = f"a lease passes{f', {names} stopped' if names else ''}"
        yield Move(-1, text, after, bool(awake))

    def _world(self, state: State) -> Moves:
        if state.down:
            yield Move(-1, "the store is back", state._replace(down=False))
            return
        paid = self._fault(state, "down")
        if paid:
            actors = tuple(
                actor._replace(flapped=True) if actor.at == "doubt" else actor
                for actor in state.actors
            )
            after = paid._replace(down=True, actors=actors)
            yield Move(-1, "the store goes away", after, True)
        paid = self._fault(state, "logout")
        if paid and not state.control.tombstone:
            yield Move(-1, "logout", self._bury(paid, state.data), True)
        paid = self._fault(state, "writer")
        if paid:
            outcome, new = self._update(state.control, state.now, state.control.version)
            if new is not None:
                after = self._store(paid, new, state.data, sealed=True)
                yield Move(-1, f"another writer: {outcome}", after, True)

    # -- the record

    def _store(
        self, state: State, new: Control | None, data: Data | None = None, *, sealed: bool = False
    ) -> State:
        """Write a new control, and look at what must never happen to a record."""
        if new is None:
            return state
        old = state.control
        if old.tombstone and not new.tombstone:
            raise Violation("a record is back after the logout")
        if new.version < old.version + sealed:
            raise Violation(f"the version goes from {old.version} to {new.version}")
        if data is not None and data.refresh_token < state.data.refresh_token:
            raise Violation(
                f"refresh token {state.data.refresh_token} is overwritten by the older"
                f" {data.refresh_token}"
            )
        return state._replace(control=new, data=data or state.data)

    def _bury(self, state: State, known: Data) -> State:
        new = self.rules.bury(state.control)
        return self._store(state, new)._replace(outbox=known.refresh_token)

    # -- a call: look and decide

    def _start(self, state: State, number: int, actor: Actor) -> Moves:
        yield from self._read(state, number, actor._replace(at="read"))

    def _read(self, state: State, number: int, actor: Actor) -> Moves:
        """Read the record and decide."""
        yield Move(number, "reads", self._after_read(state, number, actor))

    def _after_read(self, state: State, number: int, actor: Actor) -> State:
        if state.down:
            return self._end(state, number, actor, "store error")
        control, data, now = state.control, state.data, state.now
        if control.tombstone:
            return self._end(state, number, actor, "login")
        if actor.kind != "get":
            step = "update" if actor.kind == "write" else "delete"
            found = actor._replace(at=step, version=control.version, base=data, turn=actor.turn + 1)
            return put(state, number, found)
        decision, meanwhile = self._decide(control, data, actor.slot, actor.rejects, now)
        if decision == "serve":
            return self._end(state, number, actor, "served")
        if decision == "login":
            return self._end(state, number, actor, "login")
        if actor.error is not None:
            # The last look after an attempt: what is still valid is served.
            held = data.held(actor.slot)
            if held and held.expires_at > now and held.number != actor.rejects:
                return self._end(state, number, actor, "served")
            if actor.error:
                return self._end(state, number, actor, actor.error)
            # It ran out during the attempt: from here on as whoever has none.
        if decision == "unavailable" or actor.waited > 1:
            return self._end(state, number, actor, "unavailable")
        if actor.turn >= MOST_TURNS:
            raise Violation("a caller goes round in circles")
        return put(
            state,
            number,
            Actor(
                kind=actor.kind,
                slot=actor.slot,
                rejects=actor.rejects,
                at="begin",
                turn=actor.turn + 1,
                version=control.version,
                base=data,
                failures=control.failures,
                meanwhile=meanwhile,
                waited=actor.waited,
            ),
        )

    def _end(self, state: State, number: int, actor: Actor, outcome: str) -> State:
        if outcome == "served" and state.control.tombstone:
            raise Violation("a token is served after the logout")
        ended = Actor(
            kind=actor.kind, slot=actor.slot, rejects=actor.rejects, at="done", outcome=outcome
        )
        return put(state, number, ended)

    def _look(self, state: State, number: int, actor: Actor, error: str | None = None) -> State:
        """Go back to the record, with an error for the last time."""
        if error is None and actor.meanwhile:
            error = ""
        return put(state, number, self._bare(actor)._replace(at="read", error=error))

    def _bare(self, actor: Actor) -> Actor:
        return Actor(
            kind=actor.kind,
            slot=actor.slot,
            rejects=actor.rejects,
            turn=actor.turn,
            waited=actor.waited,
        )

    def _failed(self, state: State, number: int, actor: Actor, error: str) -> State:
        """An attempt raised: who has a token to fall back upon looks for that."""
        return self._look(state, number, actor, "" if actor.meanwhile else error)

    # -- one attempt

    def _begins(self, state: State, number: int, actor: Actor) -> Moves:
        if state.down:
            yield Move(number, "begin: no store", self._unbegun(state, number, actor))
            return
        owner = owner_of(number, actor)
        intent = hash_of(actor.sent) if self.rules.writes_intent else None
        begun, new = self._begin(state.control, state.now, owner, actor.version, intent)
        if begun.status == "busy" and state.control.lease_owner == owner:
            raise Violation("a process is locked out by its own lease")
        paused = pause_left(state.control, state.now) > 0
        stored = self._store(state, new)
        text = f"begin: {begun.status}{', in doubt' if begun.doubt else ''}"
        if begun.status == "held":
            held = actor._replace(
                version=begun.version, doubt=begun.doubt, begun_at=state.now, paused=paused
            )
            yield Move(number, text, put(stored, number, self._first_look(state, held)))
        elif begun.status == "busy" and actor.meanwhile:
            yield Move(number, text, self._end(stored, number, actor, "served"))
        elif begun.status == "busy":
            waiting = self._bare(actor)._replace(at="wait")
            yield Move(number, text, put(stored, number, waiting))
        else:
            yield Move(number, text, self._look(stored, number, actor))
        paid = self._fault(stored, "lost reply")
        if paid and new is not None:
            yield Move(number, "begin: its reply is lost, again", paid, True)
            yield Move(number, "begin: its reply is lost", self._unbegun(paid, number, actor), True)

    def _unbegun(self, state: State, number: int, actor: Actor) -> State:
        """Nobody knows whether the lease was taken: it is given back."""
        how = Aborting(clear_intent=True, error="store error")
        return put(state, number, actor._replace(at="abort", aborting=how))

    def _first_look(self, state: State, actor: Actor) -> Actor:
        """Go on after ``begun``: in doubt nobody sends who has a valid token."""
        if not actor.doubt:
            return actor._replace(at="write")
        held = state.data.held(actor.slot)
        has_token = held and held.expires_at > state.now and held.number != actor.rejects
        if self.rules.doubt_look and has_token:
            return actor._replace(at="abort", aborting=Aborting(clear_intent=True))
        return actor._replace(at="doubt")

    def _wait(self, state: State, number: int, actor: Actor) -> Moves:
        """Poll until nobody holds the lease, or there is no time left."""
        free = state.control.tombstone or not lease_left(state.control, state.now)
        if state.down or free or actor.waited > 1:
            yield Move(number, "waited", self._after_read(state, number, actor))

    def _doubt(self, state: State, number: int, actor: Actor) -> Moves:
        """Wait, so that a kept answer can land, and read once more."""
        if state.down:
            how = Aborting(clear_intent=True, error="store error")
            lost = actor._replace(at="abort", aborting=how)
            yield Move(number, "doubt: no store", put(state, number, lost))
            return
        after, fault = state, False
        if self.rules.doubt_wait:
            landing = [
                other
                for other, one in enumerate(state.actors)
                if other != number and not one.late and lands(one)
            ]
            # Whoever could land an answer in this time has to be stopped, or the store was away.
            cost = 0 if actor.flapped else len(landing)
            if cost > (state.faults if "stop" in self.faults else 0):
                return
            fault = cost > 0
            for other in landing:
                after = put(after, other, state.actors[other]._replace(late=True))
            excused = state.excused or bool(landing)
            after = after._replace(faults=state.faults - cost, excused=excused)
        control = state.control
        same = (
            not control.tombstone
            and control.version == actor.version
            and control.lease_owner == owner_of(number, actor)
        )
        if same or not self.rules.second_read:
            self._newer_is_stored(after, actor)
            sending = actor._replace(at="write")
            yield Move(number, "doubt: it is still so", put(after, number, sending), fault)
        else:
            how = Aborting(clear_intent=True)
            moved = actor._replace(at="abort", aborting=how)
            yield Move(number, "doubt: something has moved", put(after, number, moved), fault)

    def _write(self, state: State, number: int, actor: Actor) -> Moves:
        """Look at the clock, and write the request."""
        if self.rules.window and actor.late:
            unsent = actor._replace(at="abort", aborting=Aborting(clear_intent=True))
            yield Move(number, "write: too late", put(state, number, unsent))
            return
        self._may_be_sent(state, number, actor)
        sending = actor._replace(at="wire", first=state.dirty != actor.sent)
        after = put(state, number, sending)._replace(dirty=actor.sent)
        yield Move(number, f"write: refresh token {actor.sent}", after)

    def _may_be_sent(self, state: State, number: int, actor: Actor) -> None:
        """Two requests with one refresh token: only by the rule for lost answers."""
        sent = actor.sent
        if actor.paused:
            raise Violation(f"refresh token {sent} is sent within the pause")
        if not actor.doubt:
            # In doubt the last look is the one after the wait; whoever was stopped with an answer
            # in hand may come back right after it.
            self._newer_is_stored(state, actor)
        if state.dirty != sent:
            return
        again = f"refresh token {sent} is sent again"
        if not actor.doubt:
            raise Violation(f"{again}, and its sender does not know")
        if any(
            is_out(one) and one.sent == sent and not one.late
            for other, one in enumerate(state.actors)
            if other != number
        ):
            raise Violation(f"{again} while somebody waits for its answer, or has it")
        held = actor.base.held(actor.slot) if actor.base else None
        if held and held.expires_at > state.now and held.number != actor.rejects:
            raise Violation(f"{again} although there is a valid token")

    def _newer_is_stored(self, state: State, actor: Actor) -> None:
        stored = state.data.refresh_token
        if stored != actor.sent and not state.control.tombstone:
            raise Violation(f"refresh token {actor.sent} is sent, and {stored} is in the store")

    def _wire(self, state: State, number: int, actor: Actor) -> Moves:
        """Have the server take the request, or lose it.

        One that the network keeps for longer than a lease is lost here. It could arrive after that,
        and kill the grant; no client can do anything about it.
        """
        unknown = actor._replace(at="abort", aborting=self._unknown)
        if actor.late:
            yield Move(number, "the request is lost", put(state, number, unknown))
            return
        answer, server = state.server.answer(actor.sent)
        processed = put(state, number, actor._replace(at="wired", answer=answer))
        text = "the server takes it" if answer > 0 else "the server answers invalid_grant"
        yield Move(number, text, processed._replace(server=server))
        paid = self._fault(state, "lost answer")
        if paid:
            yield Move(number, "the request is lost", put(paid, number, unknown), True)
        paid = self._fault(state, "503")
        if paid:
            how = Aborting(clear_intent=True, pause=True, error="unavailable")
            refused = put(paid, number, actor._replace(at="abort", aborting=how))
            refused = refused._replace(dirty=0 if actor.first else state.dirty)
            yield Move(number, "the server answers 503 with an error", refused, True)

    @property
    def _unknown(self) -> Aborting:
        clear = not self.rules.unknown_keeps_intent
        return Aborting(clear_intent=clear, pause=True, error="unavailable")

    def _wired(self, state: State, number: int, actor: Actor) -> Moves:
        """Get the answer."""
        step = "commit" if actor.answer > 0 else "reread"
        yield Move(number, "answered", put(state, number, actor._replace(at=step)))
        paid = state if actor.late else self._fault(state, "lost answer")
        if paid:
            unknown = actor._replace(at="abort", aborting=self._unknown, answer=0)
            after = put(paid, number, unknown)
            after = after._replace(excused=state.excused or actor.answer > 0)
            yield Move(number, "the answer is lost", after, not actor.late)

    def _reread(self, state: State, number: int, actor: Actor) -> Moves:
        """Read again after ``invalid_grant``."""
        if state.down:
            how = Aborting(clear_intent=False, error="store error")
        elif self.rules.reread_invalid_grant and (
            state.control.tombstone or state.data.refresh_token != actor.sent
        ):
            how = Aborting(clear_intent=True)
        elif actor.slot == LOGIN or actor.doubt or state.control.suspect == hash_of(actor.sent):
            how = Aborting(clear_intent=True, dead=True, error="login")
        else:
            how = Aborting(clear_intent=True, suspect=True, error="login")
        after = put(state, number, actor._replace(at="abort", aborting=how))
        yield Move(number, "reads after invalid_grant", after)

    def _commits(self, state: State, number: int, actor: Actor) -> Moves:
        """Store the answer."""
        if state.down:
            yield Move(number, "commit: no store", self._keep(state, number, actor))
            return
        assert actor.base is not None
        # A late answer is not taken for younger than it can be.
        window = PARAMETERS.send_window + PARAMETERS.doubt_wait * actor.doubt
        received = min(state.now, actor.begun_at + window + PARAMETERS.timeout)
        data = renewed(actor.base, actor.slot, actor.answer, actor.begun_at, received)
        owner = owner_of(number, actor)
        outcome, new = self._commit(state.control, state.now, actor.version, owner)
        stored = self._store(state, new, data, sealed=True)
        if outcome == "ok":
            ended = self._end(stored, number, actor, actor.outcome or "served")
            yield Move(number, "commit: ok", ended)
        elif outcome == "moved":
            yield Move(number, "commit: moved", put(state, number, actor._replace(at="moved")))
        else:
            yield Move(number, "commit: gone", put(state, number, actor._replace(at="revoke")))
        paid = self._fault(stored, "lost reply")
        if paid and new is not None:
            yield Move(number, "commit: its reply is lost, again", paid, True)
            kept = self._keep(paid, number, actor)
            yield Move(number, "commit: its reply is lost", kept, True)

    def _keep(self, state: State, number: int, actor: Actor) -> State:
        if self.rules.keep_answers:
            return put(state, number, actor._replace(at="kept"))
        how = Aborting(clear_intent=False, error="store error")
        self._dropped(state, actor)
        return put(state, number, actor._replace(at="abort", aborting=how))

    def _kept(self, state: State, number: int, actor: Actor) -> Moves:
        """Serve from memory while the store is away, and offer the answer when it is back."""
        if not state.down:
            yield from self._commits(state, number, actor)
        elif not actor.outcome:
            served = actor._replace(outcome="served")
            yield Move(number, "is served from memory", put(state, number, served))

    def _moved(self, state: State, number: int, actor: Actor) -> Moves:
        """Look at what is stored, with an answer in hand."""
        if state.down:
            yield Move(number, "moved: no store", self._keep(state, number, actor))
            return
        if state.control.tombstone:
            yield Move(number, "moved: gone", put(state, number, actor._replace(at="revoke")))
            return
        same = state.data.refresh_token == actor.sent
        if self.rules.on_top == "always" or (same and self.rules.on_top == "same"):
            if actor.rounds >= MOST_TURNS:
                raise Violation("an answer goes round in circles and is never stored")
            again = actor._replace(
                at="commit",
                version=state.control.version,
                base=state.data if same else actor.base,
                rounds=actor.rounds + 1,
            )
            yield Move(number, "moved: goes on top", put(state, number, again))
        else:
            self._dropped(state, actor)
            yield Move(number, "moved: somebody else won", self._settled(state, number, actor))

    def _dropped(self, state: State, actor: Actor) -> None:
        if state.data.refresh_token < actor.answer and not state.control.tombstone:
            raise Violation(f"refresh token {actor.answer} came, and is thrown away")

    def _revoke(self, state: State, number: int, actor: Actor) -> Moves:
        """Revoke what came for a grant that had ended."""
        after = state._replace(server=state.server._replace(alive=False))
        yield Move(number, "revokes what came", self._settled(after, number, actor))

    def _settled(self, state: State, number: int, actor: Actor) -> State:
        """The answer is dealt with: a caller that was served from memory has long gone."""
        if actor.outcome:
            done = self._bare(actor)._replace(at="done", outcome=actor.outcome, turn=0, waited=0)
            return put(state, number, done)
        return self._look(state, number, actor)

    def _aborts(self, state: State, number: int, actor: Actor) -> Moves:
        """Give the lease back; without a store it lapses."""
        how = actor.aborting
        assert how is not None
        after = state
        if not state.down:
            new = self._abort(
                state.control,
                state.now,
                owner_of(number, actor),
                how._replace(error=None),
                hash_of(actor.sent),
                actor.failures,
            )
            after = self._store(state, new)
        text = "abort, the intent stays" if not how.clear_intent else "abort"
        if how.error == KEPT_AT_EXIT:
            kept = actor._replace(at="kept", outcome="exit", aborting=None)
            yield Move(number, text, put(after, number, kept))
        elif how.error == "exit":
            yield Move(number, text, self._end(after, number, actor, "exit"))
        elif how.error is None:
            yield Move(number, text, self._look(after, number, actor))
        else:
            yield Move(number, text, self._failed(after, number, actor, how.error))

    # -- others

    def _updates(self, state: State, number: int, actor: Actor) -> Moves:
        """Change the record, as a rotation of keys does."""
        if state.down:
            yield Move(number, "update: no store", self._end(state, number, actor, "store error"))
            return
        outcome, new = self._update(state.control, state.now, actor.version)
        after = self._store(state, new, actor.base, sealed=True)
        yield Move(number, f"update: {outcome}", self._end(after, number, actor, outcome))

    def _deletes(self, state: State, number: int, actor: Actor) -> Moves:
        """Sign out: of what was read, or look again; the fourth time whatever is there."""
        if state.down:
            yield Move(number, "delete: no store", self._end(state, number, actor, "store error"))
        elif state.control.tombstone:
            yield Move(number, "delete: gone", self._end(state, number, actor, "ok"))
        elif state.control.version != actor.version and actor.turn < 4:
            yield Move(number, "delete: moved", put(state, number, actor._replace(at="read")))
        else:
            assert actor.base is not None
            after = self._bury(state, actor.base)
            yield Move(number, "delete", self._end(after, number, actor, "ok"))


def lands(actor: Actor) -> bool:
    """Tell whether nothing but the store keeps an answer from landing."""
    kept = actor.aborting is not None and actor.aborting.error == KEPT_AT_EXIT
    return actor.at in ("commit", "moved", "kept") or kept


def is_out(actor: Actor) -> bool:
    """Tell whether a request is out, or its answer in somebody's hands."""
    return actor.at in ("wire", "wired") or lands(actor)


def put(state: State, number: int, actor: Actor) -> State:
    """Give the state with one actor changed."""
    actors = state.actors
    return state._replace(actors=(*actors[:number], actor, *actors[number + 1 :]))


def owner_of(number: int, actor: Actor) -> str:
    return f"{number}.{actor.turn}"
