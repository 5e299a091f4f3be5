"""The engine with a rule missing: one for each rule that matters, and what comes of it.

A mutant changes one function of the rules, and only what the rule is about. Some rules are there
twice, for safety; then the mutant lacks both.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from flask_atm.grants import control as steps
from flask_atm.grants.control import Begun, Control, Outcome, lease_left
from flask_atm.grants.record import Decision, Snapshot, decide
from tests.model.rules import Rules
from tests.model.world import Actor

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """An engine that lacks a rule.

    :param rule: what the rule says.
    :param wrong: part of what the model finds.
    :param faults: the kinds of faults that it takes; none: it goes wrong by itself.
    :param most: how many of them.
    """

    rule: str
    rules: Rules
    wrong: str
    faults: frozenset[str]
    most: int = 1
    actors: tuple[Actor, ...] = (Actor(), Actor())
    left: float = -1.0
    grace: bool = False

    def __str__(self) -> str:
        return self.rule


def begin_upon_any_version(
    control: Control, now: float, *, expected_version: int, **rest: Any
) -> tuple[Begun, Control | None]:
    return steps.begin(control, now, expected_version=control.version, **rest)


def begin_without_lease(
    control: Control, now: float, **arguments: Any
) -> tuple[Begun, Control | None]:
    return steps.begin(replace(control, lease_until=0.0), now, **arguments)


def begin_not_repeatable(
    control: Control, now: float, *, owner: str, **rest: Any
) -> tuple[Begun, Control | None]:
    if lease_left(control, now):
        return Begun(status="busy", wait=1.0, now=now), None
    return steps.begin(control, now, owner=owner, **rest)


def begin_with_doubt_from_a_read(
    control: Control, now: float, **arguments: Any
) -> tuple[Begun, Control | None]:
    """What a read before had said counts; an intent that came since then does not."""
    return steps.begin(replace(control, intent=None), now, **arguments)


def begin_tells_the_doubt_once(
    control: Control, now: float, **arguments: Any
) -> tuple[Begun, Control | None]:
    """The doubt is part of the answer, but not of the record."""
    begun, new = steps.begin(control, now, **arguments)
    return begun, None if new is None else replace(new, doubt=control.doubt)


def begin_forgets_the_doubt(
    control: Control, now: float, **arguments: Any
) -> tuple[Begun, Control | None]:
    begun, new = steps.begin(replace(control, doubt=False), now, **arguments)
    return begun, new


def commit_upon_any_version(
    control: Control, now: float, *, expected_version: int, **rest: Any
) -> tuple[Outcome, Control | None]:
    return steps.commit(control, now, expected_version=control.version, **rest)


def commit_fenced_by_the_lease(
    control: Control, now: float, *, expected_version: int, commit_id: str
) -> tuple[Outcome, Control | None]:
    if not control.tombstone and not (
        control.lease_owner == commit_id and lease_left(control, now)
    ):
        return "moved", None
    return steps.commit(control, now, expected_version=control.version, commit_id=commit_id)


def commit_creates(
    control: Control, now: float, *, expected_version: int, **rest: Any
) -> tuple[Outcome, Control | None]:
    if control.tombstone:
        expected_version = control.version
    alive = replace(control, tombstone=False)
    return steps.commit(alive, now, expected_version=expected_version, **rest)


def update_forgets(
    control: Control, now: float, *, expected_version: int
) -> tuple[Outcome, Control | None]:
    """A writer that knows nothing of leases and intents: it writes a record."""
    if control.tombstone or control.version != expected_version:
        return steps.update(control, now, expected_version=expected_version)
    return "ok", Control(
        version=control.version + 1, sealed_version=control.version + 1, ends_at=control.ends_at
    )


def update_never_gives_up(
    control: Control, now: float, *, expected_version: int
) -> tuple[Outcome, Control | None]:
    """It keeps what is there, but writes while a lease is held or a token in doubt."""
    if control.tombstone or control.version != expected_version:
        return steps.update(control, now, expected_version=expected_version)
    version = control.version + 1
    return "ok", replace(control, version=version, sealed_version=version)


def update_upon_any_version(
    control: Control, now: float, *, expected_version: int
) -> tuple[Outcome, Control | None]:
    return steps.update(control, now, expected_version=control.version)


def abort_by_anybody(control: Control, now: float, *, owner: str, **rest: Any) -> Control | None:
    return steps.abort(control, now, owner=control.lease_owner or owner, **rest)


def abort_clears_any_intent(control: Control, now: float, **arguments: Any) -> Control | None:
    return steps.abort(control, now, **{**arguments, "clear_intent": True})


def abort_ends_the_doubt(control: Control, now: float, **arguments: Any) -> Control | None:
    return steps.abort(replace(control, doubt=False), now, **arguments)


def abort_at_the_same_version(control: Control, now: float, **arguments: Any) -> Control | None:
    new = steps.abort(control, now, **arguments)
    return new and replace(new, version=control.version)


def decide_without_doubt(snapshot: Snapshot, *arguments: Any, **rest: Any) -> Decision:
    control = replace(snapshot.control, doubt=False, intent=None)
    return decide(replace(snapshot, control=control), *arguments, **rest)


def decide_without_pause(snapshot: Snapshot, *arguments: Any, **rest: Any) -> Decision:
    return decide(
        replace(snapshot, control=replace(snapshot.control, retry_at=0.0)), *arguments, **rest
    )


def bury_nothing(control: Control) -> Control:
    """A logout that takes the lease away, and leaves the record."""
    return Control(version=control.version + 1, ends_at=control.ends_at)


GET, WRITE, LOGOUT = Actor(), Actor(kind="write"), Actor(kind="logout")
OTHER_SLOT = Actor(slot="b")
EXPIRED, STALE = -1.0, 8.0  # seconds left
TWICE, UNKNOWN = "is sent again while somebody", "is sent again, and its sender does not know"

#: ● begin-validates-version, and so on, in the order of 04-refresh.md.
MUTANTS: Final = (
    Mutant(
        rule="begin holds a lease",
        rules=Rules(begin=begin_without_lease),
        wrong=TWICE,
        faults=frozenset(),
    ),
    Mutant(
        rule="begin validates the version that was read",
        rules=Rules(begin=begin_upon_any_version),
        wrong="and 2 is in the store",
        faults=frozenset(),
    ),
    Mutant(
        rule="begin can be repeated by its owner",
        rules=Rules(begin=begin_not_repeatable),
        wrong="locked out by its own lease",
        faults=frozenset({"lost reply"}),
    ),
    Mutant(
        rule="the intent is written before the request",
        rules=Rules(writes_intent=False),
        wrong=UNKNOWN,
        faults=frozenset({"crash"}),
    ),
    Mutant(
        rule="doubt is found inside the step",
        rules=Rules(begin=begin_with_doubt_from_a_read),
        wrong=UNKNOWN,
        faults=frozenset({"crash"}),
    ),
    Mutant(
        rule="doubt is a field: a repeated begin finds it again",
        rules=Rules(begin=begin_tells_the_doubt_once),
        wrong=UNKNOWN,
        faults=frozenset({"crash", "lost reply"}),
        most=2,
    ),
    Mutant(
        rule="doubt is a field: begin leaves it as it is",
        rules=Rules(begin=begin_forgets_the_doubt),
        wrong=UNKNOWN,
        faults=frozenset({"crash", "lost reply"}),
        most=2,
    ),
    Mutant(
        rule="doubt is a field: a re-send that was answered 503 leaves it",
        rules=Rules(abort=abort_ends_the_doubt),
        wrong=UNKNOWN,
        faults=frozenset({"lost answer", "503"}),
        most=2,
        actors=(GET, GET, GET),
    ),
    Mutant(
        rule="abort clears no intent of others, and none that is in doubt",
        rules=Rules(abort=abort_clears_any_intent),
        wrong=UNKNOWN,
        faults=frozenset({"lost answer"}),
    ),
    Mutant(
        rule="after the first byte an attempt aborts without clearing",
        rules=Rules(unknown_keeps_intent=False),
        wrong=UNKNOWN,
        faults=frozenset({"exit"}),
    ),
    Mutant(
        rule="abort gives back its own lease only",
        rules=Rules(abort=abort_by_anybody),
        wrong=TWICE,
        faults=frozenset({"stop"}),
        actors=(GET, GET, GET),
    ),
    Mutant(
        rule="abort raises the version",
        rules=Rules(abort=abort_at_the_same_version),
        wrong="is sent within the pause",
        faults=frozenset({"lost answer"}),
    ),
    Mutant(
        rule="not before retry_at",
        rules=Rules(decide=decide_without_pause),
        wrong="is sent within the pause",
        faults=frozenset({"503"}),
    ),
    Mutant(
        rule="the send window",
        rules=Rules(window=False),
        wrong="refresh token 1 is sent",
        faults=frozenset({"stop"}),
    ),
    Mutant(
        rule="in doubt the holder waits first",
        rules=Rules(doubt_wait=False),
        wrong=TWICE,
        faults=frozenset({"down"}),
    ),
    Mutant(
        rule="and then reads the version once more",
        rules=Rules(second_read=False),
        wrong="and 2 is in the store",
        faults=frozenset({"down"}),
    ),
    Mutant(
        rule="who has a valid token does not send in doubt (decided before begin, and after)",
        rules=Rules(doubt_look=False, decide=decide_without_doubt),
        wrong="although there is a valid token",
        faults=frozenset({"exit"}),
        left=STALE,
    ),
    Mutant(
        rule="an answer that the store does not take is kept",
        rules=Rules(keep_answers=False),
        wrong="came, and is thrown away",
        faults=frozenset({"down"}),
    ),
    Mutant(
        rule="commit is fenced by the version",
        rules=Rules(commit=commit_upon_any_version),
        wrong="is overwritten by the older",
        faults=frozenset({"lost reply"}),
        actors=(GET, OTHER_SLOT),
    ),
    Mutant(
        rule="commit is not fenced by the lease",
        rules=Rules(commit=commit_fenced_by_the_lease),
        wrong="goes round in circles",
        faults=frozenset({"stop"}),
    ),
    Mutant(
        rule="moved: the same refresh token, so the answer goes on top",
        rules=Rules(on_top="never"),
        wrong="came, and is thrown away",
        faults=frozenset({"stop"}),
    ),
    Mutant(
        rule="moved: another refresh token, so that is used",
        rules=Rules(on_top="always"),
        wrong="is overwritten by the older",
        faults=frozenset({"lost reply"}),
        actors=(GET, OTHER_SLOT),
    ),
    Mutant(
        rule="other writers keep lease, intent and doubt",
        rules=Rules(update=update_forgets),
        wrong="refresh token 1 is sent again",
        faults=frozenset(),
        actors=(GET, GET, WRITE),
    ),
    Mutant(
        rule="other writers are fenced by the version too",
        rules=Rules(update=update_upon_any_version),
        wrong="is overwritten by the older",
        faults=frozenset(),
        actors=(GET, WRITE),
    ),
    Mutant(
        rule="other writers give up while a lease is held (or an answer goes on top of them)",
        rules=Rules(update=update_never_gives_up, on_top="never"),
        wrong="came, and is thrown away",
        faults=frozenset(),
        actors=(GET, WRITE),
    ),
    Mutant(
        rule="commit never creates",
        rules=Rules(commit=commit_creates),
        wrong="is back after the logout",
        faults=frozenset(),
        actors=(GET, LOGOUT),
    ),
    Mutant(
        rule="a logout leaves a tombstone",
        rules=Rules(bury=bury_nothing),
        wrong="refresh token 1 is sent again",
        faults=frozenset(),
        actors=(GET, GET, LOGOUT),
    ),
)
