"""Stores that are wrong, each in one way, and the lines of the contract that have to find it.

No file of tests by its name: ``test_contract.py`` runs it, and looks at what fails.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from threading import Event
from typing import Any, Final

import pytest

from flask_atm.grants.control import Begun, Control, Outcome, Stored
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.stores.stepped import Step, T
from flask_atm.protocols import Doomed
from flask_atm.testing import StoreContract
from flask_atm.testing.clock import FakeClock

__all__ = ["FOUND_BY", "WRONG"]


def a_moment() -> None:
    """Let all the other threads in."""
    Event().wait(0.002)


class Wrong(MemoryStore):
    """What the wrong ones share."""

    def edit(self, key: str, **changes: Any) -> None:
        if key in self._records:
            control, sealed = self._records[key]
            self._records[key] = (replace(control, **changes), sealed)

    def control(self, key: str) -> Control | None:
        found = self._records.get(key)
        return found and found[0]


# -- not atomic


class StepsWithoutLock(Wrong):
    def _step(
        self,
        key: str,
        step: Step[T],
        sealed: bytes | None = None,
        index: Sequence[str] | None = None,
    ) -> T:
        now = self._clock()
        record = self._get(key, now)
        answer, new = step(record and record[0], now)
        a_moment()
        if record is not None and new is not None:
            self._records[key] = (new, record[1] if sealed is None else sealed)
        return answer


class CreatesWithoutLock(Wrong):
    def create(self, key: str, sealed: bytes, **rest: Any) -> bool:
        if self._get(key, self._clock()) is not None:
            return False
        a_moment()
        with self._lock:
            self._remove(key)
        return super().create(key, sealed, **rest)


class DeletesWithoutLock(Wrong):
    def delete(self, key: str, **rest: Any) -> bool:
        there = self._get(key, self._clock()) is not None
        a_moment()
        return super().delete(key, **rest) or there


class ReadsInTwoSteps(Wrong):
    def read(self, key: str) -> Stored | None:
        first = super().read(key)
        a_moment()
        second = super().read(key)
        return first and second and replace(first, sealed=second.sealed)


class PurgesWithoutLock(Wrong):
    def purge(self, limit: int) -> int:
        ended = sum(record[0].ends_at <= self._clock() for record in self._records.values())
        a_moment()
        super().purge(limit)
        return min(limit, ended)


# -- create, read


class CountsFromZero(Wrong):
    def create(self, key: str, sealed: bytes, **rest: Any) -> bool:
        return super().create(key, sealed, **{"version": 0, **rest})


class ForgetsTheTime(Wrong):
    def read(self, key: str) -> Stored | None:
        stored = super().read(key)
        return stored and replace(stored, now=0.0)


class CreateOverwrites(Wrong):
    def create(self, key: str, sealed: bytes, **rest: Any) -> bool:
        with self._lock:
            self._remove(key)
        return super().create(key, sealed, **rest)


class CreatesWithoutDoubt(Wrong):
    def create(self, key: str, sealed: bytes, **rest: Any) -> bool:
        return super().create(key, sealed, **{**rest, "doubt": False})


class CreatesAtOne(Wrong):
    def create(self, key: str, sealed: bytes, **rest: Any) -> bool:
        return super().create(key, sealed, **{**rest, "version": 1})


class KeepsText(Wrong):
    def read(self, key: str) -> Stored | None:
        stored = super().read(key)
        return stored and replace(stored, sealed=stored.sealed.decode("utf-8", "replace").encode())


class CutsSpaces(Wrong):
    def read(self, key: str) -> Stored | None:
        stored = super().read(key)
        return stored and replace(stored, sealed=stored.sealed.strip())


class HoldsLittle(Wrong):
    def read(self, key: str) -> Stored | None:
        stored = super().read(key)
        return stored and replace(stored, sealed=stored.sealed[:65535])


# -- the end


class NeverEnds(Wrong):
    def _get(self, key: str, now: float) -> tuple[Control, bytes] | None:
        return self._records.get(key)


class EndsLaterWithEachStep(Wrong):
    def _step(
        self,
        key: str,
        step: Step[T],
        sealed: bytes | None = None,
        index: Sequence[str] | None = None,
    ) -> T:
        answer = super()._step(key, step, sealed, index)
        control = self.control(key)
        if control is not None:
            self.edit(key, ends_at=control.ends_at + 60)
        return answer


class EndsIn2038(Wrong):
    def create(self, key: str, sealed: bytes, *, ends_at: float, **rest: Any) -> bool:
        return super().create(key, sealed, ends_at=min(ends_at, 2.0**31), **rest)


class KeysAreUsedOnce(Wrong):
    def create(self, key: str, sealed: bytes, **rest: Any) -> bool:
        return key not in self._records and super().create(key, sealed, **rest)


class IndexSurvivesTheEnd(Wrong):
    def find(self, index: str, limit: int = 100) -> list[str]:
        return list(self._index.get(index, ()))[:limit]


# -- begin


class BeginForgetsTheIntent(Wrong):
    def begin(self, key: str, *, intent: str | None, **rest: Any) -> Begun:
        return super().begin(key, intent=None, **rest)


class LocksItsOwnerOut(Wrong):
    def begin(self, key: str, *, owner: str, **rest: Any) -> Begun:
        return super().begin(key, owner=owner + secrets.token_hex(), **rest)


class RepeatedBeginForgetsTheDoubt(Wrong):
    def begin(self, key: str, *, owner: str, **rest: Any) -> Begun:
        control = self.control(key)
        begun = super().begin(key, owner=owner, **rest)
        again = control is not None and control.lease_owner == owner
        return replace(begun, doubt=False) if again else begun


class TakesOverWithoutDoubt(Wrong):
    def begin(self, key: str, **rest: Any) -> Begun:
        begun = super().begin(key, **rest)
        if begun.status == "held":
            self.edit(key, doubt=False)
        return replace(begun, doubt=False)


class TakesOverWithoutFence(Wrong):
    def begin(self, key: str, **rest: Any) -> Begun:
        control = self.control(key)
        begun = super().begin(key, **rest)
        if begun.status != "held" or control is None:
            return begun
        self.edit(key, version=control.version)
        return replace(begun, version=control.version)


class DoubtsEverything(Wrong):
    def begin(self, key: str, **rest: Any) -> Begun:
        control = self.control(key)
        begun = super().begin(key, **rest)
        return replace(begun, doubt=bool(control and control.intent))


class TrustsEveryLease(Wrong):
    def begin(self, key: str, *, owner: str, **rest: Any) -> Begun:
        control, now = self.control(key), self._clock()
        if control and control.lease_owner not in (None, owner) and control.lease_until > now:
            return Begun(status="busy", wait=control.lease_until - now, now=now)
        return super().begin(key, owner=owner, **rest)


class BeginIgnoresTheVersion(Wrong):
    def begin(self, key: str, *, expected_version: int, **rest: Any) -> Begun:
        control = self.control(key)
        version = expected_version if control is None else control.version
        return super().begin(key, expected_version=version, **rest)


# -- commit


class CommitKeepsTheLease(Wrong):
    def commit(self, key: str, sealed: bytes, **rest: Any) -> Outcome:
        before = self.control(key)
        outcome = super().commit(key, sealed, **rest)
        if outcome == "ok" and before is not None:
            self.edit(key, lease_owner=before.lease_owner, lease_until=before.lease_until)
        return outcome


class CommitKeepsTheDoubt(Wrong):
    def commit(self, key: str, sealed: bytes, **rest: Any) -> Outcome:
        before = self.control(key)
        outcome = super().commit(key, sealed, **rest)
        if outcome == "ok" and before is not None:
            self.edit(key, doubt=before.doubt)
        return outcome


class CommitIsNotIdempotent(Wrong):
    def commit(self, key: str, sealed: bytes, *, expected_version: int, commit_id: str) -> Outcome:
        other = secrets.token_hex()
        return super().commit(key, sealed, expected_version=expected_version, commit_id=other)


class CommitCreates(Wrong):
    def commit(self, key: str, sealed: bytes, **rest: Any) -> Outcome:
        if key not in self._records:
            self.create(key, sealed, ends_at=self._clock() + 60)
            return "ok"
        return super().commit(key, sealed, **rest)


class CommitIsFencedByTheLease(Wrong):
    def commit(self, key: str, sealed: bytes, **rest: Any) -> Outcome:
        control = self.control(key)
        if control and control.lease_owner and control.lease_until <= self._clock():
            return "moved"
        return super().commit(key, sealed, **rest)


# -- update, adopt, abort


class UpdateIgnoresLeaseAndDoubt(Wrong):
    def update(self, key: str, sealed: bytes, **rest: Any) -> Outcome:
        self.edit(key, lease_owner=None, intent=None, doubt=False)
        return super().update(key, sealed, **rest)


class UpdateIgnoresTheDoubt(Wrong):
    def update(self, key: str, sealed: bytes, **rest: Any) -> Outcome:
        control = self.control(key)
        if control and control.lease_until <= self._clock():
            self.edit(key, intent=None, doubt=False)
        return super().update(key, sealed, **rest)


class UpdateLeavesTheIndex(Wrong):
    def update(self, key: str, sealed: bytes, *, expected_version: int, **rest: Any) -> Outcome:
        return super().update(key, sealed, expected_version=expected_version)


class UpdateEndsThePause(Wrong):
    def update(self, key: str, sealed: bytes, **rest: Any) -> Outcome:
        outcome = super().update(key, sealed, **rest)
        if outcome == "ok":
            self.edit(key, retry_at=0.0, failures=0, suspect=None, dead=None)
        return outcome


class AdoptsWithoutDoubt(Wrong):
    def adopt(self, key: str, sealed: bytes, **rest: Any) -> Outcome:
        outcome = super().adopt(key, sealed, **rest)
        if outcome == "ok":
            self.edit(key, doubt=False)
        return outcome


class AdoptsOverATombstone(Wrong):
    def adopt(self, key: str, sealed: bytes, **rest: Any) -> Outcome:
        self.edit(key, tombstone=False)
        return super().adopt(key, sealed, **rest)


class AbortByAnybody(Wrong):
    def abort(self, key: str, *, owner: str, **rest: Any) -> None:
        control = self.control(key)
        super().abort(key, owner=(control and control.lease_owner) or owner, **rest)


class AbortClearsTheDoubt(Wrong):
    def abort(self, key: str, *, clear_intent: bool, **rest: Any) -> None:
        super().abort(key, clear_intent=clear_intent, **rest)
        if clear_intent:
            self.edit(key, doubt=False)


class AbortKeepsTheVersion(Wrong):
    def abort(self, key: str, **rest: Any) -> None:
        control = self.control(key)
        super().abort(key, **rest)
        if control is not None:
            self.edit(key, version=control.version)


class SuspectsForEver(Wrong):
    def abort(self, key: str, *, dead: str | None = None, **rest: Any) -> None:
        before = self.control(key)
        super().abort(key, dead=dead, **rest)
        if dead is None and before is not None:
            self.edit(key, dead=before.dead)


# -- delete


class DeletesNothing(Wrong):
    def delete(self, key: str, *, keep: bytes | None = None, **rest: Any) -> bool:
        return super().delete(key, keep=keep or b"", **rest)


class DeleteLeavesTheIndex(Wrong):
    def _leave(self, key: str) -> None:
        pass


class ForgetsTombstones(Wrong):
    def delete(self, key: str, *, keep: bytes | None = None, **rest: Any) -> bool:
        return super().delete(key, **rest)


class TombstonesAreRecords(Wrong):
    def delete(self, key: str, *, keep: bytes | None = None, **rest: Any) -> bool:
        done = super().delete(key, keep=keep, **rest)
        self.edit(key, tombstone=False)
        return done


class TombstonesForEver(Wrong):
    def delete(self, key: str, *, keep: bytes | None = None, **rest: Any) -> bool:
        done = super().delete(key, keep=keep, **rest)
        self.edit(key, ends_at=1e12)
        return done


class TombstonesStay(Wrong):
    def delete(self, key: str, **rest: Any) -> bool:
        control = self.control(key)
        return not (control and control.tombstone) and super().delete(key, **rest)


class DeleteIgnoresTheVersion(Wrong):
    def delete(self, key: str, *, expected_version: int | None = None, **rest: Any) -> bool:
        return super().delete(key, **rest)


# -- find, scan, purge, repr


class FindGivesAll(Wrong):
    def find(self, index: str, limit: int = 100) -> list[str]:
        return super().find(index, 1000)


class ScanInNoOrder(Wrong):
    def scan(self, after: str, limit: int) -> list[tuple[str, Stored]]:
        found = super().scan("", 1000)[::-1]
        return [(key, stored) for key, stored in found if key > after][:limit]


class PurgesAll(Wrong):
    def purge(self, limit: int) -> int:
        return super().purge(1000)


class PurgesTombstones(Wrong):
    def purge(self, limit: int) -> int:
        buried = [key for key, (control, _) in self._records.items() if control.tombstone]
        for key in buried:
            self._remove(key)
        return len(buried) + super().purge(limit)


class ReadsManyAsTheyCome(Wrong):
    def read_many(self, keys: Sequence[str]) -> list[Stored | None]:
        return super().read_many(sorted(keys))


class RemovesManyWithoutLook(Wrong):
    def delete_many(self, doomed: Sequence[Doomed]) -> list[bool]:
        return super().delete_many([replace(one, expected_version=None) for one in doomed])


class RemovesManyCompletely(Wrong):
    def delete_many(self, doomed: Sequence[Doomed]) -> list[bool]:
        return super().delete_many([replace(one, keep=None) for one in doomed])


class Talkative(Wrong):
    def __repr__(self) -> str:
        return f"<Talkative {self._records}>"


#: Each of them, and the lines that it fails.
FOUND_BY: Final[dict[type[MemoryStore], Sequence[str]]] = {
    StepsWithoutLock: (
        "one_begin_of_many_wins",
        "one_of_many_takes_a_lapsed_lease_over",
        "one_commit_of_many_wins",
        "one_adopt_of_many_wins",
        "no_update_is_lost",
    ),
    CreatesWithoutLock: ("one_create_of_many_wins",),
    DeletesWithoutLock: ("one_delete_of_many_removes",),
    ReadsInTwoSteps: ("a_reader_sees_one_version_and_not_a_mixture",),
    PurgesWithoutLock: ("purge_counts_each_record_once",),
    CountsFromZero: ("what_was_created_is_read",),
    ForgetsTheTime: ("what_was_created_is_read",),
    CreateOverwrites: ("create_keeps_what_is_there",),
    CreatesWithoutDoubt: ("create_in_doubt", "a_copy_of_a_lost_record_is_put_at_its_own_version"),
    CreatesAtOne: ("a_copy_of_a_lost_record_is_put_at_its_own_version",),
    KeepsText: ("sealed_bytes_come_back_as_they_were[latin-1]",),
    CutsSpaces: ("sealed_bytes_come_back_as_they_were[spaces]",),
    HoldsLittle: ("sealed_bytes_come_back_as_they_were[100 kB]",),
    NeverEnds: ("a_record_ends", "a_key_can_be_used_again_after_the_end"),
    EndsLaterWithEachStep: ("no_step_changes_the_end",),
    EndsIn2038: ("an_end_that_is_far_away",),
    KeysAreUsedOnce: ("a_key_can_be_used_again_after_the_end",),
    IndexSurvivesTheEnd: ("a_record_ends", "a_tombstone_ends_with_its_grant"),
    BeginForgetsTheIntent: (
        "begin_takes_the_lease",
        "a_lapsed_lease_is_taken_over_in_doubt",
        "update_waits_for_the_lease_and_the_doubt",
    ),
    LocksItsOwnerOut: ("begin_is_idempotent_for_its_owner", "whoever_repeats_gets_the_same_answer"),
    RepeatedBeginForgetsTheDoubt: ("a_lapsed_lease_is_taken_over_in_doubt",),
    TakesOverWithoutDoubt: ("a_lapsed_lease_is_taken_over_in_doubt", "commit_stores_and_frees"),
    TakesOverWithoutFence: ("a_lapsed_lease_is_taken_over_in_doubt",),
    DoubtsEverything: ("another_refresh_token_than_the_one_in_flight_is_not_in_doubt",),
    TrustsEveryLease: ("a_lease_of_a_clock_that_jumped_is_void",),
    BeginIgnoresTheVersion: ("begin_upon_another_version_is_moved", "abort_raises_the_version"),
    CommitKeepsTheLease: ("commit_stores_and_frees",),
    CommitKeepsTheDoubt: ("commit_stores_and_frees",),
    CommitIsNotIdempotent: ("commit_is_recognised_when_repeated",),
    CommitCreates: ("commit_never_creates",),
    CommitIsFencedByTheLease: ("commit_is_fenced_by_the_version_and_not_by_the_lease",),
    UpdateIgnoresLeaseAndDoubt: ("update_waits_for_the_lease_and_the_doubt",),
    UpdateIgnoresTheDoubt: ("update_waits_for_the_lease_and_the_doubt",),
    UpdateLeavesTheIndex: ("update_can_replace_the_index_entries",),
    UpdateEndsThePause: ("update_keeps_pauses_and_deaths",),
    AdoptsWithoutDoubt: ("a_later_copy_goes_over_a_record_in_doubt",),
    AdoptsOverATombstone: ("no_copy_goes_over_nothing_or_a_tombstone",),
    AbortByAnybody: ("abort_frees_the_lease_and_keeps_what_it_is_told",),
    AbortClearsTheDoubt: ("abort_clears_its_own_intent_and_no_doubt",),
    AbortKeepsTheVersion: ("abort_raises_the_version",),
    SuspectsForEver: ("who_is_suspected_twice_is_dead",),
    DeletesNothing: ("delete_removes",),
    DeleteLeavesTheIndex: ("delete_with_something_to_keep_leaves_a_tombstone",),
    ForgetsTombstones: ("delete_with_something_to_keep_leaves_a_tombstone",),
    TombstonesAreRecords: ("delete_with_something_to_keep_leaves_a_tombstone",),
    TombstonesForEver: ("a_tombstone_ends_with_its_grant",),
    TombstonesStay: (
        "a_tombstone_can_be_removed",
        "a_tombstone_can_be_given_other_bytes_and_another_index",
    ),
    DeleteIgnoresTheVersion: ("delete_of_one_version_leaves_any_other",),
    FindGivesAll: ("find_gives_at_most_what_was_asked_for",),
    ScanInNoOrder: ("scan_goes_through_all_in_order_of_the_keys",),
    PurgesAll: ("purge_removes_what_has_ended_in_batches",),
    PurgesTombstones: ("purge_leaves_what_lives",),
    ReadsManyAsTheyCome: ("many_are_read_in_the_order_asked_for",),
    RemovesManyWithoutLook: ("many_are_removed_each_by_itself",),
    RemovesManyCompletely: ("many_are_removed_each_by_itself",),
    Talkative: ("nothing_shows_in_the_repr",),
}
#: The right one among them: whatever fails with it says nothing.
WRONG: Final[tuple[type[MemoryStore], ...]] = (Wrong, *FOUND_BY)


def _tests_of(kind: type[MemoryStore]) -> type[StoreContract]:
    class Tests(StoreContract):
        one_process = True
        threads = 16

        @pytest.fixture
        def store(self, clock: FakeClock) -> MemoryStore:
            return kind(clock=clock)

    return Tests


globals().update({f"Test{kind.__name__}": _tests_of(kind) for kind in WRONG})
