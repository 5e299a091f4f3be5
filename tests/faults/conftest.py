"""A server with a grace period, one without, and the means to sign in there."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.driver import Fleet
from tests.faults.engines import PARAMETERS, FlaskATM
from tests.grants.support import Setup
from tests.grants.tools import metadata, settings
from tests.servers import Reply, RotatingTokenServer

__all__ = ["Place"]

LIFETIME = 300.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """A server, and engines that share a store.

    :param folder: where the store is.
    """

    server: RotatingTokenServer
    folder: Path

    def engine(self, left: float = -100.0) -> FlaskATM:
        """Give an engine for which the tokens of a sign-in have so many seconds left."""
        setup = Setup(
            config=settings(self.server, f"sqlite:///{self.folder / 'grants.sqlite3'}"),
            ahead=LIFETIME - left,
            engine=PARAMETERS,
        )
        return FlaskATM(setup=setup)

    def sign_in(self) -> str:
        return self.engine().sign_in(self.server.issue("alice"))

    def sent(self) -> list[str]:
        """Give the refresh tokens that were sent, in order."""
        return [one.parameter("refresh_token") or "" for one in self.server.token_requests]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with RotatingTokenServer(lifetime=LIFETIME) as server:
        server.always(Reply(body={"keys": []}), "/jwks")
        server.always(Reply(body=metadata(server)), "/.well-known/openid-configuration")
        yield Place(server=server, folder=tmp_path)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as running:
        yield running
