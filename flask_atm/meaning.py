"""What the proxies and sessions mean where a guard, a job or ``use_grant`` says so."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import FrameType
from typing import Final, cast

from flask import g, has_request_context, request

from flask_atm.tokens import AS_CONFIGURED, TokenParameters

__all__ = [
    "Meaning",
    "generator_around",
    "mean_until_the_end",
    "meaning",
    "meant",
    "said",
    "waits",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Meaning:
    """What the proxies and sessions mean, where a decorator or ``use_grant`` says so.

    :param provider: where ``provider=`` is left out.
    :param grant_id: instead of the browser's.
    :param parameters: what is asked of a token.
    """

    provider: str | None = None
    grant_id: str | None = field(default=None, repr=False)
    parameters: TokenParameters = AS_CONFIGURED


_PLAIN: Final = Meaning()


@dataclass(kw_only=True, eq=False, slots=True)
class _With:
    """One ``with`` that gives a meaning.

    :param generator: the generator that it stands in. A context variable that a generator sets
        stays set while the generator waits at a ``yield``: for whoever reads from it, for another
        one that is read in turns, for the next request of the thread if it is left half-way. So
        this one counts while its generator runs only.
    :param lost: left in another context than it was entered in, where it cannot be taken back.
    """

    meaning: Meaning
    generator: FrameType | None = field(default=None, repr=False)
    lost: bool = False

    @property
    def waits(self) -> bool:
        # A frame that runs has somebody who called it.
        return self.generator is not None and self.generator.f_back is None


_stack: ContextVar[tuple[_With, ...]] = ContextVar("flask_atm_meaning", default=())


def said() -> Meaning:
    """Give what the innermost ``with`` says that counts here."""
    for one in reversed(_stack.get()):
        if not one.lost and not one.waits:
            return one.meaning
    return _PLAIN


def waits() -> bool:
    """Tell whether somebody named a grant in a generator that waits at a ``yield``."""
    return any(one.waits and not one.lost for one in _stack.get())


def meant() -> Meaning:
    """Give what the proxies mean now."""
    present = said()
    if present is _PLAIN and has_request_context():
        # What a guard before the request has said; another request may share the context.
        owner, told = g._get_current_object().get("_atm_meaning") or (None, _PLAIN)
        if owner is request._get_current_object():  # type: ignore[attr-defined]
            return cast(Meaning, told)
    return present


@contextmanager
def meaning(
    *,
    provider: str | None = None,
    grant_id: str | None = None,
    parameters: TokenParameters | None = None,
    generator: FrameType | None = None,
) -> Iterator[None]:
    """Give the proxies and sessions another meaning; what is left out stays as it is.

    But what was said of one grant, or of the browser's, says nothing about another one.

    :param generator: counts while this one runs only: see :func:`generator_around`.
    """
    present = meant()
    if grant_id not in (None, present.grant_id):
        present = _PLAIN
    mine = _With(
        meaning=replace(
            present,
            provider=provider or present.provider,
            grant_id=present.grant_id if grant_id is None else grant_id,
            parameters=present.parameters if parameters is None else parameters,
        ),
        generator=generator,
    )
    _push(mine)
    try:
        yield
    finally:
        left = _stack.get()
        if mine in left:
            # Not what was there before: generators do not end in the order in which they began.
            _stack.set(tuple(one for one in left if one is not mine))
            mine.generator = None  # in copies of this context it means what it did
        else:
            mine.lost = True


def _push(mine: _With) -> None:
    """Put it around the generators that wait: if they run before it ends, it is for its reader."""
    stack = _stack.get()
    running = [one for one in stack if not one.waits]
    _stack.set((*running, mine, *(one for one in stack if one not in running)))


def generator_around() -> FrameType | None:
    """Give the generator whose ``with`` the caller is a context manager of.

    Those of ``contextlib`` are not meant: they wait for as long as their ``with`` lasts. A function
    in between is no end of the search: it may be the ``__enter__`` of a class, or fill the
    ``ExitStack`` of a generator.

    :raises RuntimeError: it is an asynchronous one, which waits for other things than its reader.
    """
    frame: FrameType | None = sys._getframe(1)
    is_direct = True
    while frame is not None:
        caller, flags = frame.f_back, frame.f_code.co_flags
        if _is_contextlib(frame) or (_yields(frame) and _is_contextlib(caller)):
            frame = caller
            continue
        if is_direct and flags & CO_ASYNC_GENERATOR:
            raise RuntimeError(
                "atm.use_grant() in an asynchronous generator would mean its reader too: name the"
                " grant where the token is used (grant_id=…), or use it in a coroutine of its own"
            )
        if _yields(frame):
            return frame
        if flags & CO_COROUTINE:
            return None  # it has a context of its own, or its reader waits for all of it
        frame, is_direct = caller, False
    return None


def _is_contextlib(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_globals.get("__name__") == "contextlib"


def _yields(frame: FrameType) -> bool:
    return bool(frame.f_code.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR))


def mean_until_the_end(present: Meaning) -> None:
    """Give the proxies and sessions this meaning for the rest of the present request."""
    g._atm_meaning = (request._get_current_object(), present)  # type: ignore[attr-defined]
    g.pop("_atm_token", None)
