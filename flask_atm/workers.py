"""How many processes serve the application, as far as that can be known from inside."""

import re
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, Final

from flask_atm.grants.stores import MemoryStore
from flask_atm.protocols import AtomicGrantStore

__all__ = ["memory_problem", "several_workers"]

#: The methods of gunicorn's arbiter in which an application is loaded; the second one if preloaded.
_LOADING: Final = frozenset({"spawn_worker", "setup"})
_WORKERS: Final = re.compile(r"(?:^|\s)(?:-w\s*|--workers[=\s])(\d+)")


def memory_problem(
    store: AtomicGrantStore,
    environ: Mapping[str, str],
    arguments: Sequence[str] | None = None,
    *,
    is_pair: bool = False,
) -> str | None:
    """Tell why a store in memory is not enough; ``None``: it is, or the store is another one.

    :param environ: of the process.
    :param arguments: of its command line.
    :param is_pair: whether it stands beside a plain store.
    """
    if not isinstance(store, MemoryStore):
        return None
    why = several_workers(environ, sys.argv if arguments is None else arguments)
    if why is None:
        return None
    if is_pair:
        return (
            f"the paired store is in the memory of one process, but there are several ({why}): each"
            " of them renews the same sign-in, and who signs out in one of them stays signed in in"
            " the others. Set ATM_PAIRED_STORE to sqlite or redis://…"
        )
    return (
        f"the store is in the memory of one process, but there are several ({why}): whoever is"
        " signed in in one of them is not in the others. Set ATM_STORE to sqlite or redis://…"
    )


def several_workers(environ: Mapping[str, str], arguments: Sequence[str]) -> str | None:
    """Tell what speaks for several worker processes; ``None``: nothing does."""
    found = environ.get("WEB_CONCURRENCY", "")
    if found.isdecimal() and int(found) > 1:
        return f"WEB_CONCURRENCY={found}"
    arbiter = _arbiter(sys._getframe())
    if arbiter is not None:
        number = getattr(arbiter, "num_workers", 1)
        return f"gunicorn has {number} workers" if number > 1 else None
    is_gunicorn = bool(arguments) and arguments[0].rpartition("/")[2] == "gunicorn"
    for text in (environ.get("GUNICORN_CMD_ARGS", ""), " ".join(arguments) * is_gunicorn):
        numbers = [int(number) for number in _WORKERS.findall(text)]
        if numbers and numbers[-1] > 1:
            return f"gunicorn has {numbers[-1]} workers"
    processes = getattr(sys.modules.get("uwsgi"), "numproc", 1)
    return f"uWSGI has {processes} processes" if processes > 1 else None


def _arbiter(frame: FrameType | None) -> Any:
    """Find gunicorn's arbiter: workers are forked inside it, and load the application there."""
    while frame is not None:
        found = frame.f_locals.get("self") if frame.f_code.co_name in _LOADING else None
        if type(found).__module__ == "gunicorn.arbiter":
            return found
        frame = frame.f_back
    return None
