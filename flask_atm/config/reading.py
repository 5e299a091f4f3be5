"""Reading one mapping of settings into the fields of a dataclass, collecting every problem.

The dataclasses of :mod:`flask_atm.config.keys` are the schema: :func:`key` puts the reader of a
field beside its default and its meaning, :class:`Section` reads a mapping by them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, field, fields
from difflib import get_close_matches
from typing import Any, Final, TypeVar

from flask_atm.settings import Invalid, Read, name

__all__ = ["Section", "fields_of", "key", "lines", "one_line"]

T = TypeVar("T")
D = TypeVar("D")

# What Kubernetes puts into the environment for a service called "flask-atm" or "atm".
_KUBERNETES: Final = re.compile(
    r"ATM_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)?)"
)


def key(
    read: Read[T] | None,
    default: D,
    meaning: str,
    *,
    file: Callable[[str], object] | None = None,
    masked: bool = False,
) -> T | D:
    """Declare a field that is a key of the configuration.

    :param read: its reader; ``None`` for what has keys of its own.
    :param default: its value where it is left out.
    :param meaning: for the documentation.
    :param file: what the content of the file is that the key with ``_FILE`` names.
    :param masked: left out of the ``repr``, because it may hold a secret.
    """
    metadata = {"read": read, "meaning": meaning, "file": file}
    made: T | D = field(default_factory=lambda: default, repr=not masked, metadata=metadata)
    return made


def fields_of(kind: type) -> "list[Field[Any]]":
    """Give the fields of a dataclass that are keys."""
    return [declared for declared in fields(kind) if declared.metadata]


def one_line(content: str) -> str:
    """Give a file of one line without its line end."""
    return content.rstrip("\r\n")


def lines(content: str) -> list[str]:
    """Give the lines of a file that are not empty."""
    return [line for raw in content.split("\n") if (line := raw.rstrip("\r"))]


class Section:
    """One mapping of settings: keys in any case, problems collected, nothing raised.

    Its ``repr`` shows no values, so that it may stand in the frames of a traceback.

    :param values: the mapping.
    :param label: gives the full name of a key, for problems.
    :param problems: where problems go; shared with all sections below.
    """

    __slots__ = ("_label", "_refused", "_values", "problems")

    def __init__(
        self, values: object, label: Callable[[str], str], problems: list[str], at: str = ""
    ) -> None:
        self._label = label
        self._values: dict[str, Any] = {}
        self._refused: set[str] = set()
        self.problems = problems
        if isinstance(values, Mapping):
            for spelled, value in values.items():
                self._put(str(spelled), value)
        elif values is not None:
            problems.append(f"{at}: has to be a mapping (JSON in the environment)")

    @classmethod
    def of_application(cls, values: Mapping[str, object], problems: list[str]) -> "Section":
        """Take the ``ATM_*`` keys out of the configuration of an application."""
        own = {k.removeprefix("ATM_"): v for k, v in values.items() if str(k).startswith("ATM_")}
        return cls(own, lambda low: f"ATM_{low.upper()}", problems)

    @classmethod
    def of_flask(cls, values: Mapping[str, object], problems: list[str]) -> "Section":
        """Take Flask's own secrets out of the configuration of an application."""
        own = {k: values.get(k) for k in ("SECRET_KEY", "SECRET_KEY_FALLBACKS")}
        return cls(own, str.upper, problems)

    @classmethod
    def of_loader(cls, loader: str, asked: str, values: object, problems: list[str]) -> "Section":
        """Take what a loader returned for a name."""
        at = f"{loader}({asked!r})"
        return cls(values, lambda low: f"{at}[{low!r}]", problems, at=at)

    def _put(self, spelled: str, value: object) -> None:
        low = spelled.lower()
        there = self._values.get(low)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            # {"github": …} of a file and {"GITHUB": …} of the environment are one.
            if twice := there.keys() & value.keys():
                self.problem(low, f"{', '.join(sorted(map(str, twice)))}: given twice")
            value = {**there, **value}
        elif there is not None:
            self.problem(low, "given twice, in small and in capital letters: keep one")
        self._values[low] = value

    def problem(self, key_: str, text: str) -> None:
        """Add a problem of a key."""
        self.problems.append(f"{self._label(key_)}: {text}")

    def label(self, key_: str) -> str:
        """Give the full name of a key."""
        return self._label(key_)

    def has(self, *keys: str) -> bool:
        """Tell whether one of these keys is set; ``None`` is not set."""
        return any(self._values.get(low) is not None for low in keys)

    def is_none(self, key_: str) -> bool:
        """Tell whether a key is there and ``None``."""
        return key_ in self._values and self._values[key_] is None

    def raw(self, key_: str) -> object:
        """Give what was written, or ``None``."""
        return self._values.get(key_)

    def refuse(self, key_: str, text: str) -> None:
        """Add a problem of a key, once, and do not read it; it still counts as set."""
        if key_ not in self._refused:
            self.problem(key_, text)
            self._refused.add(key_)

    def set_keys(self, kind: type) -> list[str]:
        """Give the keys of a dataclass that are set and were not refused."""
        names = [
            one.name if self.has(one.name) else f"{one.name}_file" if one.metadata["file"] else ""
            for one in fields_of(kind)
        ]
        return [low for low in names if self.has(low) and low not in self._refused]

    def read(self, kind: type) -> dict[str, Any]:
        """Read the keys of a dataclass: what is set and can be used."""
        found = {one.name: self._one(one) for one in fields_of(kind) if one.metadata["read"]}
        return {field_name: value for field_name, value in found.items() if value is not None}

    def _one(self, declared: "Field[Any]") -> Any:
        read, convert = declared.metadata["read"], declared.metadata["file"]
        low, in_file = declared.name, f"{declared.name}_file"
        if convert and self.has(in_file):
            if self.has(low):
                self.problem(in_file, f"{self._label(low)} is set too: keep one of them")
                return None
            return self._take(in_file, lambda where: read(convert(_content(where))))
        return self._take(low, read)

    def _take(self, low: str, read: Read[T]) -> T | None:
        value = self._values.get(low)
        if value is None or low in self._refused:
            return None
        try:
            return read(value)
        except Invalid as error:
            self.problem(low, str(error))
        return None

    def child(self, key_: str) -> "Section":
        """Give the section inside a key; an empty one where it is not set."""
        above = self._label(key_)
        return Section(
            self._values.get(key_), lambda low: f"{above}[{low!r}]", self.problems, at=above
        )

    def children(self) -> "Iterator[tuple[str, Section]]":
        """Give the sections of a mapping by name, with their names."""
        for low in self._values:
            try:
                yield name(low), self.child(low)
            except Invalid as error:
                self.problem(low, str(error))

    def refuse_unknown(self, *kinds: type) -> None:
        """Report every key that none of these dataclasses has."""
        known = {one.name for kind in kinds for one in fields_of(kind)}
        known |= {
            f"{one.name}_file" for kind in kinds for one in fields_of(kind) if one.metadata["file"]
        }
        for low in self._values:
            if low not in known and not _KUBERNETES.fullmatch(self._label(low)):
                near = get_close_matches(low, sorted(known), n=1)
                hint = f", did you mean {self._label(near[0])}?" if near else ""
                self.refuse(low, f"there is no such key{hint}")


def _content(where: object) -> str:
    """Read the text file that a ``…_FILE`` key names."""
    if not isinstance(where, str) and not hasattr(where, "__fspath__"):
        raise Invalid("has to be the path of a file")
    try:
        with open(where, encoding="utf-8") as file:
            content = file.read()
    except UnicodeDecodeError:
        raise Invalid(f"{where} is no UTF-8 text: write the secret as text") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such name"
        raise Invalid(
            f"cannot read {str(where)!r} ({reason}): mount the file there, or correct the path"
        ) from None
    if not content.strip():
        raise Invalid(f"{str(where)!r} is empty: write the secret into it")
    return content
