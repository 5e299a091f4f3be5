"""The atomic steps, one test for each rule of the refresh algorithm that they keep."""

from dataclasses import replace
from typing import Any

import pytest

from flask_atm.grants import control as steps
from flask_atm.grants.control import Begun, Control, in_doubt, lease_left, pause_left

NOW = 1000.0
LEASE = 13.0
IDLE = Control(ends_at=9999.0)


def begin(
    control: Control,
    *,
    now: float = NOW,
    owner: str = "x",
    version: int | None = None,
    intent: str | None = "h",
) -> tuple[Begun, Control | None]:
    return steps.begin(
        control,
        now,
        owner=owner,
        expected_version=control.version if version is None else version,
        lease=LEASE,
        intent=intent,
    )


def held(control: Control = IDLE, **arguments: Any) -> Control:
    begun, new = begin(control, **arguments)
    assert begun.status == "held"
    assert new is not None
    return new


def aborted(control: Control, *, now: float = NOW, owner: str = "x", **changes: Any) -> Control:
    arguments: dict[str, Any] = {
        "clear_intent": False,
        "pause": 0.0,
        "failures": 0,
        "suspect": None,
        "dead": None,
    }
    new = steps.abort(control, now, owner=owner, **{**arguments, **changes})
    assert new is not None
    return new


# -- begin


def test_begin_writes_down_who_until_when_and_what() -> None:
    begun, new = begin(IDLE)
    assert begun == Begun(status="held", version=1, doubt=False, now=NOW)
    assert new == replace(IDLE, lease_owner="x", lease_until=NOW + LEASE, lease=LEASE, intent="h")


def test_begin_is_idempotent_by_owner() -> None:
    first, new = begin(IDLE)
    assert new is not None
    assert begin(new, now=NOW + 1) == (replace(first, now=NOW + 1), None)
    # Whatever version the repetition expects: the first one was right.
    assert begin(new, version=7)[0].status == "held"


def test_begin_by_another_owner_is_busy_until_the_lease_lapses() -> None:
    new = held()
    assert begin(new, owner="y", now=NOW + 3) == (
        Begun(status="busy", wait=LEASE - 3, now=NOW + 3),
        None,
    )
    assert begin(new, owner="y", now=NOW + LEASE)[0].status == "held"


def test_taking_over_a_lapsed_lease_raises_the_version_and_finds_the_doubt() -> None:
    begun, new = begin(held(), owner="y", now=NOW + LEASE)
    assert (begun.version, begun.doubt) == (2, True)
    assert new is not None
    assert (new.version, new.doubt, new.lease_owner) == (2, True, "y")
    # Its late owner is fenced off, and cannot abort it either.
    assert steps.commit(new, NOW, expected_version=1, commit_id="c")[0] == "moved"
    assert (
        steps.abort(
            new, NOW, owner="x", clear_intent=True, pause=0, failures=0, suspect=None, dead=None
        )
        is None
    )


def test_doubt_is_found_inside_the_step_not_by_a_read_before_it() -> None:
    # Whoever read before "x" began knows of no intent.
    lost = aborted(held(), clear_intent=False)
    begun, _ = begin(lost, owner="y", version=lost.version)
    assert (begun.status, begun.doubt) == ("held", True)


def test_an_intent_for_another_token_is_no_doubt() -> None:
    begun, _ = begin(replace(IDLE, intent="old"), intent="new")
    assert not begun.doubt


def test_a_repeated_begin_keeps_the_doubt() -> None:
    _, new = begin(held(), owner="y", now=NOW + LEASE)
    assert new is not None
    assert begin(new, owner="y", now=NOW + LEASE + 1)[0].doubt


def test_the_same_owner_coming_late_is_not_in_doubt_of_itself() -> None:
    # The reply to its begin was lost for longer than the lease: it has sent nothing.
    begun, _ = begin(held(), now=NOW + LEASE)
    assert (begun.status, begun.doubt) == ("held", False)


def test_begin_upon_an_older_version_is_moved_and_of_a_tombstone_gone() -> None:
    assert begin(replace(IDLE, version=2), version=1)[0].status == "moved"
    assert begin(steps.bury(IDLE), version=2)[0].status == "gone"


def test_no_attempt_follows_a_failed_one_without_another_look() -> None:
    """Whoever read before the failure would not know of the pause, or of the token's death."""
    failed = aborted(held(), clear_intent=True, pause=60, failures=1)
    assert begin(failed, owner="y", version=1)[0].status == "moved"
    ended = aborted(held(), clear_intent=True, dead="h")
    assert begin(ended, owner="y", version=1)[0].status == "moved"


# -- commit


def test_commit_is_fenced_by_the_version_not_by_the_lease() -> None:
    lapsed = held()
    outcome, new = steps.commit(lapsed, NOW + 3600, expected_version=1, commit_id="c")
    assert outcome == "ok"
    assert new == Control(version=2, sealed_version=2, commit_id="c", ends_at=9999.0)
    assert steps.commit(lapsed, NOW, expected_version=2, commit_id="c") == ("moved", None)


def test_commit_ends_doubt_pause_and_suspicion() -> None:
    worst = replace(held(), doubt=True, retry_at=NOW + 9, failures=4, suspect="s", dead="d")
    _, new = steps.commit(worst, NOW, expected_version=1, commit_id="c")
    assert new is not None
    assert (new.doubt, new.retry_at, new.failures) == (False, 0, 0)
    assert (new.suspect, new.dead, new.intent) == (None, None, None)


