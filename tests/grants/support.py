"""An application's state without its views, for tests of the engine; also in other processes."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import Flask

from flask_atm.assembly import make_state
from flask_atm.grants.answers import parse_tokens
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.user_tokens import NewGrant
from flask_atm.oauth.back_channel import Answer
from flask_atm.protocols import AtomicGrantStore
from flask_atm.state import Hooks, State

SECRET_KEY = "f3cf1ae79ee3bbd77d3a5a0be2eb1cf26a1f3b7ac7a1d2f5"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All that a process needs to join in: may be sent to other processes."""

    config: dict[str, Any]
    ahead: float = 0.0
    engine: EngineParameters | None = None

    def clock(self) -> float:
        return time.time() + self.ahead

    def state(
        self,
        *,
        store: AtomicGrantStore | None = None,
        clock: Callable[[], float] | None = None,
        checkpoint: Callable[[str], None] = lambda point: None,
    ) -> State:
        app = Flask("test", instance_path="/nonexistent")
        app.config.update(self.config)
        return make_state(
            app,
            hooks=Hooks(),
            store=store,
            clock=clock or self.clock,
            engine=self.engine,
            checkpoint=checkpoint,
        )


def config(server: Any, client: Any, store: str, **more: Any) -> dict[str, Any]:
    """Make the configuration for a provider that the tests started."""
    return {
        "SECRET_KEY": SECRET_KEY,
        "ATM_ISSUER": server.issuer,
        "ATM_CLIENT_ID": client.client_id,
        "ATM_CLIENT_SECRET": client.client_secret,
        "ATM_STORE": store,
        **more,
    }


def grant_from(state: State, response: dict[str, Any], **claims: Any) -> str:
    """Save a token response as if a user had just signed in."""
    answer = Answer(status=200, headers={}, body=json.dumps(response).encode())
    tokens = parse_tokens(answer, now=state.clock())
    assert tokens is not None
    return state.provider().tokens.create(
        NewGrant(
            tokens=tokens,
            claims={"sub": "alice", **claims},
            scope=("openid",),
            requested_at=state.clock(),
        )
    )
