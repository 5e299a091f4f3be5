"""Checks of the store: that it answers, is atomic, loses nothing, and is shared by who needs it."""

import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from flask_atm.doctor.finding import Finding, failed, ok, warning
from flask_atm.doctor.race import race
from flask_atm.errors import StoreError
from flask_atm.grants.stores import MemoryStore, RedisStore, SQLiteStore
from flask_atm.pairing import Stores, pair_problem
from flask_atm.state import State
from flask_atm.workers import memory_problem

__all__ = ["check_store", "file_system"]

_PROCESSES: Final = 4
_THREADS: Final = 4
#: SQLite's locks do not hold between the hosts of these.
_NETWORK: Final = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gpfs", "lustre", "nfs", "nfs4"}
    | {"smb3", "smbfs", "virtiofs"}
)
_SHORT: Final = 100 * 2**20


def check_store(state: State) -> Iterator[Finding]:
    """Look at the store of an application."""
    store = state.store
    try:
        state.store_id()
    except StoreError as error:
        yield failed("store", str(error), f"see the message; {_setting(state)} names the store")
        return
    yield ok("store", f"{store!r} answers")
    yield from _atomic(state)
    yield from _pair(state)
    yield from _workers(state, os.environ, sys.argv)
    if isinstance(store, RedisStore):
        yield from _eviction(store)
    if isinstance(store, SQLiteStore):
        yield from _file(store.path, _setting(state))


def _setting(state: State) -> str:
    """Give the name of what says which store decides."""
    return "ATM_STORE" if state.plain is None else "ATM_PAIRED_STORE"


def _atomic(state: State) -> Iterator[Finding]:
    # Processes first: they are forked while this one has no threads of its own.
    in_memory = isinstance(state.store, MemoryStore)
    for processes in (0,) if in_memory else (_PROCESSES, 0):
        name = "atomic, processes" if processes else "atomic, threads"
        try:
            found = race(state.store, processes=processes, threads=_THREADS)
        except StoreError as error:
            cure = f"the store has to answer many at once, see {_setting(state)}"
            yield failed(name, str(error), cure)
            continue
        text = (
            f"of {found.members} at once {found.leases} got the lease and {found.commits} committed"
        )
        if found.is_fair:
            yield ok(name, text)
        else:
            cure = "use a store of flask_atm.stores, or mend yours: see flask_atm.grants.control"
            yield failed(name, f"{text}: a refresh token would be sent twice", cure)


def _pair(state: State) -> Iterator[Finding]:
    if state.plain is None:
        return
    problem = pair_problem(Stores(atomic=state.store, plain=state.plain), os.environ)
    text = f"{state.plain!r} has copies, {state.store!r} decides"
    if isinstance(state.store, MemoryStore):
        cure = "set ATM_PAIRED_STORE to sqlite, redis://… or an SQL database"
        yield failed("pair", f"{text}, and forgets everything with its process", cure)
    elif problem is not None:
        yield failed("pair", f"{text}: {problem}", "see the message: the hosts have to share one")
    else:
        yield ok("pair", text)


def _workers(
    state: State, environ: Mapping[str, str], arguments: Sequence[str]
) -> Iterator[Finding]:
    if not isinstance(state.store, MemoryStore):
        return
    is_pair = state.plain is not None
    problem = memory_problem(state.store, environ, arguments, is_pair=is_pair)
    cure = f"set {_setting(state)} to sqlite or redis://…"
    if problem is not None:
        yield failed("workers", problem, cure)
    elif state.config.providers:
        text = "the store is in memory: sign-ins end with the process, and there may be only one"
        yield warning("workers", text, cure)
    else:
        yield ok("workers", "the store is in memory: each process gets client tokens of its own")


def _eviction(store: RedisStore) -> Iterator[Finding]:
    policy = store.eviction_policy()
    if policy is None:
        cure = "let this user run INFO, or look at maxmemory-policy yourself"
        yield warning("eviction", "the server does not tell its maxmemory-policy", cure)
    elif policy == "noeviction":
        yield ok("eviction", "the server throws no sign-ins away")
    else:
        text = f"maxmemory-policy is {policy}: sign-ins are thrown away when memory is short"
        yield failed("eviction", text, "set maxmemory-policy to noeviction")


def _file(path: Path, setting: str) -> Iterator[Finding]:
    kind = file_system(path.absolute().parent)
    if kind in _NETWORK:
        text = f"{path} is on a network file system ({kind}), where SQLite's locks do not hold"
        yield failed("file system", text, f"set {setting} to a file on a local disk, or redis://…")
    else:
        yield ok("file system", f"{path} is on {kind or 'a file system that is not known'}")
    free = shutil.disk_usage(path.absolute().parent).free
    if free < _SHORT:
        text = f"{free // 2**20} MB are free: a full disk takes no refreshed tokens"
        yield warning("disk", text, f"make room, or set {setting} to a file on another disk")
    else:
        yield ok("disk", f"{free // 2**20} MB are free")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        text = f"{path} has mode {mode:04o}: others may read or change it"
        yield warning("permissions", text, f"chmod 600 {path}*")
    else:
        yield ok("permissions", f"only its owner can read {path}")


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Tell what kind of file system a folder is on; ``None``: this system does not say.

    :param mounts: a file as Linux writes it, see ``proc(5)``.
    """
    try:
        lines = mounts.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    real, best, kind = str(folder.resolve()), "", None
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        is_above = real == point or real.startswith(f"{point.rstrip('/')}/")
        if is_above and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind
