"""For tests of applications that use flask-atm: a provider, an API and a clock, all fake.

Nothing here is for production: the provider authenticates nobody.
"""

from flask_atm.testing.clock import FakeClock
from flask_atm.testing.fake_api import APICall, FakeAPI
from flask_atm.testing.fake_provider import FakeProvider
from flask_atm.testing.provider_log import ProviderRequest
from flask_atm.testing.sign_in import sign_in

__all__ = ["APICall", "FakeAPI", "FakeClock", "FakeProvider", "ProviderRequest", "sign_in"]
