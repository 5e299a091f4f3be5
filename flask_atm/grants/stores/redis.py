"""Grants in Redis or Valkey: for several hosts. Atomic for all that share the server."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from flask_atm.grants.control import Begun, Control, Outcome, Stored
from flask_atm.grants.stores.redis_link import RedisLink
from flask_atm.protocols import Doomed

if TYPE_CHECKING:
    from redis import Redis, RedisCluster

__all__ = ["RedisStore"]

_CLOCK: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
#: Apart from the others, because it runs for every request.
_READ: Final = """
local value = redis.call('GET', KEYS[1])
return value and {now, value}
"""
_STEPS: Final = Path(__file__).with_name("redis_steps.lua")
#: The words of a record, as redis_steps.lua writes them: 1, call, index, control, sealed bytes.
_WORDS: Final = 18
_PAGE: Final = 250
#: So many entries are written in one step: others do not wait for longer than some milliseconds.
_ENTERED: Final = 50


class RedisStore:
    """An atomic store in Redis (6 or later) or Valkey. Thread-safe and fork-safe.

    One string per grant, one Lua script per step, one key per script: it works on a cluster too,
    with a ``redis.RedisCluster``. All instants are by the clock of the server. Every key has an
    end, that of its grant, so the server needs ``maxmemory-policy noeviction``: any other policy
    throws sign-ins away when memory is short, and a warning says so at the first use.

    :param url_or_client: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it; the
        store then has connections of its own, with short time-outs and one retry. Or a client,
        which is used as it is, also with ``decode_responses=True``: give it short time-outs and few
        retries.
    :param prefix: in front of every key.
    :param connect_timeout: seconds for connecting, twice at most; not for a client of yours.
    :param timeout: seconds for an answer, twice at most; not for a client of yours.
    """

    def __init__(
        self,
        url_or_client: "str | Redis | RedisCluster",
        *,
        prefix: str = "flask_atm",
        connect_timeout: float = 0.5,
        timeout: float = 1.0,
    ) -> None:
        self._prefix = prefix
        scripts = {"read": _READ, "step": _STEPS.read_text("utf-8")}
        self._link = RedisLink(
            url_or_client,
            {name: (_CLOCK + text).encode() for name, text in scripts.items()},
            prefix=prefix,
            connect_timeout=connect_timeout,
            timeout=timeout,
        )
        self._all = self._name("all")

    def __repr__(self) -> str:
        return f"<RedisStore {self._link.place!r}>"

    def close(self) -> None:
        """Close the connections of this process that are the store's own; steps open new ones."""
        self._link.close()

    def eviction_policy(self) -> str | None:
        """Give the server's ``maxmemory-policy``, ``noeviction`` where it has no ``maxmemory``.

        :returns: ``None`` where the server does not say.
        :raises StoreError: it does not answer.
        """
        return self._link.eviction_policy()

    def _name(self, kind: str, name: str = "") -> bytes:
        return f"{self._prefix}:{kind}:{name}".encode()

    def _do(self, key: str, step: str, *arguments: str | int | bytes) -> Any:
        return self._link.run("step", self._name("grant", key), step, *arguments)

    # -- the steps

    def create(
        self,
        key: str,
        sealed: bytes,
        *,
        ends_at: float,
        index: Sequence[str] = (),
        doubt: bool = False,
        version: int = 1,
    ) -> bool:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        self._enter(key, _ms(ends_at), [self._all, *map(self._entry, index)])
        arguments = (_call(), _listed(index), _ms(ends_at), int(doubt), version, sealed)
        made: bytes = self._do(key, "create", *arguments)
        return made == b"1"

    def read(self, key: str) -> Stored | None:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        found = self._link.run("read", self._name("grant", key))
        return None if found is None else _stored(found[1].split(b" ", _WORDS - 1), found[0])

    def begin(
        self, key: str, *, owner: str, expected_version: int, lease: float, intent: str | None
    ) -> Begun:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        status, now, *rest = self._do(
            key, "begin", _word(owner), expected_version, _ms(lease), _word(intent)
        )
        begun: dict[str, Any] = {"status": status.decode(), "now": now / 1000}
        if status == b"held":
            begun |= {"version": rest[0], "doubt": rest[1] == b"1"}
        elif status == b"busy":
            begun["wait"] = rest[0] / 1000
        return Begun(**begun)

    def commit(self, key: str, sealed: bytes, *, expected_version: int, commit_id: str) -> Outcome:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        arguments = (expected_version, _word(commit_id), sealed)
        outcome: Outcome = self._do(key, "commit", *arguments).decode()
        return outcome

    def update(
        self,
        key: str,
        sealed: bytes,
        *,
        expected_version: int,
        index: Sequence[str] | None = None,
    ) -> Outcome:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        if index is not None:
            found = self.read(key)
            if found is None:
                return "gone"
            self._enter(key, _ms(found.control.ends_at), map(self._entry, index))
        entries = "" if index is None else "=" + _listed(index)
        answer, *was = self._do(key, "update", _call(), expected_version, entries, sealed)
        if was:
            left = set(_entries(was[1])).difference(index or ())
            member = _member(key, int(was[0]))
            self._link.run_all([("ZREM", self._entry(entry), member) for entry in left])
        outcome: Outcome = answer.decode()
        return outcome

    def adopt(self, key: str, sealed: bytes, *, expected_version: int, version: int) -> Outcome:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        arguments = (_call(), expected_version, version, sealed)
        outcome: Outcome = self._do(key, "adopt", *arguments).decode()
        return outcome

    def abort(
        self,
        key: str,
        *,
        owner: str,
        clear_intent: bool,
        pause: float = 0.0,
        failures: int = 0,
        suspect: str | None = None,
        dead: str | None = None,
    ) -> None:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        self._do(
            key,
            "abort",
            *(_word(owner), int(clear_intent), _ms(pause), failures, _word(suspect), _word(dead)),
        )

    def delete(
        self,
        key: str,
        *,
        keep: bytes | None = None,
        index: Sequence[str] = (),
        expected_version: int | None = None,
    ) -> bool:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        one = Doomed(key=key, keep=keep, index=index, expected_version=expected_version)
        return self.delete_many([one])[0]

    def read_many(self, keys: Sequence[str]) -> list[Stored | None]:
        """See :class:`~flask_atm.protocols.BatchedGrantStore`."""
        if not keys:
            return []
        names = [self._name("grant", key) for key in keys]
        now: int = self._link.run("step", names[0], "clock")
        values = self._link.get_many(names)
        return [(value and _stored(value.split(b" ", _WORDS - 1), now)) or None for value in values]

    def delete_many(self, doomed: Sequence[Doomed]) -> list[bool]:
        """See :class:`~flask_atm.protocols.BatchedGrantStore`."""
        self._enter_tombstones([one for one in doomed if one.keep is not None and one.index])
        answers = self._link.run_many("step", [self._deletion(one) for one in doomed])
        left: dict[bytes, list[bytes]] = {}
        for one, (_, *was) in zip(doomed, answers, strict=True):
            if was:
                index = () if one.keep is None else one.index
                names = {self._entry(entry) for entry in set(_entries(was[1])).difference(index)}
                names |= {self._all} if one.keep is None else set()
                for name in names:
                    left.setdefault(name, []).append(_member(one.key, int(was[0])))
        self._link.run_all([("ZREM", name, *members) for name, members in left.items()])
        return [answer[0] == b"1" for answer in answers]

    def _deletion(self, one: Doomed) -> tuple[bytes, tuple[str | int | bytes, ...]]:
        version = "" if one.expected_version is None else one.expected_version
        index = _listed(() if one.keep is None else one.index)
        keep = b"" if one.keep is None else b"=" + one.keep
        return self._name("grant", one.key), ("delete", _call(), version, index, keep)

    def _enter_tombstones(self, doomed: Sequence[Doomed]) -> None:
        """Write index entries of tombstones before these are there."""
        ends = {one.key: one.ends_at for one in doomed}
        unknown = [key for key, ends_at in ends.items() if ends_at is None]
        for key, stored in zip(unknown, self.read_many(unknown), strict=True):
            ends[key] = None if stored is None else stored.control.ends_at
        entered: dict[str, list[bytes]] = {}
        for one in doomed:
            ends_at = ends[one.key]
            for name in one.index if ends_at is not None else ():
                entered.setdefault(name, []).append(_member(one.key, _ms(ends_at or 0)))
        self._link.run_many(
            "step",
            [
                (self._entry(name), ("enter", 1, *members[start : start + _ENTERED]))
                for name, members in entered.items()
                for start in range(0, len(members), _ENTERED)
            ],
        )

    # -- indexes: written before the record and removed after it, so what they name is looked at

    def _entry(self, entry: str) -> bytes:
        return self._name("index", entry)

    def _enter(self, key: str, ends_at: int, names: Iterable[bytes]) -> None:
        for name in names:
            self._link.run("step", name, "enter", 0, _member(key, ends_at))

    def find(self, index: str, limit: int = 100) -> list[str]:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        walk = self._walk(self._entry(index), "", min(limit, _PAGE))
        found = (key for key, words, _ in walk if index in _entries(words[2]))
        return list(islice(found, limit))

    def scan(self, after: str, limit: int) -> list[tuple[str, Stored]]:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`."""
        walk = self._walk(self._all, after, min(limit, _PAGE))
        found = ((key, _stored(words, now)) for key, words, now in walk)
        return list(islice(((key, stored) for key, stored in found if stored), limit))

    def purge(self, limit: int) -> int:
        """See :class:`~flask_atm.protocols.AtomicGrantStore`: the server does it by itself."""
        return 0

    def _walk(self, name: bytes, after: str, page: int) -> Iterator[tuple[str, list[bytes], int]]:
        """Go through the records in an index, in order of key, from the first after ``after``."""
        start = b"[%b\1" % after.encode()
        while True:
            now, seen, last, *members = self._link.run("step", name, "page", start, page)
            keys = [member[:-17].decode() for member in members]
            values = self._link.get_many([self._name("grant", key) for key in keys])
            for key, member, value in zip(keys, members, values, strict=True):
                words = (value or b"").split(b" ", _WORDS - 1)
                # A member of another end is of a record before this one, or of one to come.
                if len(words) == _WORDS and member[-16:] == words[15].zfill(16):
                    yield key, words, now
            if seen < page:
                return
            start = b"(" + last


def _stored(words: list[bytes], now: int) -> Stored | None:
    """Read a record; ``None`` for one that has ended, and for what is no record."""
    if len(words) != _WORDS or words[0] != b"1":
        return None
    try:
        ends_at = int(words[15])
        if ends_at <= now:
            return None
        control = Control(
            version=int(words[3]),
            sealed_version=int(words[4]),
            lease_owner=_text(words[5]),
            lease_until=int(words[6]) / 1000,
            lease=int(words[7]) / 1000,
            intent=_text(words[8]),
            doubt=words[9] == b"1",
            suspect=_text(words[10]),
            dead=_text(words[11]),
            commit_id=_text(words[12]),
            retry_at=int(words[13]) / 1000,
            failures=int(words[14]),
            ends_at=ends_at / 1000,
            tombstone=words[16] == b"1",
        )
    except ValueError:
        return None
    return Stored(control=control, sealed=words[17], now=now / 1000)


def _text(word: bytes) -> str | None:
    return unquote(word[1:].decode()) if word else None


def _word(text: str | None) -> str:
    return "" if text is None else "=" + quote(text, safe="")


def _listed(entries: Sequence[str]) -> str:
    return ",".join(map(_word, entries))


def _entries(words: bytes) -> list[str]:
    return [unquote(word[1:].decode()) for word in words.split(b",")] if words else []


def _member(key: str, ends_at: int) -> bytes:
    return b"%b\0%016d" % (key.encode(), max(0, ends_at))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _call() -> str:
    return secrets.token_hex(8)
