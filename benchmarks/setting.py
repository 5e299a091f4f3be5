"""What the benchmarks share: an application with one signed-in user, and interleaved timing."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from flask import Flask

from flask_atm import ATM
from flask_atm.browser_session import remember
from flask_atm.grants.answers import Tokens
from flask_atm.grants.user_tokens import NewGrant
from flask_atm.state import STATE_KEY, State
from flask_atm.tokens import Secret

__all__ = ["interleaved", "signed_in"]


@contextmanager
def signed_in(**config: object) -> Iterator[tuple[Flask, State, str]]:
    """Give an application over SQLite, in a request of a user with a token of 1 kB."""
    with tempfile.TemporaryDirectory() as folder:
        app = Flask("benchmark", instance_path=folder)
        app.config.update(
            SECRET_KEY="0123456789abcdef" * 3 + "benchmark",
            ATM_ISSUER="http://127.0.0.1:9",
            ATM_CLIENT_ID="benchmark",
            ATM_CLIENT_SECRET="s",
            ATM_STORE=f"sqlite:///{Path(folder) / 'grants.sqlite3'}",
        )
        app.config.update(config)
        ATM(app)
        state: State = app.extensions[STATE_KEY]
        tokens = Tokens(
            access_token=Secret("a" * 1000),
            token_type="Bearer",
            lifetime=3600,
            refresh_token=Secret("r" * 43),
            id_token=Secret("i" * 900),
        )
        claims = {"sub": "alice", "name": "Alice", "email": "alice@example.com"}
        grant_id = state.provider().tokens.create(
            NewGrant(tokens=tokens, claims=claims, scope=("openid",), requested_at=time.time())
        )
        with app.test_request_context("/"):
            remember("oidc", state.store_id(), grant_id)
            yield app, state, grant_id


def interleaved(
    contenders: dict[str, Callable[[], object]], *, rounds: int, calls: int
) -> dict[str, float]:
    """Give the median time of one call in microseconds; the contenders take turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            for _ in range(calls):
                contender()
            times[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: median(taken) for name, taken in times.items()}
