"""The configuration: ``ATM_*`` keys, read once into frozen dataclasses."""

from flask_atm.config.keys import (
    APIConfig,
    BackChannelConfig,
    ClientConfig,
    IDTokenConfig,
    ProviderConfig,
    Registration,
)
from flask_atm.config.load import FLAT, KEYS, Config, Key, client_from, provider_from

__all__ = [
    "FLAT",
    "KEYS",
    "APIConfig",
    "BackChannelConfig",
    "ClientConfig",
    "Config",
    "IDTokenConfig",
    "Key",
    "ProviderConfig",
    "Registration",
    "client_from",
    "provider_from",
]
