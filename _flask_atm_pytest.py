"""The pytest plugin of flask-atm: the fixtures of :mod:`flask_atm.testing`.

It lives outside the package, because pytest loads it before coverage is measured: importing it
must not import ``flask_atm``. The fixtures do, when they are used.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flask_atm.testing import FakeAPI, FakeClock, FakeProvider

__all__ = ["fake_api", "fake_clock", "fake_provider"]

# Tests for tests of others: their failures say as much as those of a test file.
for _module in ("store_contract", "store_races"):
    pytest.register_assert_rewrite(f"flask_atm.testing.{_module}")


@pytest.fixture
def fake_clock() -> "FakeClock":
    """A clock that stands still at the present: the provider's, and yours with ``ATM(clock=…)``."""
    from flask_atm.testing import FakeClock

    return FakeClock()


@pytest.fixture
def fake_provider(fake_clock: "FakeClock") -> "Iterator[FakeProvider]":
    """An OpenID provider that signs in whoever comes; its time is ``fake_clock``."""
    from flask_atm.testing import FakeProvider

    with FakeProvider(clock=fake_clock) as provider:
        yield provider


@pytest.fixture
def fake_api(fake_provider: "FakeProvider") -> "Iterator[FakeAPI]":
    """An API that takes the tokens of ``fake_provider``."""
    from flask_atm.testing import FakeAPI

    with FakeAPI(fake_provider) as api:
        yield api
