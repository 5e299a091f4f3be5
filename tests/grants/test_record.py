"""Grants, their slots, and the decision, as tables."""

import json
from dataclasses import replace
from typing import Any

import pytest

from flask_atm.grants.answers import Tokens
from flask_atm.grants.control import Control
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.record import (
    MAX_SLOTS,
    Decision,
    Denied,
    Grant,
    Renew,
    Serve,
    Slot,
    Snapshot,
    Unavailable,
    Want,
    decide,
    slot_key,
    token_hash,
    token_request,
)
from flask_atm.tokens import FrozenDict, Secret, TokenParameters

NOW = 100_000.0
PARAMETERS = EngineParameters()
IDLE = Control(ends_at=NOW + 9999)
WANT = Want(slot="", leeway=60)
H = token_hash("r")


def slot(left: float = 1000.0, *, lifetime: float = 3600.0, **changes: Any) -> Slot:
    members: dict[str, Any] = {
        "token": Secret("a"),
        "token_type": "Bearer",
        "expires_at": NOW + left,
        "lifetime": lifetime,
        "requested_at": NOW + left - lifetime,
        "obtained_at": NOW + left - lifetime,
        **changes,
    }
    return Slot(**members)


def grant(*slots: Slot, refresh_token: str | None = "r") -> Grant:
    return Grant(
        provider="p",
        issuer="i",
        client_id="c",
        refresh_token=Secret(refresh_token) if refresh_token else None,
        slots=dict.fromkeys([""] * len(slots), slots[0]) if slots else {},
    )


def ask(
    *slots: Slot,
    control: Control = IDLE,
    want: Want = WANT,
    blocked: float = 0.0,
    refresh_token: str | None = "r",
) -> Decision:
    snapshot = Snapshot(
        key="k", control=control, grant=grant(*slots, refresh_token=refresh_token), now=NOW
    )
    return decide(snapshot, want, PARAMETERS, blocked=blocked)


WAITING = Renew(meanwhile=None)
BUSY = replace(IDLE, lease_owner="x", lease=13, lease_until=NOW + 5, intent=H)
DOUBT = replace(IDLE, intent=H, doubt=True)
PAUSED = replace(IDLE, retry_at=NOW + 7)
DEAD = replace(IDLE, dead=H)


@pytest.mark.parametrize("control", [IDLE, BUSY, DOUBT, PAUSED, replace(BUSY, lease_until=NOW - 1)])
@pytest.mark.parametrize("blocked", [0.0, 9.0])
def test_a_fresh_token_is_served_whatever_else_there_is(control: Control, blocked: float) -> None:
    fresh = slot(61)
    assert ask(fresh, control=control, blocked=blocked) == Serve(slot=fresh)


@pytest.mark.parametrize("left", [53.9, 30, 5.1])
def test_a_stale_token_is_renewed_unless_there_is_a_reason_not_to(left: float) -> None:
    stale = slot(left)
    assert ask(stale) == Renew(meanwhile=stale)
    for control in (BUSY, DOUBT, PAUSED, replace(BUSY, lease_until=NOW - 1)):
        assert ask(stale, control=control) == Serve(slot=stale)
    assert ask(stale, blocked=1.0) == Serve(slot=stale)


@pytest.mark.parametrize("left", [5.0, 0.001])
def test_a_token_with_next_to_nothing_left_is_waited_for_if_there_is_hope(left: float) -> None:
    ending = slot(left)
    assert ask(ending) == WAITING
    assert ask(ending, control=BUSY) == WAITING
    for control in (DOUBT, PAUSED):
        assert ask(ending, control=control) == Serve(slot=ending)
    assert ask(ending, blocked=1.0) == Serve(slot=ending)


@pytest.mark.parametrize("slots", [(), (slot(0),), (slot(-5),)])
def test_an_expired_token_or_none_is_waited_for(slots: tuple[Slot, ...]) -> None:
    for control in (IDLE, BUSY, DOUBT):
        assert ask(*slots, control=control) == WAITING
    assert ask(*slots, control=PAUSED) == Unavailable(retry_after=7)
    assert ask(*slots, blocked=3.0) == Unavailable(retry_after=3)
    assert ask(*slots, control=PAUSED, blocked=9.0) == Unavailable(retry_after=9)


def test_the_dead_get_nothing() -> None:
    assert ask(slot(1000), control=DEAD) == Denied(reason="invalid_grant")
    # It is that refresh token that is dead, not its successor.
    assert isinstance(ask(slot(1000), control=DEAD, refresh_token="r2"), Serve)


def test_without_a_refresh_token_a_token_is_served_to_its_last_second() -> None:
    for left in (1000, 30, 0.001):
        assert ask(slot(left), refresh_token=None) == Serve(slot=slot(left))
    assert ask(slot(0), refresh_token=None) == Denied(reason="expired")
    assert ask(refresh_token=None) == Denied(reason="expired")
    forced = replace(WANT, since=NOW)
    assert ask(slot(1000), want=forced, refresh_token=None) == Denied(reason="expired")


