"""What applications may use, as text: a change of it is a change to be seen in review.

``public_interface.txt`` lists the names of the public modules with their signatures (without
annotations: mypy looks after those, and each Python prints them in its own way). After a change
that is meant, write it anew::

    python -m tests.test_public_interface > tests/public_interface.txt
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from blinker import NamedSignal
from werkzeug.local import LocalProxy

TEXT = Path(__file__).with_name("public_interface.txt")

MODULES = (
    "flask_atm",
    "flask_atm.protocols",
    "flask_atm.signals",
    "flask_atm.stores",
    "flask_atm.testing",
)


def listing() -> str:
    """Give the public interface as it is now."""
    modules = [import_module(name) for name in MODULES if find_spec(name)]
    return "\n\n".join("\n".join(_describe_module(module)) for module in modules) + "\n"


def _describe_module(module: ModuleType) -> Iterator[str]:
    yield module.__name__
    for name in sorted(module.__all__):
        value = getattr(module, name)
        # isinstance() and inspect ask a proxy for what it stands for, outside of any context.
        if issubclass(type(value), LocalProxy):
            yield f"  {name}: proxy"
        elif isinstance(value, NamedSignal):
            yield f"  {name}: signal {value.name!r}"
        elif inspect.isclass(value):
            yield from _describe_class(name, value)
        elif callable(value):
            yield f"  {name}{_signature(value)}"
        else:
            yield f"  {name}: {type(value).__name__}"


def _describe_class(name: str, value: type[Any]) -> Iterator[str]:
    shown = [base.__name__ for base in value.__bases__ if base is not object]
    bases = ", ".join(base for base in shown if not base.startswith("_"))
    yield f"  class {name}({bases})" if bases else f"  class {name}"
    if "__init__" in vars(value) and not getattr(value, "_is_protocol", False):
        yield f"    {name}{_signature(value.__init__).replace('self, ', '').replace('self', '')}"
    for member, kind in sorted(_members(value).items()):
        if isinstance(kind, (classmethod, staticmethod)):
            yield f"    {member}{_signature(getattr(value, member))}"
        elif callable(kind):
            yield f"    {member}{_signature(kind)}"
        else:
            yield f"    {member}"


def _members(value: type[Any]) -> dict[str, Any]:
    """Give what a class offers, also by bases of ours that are not listed themselves."""
    listed = {name for module in MODULES if find_spec(module) for name in _names(module)}
    found: dict[str, Any] = {}
    for base in reversed(value.__mro__):
        ours = base.__module__.partition(".")[0] == "flask_atm"
        if base is value or (ours and base.__name__ not in listed):
            found |= vars(base)
    special = ("__call__", "__enter__", "__exit__")
    return {n: kind for n, kind in found.items() if not n.startswith("_") or n in special}


def _names(module: str) -> list[str]:
    return list(import_module(module).__all__)


def _signature(value: Callable[..., Any]) -> str:
    signature = inspect.signature(value)
    parameters = [
        parameter.replace(annotation=parameter.empty, default=_default(parameter))
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


class _Text:
    """A default that shows itself as the text that it was given."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _default(parameter: inspect.Parameter) -> Any:
    value = parameter.default
    if value is parameter.empty or isinstance(value, (bool, int, float, str, bytes, type(None))):
        return value
    return value if value == () else _Text("…")


def test_the_public_interface_is_the_one_that_was_agreed_on() -> None:
    agreed = TEXT.read_text("utf-8")
    cure = "if the change is meant: python -m tests.test_public_interface > tests/" + TEXT.name
    assert listing().splitlines() == agreed.splitlines(), cure


def test_the_modules_say_what_they_offer() -> None:
    for name in MODULES:
        if find_spec(name):
            module = import_module(name)
            assert all(hasattr(module, public) for public in module.__all__), name


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(listing())
