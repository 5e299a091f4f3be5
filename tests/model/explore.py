"""Breadth first through all that can happen; on a violation the shortest way to it."""

from collections import deque
from dataclasses import dataclass

from tests.model.machine import Machine, Violation
from tests.model.world import State

__all__ = ["Explored", "Found", "explore"]


@dataclass(frozen=True, kw_only=True)
class Explored:
    """How much was looked at."""

    states: int
    moves: int
    ends: int


class Found(AssertionError):
    """A violation, with the shortest way to it."""

    def __init__(self, what: str, trace: list[str], start: State) -> None:
        lines = [f"{number:3}. {step}" for number, step in enumerate(trace, 1)]
        kinds = ", ".join(f"{a.kind} {a.slot or 'login'}" for a in start.actors)
        server = "with grace" if start.server.grace else "strict"
        head = f"{what}\n  actors: {kinds}; faults: {start.faults}; server: {server}"
        super().__init__("\n".join([head, *lines]))
        self.what = what
        self.trace = trace


def explore(machine: Machine, start: State) -> Explored:
    """Look at every state that can be reached.

    :raises Found: something happened that must never happen.
    """
    # Where each state was reached from first: breadth first, so by the shortest way.
    before: dict[State, tuple[State, str] | None] = {start: None}
    queue = deque([start])
    count = ends = 0
    while queue:
        state = queue.popleft()
        goes_on = False
        moves = machine.moves(state)
        while True:
            try:
                move = next(moves, None)
            except Violation as violation:
                raise Found(str(violation), _trace(before, state), start) from None
            if move is None:
                break
            count += 1
            goes_on = goes_on or not move.fault
            if move.after not in before:
                before[move.after] = (state, str(move))
                queue.append(move.after)
        if not goes_on:
            ends += 1
            wrong = what_is_wrong_at_the_end(state, start)
            if wrong:
                raise Found(wrong, _trace(before, state), start)
    return Explored(states=len(before), moves=count, ends=ends)


def _trace(before: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    steps = []
    came = before[state]
    while came is not None:
        state, step = came
        steps.append(step)
        came = before[state]
    return steps[::-1]


def what_is_wrong_at_the_end(state: State, start: State) -> str | None:
    """Say what must not be so when nobody does anything any more."""
    if not all(actor.over for actor in state.actors):
        return "somebody waits for ever"
    server, data = state.server, state.data
    gone = state.control.tombstone
    outcomes = [actor.outcome for actor in state.actors if actor.kind == "get"]
    if gone:
        kept = state.outbox == server.current or (server.grace and state.outbox)
        if server.alive and not kept and not state.excused:
            return "signed out, and a refresh token that works is forgotten"
        return None
    if server.grace or not state.excused:
        if not server.alive:
            return "the server has seen a replay"
        if data.refresh_token < server.current - server.grace:
            return f"refresh token {server.current} is lost"
        if "login" in outcomes:
            return "a user is signed out for nothing"
    if state.faults == start.faults and not state.leaps and set(outcomes) - {"served"}:
        return f"nothing went wrong, and still: {', '.join(outcomes)}"
    return None
