"""Reads the examples, settings and tables out of the documentation, with nothing but ``re``."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Final

__all__ = [
    "PAGES",
    "ROOT",
    "Block",
    "Directive",
    "blocks",
    "directives",
    "example",
    "fields",
    "load",
    "rows",
    "sections",
]

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst")))

_DIRECTIVE: Final = re.compile(r"( *)\.\. ([a-z:-]+):: ?(.*)")
_OPTION: Final = re.compile(r" +:([a-z-]+): ?(.*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Directive:
    """A directive of reStructuredText.

    :param kind: such as ``code-block``.
    :param line: the number of its first line of content.
    """

    page: Path
    line: int
    kind: str
    argument: str
    options: dict[str, str]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """An example: a code block.

    :param name: its ``:name:``; empty if it has none.
    """

    page: Path
    line: int
    language: str
    name: str
    text: str

    @property
    def at(self) -> str:
        """Its place, as ``page:line``."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def directives(page: Path) -> Iterator[Directive]:
    """Give every directive of a page, those inside others too."""
    lines = page.read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        found = _DIRECTIVE.fullmatch(line)
        if found:
            options, first = _options(lines, number + 1)
            yield Directive(
                page=page,
                line=first + 1,
                kind=found[2],
                argument=found[3],
                options=options,
                text=_indented(lines, first, len(found[1])),
            )


def _options(lines: list[str], number: int) -> tuple[dict[str, str], int]:
    found = {}
    while number < len(lines) and (option := _OPTION.fullmatch(lines[number])):
        found[option[1]] = option[2]
        number += 1
    return found, number


def _indented(lines: list[str], first: int, indent: int) -> str:
    """Give the lines that are further in than ``indent``."""
    end = first
    while end < len(lines) and (not lines[end] or lines[end].startswith(" " * (indent + 1))):
        end += 1
    return dedent("\n".join(lines[first:end])).strip("\n") + "\n"


def blocks(language: str) -> list[Block]:
    """Give every example in a language."""
    return [
        Block(
            page=found.page,
            line=found.line,
            language=found.argument,
            name=found.options.get("name", ""),
            text=found.text,
        )
        for page in PAGES
        for found in directives(page)
        if found.kind == "code-block" and found.argument == language
    ]


def example(name: str) -> Block:
    """Give the example of this name."""
    every = [*blocks("python"), *blocks("bash"), *blocks("json")]
    return next(block for block in every if block.name == name)


def load(
    block: Block, folder: Path, *, before: str = "", instead: Mapping[str, str] | None = None
) -> ModuleType:
    """Run an example as a module, as a reader would: from a file that it was copied into.

    :param folder: for the file; it has to be on ``sys.path``.
    :param before: what the page takes for granted.
    :param instead: what stands in the text, and what to put there: URLs of servers that answer.
    """
    text = f"{before}\n{block.text}"
    for old, new in (instead or {}).items():
        assert old in text, f"{block.at}: {old!r} is not there any more"
        text = text.replace(old, new)
    name = f"example_{block.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(text, "utf-8")
    sys.modules.pop(name, None)
    return import_module(name)


def sections(page: Path) -> dict[str, str]:
    """Give the text of each section of a page by its title."""
    parts = re.split(r"^(\S.*)\n(?:=+|-+)\n", page.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def fields(text: str) -> dict[str, str]:
    """Give the fields (``:name: text``) that begin at the margin."""
    parts = re.split(r"^:([^:`]+): ", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(table: Directive) -> list[list[str]]:
    """Give the cells of a ``list-table`` without its header."""
    found = []
    for row in re.split(r"^\* - ", table.text, flags=re.MULTILINE)[1:]:
        cells = re.split(r"^  - ", row, flags=re.MULTILINE)
        found.append([" ".join(cell.split()) for cell in cells])
    return found[1:]
