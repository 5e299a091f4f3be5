"""Where a token may go: the URL that a caller wrote, made absolute, and its origin, checked.

What is compared is always the URL as ``requests`` will connect to it, never the text that the
caller wrote: two readers of one strange URL must not see two hosts in it.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote, urlsplit

from requests import PreparedRequest

from flask_atm import settings
from flask_atm.errors import OriginNotAllowed

__all__ = ["Destination", "destination", "origin_of"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ABSOLUTE: Final = re.compile(r"https?:|[a-z][a-z0-9+.\-]*:[/\\]", re.IGNORECASE)
_WITH_HOST: Final = re.compile(r"https?://[^/\\?#]", re.IGNORECASE)
_PATH: Final = re.compile(r"[^?#]*")
_SUSPICIOUS: Final = re.compile(r"^/|\.\.|[%\\]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Destination:
    """An API and the other origins that its token may go to.

    :param base: the normalised base URL; it ends in ``/``.
    :param origin: its origin, with the port.
    :param origins: all allowed ones.
    """

    base: str
    origin: str
    origins: frozenset[str]

    def resolve(self, url: str | bytes) -> tuple[str, bool]:
        """Give the absolute URL, and whether it was a relative one, under :attr:`base`.

        :param url: relative (a leading ``/`` changes nothing) or absolute.
        :raises OriginNotAllowed: for a relative one that would leave :attr:`base`, and an
            absolute one that is read differently by different readers.
        """
        text = (url.decode() if isinstance(url, bytes) else str(url)).lstrip()
        if _ABSOLUTE.match(text):
            if not _WITH_HOST.match(text) or "\\" in _path(text):
                raise OriginNotAllowed(f"{_shown(text)} is no http or https URL: nothing was sent.")
            return text, False
        relative = text.removeprefix("/")
        if _leaves(_path(relative)):
            raise OriginNotAllowed(
                f"{_shown(text)} would leave {self.base}: nothing was sent. Write the path below"
                " the base URL, without '..', '\\' and '//' in front."
            )
        return self.base + relative, True

    def check(self, url: str, *, inside: bool = False) -> str:
        """Give the origin of a prepared URL, which is an allowed one.

        :param inside: whether it has to lie under :attr:`base`.
        :raises OriginNotAllowed: it does not, or the token must not go there.
        """
        if url.startswith(self.base):  # up to the "/" after the host: no other origin looks so
            return self.origin
        if inside:
            raise OriginNotAllowed(f"{_shown(url)} left {self.base}: nothing was sent.")
        origin = origin_of(url)
        if origin not in self.origins:
            raise OriginNotAllowed(
                f"The token of {self.origin} must not go to {origin or _shown(url)}: nothing was"
                " sent there. If it may, name that origin in allowed_origins."
            )
        return origin


@lru_cache(maxsize=1024)
def destination(base_url: str, allowed_origins: tuple[str, ...] = ()) -> Destination:
    """Give the destination of an API, checked.

    :param base_url: http or https, without query; it counts as ending in ``/``.
    :param allowed_origins: such as ``https://files.example.com``.
    :raises ValueError: for what is no such URL.
    :raises OriginNotAllowed: for plain http to another host than this one, unless
        ``allowed_origins`` names it.
    """
    if "?" in settings.url(base_url):
        raise ValueError("base_url has no query: the path of each call is appended to it")
    request = PreparedRequest()
    request.prepare_url(base_url.rstrip("/") + "/", None)
    base = request.url or ""
    named = frozenset(map(settings.origin, allowed_origins))
    origin = origin_of(base)
    plain = origin.startswith("http:")
    if plain and origin not in named and not settings.is_loopback(urlsplit(base).hostname or ""):
        raise OriginNotAllowed(
            f"{origin} is plain http, and everybody on the way could read the token: use https,"
            " or name it in allowed_origins."
        )
    return Destination(base=base, origin=origin, origins=named | {origin})


def origin_of(url: str) -> str:
    """Give the origin of a prepared URL in its normal form; empty for anything but http(s).

    A URL with user information has none: it is made to be misread.
    """
    try:
        parts = urlsplit(url)
        port, default = parts.port, _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):
        return ""
    host = parts.hostname
    if not host or "@" in parts.netloc:
        return ""
    return (
        f"{parts.scheme}://{f'[{host}]' if ':' in host else host}"
        f"{'' if port in (None, default) else f':{port}'}"
    )


def _leaves(path: str) -> bool:
    if not _SUSPICIOUS.search(path):
        return False
    plain = path
    for _ in range(4):  # servers behind servers decode more than once
        plain = unquote(plain)
    segments = re.split(r"[/\\]", plain)
    # ";" begins the parameters of a segment, and some servers cut them off before they resolve
    climbs = any(segment.partition(";")[0] == ".." for segment in segments)
    return climbs or "\\" in path or path.startswith("/")


def _path(url: str) -> str:
    match = _PATH.match(url)
    return match[0] if match else ""


def _shown(url: str) -> str:
    """Give a URL for an error message: without what may be secret or long."""
    return repr(re.sub(r"//[^/?#]*@", "//***@", _path(url))[:200])
