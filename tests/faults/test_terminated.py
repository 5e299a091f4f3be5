"""M6: SIGTERM during a refresh: it ends as it should, or leaves the intent; what is kept lands."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flask_atm.grants.record import Snapshot
from flask_atm.grants.vault import record_key
from tests.faults.conftest import Place

ROOT = Path(__file__).parents[2]
Start = Callable[..., "Worker"]


class Worker:
    """One that was told to get the token of a grant."""

    def __init__(self, place: Place, grant_id: str, stop_at: str | None, in_a_thread: bool) -> None:
        setup = place.engine().setup
        told = {"config": setup.config, "ahead": setup.ahead, "grant_id": grant_id}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.say(json.dumps({**told, "stop_at": stop_at, "in_a_thread": in_a_thread}))

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def terminate(self) -> None:
        """SIGTERM; returns when it has got it."""
        self.process.send_signal(signal.SIGTERM)
        assert self.hear() == "ends"

    def ended(self) -> tuple[str, str]:
        """Wait for its end; give what else it said, and its log."""
        assert self.process.stdin is not None
        said = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, said
        return said


@pytest.fixture
def start(place: Place) -> Iterator[Start]:
    workers: list[Worker] = []

    def make(grant_id: str, stop_at: str | None = None, *, in_a_thread: bool = False) -> Worker:
        workers.append(Worker(place, grant_id, stop_at, in_a_thread))
        return workers[-1]

    yield make
    for worker in workers:
        worker.process.kill()
        worker.process.communicate()


def stored(place: Place, grant_id: str) -> Snapshot:
    vault = place.engine().state().provider().tokens.vault
    snapshot = vault.read_stored(record_key(grant_id))
    assert snapshot is not None
    return snapshot


def refresh_token(snapshot: Snapshot) -> str:
    assert snapshot.grant.refresh_token is not None
    return snapshot.grant.refresh_token.reveal()


@pytest.mark.parametrize("point", ["begun", "send", "write", "answered", "commit"])
def test_m6_a_worker_that_is_told_to_end_frees_the_lease_and_leaves_the_intent_where_it_must(
    place: Place, start: Start, point: str
) -> None:
    place.server.grace = 300
    response = place.server.issue("alice")
    grant_id = place.engine().sign_in(response)
    worker = start(grant_id, point)
    assert worker.hear() == f"at {point}"
    worker.terminate()
    worker.ended()

    snapshot = stored(place, grant_id)
    sent = point in ("answered", "commit")
    assert snapshot.control.lease_owner is None
    assert (snapshot.control.intent is not None) is sent
    assert snapshot.control.doubt is sent
    assert refresh_token(snapshot) == response["refresh_token"]
    assert len(place.sent()) == sent

    # Nobody has to wait for a lease: the next one gets a token at once.
    asked_at = time.monotonic()
    token = start(grant_id).hear()
    assert place.server.lookup(token)
    assert time.monotonic() - asked_at < 10
    assert place.sent() == (1 + sent) * [response["refresh_token"]]


@pytest.mark.parametrize("point", ["send", "answered", "commit"])
def test_m6_a_refresh_in_another_thread_is_finished_before_the_end(
    place: Place, start: Start, point: str
) -> None:
    response = place.server.issue("alice")
    grant_id = place.engine().sign_in(response)
    worker = start(grant_id, point, in_a_thread=True)
    assert worker.hear() == f"at {point}"
    worker.terminate()
    worker.say("go on")
    said, _ = worker.ended()

    snapshot = stored(place, grant_id)
    assert (snapshot.control.lease_owner, snapshot.control.doubt) == (None, False)
    assert refresh_token(snapshot) != response["refresh_token"]
    assert place.server.lookup(said.strip())
    assert place.sent() == [response["refresh_token"]]


@pytest.fixture
def locked(place: Place) -> Iterator[sqlite3.Connection]:
    """Somebody who can keep the store from writing."""
    path = place.folder / "grants.sqlite3"
    other = sqlite3.connect(path, isolation_level=None, timeout=10)
    yield other
    other.close()


def test_m6_a_kept_answer_is_stored_at_the_end(
    place: Place, start: Start, locked: sqlite3.Connection
) -> None:
    response = place.server.issue("alice")
    grant_id = place.engine().sign_in(response)
    worker = start(grant_id, "commit", in_a_thread=True)
    assert worker.hear() == "at commit"
    locked.execute("BEGIN IMMEDIATE")
    worker.say("go on")
    token = worker.hear()
    assert place.server.lookup(token), "it is served from what is kept"
    worker.terminate()
    assert refresh_token(stored(place, grant_id)) == response["refresh_token"]
    locked.execute("ROLLBACK")
    worker.ended()

    snapshot = stored(place, grant_id)
    assert refresh_token(snapshot) != response["refresh_token"]
    assert not snapshot.control.doubt
    assert place.sent() == [response["refresh_token"]]


def test_m6_a_worker_does_not_wait_for_a_store_for_ever(
    place: Place, start: Start, locked: sqlite3.Connection
) -> None:
    response = place.server.issue("alice")
    grant_id = place.engine().sign_in(response)
    worker = start(grant_id, "commit", in_a_thread=True)
    assert worker.hear() == "at commit"
    locked.execute("BEGIN IMMEDIATE")
    worker.say("go on")
    token = worker.hear()
    worker.terminate()
    told_at = time.monotonic()
    _, log = worker.ended()
    locked.execute("ROLLBACK")

    # Five seconds, and the end of the attempt that was made then.
    assert 4.5 < time.monotonic() - told_at < 20
    assert "1 renewed sign-ins are lost" in log
    assert token not in log
    # The token is in doubt, not gone: a server with some grace gives another one.
    place.server.grace = 300
    assert stored(place, grant_id).control.intent is not None
