"""A1, A2, A11: one refresh, whoever asks; against a provider that kills a grant for a replay."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flask_atm.state import State
from flask_atm.tokens import TokenParameters
from tests.grants.api_calls import PROCESSES, THREADS, CallAPI, one_refresh
from tests.grants.processes import run_everywhere
from tests.grants.redis_tools import clocked
from tests.grants.sql_tools import clocked_sql
from tests.grants.support import Setup, config, grant_from
from tests.grants.tools import WatchedSetup, WatchedStore
from tests.servers import OIDCServer

RESOURCES = ("https://api.example/a", "https://api.example/b", "https://api.example/c")


def expired(
    oidc: OIDCServer,
    tmp_path: Path,
    *,
    ahead: float,
    resources: tuple[str, ...] = (),
    url: str = "",
) -> tuple[Setup, str]:
    """Sign in at the provider, and let the clocks of the application run ahead."""
    client = oidc.add_client("http://localhost/oidc/callback")
    response = oidc.sign_in_directly(client, resource=resources)
    store = url or f"sqlite:///{tmp_path / 'grants.sqlite3'}"
    setup = Setup(config=config(oidc, client, store))
    grant_id = grant_from(setup.state(), response)
    oidc.reset()
    return Setup(config=setup.config, ahead=ahead), grant_id


@pytest.mark.parametrize("latency", [0.2, 2.5])
def test_a1_expired_token_is_refreshed_once_for_8_processes_with_16_threads(
    oidc: OIDCServer, tmp_path: Path, latency: float
) -> None:
    setup, grant_id = expired(oidc, tmp_path, ahead=1000)
    oidc.latency(token=latency)
    one_refresh(oidc, setup, grant_id)
    # The grant is alive: another renewal works.
    again = setup.state().provider().tokens.get(grant_id, TokenParameters(force_renewal=True))
    assert again.refreshable
    assert len(oidc.token_requests()) == 2


@dataclass(frozen=True, kw_only=True)
class CallAndCount:
    """The same; tells which steps of the store it took to get the token."""

    call: CallAPI

    def __call__(self, state: State, number: int) -> tuple[int, list[str]]:
        status, _, _ = self.call(state, number)
        assert isinstance(state.store, WatchedStore)
        return status, list(state.store.mine)


def test_a2_token_inside_the_leeway_is_served_to_all_while_the_answer_is_held(
    oidc: OIDCServer, tmp_path: Path
) -> None:
    inside = 260  # of 300 seconds: the leeway is 54 to 60
    setup, grant_id = expired(oidc, tmp_path, ahead=inside)
    job = CallAndCount(call=CallAPI(grant_id=grant_id, api_url=oidc.api_url))
    others = PROCESSES * THREADS - 1
    oidc.hold_token_answers()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            run_everywhere,
            WatchedSetup(config=setup.config, ahead=inside),
            job,
            processes=PROCESSES,
            threads=THREADS,
        )
        oidc.wait_held(1, timeout=60)
        oidc.wait_requests(others, endpoint="api", ended=True, timeout=60)
        oidc.release()
        results = running.result(60)

    assert [status for status, _ in results] == [200] * (others + 1)
    assert len(oidc.token_requests()) == 1
    assert oidc.stats()["replays"] == 0
    taken = [tuple(steps) for _, steps in results]
    assert sum("commit" in steps for steps in taken) == 1
    # One read each. Whoever read before the lease was taken finds it busy, and waits for nothing.
    assert {steps for steps in taken if "commit" not in steps} <= {("read",), ("read", "begin")}


@dataclass(frozen=True, kw_only=True)
class Clocked(Setup):
    """The same in every process, over a server whose records are as old as the test says."""

    def state(self, **arguments: Any) -> State:
        url = self.config["ATM_STORE"]
        make = clocked if url.startswith("redis") else clocked_sql
        return Setup.state(self, store=make(url, self.clock), **arguments)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """Where the records are; nothing for the file of the test."""
    match request.param:
        case "redis":
            return str(request.getfixturevalue("empty_redis").url)
        case "postgresql":
            return str(request.getfixturevalue("empty_postgres").url())
    return ""


@pytest.mark.parametrize(
    ("url", "latency"),
    [("sqlite", 0.2), ("sqlite", 2.5), ("redis", 0.2), ("postgresql", 0.2)],
    indirect=["url"],
)
def test_a11_three_resources_are_refreshed_one_after_another_each_caller_its_audience(
    oidc: OIDCServer, tmp_path: Path, url: str, latency: float
) -> None:
    setup, grant_id = expired(oidc, tmp_path, ahead=1000, resources=RESOURCES, url=url)
    if url:
        setup = Clocked(config=setup.config, ahead=setup.ahead)
    oidc.latency(token=latency)
    job = CallAPI(grant_id=grant_id, api_url=oidc.api_url, audiences=RESOURCES)

    results = run_everywhere(setup, job, processes=PROCESSES, threads=THREADS)

    assert {(status, audience == wanted) for status, audience, wanted in results} == {(200, True)}
    requests_made = oidc.token_requests()
    assert len(requests_made) == 3
    # Each one sent what the one before had got: RT0, RT1, RT2.
    assert len({made["refresh_token_sha256"] for made in requests_made}) == 3
    assert oidc.stats()["max_in_flight_same_refresh_token"] == 1
    assert oidc.stats()["replays"] == 0
