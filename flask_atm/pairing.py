"""Which stores an application has: one that decides, and perhaps a plain one beside it.

``ATM(store=…)`` and ``ATM_STORE`` take either; this tells them apart, and finds the pair of a plain
one. No network.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from flask import Flask

from flask_atm.config import Config
from flask_atm.config.values import atomic as read_atomic
from flask_atm.errors import ConfigurationError
from flask_atm.grants.stores import MemoryStore, SQLiteStore
from flask_atm.grants.stores.paired import PairedStore
from flask_atm.grants.stores.session import SessionStore
from flask_atm.protocols import AtomicGrantStore, GrantStore
from flask_atm.settings import Invalid

__all__ = ["Stores", "find_stores", "pair_problem"]

log = logging.getLogger("flask_atm.config")

_ATOMIC_STEPS: Final = (
    *("create", "read", "begin", "commit", "update", "adopt", "abort", "delete", "find"),
    *("scan", "purge"),
)
_PLAIN_STEPS: Final = ("load", "save", "delete")
#: Variables of the environment, and the platforms whose applications run on several hosts.
_PLATFORMS: Final = {
    "KUBERNETES_SERVICE_HOST": "Kubernetes",
    "DYNO": "Heroku",
    "ECS_CONTAINER_METADATA_URI_V4": "Amazon ECS",
    "AWS_LAMBDA_FUNCTION_NAME": "AWS Lambda",
    "FLY_ALLOC_ID": "Fly.io",
    "GAE_INSTANCE": "App Engine",
    "K_SERVICE": "Cloud Run",
    "WEBSITE_INSTANCE_ID": "Azure App Service",
}
_SHARED: Final = "set ATM_PAIRED_STORE to redis://… or an SQL database that all hosts share"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stores:
    """The stores of an application.

    :param atomic: decides about everything.
    :param plain: has copies beside it.
    """

    atomic: AtomicGrantStore
    plain: GrantStore | None = None


def find_stores(
    app: Flask,
    given: object,
    config: Config,
    make: Callable[[str], AtomicGrantStore],
    environ: Mapping[str, str] | None = None,
) -> Stores:
    """Find the stores of an application.

    :param given: what ``ATM(store=…)`` says; ``None``: ``ATM_STORE`` says it.
    :param make: makes an atomic store of what names it.
    :param environ: of the process; says whether there may be several hosts.
    :raises ConfigurationError: what was given is no store, or of no use.
    """
    if isinstance(given, type):
        raise ConfigurationError(_what_it_is(given))
    if given is None and isinstance(config.store, str) and config.store != "session":
        stores = Stores(atomic=make(config.store))
    elif given is None or isinstance(given, PairedStore) or not _has(given, _ATOMIC_STEPS):
        stores = _paired(app, given, config, make)
    else:
        stores = Stores(atomic=cast(AtomicGrantStore, given))
    if stores.plain is None and config.paired_store is not None:
        raise ConfigurationError(
            "ATM_PAIRED_STORE: not used, because the store is no plain one: remove it"
        )
    problem = pair_problem(stores, os.environ if environ is None else environ)
    if problem is not None:
        log.warning("%s", problem)
    return stores


def _paired(
    app: Flask, given: object, config: Config, make: Callable[[str], AtomicGrantStore]
) -> Stores:
    if isinstance(given, PairedStore):
        if config.paired_store is not None:
            raise ConfigurationError("ATM_PAIRED_STORE: PairedStore(…) names one too: remove one")
        atomic = given.atomic
        if not isinstance(atomic, str):
            _check_atomic(atomic)
        return Stores(
            plain=_plain(app, given.plain, config),
            atomic=make(_named(atomic)) if isinstance(atomic, str) else atomic,
        )
    plain = _plain(app, given, config)
    if given is not None and config.paired_store is None:
        log.warning(
            "%r is a plain store, which has copies of sign-ins; what decides about them is the"
            " store 'sqlite' in the instance folder. Say what you mean: ATM(store=PairedStore(…,"
            ' atomic="redis://…")), or ATM_PAIRED_STORE.',
            plain,
        )
    return Stores(plain=plain, atomic=make(config.paired_store or "sqlite"))


def _named(text: str) -> str:
    problem = ""
    try:
        return read_atomic(text)
    except Invalid as error:
        problem = str(error)
    raise ConfigurationError(f"PairedStore(…, atomic=…) {problem}")


def _plain(app: Flask, given: object, config: Config) -> GrantStore:
    """Give the plain store that was meant."""
    if given is None and config.store == "session":
        return SessionStore()
    # Imported here: Flask-Caching is not what most applications keep sign-ins in.
    from flask_atm.grants.stores.caching import CacheStore, is_cache

    if given is None:
        settings = cast("Mapping[str, Any]", config.store)
        return CacheStore.from_settings(app, settings, prefix=config.store_prefix)
    if is_cache(given):
        given = CacheStore(given, prefix=config.store_prefix)
    if isinstance(given, CacheStore):
        return given.of(app)
    if not isinstance(given, type) and _has(given, _PLAIN_STEPS) and not _has(given, ("begin",)):
        return cast(GrantStore, given)
    raise ConfigurationError(_what_it_is(given))


def _what_it_is(given: object) -> str:
    """Tell why something is no store, and what would be one."""
    if isinstance(given, type):
        return f"ATM(store=…): {given.__name__} is a class: give an object of it"
    if isinstance(given, str | Mapping):
        return "ATM(store=…) takes an object: write texts and settings of a cache to ATM_STORE"
    if _has(given, _ATOMIC_STEPS):
        return "PairedStore(…): what is to be the plain store is an atomic one, and needs no pair"
    name = type(given).__name__
    if _has(given, ("begin",)):
        missing = [step for step in _ATOMIC_STEPS if not _has(given, (step,))]
        return f"ATM(store=…): a {name} lacks {', '.join(missing)} of AtomicGrantStore"
    missing = [step for step in _PLAIN_STEPS if not _has(given, (step,))]
    return (
        f"ATM(store=…): a {name} is no store: it lacks {', '.join(missing)} of GrantStore. Give one"
        " of flask_atm.stores, a cache of cachelib or Flask-Caching, or a store of your own"
    )


def _check_atomic(given: object) -> None:
    if isinstance(given, type) or not _has(given, _ATOMIC_STEPS):
        name = given.__name__ if isinstance(given, type) else type(given).__name__
        missing = [step for step in _ATOMIC_STEPS if not _has(given, (step,))]
        raise ConfigurationError(
            f"PairedStore(…, atomic=…) takes an atomic store, an object or what names it"
            f' ("redis://…"), not {name}' + (f", which lacks {', '.join(missing)}" * bool(missing))
        )


def _has(given: object, steps: tuple[str, ...]) -> bool:
    return all(callable(getattr(given, step, None)) for step in steps)


def pair_problem(stores: Stores, environ: Mapping[str, str]) -> str | None:
    """Tell why an atomic store that each host has for itself is not enough; ``None``: it is.

    :param environ: of the process.
    """
    if stores.plain is None or not _is_local(stores.atomic):
        return None
    if getattr(stores.plain, "is_shared", False):
        why = f"{stores.plain!r} may be shared by several hosts"
    else:
        platform = next((name for word, name in _PLATFORMS.items() if word in environ), None)
        if platform is None:
            return None
        why = f"on {platform} there may be several hosts"
    return (
        f"{why}, but each of them has the paired store {stores.atomic!r} for itself, and would"
        f" renew the same sign-in: {_SHARED}."
    )


def _is_local(store: AtomicGrantStore) -> bool:
    if isinstance(store, MemoryStore | SQLiteStore):
        return True
    return getattr(store, "dialect", None) == "sqlite"
