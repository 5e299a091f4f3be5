"""Servers that many tests share, and what no test may do: log what looks like a secret."""

import logging
import re
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


class Watch(logging.Handler):
    """Looks for tokens, codes, verifiers and keys in what is logged: 32 random characters or more.

    ``tests/test_canaries.py`` plants known ones; this one watches the whole suite.
    """

    SECRET = re.compile(r"(?<![\w/.=-])(?=[\w.~+-]*\d)(?=[\w.~+-]*[A-Za-z])[\w.~+-]{32,}=*")
    LOGGERS = ("flask_atm", "authlib")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self.found += [f"{record.name}: {text}"] if self.SECRET.search(text) else []


@pytest.fixture(scope="session")
def _watch() -> Watch:
    watch = Watch()
    for name in Watch.LOGGERS:
        logging.getLogger(name).addHandler(watch)
        logging.getLogger(name).setLevel(logging.DEBUG)
    return watch


@pytest.fixture(autouse=True)
def _nothing_secret_is_logged(_watch: Watch) -> Iterator[None]:
    """J1, through the whole suite."""
    _watch.found.clear()
    yield
    assert not _watch.found, "this looks like a secret in a log"
