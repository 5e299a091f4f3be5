"""Makes the state of an application from its configuration. No network."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import requests
from flask import Flask

from flask_atm.calls.connections import Connections
from flask_atm.config import Config
from flask_atm.errors import ConfigurationError
from flask_atm.grants.parameters import EngineParameters
from flask_atm.grants.seal import KeyRing
from flask_atm.grants.stores import BY_SCHEME, MemoryStore
from flask_atm.oauth.back_channel import BackChannel
from flask_atm.oauth.metadata import MetadataCache
from flask_atm.pairing import find_stores
from flask_atm.protocols import AtomicGrantStore, Clock
from flask_atm.state import Hooks, State
from flask_atm.workers import memory_problem

__all__ = ["make_state"]

log = logging.getLogger("flask_atm.config")


def make_state(
    app: Flask,
    *,
    hooks: Hooks,
    store: object = None,
    http_session: Callable[[str], requests.Session | None] | None = None,
    clock: Clock = time.time,
    engine: EngineParameters | None = None,
    checkpoint: Callable[[str], None] = lambda point: None,
) -> State:
    """Read the configuration of an application and make everything from it.

    :raises ConfigurationError: all problems of the configuration at once.
    """
    config = Config.load(
        app.config,
        debug=app.debug,
        testing=app.testing,
        has_provider_loader=hooks.provider_loader is not None,
        has_client_loader=hooks.client_loader is not None,
        has_store=not isinstance(store, MemoryStore | None),
    )
    back_channel = _back_channel(config, http_session)
    parameters = engine or EngineParameters(timeout=config.token_timeout)
    stores = find_stores(
        app, store, config, lambda url: _make_store(app, url, config, clock, parameters)
    )
    has_users = bool(config.providers) or hooks.provider_loader is not None
    is_pair = stores.plain is not None
    problem = memory_problem(stores.atomic, os.environ, is_pair=is_pair) if has_users else None
    if problem is not None:
        log.warning("%s", problem)
    return State(
        app=app,
        config=config,
        clock=clock,
        # Without a provider nothing is shared, and a key of this process is enough.
        ring=KeyRing(config.ring_secrets or (os.urandom(32),)),
        store=stores.atomic,
        plain=stores.plain,
        back_channel=back_channel,
        metadata=MetadataCache(back_channel, clock=clock, timeout=config.token_timeout),
        connections=Connections(),
        parameters=parameters,
        hooks=hooks,
        checkpoint=checkpoint,
        _alone=MemoryStore(clock=clock),
    )


def _back_channel(
    config: Config, http_session: Callable[[str], requests.Session | None] | None
) -> BackChannel:
    channel = config.back_channel
    return BackChannel(
        ca_bundle=channel.ca_bundle,
        proxies=channel.proxies,
        allowed_http_hosts=channel.allowed_http_hosts,
        allowed_endpoint_hosts=channel.allowed_endpoint_hosts,
        pool_size=channel.pool_size,
        max_concurrency=channel.max_concurrency,
        http_session=http_session,
    )


def _make_store(
    app: Flask, url: str, config: Config, clock: Clock, parameters: EngineParameters
) -> AtomicGrantStore:
    key = "ATM_STORE" if url == config.store else "ATM_PAIRED_STORE"
    if url == "sqlite":
        url = f"sqlite:///{Path(app.instance_path) / 'flask_atm.sqlite3'}"
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        _check_folder(key, Path(url.removeprefix("sqlite:///")))
    name, plus, _driver = scheme.partition("+")
    return BY_SCHEME[name + plus](url, config.store_prefix, clock, parameters)


def _check_folder(key: str, path: Path) -> None:
    """Find out now what would otherwise fail at the first sign-in."""
    folder = path.absolute().parent
    reason = ""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        reason = error.strerror or str(error)
    if reason or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{key}: the folder {str(folder)!r} cannot be written to"
            f" ({reason or 'permission denied'}). Make it writable for the user that runs the"
            f" application, or set {key} to sqlite:///path of a file in a folder that is, or"
            " give Flask(instance_path=…)"
        )
