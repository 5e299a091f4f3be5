"""One token, wanted by all threads of many processes, at a provider that is strict."""

from dataclasses import dataclass

import requests

from flask_atm.state import State
from flask_atm.tokens import TokenParameters
from tests.grants.processes import run_everywhere
from tests.grants.support import Setup
from tests.servers import OIDCServer

__all__ = ["PROCESSES", "THREADS", "CallAPI", "one_refresh"]

PROCESSES, THREADS = 8, 16


@dataclass(frozen=True, kw_only=True)
class CallAPI:
    """Get the token and call the API with it."""

    grant_id: str
    api_url: str
    audiences: tuple[str, ...] = ()

    def __call__(self, state: State, number: int) -> tuple[int, str | None, str]:
        resource = self.audiences[number % len(self.audiences)] if self.audiences else None
        token = state.provider().tokens.get(self.grant_id, TokenParameters.of(resource=resource))
        session = requests.Session()
        session.trust_env = False
        with (
            session,
            session.get(
                self.api_url, headers={"Authorization": token.authorization}, timeout=30
            ) as response,
        ):
            audience = response.json()["aud"] if response.status_code == 200 else None
            return response.status_code, audience, resource or ""


def one_refresh(oidc: OIDCServer, setup: Setup, grant_id: str) -> None:
    """Call the API everywhere at once: one refresh, no failed call, no token sent twice."""
    job = CallAPI(grant_id=grant_id, api_url=oidc.api_url)
    results = run_everywhere(setup, job, processes=PROCESSES, threads=THREADS)
    assert [result for result in results if result[0] != 200] == []
    assert len(results) == PROCESSES * THREADS
    assert len(oidc.token_requests()) == 1
    assert oidc.stats()["replays"] == 0
