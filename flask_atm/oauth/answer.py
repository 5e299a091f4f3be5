"""What comes back from a server: an answer that is whole, or the reason why there is none."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

__all__ = ["Answer", "Failure", "Reason", "Result"]

Reason: TypeAlias = Literal[
    "refused",
    "dns",
    "tls",
    "timeout",
    "reset",
    "short",
    "too_large",
    "window",
    "busy",
    "not_allowed",
]

_LEVELS: Final = 64
_JSON_PARTS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{\]}]', re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer that arrived whole, whatever its status.

    :param status: the HTTP status; a redirect is an answer like any other.
    :param headers: by lower-case names; of repeated ones, all values joined by ``", "``.
    :param body: at most ``max_bytes`` bytes, without any content encoding.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    def json(self) -> dict[str, Any]:
        """Read the body as one JSON object (RFC 8259), strictly.

        :raises ValueError: for anything but an object in UTF-8, for a name that comes twice, for
            NaN and infinite numbers, for nesting over 64 levels. The text shows nothing of it.
        """
        try:
            value = _parse(self.body)
        except (ValueError, RecursionError):
            value = None
        # Raised out here, because the error that was caught carries the document.
        if not isinstance(value, dict):
            raise ValueError(  # noqa: TRY004 -- it is the document that is wrong
                "the answer is no JSON object in UTF-8 with unique names, finite numbers and at"
                f" most {_LEVELS} levels"
            )
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """No answer, or none that can be used.

    :param written: whether a byte of the request may have left. ``False`` is certain.
    :param reason: ``refused``, ``dns``, ``tls``, ``window`` (``may_write`` said no): nothing was
        written; ``short``, ``too_large``: the answer's body; ``timeout``, ``reset``: either.
    """

    written: bool
    reason: Reason


Result: TypeAlias = Answer | Failure


def _parse(body: bytes) -> Any:
    depth = 0
    for part in _JSON_PARTS.finditer(body):
        first = body[part.start()]
        depth += 1 if first in b"[{" else -1 if first in b"]}" else 0
        # Looked at before parsing: the parser recurses in C, as far as the application's limit.
        if depth > _LEVELS:
            raise ValueError
    value = json.loads(
        body.decode("utf-8-sig"),
        object_pairs_hook=_unique,
        parse_constant=_refuse,
        parse_float=_finite,
    )
    if b"\\ud" in body.lower():
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _refuse(text: str) -> None:
    raise ValueError


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number