def test_without_a_need_of_a_refresh_token_it_is_not_missed() -> None:
    want = replace(WANT, by_refresh_token=False)
    assert ask(want=want, refresh_token=None) == WAITING
    assert ask(slot(30), want=want, refresh_token=None) == Renew(meanwhile=slot(30))


def test_another_slot_has_nothing_to_do_with_it() -> None:
    assert ask(slot(1000), want=Want(slot="other", leeway=60)) == WAITING


# -- leeway


@pytest.mark.parametrize(
    ("lifetime", "leeway", "least", "most"),
    [(3600, 60, 54, 60), (20, 60, 3.6, 4), (100, 10, 9, 10)],
)
def test_the_leeway_is_at_most_a_fifth_less_up_to_a_tenth(
    lifetime: float, leeway: float, least: float, most: float
) -> None:
    want = Want(slot="", leeway=leeway)
    assert isinstance(ask(slot(most + 0.01, lifetime=lifetime), want=want), Serve)
    assert isinstance(ask(slot(least - 0.01, lifetime=lifetime), want=want), Renew)


def test_the_leeway_is_the_same_everywhere_but_not_for_all() -> None:
    def stale_from(key: str, version: int) -> float:
        control = replace(IDLE, version=version, sealed_version=version)
        for tenth in range(610, 530, -1):
            snapshot = Snapshot(key=key, control=control, grant=grant(slot(tenth / 10)), now=NOW)
            if isinstance(decide(snapshot, WANT, PARAMETERS), Renew):
                return tenth / 10
        raise AssertionError

    moments = {stale_from(f"k{number}", 1) for number in range(20)}
    assert moments == {stale_from(f"k{number}", 1) for number in range(20)}
    assert len(moments) > 10
    assert len({stale_from("k", version) for version in range(20)}) > 10


# -- 8: a token that an API refused


def refused(token: str = "a") -> Want:
    return replace(WANT, rejected=token)


def test_a_refused_token_counts_as_none() -> None:
    assert ask(slot(1000), want=refused()) == WAITING
    assert ask(slot(1000), want=refused(), control=BUSY) == WAITING
    # In doubt too: an API has refused what is left.
    assert ask(slot(1000), want=refused(), control=DOUBT) == WAITING
    assert ask(slot(1000), want=refused(), control=PAUSED) == Unavailable(retry_after=7)


def test_another_token_than_the_refused_one_is_served() -> None:
    assert ask(slot(1000), want=refused("b")) == Serve(slot=slot(1000))


@pytest.mark.parametrize(
    ("age", "renewals", "again"),
    [
        (0.5, 0, False),
        (1.0, 0, True),
        (9.9, 1, False),
        (10, 1, True),
        (19, 2, False),
        (20, 2, True),
        (299, 9, False),
        (300, 9, True),
        (300, 99999, True),
        (-50, 0, True),
        (-50, 3, True),
    ],
)
def test_after_refused_renewals_the_same_token_is_served_for_a_while(
    age: float, renewals: int, again: bool
) -> None:
    one = slot(1000, obtained_at=NOW - age, renewals=renewals)
    assert ask(one, want=refused()) == (WAITING if again else Serve(slot=one))


def test_renewals_are_counted_in_a_row() -> None:
    def renewed(old: Grant, rejected: str | None, at: float) -> Grant:
        tokens = Tokens(access_token=Secret(f"a{at}"), token_type="Bearer", lifetime=3600)
        return old.renewed("", tokens, claims=None, rejected=rejected, requested_at=at, now=at)

    first = renewed(grant(slot(1000, obtained_at=NOW - 5)), "a", NOW)
    assert first.slots[""].renewals == 1
    second = renewed(first, f"a{NOW}", NOW + 20)
    assert second.slots[""].renewals == 2
    assert renewed(second, None, NOW + 40).slots[""].renewals == 0
    assert renewed(second, "another", NOW + 40).slots[""].renewals == 0
    assert renewed(second, f"a{NOW + 20}", NOW + 700).slots[""].renewals == 1


# -- 9: force_renewal


def test_a_forced_renewal_wants_a_token_that_was_asked_for_later() -> None:
    forced = replace(WANT, since=NOW - 10)
    assert ask(slot(1000, requested_at=NOW - 11), want=forced) == WAITING
    assert ask(slot(1000, requested_at=NOW - 10), want=forced) == Serve(
        slot=slot(1000, requested_at=NOW - 10)
    )
    old = slot(1000, requested_at=NOW - 11)
    assert ask(old, want=forced, control=DOUBT) == Serve(slot=old)
    assert ask(old, want=forced, control=PAUSED) == Unavailable(retry_after=7)
    young = slot(1000, requested_at=NOW - 11, obtained_at=NOW - 0.1, renewals=3)
    assert ask(young, want=forced) == WAITING


