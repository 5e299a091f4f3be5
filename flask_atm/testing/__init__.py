"""For tests of applications that use flask-atm: a provider, an API and a clock, all fake.

Nothing here is for production: the provider authenticates nobody.
"""

from typing import TYPE_CHECKING, Any

from flask_atm.testing.clock import FakeClock
from flask_atm.testing.fake_api import APICall, FakeAPI
from flask_atm.testing.fake_provider import FakeProvider
from flask_atm.testing.provider_log import ProviderRequest
from flask_atm.testing.sign_in import sign_in

if TYPE_CHECKING:
    from flask_atm.testing.plain_contract import PlainStoreContract
    from flask_atm.testing.store_contract import StoreClock, StoreContract

__all__ = [
    "APICall",
    "FakeAPI",
    "FakeClock",
    "FakeProvider",
    "PlainStoreContract",
    "ProviderRequest",
    "StoreClock",
    "StoreContract",
    "sign_in",
]


def __getattr__(name: str) -> Any:
    # Tests themselves: they need pytest, which everything else here does without.
    if name == "PlainStoreContract":
        from flask_atm.testing import plain_contract

        return plain_contract.PlainStoreContract
    if name in ("StoreClock", "StoreContract"):
        from flask_atm.testing import store_contract

        return getattr(store_contract, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
