"""What a check found."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Finding", "Result", "failed", "ok", "warning"]

Result: TypeAlias = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the doctor.

    :param check: what was looked at.
    :param text: what was found; never a secret.
    :param cure: what to do; empty where nothing is to be done.
    """

    check: str
    result: Result
    text: str
    cure: str = ""


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check=check, result="ok", text=text)


def warning(check: str, text: str, cure: str) -> Finding:
    """It works, but not as well as it could, or not everywhere."""
    return Finding(check=check, result="warning", text=text, cure=cure)


def failed(check: str, text: str, cure: str) -> Finding:
    """It does not work, or not for everybody."""
    return Finding(check=check, result="failed", text=text, cure=cure)
