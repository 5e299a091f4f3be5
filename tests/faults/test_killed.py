"""A4, A5, A6: a process is killed between any two steps of a refresh."""

import time
from dataclasses import dataclass

import pytest

from tests.faults.conftest import Place
from tests.faults.driver import POINTS, Child, Fleet, Outcome
from tests.faults.engines import PARAMETERS, FlaskATM
from tests.grants.support import Setup, config
from tests.servers import OIDCServer

#: On every kind of store: one of a file, two of a server.
pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "redis", "postgresql"], indirect=True)

L = PARAMETERS.lease
#: At these points the server has rotated, and nobody else knows.
ROTATED = ("answered", "commit")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A process per point, each of them standing there with a grant of its own."""

    victims: dict[str, Child]
    grants: dict[str, str]

    def outcomes(self, others: list[Child]) -> dict[str, list[Outcome]]:
        """Ask others for all the grants, from several threads; give what came, by point."""
        for child in others:
            for grant_id in self.grants.values():
                child.ask(grant_id, 2)
        found = [outcome for child in others for outcome in child.outcomes()]
        return {
            point: [one for one in found if one.grant_id == grant_id]
            for point, grant_id in self.grants.items()
        }


def stand_at_each_point(fleet: Fleet, engine: FlaskATM, grants: list[str]) -> Scene:
    victims = dict(zip(POINTS, fleet.crew(engine, POINTS), strict=True))
    named = dict(zip(POINTS, grants, strict=True))
    for point, victim in victims.items():
        victim.ask(named[point])
    for point, victim in victims.items():
        victim.wait_at(point)
    return Scene(victims=victims, grants=named)


@pytest.mark.parametrize("grace", [30, 0])
def test_a4_a5_a6_whoever_is_killed_at_any_point_holds_nobody_up(
    place: Place, fleet: Fleet, grace: float
) -> None:
    place.server.grace = grace
    first = [place.server.issue("alice") for _ in POINTS]
    grants = [place.engine().sign_in(response) for response in first]
    scene = stand_at_each_point(fleet, place.engine(), grants)
    others = fleet.crew(place.engine(), [None, None])
    for victim in scene.victims.values():
        victim.kill()
    killed_at = time.monotonic()

    outcomes = scene.outcomes(others)

    sent = place.sent()
    for point, response in zip(POINTS, first, strict=True):
        found = outcomes[point]
        assert len(found) == 4
        assert max(one.at for one in found) - killed_at < L + 3.0, point
        lost = point in ROTATED
        if lost and not grace:
            # The answer is gone with its process. One more attempt, and a sign-in.
            assert {one.value for one in found} == {"LoginRequired invalid_grant"}, point
        else:
            assert not any(one.failed for one in found), (point, found)
            assert len({one.value for one in found}) == 1, point
            assert place.server.lookup(found[0].value), point
        # Twice only by the rule for lost answers; never a third time.
        assert sent.count(response["refresh_token"]) == 1 + lost, point
    assert place.server.replays == (0 if grace else len(ROTATED))
    assert len(sent) == len(POINTS) + len(ROTATED)


def test_a4_killed_before_the_request_is_written_means_one_further_refresh(
    oidc: OIDCServer, fleet: Fleet, store_url: str
) -> None:
    """Against a server that kills the grant for a second request."""
    client = oidc.add_client("http://localhost/oidc/callback")
    setup = Setup(config=config(oidc, client, store_url), ahead=1000.0, engine=PARAMETERS)
    engine = FlaskATM(setup=setup)
    points = ("begun", "send", "write")
    grants = {point: engine.sign_in(oidc.sign_in_directly(client)) for point in points}
    oidc.reset()
    victims = fleet.crew(engine, points)
    others = fleet.crew(engine, [None, None])
    for victim, point in zip(victims, points, strict=True):
        victim.ask(grants[point])
        victim.wait_at(point)
    killed_at = time.time()
    for victim in victims:
        victim.kill()
    assert oidc.token_requests() == []

    for other in others:
        for grant_id in grants.values():
            other.ask(grant_id, 4)
    outcomes = [outcome for other in others for outcome in other.outcomes()]

    assert [one for one in outcomes if one.failed] == []
    for grant_id in grants.values():
        assert len({one.value for one in outcomes if one.grant_id == grant_id}) == 1
    requests = oidc.token_requests()
    assert len(requests) == len(points)
    assert len({made["refresh_token_sha256"] for made in requests}) == len(points)
    assert oidc.stats()["replays"] == 0
    assert time.time() - killed_at < L + 3.0


def test_a6_with_a_valid_token_nobody_sends_again_and_then_once_for_all(
    place: Place, fleet: Fleet
) -> None:
    """Killed with the answer in its hands; the old token is good for another moment."""
    left = L + 2.0
    victim, *others = fleet.crew(place.engine(left), ["answered", None, None])
    response = place.server.issue("alice")
    grant_id = place.engine().sign_in(response)
    signed_in_at = time.monotonic()
    victim.ask(grant_id)
    victim.wait_at("answered")
    victim.kill()

    served: list[Outcome] = []
    expires_at = signed_in_at + left - PARAMETERS.min_ttl
    while time.monotonic() < expires_at - 0.5:
        for other in others:
            other.ask(grant_id, 4)
        # Whoever came back later than that may have been told otherwise.
        answers = [outcome for other in others for outcome in other.outcomes()]
        served = [outcome for outcome in answers if outcome.at < expires_at]
        sent = len(place.sent())
        assert sent == 1 or time.monotonic() >= expires_at
        assert {one.value for one in served} == {response["access_token"]}
        time.sleep(0.05)
    assert len(served) > 16
    time.sleep(max(0.0, signed_in_at + left + 0.05 - time.monotonic()))

    asked_at = time.monotonic()
    for other in others:
        other.ask(grant_id, 16)
    last = [outcome for other in others for outcome in other.outcomes()[-16:]]

    assert {one.value for one in last} == {"LoginRequired invalid_grant"}
    assert max(one.at for one in last) - asked_at < PARAMETERS.wait + 1.0
    assert place.sent() == 2 * [response["refresh_token"]]
    others[0].ask(grant_id)
    assert others[0].outcomes()[-1].value == "LoginRequired invalid_grant"
    assert len(place.sent()) == 2


def test_a5_a_lost_answer_is_asked_for_again_where_the_server_has_grace(
    place: Place, fleet: Fleet
) -> None:
    """And whoever was waiting already when the refresher was killed is served as well."""
    place.server.grace = 30
    grant_id = place.sign_in()
    engine = place.engine()
    victim, *others = fleet.crew(engine, ["answered", None, None])
    victim.ask(grant_id)
    victim.wait_at("answered")
    for other in others:
        other.ask(grant_id, 4)
    victim.kill()
    killed_at = time.monotonic()
    outcomes = [outcome for other in others for outcome in other.outcomes()]
    assert [one for one in outcomes if one.failed] == []
    assert len({one.value for one in outcomes}) == 1
    requests = place.server.token_requests
    assert len(requests) == 2
    assert requests[1].arrived_at - killed_at < L + 3.0
    assert (place.server.replays, place.server.graced) == (0, 1)


def test_killed_while_it_waits_in_doubt_means_another_one_waits(place: Place, fleet: Fleet) -> None:
    place.server.grace = 30
    grant_id = place.sign_in()
    first, second, *others = fleet.crew(place.engine(), ["answered", "doubt", None, None])
    for victim, point in ((first, "answered"), (second, "doubt")):
        victim.ask(grant_id)
        victim.wait_at(point)
        victim.kill()
    killed_at = time.monotonic()
    for other in others:
        other.ask(grant_id, 4)
    outcomes = [outcome for other in others for outcome in other.outcomes()]
    assert [one for one in outcomes if one.failed] == []
    assert max(one.at for one in outcomes) - killed_at < L + 3.0
    assert len(place.sent()) == 2
