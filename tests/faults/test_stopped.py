"""A7: a process is stopped between any two steps of a refresh, past its lease, and goes on."""

import time

import pytest

from flask_atm.grants.record import Snapshot
from flask_atm.grants.vault import record_key
from tests.faults.conftest import Place
from tests.faults.driver import POINTS, Child, Fleet
from tests.faults.engines import PARAMETERS, FlaskATM
from tests.faults.test_killed import ROTATED, stand_at_each_point

#: On every kind of store: one of a file, two of a server.
pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "redis", "postgresql"], indirect=True)

L = PARAMETERS.lease


def stored(engine: FlaskATM, grant_id: str) -> Snapshot:
    snapshot = engine.state().provider().tokens.vault.read_stored(record_key(grant_id))
    assert snapshot is not None
    return snapshot


def value(child: Child) -> str:
    (outcome,) = child.outcomes()
    return outcome.value


@pytest.mark.parametrize("grace", [30, 0])
def test_a7_whoever_is_stopped_at_any_point_holds_nobody_up_and_spoils_nothing(
    place: Place, fleet: Fleet, grace: float
) -> None:
    place.server.grace = grace
    responses = [place.server.issue("alice") for _ in POINTS]
    engine = place.engine()
    grants = [engine.sign_in(response) for response in responses]
    scene = stand_at_each_point(fleet, engine, grants)
    others = fleet.crew(engine, [None, None])
    for victim in scene.victims.values():
        victim.stop()
    stopped_at = time.monotonic()

    outcomes = scene.outcomes(others)
    sent = len(place.sent())
    records = {point: stored(engine, scene.grants[point]) for point in POINTS}
    for victim in scene.victims.values():
        victim.cont()
        victim.go()

    for point, response in zip(POINTS, responses, strict=True):
        found = outcomes[point]
        assert max(one.at for one in found) - stopped_at < L + 3.0, point
        assert len({one.value for one in found}) == 1, (point, found)
        said = found[0].value
        late = value(scene.victims[point])
        lost = point in ROTATED
        assert place.sent().count(response["refresh_token"]) == 1 + lost, point
        if lost and not grace:
            assert said == "LoginRequired invalid_grant"
            # It has an answer for a grant that the server has killed meanwhile.
            continue
        assert not any(one.failed for one in found), (point, found)
        assert late == said, point
        assert stored(engine, scene.grants[point]).grant == records[point].grant, point
    # Stopped before the write they send nothing, stopped after it nothing more.
    assert len(place.sent()) == sent == len(POINTS) + len(ROTATED)
    assert place.server.replays == (0 if grace else len(ROTATED))


def test_a7_stopped_while_the_answer_is_on_its_way_it_never_overwrites_the_newer_record(
    place: Place, fleet: Fleet
) -> None:
    """The request is written and processed; the process sleeps past its lease and its deadline."""
    place.server.grace = 30
    grant_id = place.sign_in()
    engine = place.engine()
    victim, other = fleet.crew(engine, [None, None])
    place.server.hold()
    victim.ask(grant_id)
    place.server.wait_held()
    victim.stop()
    place.server.release()
    other.ask(grant_id)
    token = value(other)
    record = stored(engine, grant_id)
    assert record.grant.slots[""].token.reveal() == token
    victim.cont()
    assert value(victim) == token
    after = stored(engine, grant_id)
    assert after.grant == record.grant
    assert after.control.version >= record.control.version
    assert not after.control.doubt
    assert len(place.sent()) == 2


def test_a7_stopped_in_doubt_it_sends_nothing_after_somebody_else(
    place: Place, fleet: Fleet
) -> None:
    place.server.grace = 30
    grant_id = place.sign_in()
    engine = place.engine()
    first, second, other = fleet.crew(engine, ["answered", "doubt", None])
    first.ask(grant_id)
    first.wait_at("answered")
    first.kill()
    second.ask(grant_id)
    second.wait_at("doubt")
    second.stop()
    other.ask(grant_id)
    token = value(other)
    second.cont()
    second.go()
    assert value(second) == token
    assert len(place.sent()) == 2
