"""Servers and clocks that many tests share."""

from collections.abc import Iterator

import pytest

from tests.servers import OIDCServer


@pytest.fixture(scope="session")
def _oidc_server() -> Iterator[OIDCServer]:
    with OIDCServer() as server:
        yield server


@pytest.fixture
def oidc(_oidc_server: OIDCServer) -> OIDCServer:
    """A real OpenID provider, as if just started."""
    _oidc_server.pristine()
    return _oidc_server
