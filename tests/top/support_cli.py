"""Applications and stores for the tests of ``flask atm``."""

import json
from dataclasses import dataclass, field
from typing import Any

from click.testing import Result
from flask import Flask
from flask.testing import FlaskCliRunner

from flask_atm.cli import atm
from flask_atm.extension import ATM
from flask_atm.grants.answers import Tokens
from flask_atm.grants.control import Stored
from flask_atm.grants.record import token_hash
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.user_tokens import NewGrant
from flask_atm.grants.vault import record_key
from flask_atm.state import STATE_KEY, State
from flask_atm.testing import FakeProvider
from flask_atm.tokens import Secret

REFRESH_TOKEN = "canary-refresh-token"
ACCESS_TOKEN = "canary-access-token"
CLIENT_SECRET = "canary-client-secret-of-reports"
CANARIES = (REFRESH_TOKEN, ACCESS_TOKEN, CLIENT_SECRET, "alice", "Alice", "canary-claim")


@dataclass(frozen=True, kw_only=True)
class Shop:
    """An application with an ATM, and a command line."""

    app: Flask

    @property
    def state(self) -> State:
        state = self.app.extensions[STATE_KEY]
        assert isinstance(state, State)
        return state

    def run(self, *args: str) -> Result:
        return FlaskCliRunner(self.app).invoke(atm, args)

    def table(self, *args: str) -> list[str]:
        """Run a command that goes well; give the lines that it prints."""
        result = self.run(*args)
        assert result.exit_code == 0, result.stderr
        return result.stdout.splitlines()

    def objects(self, *args: str) -> list[dict[str, Any]]:
        """Run a command that goes well with ``--json``; give what it prints."""
        result = self.run(*args, "--json")
        assert result.exit_code == 0, result.stderr
        objects = json.loads(result.stdout)
        assert isinstance(objects, list)
        return objects

    def sign_in(self, *, refreshable: bool = True, subject: str = "alice") -> str:
        """Put a grant into the store; give its id."""
        tokens = Tokens(
            access_token=Secret(ACCESS_TOKEN),
            token_type="Bearer",
            lifetime=300,
            refresh_token=Secret(REFRESH_TOKEN) if refreshable else None,
            scope=None,
        )
        with self.app.app_context():
            return self.state.provider().tokens.create(
                NewGrant(
                    tokens=tokens,
                    claims={"sub": subject, "name": "Alice", "note": "canary-claim"},
                    scope=("openid",),
                    requested_at=self.state.clock(),
                )
            )

    def begin(self, grant_id: str) -> None:
        """Take the lease of a grant for ten seconds, as if another process refreshed it."""
        self.state.store.begin(
            record_key(grant_id),
            owner="somebody",
            expected_version=1,
            lease=10,
            intent=token_hash(REFRESH_TOKEN),
        )

    def abort(self, grant_id: str, **arguments: Any) -> None:
        """End that refresh without a result."""
        self.state.store.abort(
            record_key(grant_id), owner="somebody", clear_intent=True, **arguments
        )


def shop(settings: dict[str, Any], **options: Any) -> Shop:
    """Make an application with ``ATM(**options)``; without network."""
    app = Flask("shop", instance_path="/nonexistent")
    app.config.update(settings)
    ATM(app, **options)
    return Shop(app=app)


def settings_of(provider: FakeProvider, **more: Any) -> dict[str, Any]:
    """Configure a provider and a client called ``reports`` at it."""
    provider.register("reports-id", CLIENT_SECRET)
    clients = {
        "reports": {
            "issuer": provider.issuer,
            "client_id": "reports-id",
            "client_secret": CLIENT_SECRET,
            "scope": "read write",
        }
    }
    return provider.settings(ATM_CLIENTS=clients, **more)


@dataclass(kw_only=True)
class Pages:
    """What was asked of a store."""

    limits: list[int] = field(default_factory=list)


class PagedStore(MemoryStore):
    """A store that writes down how it is read."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.pages = Pages()

    def scan(self, after: str, limit: int) -> list[tuple[str, Stored]]:
        self.pages.limits.append(limit)
        return super().scan(after, limit)
