"""Typed reading of mappings and environment values: one reader per kind of value.

A reader takes what the application wrote and returns what the rest of the package uses, or raises
:exc:`Invalid` with a text that names the cure. Made for :meth:`flask.Config.from_prefixed_env`,
which turns ``12345`` into a number, ``true`` into a bool and the names of nested keys into
capitals. No reader repeats a value in its message unless the value cannot be a secret.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Final, TypeVar
from urllib.parse import SplitResult, urlsplit

from flask_atm.tokens import FrozenDict, Secret, parse_scope

__all__ = [
    "Invalid",
    "Read",
    "boolean",
    "choice",
    "host",
    "is_loopback",
    "key_material",
    "listed",
    "mapping",
    "name",
    "origin",
    "path",
    "scope",
    "seconds",
    "seconds_or_zero",
    "secret",
    "secret_or_callable",
    "text",
    "uri",
    "url",
    "whole",
]

T = TypeVar("T")

#: What all readers are; they raise :exc:`Invalid`.
Read = Callable[[object], T]

_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?")
_NAME: Final = re.compile(r"[a-z0-9_]+")
_UNFIT: Final = re.compile(r"[\x00-\x20\x7f-\U0010ffff\\]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_PORTS: Final = {"https": 443, "http": 80}


class Invalid(ValueError):
    """A value that cannot be used; the text says what to write instead, never a secret."""


# -- texts


def text(value: object) -> str:
    """Read a text; an id that came as a whole number is one too."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Invalid(f"has to be a text, not {_kind(value)}; put quotes around it")
    if not value.strip():
        raise Invalid("is set but empty")
    if value != value.strip() or _CONTROL.search(value):
        raise Invalid("has a space or line end around it, or a control character: remove it")
    return value


def secret(value: object) -> Secret:
    """Read a secret: a text as it is, never what the environment made of one."""
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise Invalid(
            f"has to be a text, not {_kind(value)}: in the environment write it with JSON quotes,"
            """ '"…"', or use its …_FILE key where it has one"""
        )
    if not value.strip():
        raise Invalid("is set but empty")
    if _CONTROL.search(value):
        raise Invalid("has a line end or a control character: remove it")
    return Secret(value)


def secret_or_callable(value: object) -> Secret | Callable[[], str]:
    """Read a secret, or keep the callable that gives it."""
    return value if callable(value) else secret(value)


def key_material(value: object) -> Secret:
    """Read what keys are made of: a text or bytes, whatever they hold.

    The bytes are those of ``reveal().encode("utf-8", "surrogateescape")``.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str) or not value:
        return secret(value)
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Invalid("has half a character (a lone surrogate): remove it") from None
    return Secret(value)


def path(value: object) -> str:
    """Read the path of a file or folder that is there."""
    found = text(os.fspath(value) if isinstance(value, os.PathLike) else value)
    if not os.path.exists(found):
        raise Invalid(f"there is no file {found!r}")
    return found


def name(value: object) -> str:
    """Read a name of the application's choice: lower case, ``[a-z0-9_]+``."""
    found = text(value).lower()
    if not _NAME.fullmatch(found):
        raise Invalid("a name has letters a-z, digits and underscores only")
    return found


def choice(*words: str) -> Read[str]:
    """Make a reader of one of these words."""

    def read(value: object) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise Invalid(f"has to be one of {', '.join(words)}")

    return read


def scope(value: object) -> tuple[str, ...]:
    """Read a scope: words in one text, or a list of them."""
    words = text(value) if not isinstance(value, list | tuple) else value
    try:
        return parse_scope(words)
    except (TypeError, ValueError) as error:
        raise Invalid(str(error)) from None


def listed(read: Read[T]) -> Read[tuple[T, ...]]:
    """Make a reader of a list; one value is a list of one."""

    def read_all(value: object) -> tuple[T, ...]:
        items = value if isinstance(value, list | tuple | set | frozenset) else (value,)
        return tuple(dict.fromkeys(read(item) for item in items))

    return read_all


