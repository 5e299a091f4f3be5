"""The rules that the model plays by: the real functions, and the choices of ``refresh.py``.

A :class:`Rules` is what an engine is made of. The default one has the pure functions of
:mod:`flask_atm.grants.control` and :mod:`flask_atm.grants.record` themselves, no copies. What
``refresh.py`` does between them is told as choices, one per rule, so that each can be taken away.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flask_atm.grants import control as steps
from flask_atm.grants.control import Begun, Control, Outcome
from flask_atm.grants.record import Decision, decide

__all__ = ["Rules"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """An engine, real or with a rule missing.

    :param writes_intent: ``begin`` writes down which refresh token is about to be sent.
    :param window: a clock is looked at right before the first byte.
    :param doubt_look: nobody whose slot has a valid token sends in doubt.
    :param doubt_wait: who sends in doubt waits first, so that a kept answer can land.
    :param second_read: and then reads the version once more.
    :param on_top: what an answer does that finds the version moved: goes on top if the stored
        refresh token is still the "same" that was sent, "never", or "always".
    :param keep_answers: an answer that the store does not take is kept, and offered again.
    :param unknown_keeps_intent: an attempt that ends in the dark leaves its intent.
    :param reread_invalid_grant: ``invalid_grant`` counts only if nobody else has won.
    """

    begin: Callable[..., tuple[Begun, Control | None]] = steps.begin
    commit: Callable[..., tuple[Outcome, Control | None]] = steps.commit
    update: Callable[..., tuple[Outcome, Control | None]] = steps.update
    abort: Callable[..., Control | None] = steps.abort
    bury: Callable[[Control], Control] = steps.bury
    decide: Callable[..., Decision] = decide
    writes_intent: bool = True
    window: bool = True
    doubt_look: bool = True
    doubt_wait: bool = True
    second_read: bool = True
    on_top: Literal["same", "never", "always"] = "same"
    keep_answers: bool = True
    unknown_keeps_intent: bool = True
    reread_invalid_grant: bool = True
