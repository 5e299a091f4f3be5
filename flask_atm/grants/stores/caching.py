"""Copies of grants in a cache of cachelib or Flask-Caching, and nothing of it pickled.

These caches pickle what they are given, and a pickle runs code when it is read. So the sealed bytes
go by a shallow copy of the cache, with a serializer that leaves bytes as they are. The cache of the
application, and what it has there, stays as it is.
"""

import re
import sys
from collections.abc import Mapping
from copy import copy
from typing import IO, Any, Final

import cachelib
import flask_caching
from cachelib.serializers import BaseSerializer
from flask_caching.backends import NullCache

from flask_atm.errors import ConfigurationError, StoreError

__all__ = ["CacheStore", "is_cache"]

#: In front of what is ours: anything else is another one's, and is not read.
_OURS: Final = b"flask-atm 1\0"
#: Seconds after which no cache has to keep anything: times beyond are dates to some of them.
_LONGEST: Final = 10 * 365 * 86400
_NETWORK: Final = re.compile("redis|valkey|memcache|dynamo|mongo|cloud", re.IGNORECASE)
#: The errors of client libraries that are no OSError, by the module that has them.
_ERRORS: Final = (
    ("redis.exceptions", "RedisError"),
    ("valkey.exceptions", "ValkeyError"),
    ("pylibmc", "Error"),
    ("pymemcache.exceptions", "MemcacheError"),
    ("pymongo.errors", "PyMongoError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
)
_PICKLED_INT: Final = re.compile(
    rb"\x80[\x02-\x05](?:\x95.{8})?(?:K(.)|M(..)|J(....))\.|I(-?\d{1,10})\n\.", re.DOTALL
)


def is_cache(value: object) -> bool:
    """Tell whether something is a cache of cachelib or Flask-Caching."""
    return isinstance(value, cachelib.BaseCache | flask_caching.Cache)


class CacheStore:
    """Keeps copies of grants in a cache of cachelib or Flask-Caching.

    An entry that the cache drops, also by ``cache.clear()``, comes back with the next request.

    :param cache: a ``cachelib`` cache, or a Flask-Caching ``Cache``, whose ``init_app`` comes
        before that of the ``ATM``.
    :param prefix: in front of every key.
    :raises ConfigurationError: nothing can be kept there, or not without being pickled.
    """

    def __init__(self, cache: object, *, prefix: str = "flask_atm") -> None:
        if not is_cache(cache):
            raise ConfigurationError(
                f"CacheStore(…) takes a cache of cachelib or Flask-Caching, not"
                f" {type(cache).__name__}"
            )
        self._cache: Any = cache
        self._prefix = prefix
        self._back: Any = None if isinstance(cache, flask_caching.Cache) else _without_pickle(cache)

    def __repr__(self) -> str:
        return f"<CacheStore {type(self._back or self._cache).__name__}>"

    @classmethod
    def from_settings(cls, app: Any, settings: Mapping[str, Any], *, prefix: str) -> "CacheStore":
        """Make a cache of its own by the settings of Flask-Caching.

        :param app: the application, which gets nothing of it.
        :raises ConfigurationError: they do not make a cache that can be used.
        """
        cache = flask_caching.Cache(with_jinja2_ext=False)
        had_any = "cache" in app.extensions
        config = {"CACHE_KEY_PREFIX": f"{prefix}_", "CACHE_NO_NULL_WARNING": True, **settings}
        problem = ""
        try:
            cache.init_app(app, config)
        except ValueError as error:
            # Its text may have a part of a value in it, such as of a password in a URL.
            problem = f"{type(error).__name__}: a value is not as it has to be; in a URL special"
            problem += " characters are written as %xx"
        except (ImportError, LookupError, RuntimeError, TypeError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise ConfigurationError(
                f"ATM_STORE: the settings of Flask-Caching make no cache ({problem})"
            )
        back = app.extensions["cache"].pop(cache)
        if not had_any:
            del app.extensions["cache"]
        return cls(back, prefix=prefix)

    def of(self, app: Any) -> "CacheStore":
        """Give the one on the cache that this application has.

        :raises ConfigurationError: the cache does not belong to this application, or is of no use.
        """
        if self._back is not None:
            return self
        back = app.extensions.get("cache", {}).get(self._cache)
        if back is None:
            raise ConfigurationError(
                "ATM(store=…): call cache.init_app(app) before atm.init_app(app), so that the cache"
                " knows where it is"
            )
        return CacheStore(back, prefix=self._prefix)

    @property
    def is_shared(self) -> bool:
        """Whether other hosts may have the same cache."""
        kinds = type(self._backend()).__mro__
        return any(_NETWORK.search(kind.__name__) for kind in kinds)

    def load(self, key: str) -> bytes | None:
        """See :class:`~flask_atm.protocols.GrantStore`."""
        value = self._do("get", f"{self._prefix}:{key}")
        if not isinstance(value, bytes) or not value.startswith(_OURS):
            return None
        return value.removeprefix(_OURS)

    def save(self, key: str, sealed: bytes, *, lifetime: float) -> None:
        """See :class:`~flask_atm.protocols.GrantStore`."""
        # 0 would mean for ever.
        timeout = min(max(1, int(lifetime)), _LONGEST)
        if self._do("set", f"{self._prefix}:{key}", _OURS + sealed, timeout=timeout) is False:
            raise StoreError(f"{self!r} does not take a copy")

    def delete(self, key: str) -> None:
        """See :class:`~flask_atm.protocols.GrantStore`."""
        self._do("delete", f"{self._prefix}:{key}")

    def _do(self, name: str, *values: Any, **more: Any) -> Any:
        problem = ""
        try:
            return getattr(self._backend(), name)(*values, **more)
        except _silent() as error:
            problem = f"{type(error).__name__}: {error}"
        raise StoreError(f"{self!r} does not answer ({problem})")

    def _backend(self) -> Any:
        # Used without an application of ours, a Flask-Caching cache has the one of the context.
        return self._back if self._back is not None else _without_pickle(self._cache.cache)


def _silent() -> tuple[type[Exception], ...]:
    """Give what caches raise that do not answer. Asked only after something was raised."""
    found = [getattr(sys.modules.get(module), name, None) for module, name in _ERRORS]
    return (OSError, UnicodeError, *(one for one in found if isinstance(one, type)))


def _without_pickle(back: Any) -> Any:
    """Give a cache like this one that stores our bytes as they are.

    :raises ConfigurationError: it would pickle them, or lose them.
    """
    name = type(back).__name__
    if isinstance(back, NullCache | cachelib.NullCache) or type(back).set is cachelib.BaseCache.set:
        raise ConfigurationError(
            f"a {name} keeps nothing, so no sign-in would be copied: configure another CACHE_TYPE,"
            " or leave the cache out and set ATM_STORE to sqlite or redis://…"
        )
    if isinstance(back, cachelib.MemcachedCache) and type(back).set is cachelib.MemcachedCache.set:
        return back  # its client leaves bytes as they are
    if not isinstance(getattr(back, "serializer", None), BaseSerializer):
        raise ConfigurationError(
            f"a {name} pickles what it stores, or does not say how it does that: use another"
            " CACHE_TYPE (RedisCache, MemcachedCache, FileSystemCache), or write a GrantStore"
        )
    ours = copy(back)
    ours.serializer = _Plain()
    return ours


class _Plain:
    """Leaves our bytes as they are, and reads nothing else."""

    def dumps(self, value: Any, *more: Any, **named: Any) -> bytes:
        """Give what is stored."""
        # The number of its files, which a FileSystemCache keeps beside them. Written so that the
        # application's cache in the same folder, which pickles it, reads it too.
        return b"I%d\n." % value if isinstance(value, int) else bytes(value)

    def loads(self, stored: Any, *more: Any, **named: Any) -> Any:
        """Give what was stored; ``None``: it is not ours."""
        if not isinstance(stored, bytes) or stored.startswith(_OURS):
            return stored
        found = _PICKLED_INT.fullmatch(stored)
        if found is None:
            return None
        if found[4]:
            return int(found[4])
        digits = found[1] or found[2] or found[3]
        return int.from_bytes(digits, "little", signed=len(digits) == 4)

    def dump(self, value: Any, file: IO[bytes], *more: Any, **named: Any) -> None:
        """Write what is stored."""
        file.write(self.dumps(value))

    def load(self, file: IO[bytes], *more: Any, **named: Any) -> Any:
        """Read what was stored."""
        return self.loads(file.read())
