"""The way to Redis or Valkey: connections with short time-outs, one retry, errors with a cure."""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from flask_atm.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from redis import Redis, RedisCluster
    from redis.commands.core import Script

__all__ = ["RedisLink"]

log = logging.getLogger("flask_atm.store")

T = TypeVar("T")

#: As many as a process has threads: what a server takes by default is the limit.
_CONNECTIONS: Final = 10_000
#: redis.client.NEVER_DECODE: sealed bytes are no text, also for a client with decode_responses.
#: Calling a Script of redis-py takes no options, so it is only kept for its text and its hash.
_RAW: Final[Mapping[str, Any]] = {"NEVER_DECODE": []}
#: The first that matches the class and the text of an error says what to do. Before Redis 7 an
#: error that a script meets is in the middle of another one's text.
_CURES: Final = (
    (
        r"OutOfMemoryError|\bOOM\b",
        "its memory is full: raise maxmemory, and keep maxmemory-policy noeviction",
    ),
    (
        r"ReadOnlyError|\bREADONLY\b",
        "this server is a replica: name the primary, or give RedisStore a client that finds it"
        " (redis.sentinel, redis.RedisCluster)",
    ),
    (
        r"\bMISCONF\b",
        "it cannot save to its disk and takes no writes: its own log says why; make room, or"
        " mend the permissions of its folder",
    ),
    (r"BusyLoadingError|\bLOADING\b", "it is loading its data: this ends by itself"),
    (r"\bBUSY\b", "another script keeps it busy: find out whose, SCRIPT KILL ends it"),
    (
        r"NoScriptError|\bNOSCRIPT\b",
        "it forgets scripts as soon as they are loaded: find out who sends SCRIPT FLUSH, or whether"
        " a proxy in front of several servers is in the way",
    ),
    (
        r"ClusterError|ClusterException|MovedError|AskError|ClusterDown|\b(MOVED|ASK|CLUSTERDOWN)\b",
        "it is a cluster, or part of one that is not complete: give RedisStore a"
        " redis.RedisCluster, and look at CLUSTER INFO",
    ),
    (
        r"NoPermissionError|\bNOPERM\b",
        "its user lacks a right: ACL SETUSER … +@read +@write +@scripting +@connection +time"
        " +info ~{prefix}:*",
    ),
    (
        r"Authentication|Authorization|\b(NOAUTH|WRONGPASS)\b|AUTH.*called without",
        "user or password are wrong, or missing in the URL (redis://user:password@host)",
    ),
    (
        r"\bWRONGTYPE\b",
        "a key that begins with {prefix}: belongs to something else: set ATM_STORE_PREFIX",
    ),
    (r"unknown command|unknown redis command", "Redis 6 or later, or Valkey, is needed"),
    (
        r"CERTIFICATE|SSL|certificate",
        "rediss:// needs a certificate that this host trusts: name its authority with"
        " ?ssl_ca_certs=/path in the URL",
    ),
    (
        r"max number of clients|MaxConnections|Too many connections",
        "there are too many connections: raise its maxclients, or the limit of the client",
    ),
    (r"", "is it running, and reachable from this host, where ATM_STORE says?"),
)


@dataclass(kw_only=True, slots=True)
class _Ready:
    """A client, what was registered with it, and whether its server was looked at."""

    client: Any
    scripts: "Mapping[str, Script]"
    looked: bool = False


