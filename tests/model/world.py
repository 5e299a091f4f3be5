"""What the model is made of: a record in a store, a server, and actors. All values, no I/O."""

from functools import cache
from typing import Final, NamedTuple

from flask_atm.grants.answers import Tokens
from flask_atm.grants.control import Control
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.record import Grant, Slot, token_hash
from flask_atm.tokens import Secret

__all__ = [
    "LEAP",
    "LOGIN",
    "PARAMETERS",
    "START",
    "Aborting",
    "Actor",
    "Data",
    "Held",
    "Server",
    "State",
    "hash_of",
    "initial",
    "renewed",
]

PARAMETERS: Final = EngineParameters()
START: Final = 1000.0
#: Time passes in leaps: a little more than the lease, so that one leap ends every lease, window,
#: deadline and pause, and two of them the patience of a waiter.
LEAP: Final = PARAMETERS.lease + 1.0
LOGIN: Final = ""


class Held(NamedTuple):
    """An access token in a slot, by the number of the answer that brought it."""

    slot: str
    number: int
    expires_at: float
    requested_at: float


class Data(NamedTuple):
    """What is sealed: the refresh token, by its number, and the slots."""

    refresh_token: int
    slots: tuple[Held, ...]

    def held(self, slot: str) -> Held | None:
        return next((one for one in self.slots if one.slot == slot), None)


class Server(NamedTuple):
    """An authorization server with rotation: one refresh token is good, the others are replays.

    :param grace: a used refresh token gets the same answer again.
    """

    current: int = 1
    alive: bool = True
    grace: bool = False

    def answer(self, refresh_token: int) -> tuple[int, "Server"]:
        """Take a refresh token; give the number of the new one, or -1 for ``invalid_grant``."""
        if not self.alive:
            return -1, self
        if refresh_token == self.current:
            return self.current + 1, self._replace(current=self.current + 1)
        if self.grace:
            return refresh_token + 1, self
        return -1, self._replace(alive=False)


class Aborting(NamedTuple):
    """How an attempt gives its lease back, and what its caller gets to hear."""

    clear_intent: bool
    pause: bool = False
    dead: bool = False
    suspect: bool = False
    error: str | None = None


class Actor(NamedTuple):
    """A process with one call (``get``), one change of the record (``write``) or a ``logout``.

    :ivar at: the step that comes next: named like the checkpoints of the engine where it has one.
    :ivar turn: how often it has looked at the record, and so the name of its attempt.
    :ivar error: why it looks once more before it gives up; "": there is a token to fall back upon.
    :ivar version: of the record that it read, then of the one that it holds.
    :ivar late: it overslept its lease.
    :ivar first: nobody had sent this refresh token before.
    :ivar flapped: the store was away while it waited in doubt.
    :ivar rounds: how often its answer met a version that had moved.
    :ivar waited: leaps of time since its call began.
    :ivar paused: the record said "not before" when it took the lease.
    """

    kind: str = "get"
    slot: str = LOGIN
    rejects: int = 0
    at: str = "idle"
    turn: int = 0
    outcome: str = ""
    error: str | None = None
    version: int = 0
    base: Data | None = None
    failures: int = 0
    meanwhile: bool = False
    doubt: bool = False
    begun_at: float = 0.0
    late: bool = False
    first: bool = True
    flapped: bool = False
    paused: bool = False
    answer: int = 0
    rounds: int = 0
    waited: int = 0
    aborting: Aborting | None = None

    @property
    def over(self) -> bool:
        return self.at in ("done", "crashed")

    @property
    def sent(self) -> int:
        """The number of the refresh token that it works with."""
        return self.base.refresh_token if self.base else 0


class State(NamedTuple):
    """All there is at one moment.

    :ivar outbox: the refresh token that a logout left to be revoked.
    :ivar dirty: the last refresh token that was sent without its end being known.
    :ivar excused: an answer was lost, or a process with one in its hands: a strict server may kill.
    """

    control: Control
    data: Data
    server: Server
    actors: tuple[Actor, ...]
    faults: int
    leaps: int = 0
    down: bool = False
    outbox: int = 0
    dirty: int = 0
    excused: bool = False

    @property
    def now(self) -> float:
        return START + self.leaps * LEAP


def initial(*actors: Actor, left: float, faults: int, grace: bool = False) -> State:
    """Give the beginning: a sign-in whose access token has so many seconds left."""
    held = Held(slot=LOGIN, number=1, expires_at=START + left, requested_at=START + left - 300)
    return State(
        control=Control(ends_at=START + 1e6),
        data=Data(refresh_token=1, slots=(held,)),
        server=Server(grace=grace),
        actors=actors,
        faults=faults,
    )


# -- between the model's numbers and the real values


@cache
def hash_of(refresh_token: int) -> str:
    text = token_hash(f"refresh-{refresh_token}")
    assert text is not None
    return text


@cache
def grant_of(data: Data) -> Grant:
    """Give the real grant."""
    slots = {
        one.slot: Slot(
            token=Secret(f"access-{one.number}"),
            token_type="Bearer",
            expires_at=one.expires_at,
            lifetime=300.0,
            requested_at=one.requested_at,
            obtained_at=one.expires_at - 300.0,
        )
        for one in data.slots
    }
    return Grant(
        provider="p",
        issuer="i",
        client_id="c",
        refresh_token=Secret(f"refresh-{data.refresh_token}"),
        slots=slots,
    )


@cache
def renewed(data: Data, slot: str, number: int, requested_at: float, now: float) -> Data:
    """Give the data with an answer in it, by the real :meth:`Grant.renewed`."""
    tokens = Tokens(
        access_token=Secret(f"access-{number}"),
        token_type="Bearer",
        lifetime=300.0,
        refresh_token=Secret(f"refresh-{number}"),
    )
    grant = grant_of(data).renewed(
        slot, tokens, claims=None, rejected=None, requested_at=requested_at, now=now
    )
    assert grant.refresh_token is not None
    return Data(
        refresh_token=int(grant.refresh_token.reveal().partition("-")[2]),
        slots=tuple(
            Held(
                slot=name,
                number=int(one.token.reveal().partition("-")[2]),
                expires_at=one.expires_at,
                requested_at=one.requested_at,
            )
            for name, one in sorted(grant.slots.items())
        ),
    )