def test_commit_is_idempotent_by_its_id() -> None:
    _, new = steps.commit(IDLE, NOW, expected_version=1, commit_id="c")
    assert new is not None
    assert steps.commit(new, NOW, expected_version=1, commit_id="c") == ("ok", None)
    assert steps.commit(new, NOW, expected_version=1, commit_id="d") == ("moved", None)


def test_commit_never_brings_back_what_was_deleted() -> None:
    assert steps.commit(steps.bury(IDLE), NOW, expected_version=2, commit_id="c") == ("gone", None)


# -- update


def test_update_gives_up_while_a_lease_is_held() -> None:
    assert steps.update(held(), NOW, expected_version=1) == ("busy", None)


def test_update_gives_up_while_an_intent_is_in_doubt() -> None:
    assert steps.update(held(), NOW + LEASE, expected_version=1) == ("busy", None)
    in_doubt_now = aborted(held())
    version = in_doubt_now.version
    assert steps.update(in_doubt_now, NOW, expected_version=version) == ("busy", None)


def test_update_keeps_everything_but_the_versions() -> None:
    before = replace(IDLE, retry_at=NOW + 9, failures=2, suspect="s", dead="d", commit_id="c")
    outcome, new = steps.update(before, NOW, expected_version=1)
    assert outcome == "ok"
    assert new == replace(before, version=2, sealed_version=2)
    assert steps.update(before, NOW, expected_version=2) == ("moved", None)
    assert steps.update(steps.bury(IDLE), NOW, expected_version=2) == ("gone", None)


# -- abort


def test_abort_clears_an_intent_that_this_attempt_has_set() -> None:
    new = aborted(held(), clear_intent=True)
    assert (new.lease_owner, new.intent, new.doubt) == (None, None, False)
    assert lease_left(new, NOW) == 0


def test_abort_without_clearing_leaves_the_doubt() -> None:
    new = aborted(held(), clear_intent=False)
    assert (new.intent, new.doubt) == ("h", True)
    assert in_doubt(new, NOW)


def test_abort_of_an_attempt_that_began_in_doubt_leaves_the_doubt() -> None:
    doubtful = held(held(), owner="y", now=NOW + LEASE)
    new = aborted(doubtful, owner="y", clear_intent=True)
    assert (new.intent, new.doubt) == ("h", True)
    again, _ = begin(new, owner="z")
    assert again.doubt


def test_abort_without_a_refresh_token_leaves_no_doubt() -> None:
    new = aborted(held(intent=None), clear_intent=False)
    assert not in_doubt(new, NOW)


def test_abort_is_for_the_owner_only_and_happens_once() -> None:
    arguments: dict[str, Any] = {
        "clear_intent": True,
        "pause": 0,
        "failures": 0,
        "suspect": None,
        "dead": None,
    }
    assert steps.abort(held(), NOW, owner="y", **arguments) is None
    assert steps.abort(aborted(held()), NOW, owner="x", **arguments) is None
    assert steps.abort(steps.bury(held()), NOW, owner="x", **arguments) is None


def test_abort_pauses_everybody_for_a_limited_time() -> None:
    new = aborted(held(), pause=86400, failures=3)
    assert (new.retry_at, new.failures) == (NOW + 300, 3)
    # An attempt that does not say anything about the pause leaves it.
    later = aborted(held(new, version=new.version), pause=0)
    assert later.retry_at == NOW + 300


def test_a_token_that_is_suspected_twice_is_dead() -> None:
    once = aborted(held(), clear_intent=True, suspect="h")
    assert (once.suspect, once.dead) == ("h", None)
    other = aborted(held(once, version=once.version), clear_intent=True, suspect="i")
    assert (other.suspect, other.dead) == ("i", None)
    twice = aborted(held(once, version=once.version), clear_intent=True, suspect="h")
    assert twice.dead == "h"


def test_the_dead_stay_dead_until_a_commit() -> None:
    new = aborted(held(), dead="h")
    assert aborted(held(new, version=new.version)).dead == "h"


# -- clocks


@pytest.mark.parametrize(
    ("ahead", "counts"), [(-0.1, False), (0, False), (0.1, True), (13, True), (15, False)]
)
def test_k2_a_lease_counts_only_while_it_can_have_been_taken(ahead: float, counts: bool) -> None:
    control = replace(IDLE, lease_owner="x", lease=LEASE, lease_until=NOW + ahead)
    assert bool(lease_left(control, NOW)) is counts
    assert lease_left(replace(control, lease_owner=None), NOW) == 0


@pytest.mark.parametrize(
    ("ahead", "counts"), [(-1, False), (0, False), (1, True), (300, True), (301, False)]
)
def test_k2_a_pause_counts_only_while_it_can_have_been_made(ahead: float, counts: bool) -> None:
    assert bool(pause_left(replace(IDLE, retry_at=NOW + ahead), NOW)) is counts


def test_in_doubt_is_a_doubt_or_an_intent_that_nobody_holds() -> None:
    assert not in_doubt(IDLE, NOW)
    assert in_doubt(replace(IDLE, doubt=True), NOW)
    assert not in_doubt(held(), NOW)
    assert in_doubt(held(), NOW + LEASE)


def test_bury_leaves_nothing_but_the_end() -> None:
    assert steps.bury(held()) == Control(version=2, ends_at=9999.0, tombstone=True)
