"""The harness finds out what is wrong with simpler ways, and nothing wrong with this one."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.faults.conftest import Place
from tests.faults.driver import Engine, Fleet
from tests.faults.engines import PARAMETERS
from tests.faults.naive import LeaseWithoutWindow, LockWithoutSecondLook, Naive, ThreadLockOnly

Check = Callable[[Place, Fleet, Engine, str], None]


def one_refresh_for_all(place: Place, fleet: Fleet, engine: Engine, grant_id: str) -> None:
    """4 processes with 4 threads each, and one expired token."""
    place.server.latency = 0.05
    crew = fleet.crew(engine, 4 * [None])
    for child in crew:
        child.ask(grant_id, 4)
    outcomes = [outcome for child in crew for outcome in child.outcomes()]
    failed = [one.value for one in outcomes if one.failed]
    assert not failed, f"{len(failed)} of {len(outcomes)} calls failed"
    assert len(place.sent()) == 1, f"{len(place.sent())} refreshes"
    assert place.server.replays == 0
    assert place.server.lookup(outcomes[0].value), "the token does not work"


def nothing_is_sent_late(
    place: Place, fleet: Fleet, engine: Engine, grant_id: str, point: str = "write"
) -> None:
    """Stopped right before the write, until somebody else has done it."""
    victim, other = fleet.crew(engine, [point, None])
    victim.ask(grant_id)
    victim.wait_at(point)
    victim.stop()
    other.ask(grant_id)
    (outcome,) = other.outcomes()
    assert not outcome.failed
    victim.cont()
    victim.go()
    (late,) = victim.outcomes()
    assert place.server.replays == 0, "a refresh token was sent again"
    assert late.value == outcome.value
    assert place.server.lookup(late.value)


def the_dead_hold_nobody_up(place: Place, fleet: Fleet, engine: Engine, grant_id: str) -> None:
    """Killed right before the write."""
    victim, other = fleet.crew(engine, ["write", None])
    victim.ask(grant_id)
    victim.wait_at("write")
    victim.kill()
    killed_at = time.monotonic()
    other.ask(grant_id, 4)
    outcomes = other.outcomes()
    assert not any(one.failed for one in outcomes), "calls failed"
    assert max(one.at for one in outcomes) - killed_at < PARAMETERS.lease + 3.0
    assert len(place.sent()) == 1, f"{len(place.sent())} refreshes"


CHECKS = (one_refresh_for_all, nothing_is_sent_late, the_dead_hold_nobody_up)


@pytest.mark.parametrize("check", CHECKS)
def test_this_engine_passes(place: Place, fleet: Fleet, check: Check) -> None:
    check(place, fleet, place.engine(), place.sign_in())


@pytest.mark.parametrize(
    ("kind", "check", "at_once", "message"),
    [
        (Naive, one_refresh_for_all, 16, "15 of 16 calls failed"),
        (Naive, the_dead_hold_nobody_up, 4, "calls failed"),
        (ThreadLockOnly, one_refresh_for_all, 4, "calls failed"),
        (LockWithoutSecondLook, one_refresh_for_all, 1, "calls failed"),
        (LeaseWithoutWindow, nothing_is_sent_late, 1, "a refresh token was sent again"),
    ],
)
def test_a_simpler_one_does_not(
    place: Place, fleet: Fleet, kind: type[Naive], check: Check, at_once: int, message: str
) -> None:
    engine = kind(folder=place.folder, token_endpoint=place.server.token_endpoint)
    engine.sign_in("grant", place.server.issue("alice"))
    with answers_after(place, at_once), pytest.raises(AssertionError, match=message):
        check(place, fleet, engine, "grant")


@contextmanager
def answers_after(place: Place, requests: int) -> Iterator[None]:
    """Answer nobody before so many have asked: however slow the machine is, they overlap."""
    place.server.hold()

    def release() -> None:
        place.server.wait_held(requests)
        place.server.release()

    with ThreadPoolExecutor(1) as pool:
        released = pool.submit(release)
        yield
        released.result()


def test_a_lease_alone_is_enough_only_while_nobody_is_stopped(place: Place, fleet: Fleet) -> None:
    """So it is the stop that finds it out, not a mistake of the reference."""
    engine = LeaseWithoutWindow(folder=place.folder, token_endpoint=place.server.token_endpoint)
    engine.sign_in("grant", place.server.issue("alice"))
    one_refresh_for_all(place, fleet, engine, "grant")