class RedisLink:
    """Runs scripts and plain commands, with errors as :exc:`~flask_atm.StoreError`.

    Thread-safe and fork-safe: connections of its own belong to one process each.

    :param scripts: in Lua, by name; loaded again where the server has forgotten them.
    :param prefix: of the keys, for messages.
    :param connect_timeout: seconds for connecting; for connections of its own, like the next one.
    :param timeout: seconds for an answer.
    """

    def __init__(
        self,
        url_or_client: "str | Redis | RedisCluster",
        scripts: Mapping[str, bytes],
        *,
        prefix: str,
        connect_timeout: float,
        timeout: float,
    ) -> None:
        try:
            import redis
        except ImportError as error:
            raise ConfigurationError(
                "the store needs redis-py: pip install 'flask-atm[redis]'"
            ) from error
        exceptions = redis.exceptions
        self._scripts = scripts
        self._prefix = prefix
        self._errors = (redis.RedisError, exceptions.RedisClusterException, OSError)
        self._passing = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)
        self._no_script = exceptions.NoScriptError
        self._final = (exceptions.AuthenticationError, exceptions.AuthorizationError)
        self._make: Callable[[], Any] | None = None
        self._is_cluster = isinstance(url_or_client, redis.RedisCluster)
        #: Clients and their scripts by process: those of a parent must not even be closed.
        self._clients: dict[int, _Ready] = {}
        if isinstance(url_or_client, str):
            self._make = _maker(url_or_client, connect_timeout, timeout)
            self.place = _place(url_or_client)
        else:
            self._client = _checked(url_or_client)
            self.place = "the client of the application"

    def run(self, script: str, key: bytes, *arguments: str | int | bytes) -> Any:
        """Run a script on a key.

        :raises StoreError: it did not answer, or refused.
        """
        sent = [each.encode() if isinstance(each, str) else each for each in arguments]

        def send(ready: _Ready) -> Any:
            client, known = ready.client, ready.scripts[script]
            try:
                return client.execute_command("EVALSHA", known.sha, 1, key, *sent, **_RAW)
            except self._no_script:
                client.script_load(known.script)
            return client.execute_command("EVALSHA", known.sha, 1, key, *sent, **_RAW)

        return self._try(send)

    def run_many(
        self, script: str, calls: Sequence[tuple[bytes, Sequence[str | int | bytes]]]
    ) -> list[Any]:
        """Run a script on many keys in one go; each call is atomic by itself.

        :param calls: a key and its arguments each.
        :raises StoreError: not all were answered, or one was refused.
        """
        sent = [
            (key, [each.encode() if isinstance(each, str) else each for each in arguments])
            for key, arguments in calls
        ]

        def pipe(ready: _Ready, numbers: Sequence[int]) -> list[Any]:
            pipeline, sha = ready.client.pipeline(transaction=False), ready.scripts[script].sha
            for number in numbers:
                key, arguments = sent[number]
                pipeline.execute_command("EVALSHA", sha, 1, key, *arguments, **_RAW)
            return list(pipeline.execute(raise_on_error=False))

        def send(ready: _Ready) -> list[Any]:
            answers = pipe(ready, range(len(sent)))
            unknown = [n for n, one in enumerate(answers) if isinstance(one, self._no_script)]
            if unknown:
                ready.client.script_load(ready.scripts[script].script)
                for number, answer in zip(unknown, pipe(ready, unknown), strict=True):
                    answers[number] = answer
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return answers

        return self._try(send) if calls else []

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Give plain values, in the order of their keys.

        :raises StoreError: they were not answered, or one was refused.
        """

        def send(ready: _Ready) -> list[bytes | None]:
            return list(ready.client.execute_command("MGET", *keys, **_RAW))

        if not keys:
            return []
        # Keys that lie on several nodes cannot be asked for in one command.
        many = self._is_cluster
        return self.run_all([("GET", key) for key in keys]) if many else self._try(send)

    def run_all(self, commands: Sequence[tuple[str | bytes, ...]]) -> list[Any]:
        """Send plain commands in one go; each is on a key of its own.

        :raises StoreError: they were not answered, or one was refused.
        """

        def send(ready: _Ready) -> list[Any]:
            pipeline = ready.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command, **_RAW)
            return list(pipeline.execute())

        return self._try(send) if commands else []

    def close(self) -> None:
        """Close what is this process's and this object's own."""
        ready = self._clients.pop(os.getpid(), None)
        if ready is not None and self._make is not None:
            ready.client.close()

    # -- one step

    def _try(self, act: "Callable[[_Ready], T]") -> T:
        """Do it; on connections of its own once more, where another one may help."""
        problem = ""
        for again in (True, False):
            ready = self._clients.get(os.getpid()) or self._get_ready()
            try:
                found = act(ready)
            except self._errors as error:
                problem = self._problem(error)
                if self._make is None or not again or not self._may_pass(error):
                    break
                # Those that are idle are no better than this one was.
                ready.client.connection_pool.disconnect(inuse_connections=False)
            except BaseException:
                # An answer that nobody took may still come, for the next one to ask.
                if pool := getattr(ready.client, "connection_pool", None):
                    pool.disconnect(inuse_connections=False)
                raise
            else:
                if not ready.looked:
                    ready.looked = True
                    self._look(ready.client)
                return found
        # Out here, because the frames of the error above hold the password.
        raise StoreError(problem)

    def _get_ready(self) -> "_Ready":
        """Make the client and the scripts of this process."""
        client = self._client if self._make is None else self._make()
        scripts = {name: client.register_script(text) for name, text in self._scripts.items()}
        return self._clients.setdefault(os.getpid(), _Ready(client=client, scripts=scripts))

    def _may_pass(self, error: BaseException) -> bool:
        return isinstance(error, self._passing) and not isinstance(error, self._final)

    def _problem(self, error: BaseException) -> str:
        # Some errors name the hash of the script, or repeat what was sent.
        text = re.sub(r"\b(f_)?[0-9a-f]{40}\b", "…", str(error).partition(", with args")[0])
        found = f"{type(error).__name__}: {text[:200]}"
        cure = next(cure for pattern, cure in _CURES if re.search(pattern, found))
        return (
            f"the grants in {self.place} cannot be used ({found}):"
            f" {cure.format(prefix=self._prefix)}"
        )

    # -- eviction

    def eviction_policy(self) -> str | None:
        """Give what the server throws away when its memory is short; ``None``: it does not say.

        :raises StoreError: it does not answer.
        """
        self._try(lambda ready: ready.client.ping())
        try:
            return self._try(lambda ready: _policy(ready.client))
        except StoreError:
            return None  # INFO may be forbidden

    def _look(self, client: Any) -> None:
        """Warn of a server that throws keys away when its memory is short."""
        try:
            policy = _policy(client)
        except self._errors:
            return  # INFO may be forbidden
        if policy != "noeviction":
            log.warning(
                "%s has maxmemory-policy %s: it throws sign-ins away when its memory is short, and"
                " their users have to sign in again. Set it to noeviction.",
                self.place,
                policy,
            )


def _policy(client: Any) -> str:
    memory = client.info("memory")
    # Without a limit nothing is thrown away, whatever the policy.
    limited = memory.get("maxmemory")
    return str(memory.get("maxmemory_policy", "noeviction")) if limited else "noeviction"


def _maker(url: str, connect_timeout: float, timeout: float) -> Callable[[], Any]:
    """Give what makes a client for a URL; its own options win over the time-outs here.

    :raises ConfigurationError: redis-py does not understand the URL.
    """
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    def make() -> Any:
        options: dict[str, Any] = {
            "socket_connect_timeout": connect_timeout,
            "socket_timeout": timeout,
            "max_connections": _CONNECTIONS,
            # The retry is ours: one inside another would make four attempts of two.
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        if url.startswith("unix:"):
            del options["socket_connect_timeout"]
        if url.startswith("rediss:"):
            options["ssl_check_hostname"] = True
        return redis.Redis.from_url(url, **options)

    try:
        pool = make().connection_pool
        pool.connection_class(**pool.connection_kwargs)  # finds options that do not exist
    except (ValueError, TypeError, OSError, redis.RedisError) as error:
        problem = "" if isinstance(error, ValueError) else f" ({error})"
    else:
        return make
    raise ConfigurationError(
        f"the URL of the Redis store is not one that redis-py understands{problem}:"
        " redis://user:password@host:6379/0, special characters as %xx"
    )


def _place(url: str) -> str:
    """Name the server of a URL, without what is secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _checked(client: Any) -> Any:
    """Refuse, now, what would fail at the first sign-in."""
    if not hasattr(client, "register_script") or type(client).__module__.startswith("valkey."):
        raise TypeError("RedisStore takes a URL, a redis.Redis or a redis.RedisCluster")
    if iscoroutinefunction(getattr(client, "execute_command", None)):
        raise TypeError("RedisStore takes a redis.Redis, not one of redis.asyncio")
    return client