# -- clocks


def test_k2_a_token_dated_in_the_future_is_stale() -> None:
    future = slot(7200, obtained_at=NOW + 3600)
    assert ask(future) == Renew(meanwhile=future)
    assert ask(future, control=PAUSED) == Serve(slot=future)
    # A moment ahead is another host's clock.
    assert isinstance(ask(slot(1000, obtained_at=NOW + 0.9)), Serve)


# -- grants


def full() -> Grant:
    return Grant(
        provider="p",
        issuer="i",
        client_id="c",
        subject="s",
        session_id="sid",
        refresh_token=Secret("canary r"),
        id_token=Secret("canary i"),
        claims=FrozenDict({"sub": "s", "name": "Zoë \ud800"}),
        scope="openid",
        resources=("https://api",),
        signed_in_at=1.0,
        ends_at=2.0,
        slots={"": slot(token=Secret("canary a"), scope="read", renewals=2)},
        other={"added_by": ["a", "newer", "version"]},
    )


def test_a_grant_survives_json_with_members_that_nobody_knows() -> None:
    value = json.loads(json.dumps(full().as_json()))
    assert value["schema"] == 1
    again = Grant.from_json(value)
    assert again.as_json() == full().as_json() | {"resources": ("https://api",)}
    assert again.other["added_by"] == ["a", "newer", "version"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "text",
        {},
        {"schema": 2},
        {"schema": 1},
        {**full().as_json(), "schema": 2},
        {**full().as_json(), "slots": []},
        {**full().as_json(), "slots": {"": {}}},
        {**full().as_json(), "slots": {"": 5}},
        {**full().as_json(), "resources": 5},
    ],
)
def test_j6_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="a record"):
        Grant.from_json(value)


def test_no_token_shows() -> None:
    snapshot = Snapshot(key="k", control=IDLE, grant=full(), now=NOW)
    want = Want(slot="", leeway=60, rejected="canary")
    assert "canary" not in repr((snapshot, full(), full().slots, want))
    assert "canary" not in str(want)


def test_a_refresh_keeps_what_the_answer_leaves_out() -> None:
    tokens = Tokens(access_token=Secret("new"), token_type="Bearer", lifetime=60)
    new = full().renewed("", tokens, claims=None, rejected=None, requested_at=NOW, now=NOW)
    assert new.refresh_token == Secret("canary r")
    assert new.id_token == Secret("canary i")
    assert new.claims == full().claims
    assert new.slots[""].token == Secret("new")


def test_a_refresh_without_an_access_token_keeps_the_old_one() -> None:
    tokens = Tokens(access_token=None, token_type="Bearer", lifetime=60, refresh_token=Secret("r2"))
    new = full().renewed("", tokens, claims=None, rejected=None, requested_at=NOW, now=NOW)
    assert new.refresh_token == Secret("r2")
    assert new.slots == full().slots


def test_slots_are_limited_the_expired_go_first_then_the_oldest() -> None:
    one = replace(grant(), slots={"expired": slot(-1, obtained_at=NOW)})
    for number in range(MAX_SLOTS + 4):
        one = one.with_slot(str(number), slot(obtained_at=NOW + number), now=NOW)
    assert list(one.slots) == [str(number) for number in range(4, MAX_SLOTS + 4)]
    # The new one stays, however old it says it is.
    assert "late" in one.with_slot("late", slot(obtained_at=0), now=NOW).slots


# -- slots and requests


def test_slots_are_told_apart_by_sets() -> None:
    of = TokenParameters.of
    assert slot_key(of()) == slot_key(of(force_renewal=True, context=1)) == ""
    assert slot_key(of(scope="a b")) == slot_key(of(scope=["b", "a"]))
    assert slot_key(of(resource=["x", "y"])) == slot_key(of(resource=["y", "x", "y"]))
    assert slot_key(of(extra={"a": "1", "b": "2"})) == slot_key(of(extra={"b": "2", "a": "1"}))
    different = [
        of(),
        of(scope="x"),
        of(resource="x"),
        of(audience="x"),
        of(extra={"x": "x"}),
        of(extra={"audience": "x"}),
        of(scope="x", resource="x"),
        of(scope=["x", "y"]),
    ]
    assert len({slot_key(one) for one in different}) == len(different)


def test_a_request_names_each_parameter_once() -> None:
    form = token_request(
        TokenParameters.of(
            scope="a b", resource=["x", "y"], audience="z", extra={"grant_type": "evil", "q": "1"}
        ),
        grant_type="refresh_token",
    )
    assert form == {
        "grant_type": "refresh_token",
        "q": "1",
        "scope": "a b",
        "resource": ("x", "y"),
        "audience": "z",
    }