# -- switches and numbers


def boolean(value: object) -> bool:
    """Read ``True`` or ``False``, and nothing that only looks like one."""
    if isinstance(value, bool):
        return value
    raise Invalid(
        f"has to be True or False, not {_kind(value)} (in the environment: true or false,"
        " in lower case and without quotes)"
    )


def seconds_or_zero(value: object) -> float:
    """Read a number of seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Invalid(f"has to be a number of seconds, not {_kind(value)}; write no quotes")
    if not math.isfinite(value) or value < 0:
        raise Invalid("has to be a number of seconds, 0 or more")
    return float(value)


def seconds(value: object) -> float:
    """Read a number of seconds above 0."""
    if found := seconds_or_zero(value):
        return found
    raise Invalid("has to be a number of seconds above 0")


def whole(value: object) -> int:
    """Read a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Invalid("has to be a whole number above 0, without quotes")
    return value


# -- mappings


def mapping(read: Read[T]) -> Read[FrozenDict]:
    """Make a reader of a mapping from texts to what ``read`` reads."""

    def read_all(value: object) -> FrozenDict:
        if not isinstance(value, Mapping):
            raise Invalid(f"has to be a mapping (JSON in the environment), not {_kind(value)}")
        return FrozenDict({text(inner): _at(inner, read, item) for inner, item in value.items()})

    return read_all


# -- places


def is_loopback(hostname: str) -> bool:
    """Tell whether a host name or address is this machine: plain http does not leave it."""
    if hostname == "localhost":
        return True
    try:
        return ip_address(hostname).is_loopback
    except ValueError:
        return False


def url(value: object) -> str:
    """Read an http(s) URL, as it was written; where http may go is for the caller to check."""
    _split(value)
    return text(value)


def uri(value: object) -> str:
    """Read an absolute URI without fragment (RFC 8707, section 2), such as ``api://orders``."""
    found = text(value)
    if _UNFIT.search(found) or "#" in found or not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", found):
        raise Invalid("has to be an absolute URI without fragment")
    return found


def origin(value: object) -> str:
    """Read an origin, ``scheme://host[:port]`` in its normal form (RFC 6454)."""
    parts = _split(value)
    if parts.path not in {"", "/"} or "?" in text(value):
        raise Invalid("has to be an origin, scheme://host[:port], without a path")
    hostname = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in {None, _PORTS[parts.scheme]} else f":{parts.port}"
    return f"{parts.scheme}://{hostname}{port}"


def host(value: object) -> str:
    """Read a host name or address, without scheme, port or path."""
    found = text(value).lower().strip("[]")
    if not _is_host(found):
        raise Invalid("has to be a host name alone, without scheme, port or path")
    return found


def _split(value: object) -> SplitResult:
    found = text(value)
    if _UNFIT.search(found):
        raise Invalid("has a character that no URL has (write the host in its xn--… form)")
    try:
        parts = urlsplit(found)
        usable = parts.scheme in _PORTS and parts.port != 0 and _is_host(parts.hostname or "")
    except ValueError:
        usable = False
    if not usable:
        raise Invalid("has to be a URL, https://host/…")
    if "@" in parts.netloc:
        raise Invalid("must not hold a user name or password")
    if "#" in found:
        raise Invalid("must not have a fragment (#…)")
    return parts


def _is_host(hostname: str) -> bool:
    if _HOST.fullmatch(hostname):
        return True
    try:
        return bool(ip_address(hostname))
    except ValueError:
        return False


def _kind(value: object) -> str:
    kinds = {str: "a text", bool: "a bool", int: "a number", float: "a number", dict: "a mapping"}
    return kinds.get(type(value), f"of type {type(value).__name__}")


def _at(inner: object, read: Read[T], value: object) -> T:
    try:
        return read(value)
    except Invalid as error:
        raise Invalid(f"[{inner!r}] {error}") from None
