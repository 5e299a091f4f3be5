"""``WWW-Authenticate`` as RFC 9110, section 11.6.1, writes it down, and as servers really send it.

Nothing that a server sends raises here, and everything is read in time linear to its length:
what fits no rule is skipped, so that a later, well-formed challenge is still found.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from flask_atm.tokens import FrozenDict

__all__ = ["Challenge", "parse_challenges", "select"]

# Possessive quantifiers (++ *+ ?+) never give back what they took: that keeps the time linear.
_SEPARATORS: Final = re.compile(r"[\s,]*+")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++")
_EQUALS: Final = re.compile(r"[ \t]*+=[ \t]*+")
_TOKEN68: Final = re.compile(r"[ \t]++([0-9A-Za-z\-._~+/]++=*+)(?=[ \t]*+(?:,|$))")
_QUOTED: Final = re.compile(r'"((?:[^"\\]++|\\.)*+)\\?+"?+', re.DOTALL)
_UNQUOTED: Final = re.compile(r'[^\s,"]*+')
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Challenge:
    """One challenge of a server.

    :param scheme: in lower case, whatever the server wrote.
    :param params: by name in lower case; of a name sent twice the first one.
    :param token68: what some schemes send instead of parameters.
    """

    scheme: str
    params: Mapping[str, str]
    token68: str | None = None


def parse_challenges(headers: str | Iterable[str]) -> tuple[Challenge, ...]:
    """Read all challenges, in the order in which they came.

    :param headers: the value of one ``WWW-Authenticate`` header, or of several.
    """
    lines = (headers,) if isinstance(headers, str) else headers
    return tuple(challenge for line in lines for challenge in _parse(line))


def select(challenges: Iterable[Challenge], *schemes: str) -> tuple[Challenge, ...]:
    """Give the challenges of these schemes, which are named in lower case."""
    return tuple(challenge for challenge in challenges if challenge.scheme in schemes)


def _parse(text: str) -> list[Challenge]:
    # (scheme, token68, params): the params of the last one are still being collected
    found: list[tuple[str, str | None, dict[str, str]]] = []
    at = _skip(_SEPARATORS, text, 0)
    while at < len(text):
        name = _TOKEN.match(text, at)
        if name is None:
            at = _after_garbage(text, at)
        elif equals := _EQUALS.match(text, name.end()):
            value, at = _value(text, equals.end())
            if found:
                found[-1][2].setdefault(name[0].lower(), value)
        else:
            token68 = _TOKEN68.match(text, name.end())
            found.append((name[0].lower(), token68[1] if token68 else None, {}))
            at = (token68 or name).end()
        at = _skip(_SEPARATORS, text, at)
    return [
        Challenge(scheme=scheme, token68=token68, params=FrozenDict(params))
        for scheme, token68, params in found
    ]


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _after_garbage(text: str, at: int) -> int:
    # A string in the wrong place is skipped as a whole: its inside must not look like a challenge.
    return _skip(_QUOTED, text, at) if text[at] == '"' else at + 1


def _value(text: str, at: int) -> tuple[str, int]:
    if quoted := _QUOTED.match(text, at):
        return _ESCAPED.sub(r"\1", quoted[1]), quoted.end()
    end = _skip(_UNQUOTED, text, at)
    return text[at:end], end
