"""Without any one of the rules that matter the harness finds out; with all of them it does not.

The clock of some processes is ahead of that of others: so a lease has lapsed for them at once.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import pytest

from flask_atm.grants.refresh import Refresher
from tests.faults.conftest import Place
from tests.faults.driver import Fleet
from tests.faults.engines import PARAMETERS, FlaskATM
from tests.faults.test_strictness import nothing_is_sent_late
from tests.faults.weakened import (
    AnswersPass,
    AnswersRevoked,
    ClearsAfterTheWrite,
    Interrupted,
    Weakened,
    WithoutSecondRead,
    WithoutWait,
    WithoutWindow,
)
from tests.model import mutants
from tests.model.rules import Rules
from tests.servers.faulty import NotInTimeError

#: Gives an engine for which the token has so many seconds left.
Make = Callable[[float], FlaskATM]
Check = Callable[[Place, Fleet, Make], None]

#: Still good for a while, and due; by two clocks of which the second is past any lease.
STALE, STALE_LATER = 40.0, 20.0
EXPIRED, EXPIRED_LATER = -100.0, -120.0
LONG_WAIT: Final = 1.6


def whoever_has_looked_finds_what_was_left_since(place: Place, fleet: Fleet, make: Make) -> None:
    """Between its look and its begin another process sends and is killed: that is doubt."""
    response = place.server.issue("alice")
    grant_id = place.engine().sign_in(response)
    (late,) = fleet.crew(make(STALE_LATER), ["begin"])
    (victim,) = fleet.crew(make(STALE), ["answered"])
    late.ask(grant_id)
    late.wait_at("begin")
    victim.ask(grant_id)
    victim.wait_at("answered")
    victim.kill()
    late.go()
    late.outcomes()
    assert len(place.sent()) == 1, "sent again, not knowing of the first"
    late.ask(grant_id)
    outcomes = late.outcomes()
    assert len(place.sent()) == 1, "sent again, the doubt is forgotten"
    assert {one.value for one in outcomes} == {response["access_token"]}


def an_interrupt_after_the_write_leaves_the_doubt(place: Place, fleet: Fleet, make: Make) -> None:
    """The answer was there, and the interrupt came."""
    response = place.server.issue("alice")
    grant_id = place.engine().sign_in(response)
    (victim,) = fleet.crew(Interrupted(engine=make(STALE)), [None])
    (other,) = fleet.crew(make(STALE), [None])
    victim.ask(grant_id)
    assert victim.outcomes()[0].value == "interrupted"
    other.ask(grant_id)
    (outcome,) = other.outcomes()
    assert len(place.sent()) == 1, "sent again, the doubt is forgotten"
    assert outcome.value == response["access_token"]


def another_writer_spoils_nothing(place: Place, fleet: Fleet, make: Make) -> None:
    """The request is answered, and before the commit the record is sealed anew."""
    response = place.server.issue("alice")
    grant_id = place.engine().sign_in(response)
    victim, other = fleet.crew(make(STALE), ["answered", None])
    victim.ask(grant_id)
    victim.wait_at("answered")
    make(STALE).write(grant_id)
    other.ask(grant_id)
    (meanwhile,) = other.outcomes()
    assert len(place.sent()) == 1, "sent again, the lease is forgotten"
    assert meanwhile.value == response["access_token"]
    victim.go()
    (outcome,) = victim.outcomes()
    assert outcome.value != response["access_token"], "the answer is thrown away"
    assert place.server.lookup(outcome.value)
    assert len(place.sent()) == 1


def nothing_is_sent_after_the_window(place: Place, fleet: Fleet, make: Make) -> None:
    """Stopped between the begin and the request, until its lease has lapsed."""
    nothing_is_sent_late(place, fleet, make(EXPIRED), place.sign_in(), point="send")


def an_answer_goes_on_top_of_a_record_that_moved(place: Place, fleet: Fleet, make: Make) -> None:
    """Another process has taken over the lease, and is about to read the version once more."""
    grant_id = place.sign_in()
    (victim,) = fleet.crew(make(EXPIRED), ["commit"])
    (other,) = fleet.crew(make(EXPIRED_LATER), ["doubt"])
    victim.ask(grant_id)
    victim.wait_at("commit")
    other.ask(grant_id)
    other.wait_at("doubt")
    victim.go()
    (outcome,) = victim.outcomes()
    assert not place.server.revocations, "the answer is revoked"
    assert not outcome.failed, "the answer is thrown away"
    other.go()
    (later,) = other.outcomes()
    assert len(place.sent()) == 1, "sent again, after the answer has landed"
    assert later.value == outcome.value
    assert place.server.lookup(later.value)


def an_answer_can_land_before_anybody_sends_again(place: Place, fleet: Fleet, make: Make) -> None:
    """It does so after half of the time that whoever takes over waits for it."""
    grant_id = place.sign_in()
    (victim,) = fleet.crew(make(EXPIRED), ["commit"])
    (other,) = fleet.crew(make(EXPIRED_LATER), ["begun"])
    victim.ask(grant_id)
    victim.wait_at("commit")
    other.ask(grant_id)
    other.wait_at("begun")
    other.go()
    with suppress(NotInTimeError):
        place.server.wait_for(2, LONG_WAIT / 2, path="/token")
    victim.go()
    (outcome,), (later,) = victim.outcomes(), other.outcomes()
    assert len(place.sent()) == 1, "sent again, before the answer could land"
    assert later.value == outcome.value
    assert place.server.lookup(later.value)


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A rule that is missing, and who finds that out.

    :param wrong: what it says then.
    """

    rule: str
    check: Check
    wrong: str
    rules: Rules = field(default_factory=Rules)
    refresher: type[Refresher] = Refresher

    def __str__(self) -> str:
        return self.rule

    def engine(self, place: Place, left: float) -> FlaskATM:
        """Give an engine without the rule."""
        setup = patient(place, self.check, left).setup
        return Weakened(setup=setup, rules=self.rules, refresher=self.refresher)


def patient(place: Place, check: Check, left: float) -> FlaskATM:
    """Give the real engine; where it is about the wait D, that is long enough to look at."""
    engine = place.engine(left)
    if check is not an_answer_can_land_before_anybody_sends_again:
        return engine
    parameters = replace(PARAMETERS, doubt_wait=LONG_WAIT)
    return FlaskATM(setup=replace(engine.setup, engine=parameters))


#: In the order of the description of the algorithm.
MISSING: Final = (
    Missing(
        rule="doubt is found inside begin",
        check=whoever_has_looked_finds_what_was_left_since,
        wrong="not knowing of the first",
        rules=Rules(begin=mutants.begin_with_doubt_from_a_read),
    ),
    Missing(
        rule="doubt is a field",
        check=whoever_has_looked_finds_what_was_left_since,
        wrong="the doubt is forgotten",
        rules=Rules(begin=mutants.begin_tells_the_doubt_once),
    ),
    Missing(
        rule="another writer keeps lease, intent and doubt",
        check=another_writer_spoils_nothing,
        wrong="the lease is forgotten",
        rules=Rules(update=mutants.update_forgets),
    ),
    Missing(
        rule="another writer gives up while a lease is held (or an answer goes on top of it)",
        check=another_writer_spoils_nothing,
        wrong="the answer is thrown away",
        rules=Rules(update=mutants.update_never_gives_up),
        refresher=AnswersPass,
    ),
    Missing(
        rule="abort clears no intent of others",
        check=whoever_has_looked_finds_what_was_left_since,
        wrong="the doubt is forgotten",
        rules=Rules(abort=mutants.abort_ends_the_doubt),
    ),
    Missing(
        rule="an exception after the first byte clears no intent",
        check=an_interrupt_after_the_write_leaves_the_doubt,
        wrong="the doubt is forgotten",
        refresher=ClearsAfterTheWrite,
    ),
    Missing(
        rule="the send window is looked at",
        check=nothing_is_sent_after_the_window,
        wrong="a refresh token was sent again",
        refresher=WithoutWindow,
    ),
    Missing(
        rule="moved: the answer is not thrown away",
        check=an_answer_goes_on_top_of_a_record_that_moved,
        wrong="the answer is thrown away",
        refresher=AnswersPass,
    ),
    Missing(
        rule="moved: the answer is not revoked",
        check=an_answer_goes_on_top_of_a_record_that_moved,
        wrong="the answer is revoked",
        refresher=AnswersRevoked,
    ),
    Missing(
        rule="in doubt the holder waits first",
        check=an_answer_can_land_before_anybody_sends_again,
        wrong="before the answer could land",
        refresher=WithoutWait,
    ),
    Missing(
        rule="and then reads the version once more",
        check=an_answer_goes_on_top_of_a_record_that_moved,
        wrong="after the answer has landed",
        refresher=WithoutSecondRead,
    ),
)
CHECKS: Final = tuple(dict.fromkeys(missing.check for missing in MISSING))


@pytest.mark.parametrize("check", CHECKS)
def test_the_engine_with_all_rules_passes(place: Place, fleet: Fleet, check: Check) -> None:
    check(place, fleet, partial(patient, place, check))


@pytest.mark.parametrize("check", CHECKS)
def test_what_rules_are_taken_from_is_the_engine(place: Place, fleet: Fleet, check: Check) -> None:
    """So it is the missing rule that is found out, not the way of taking it away."""
    nothing = Missing(rule="none", check=check, wrong="")
    check(place, fleet, partial(nothing.engine, place))


@pytest.mark.parametrize("missing", MISSING, ids=str)
def test_the_engine_without_one_rule_does_not(place: Place, fleet: Fleet, missing: Missing) -> None:
    with pytest.raises(AssertionError, match=missing.wrong):
        missing.check(place, fleet, partial(missing.engine, place))
