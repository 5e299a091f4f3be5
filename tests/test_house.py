"""The rules of the house: floors, doors, and a few habits that no linter knows.

``ROOMS`` lists every module from the ground up. A module may import those above it in this list,
never those below; imports under ``if TYPE_CHECKING:`` are free. ``DOORS`` says which modules may
import a library. A new module gets a line in ``ROOMS``, a new library one in ``DOORS``.

That each ``__all__`` is complete is the business of ruff (F822, RUF022).
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flask_atm"

ROOMS = """
    ground: words
        errors
        tokens
        protocols
        signals
        settings
    oauth: authorization servers and APIs; no Flask, no store
        oauth
        oauth.answer
        oauth.watchdog
        oauth.deadline
        oauth.wire
        oauth.back_channel
        oauth.keys
        oauth.challenges
        oauth.client_auth
        oauth.dpop
        oauth.token_endpoint
        oauth.metadata
        oauth.id_token
        oauth.logout_token
        oauth.id_token_checks
        oauth.introspection
        oauth.attempts
    grants: keeps and renews; no Flask but in stores.session
        grants
        grants.control
        grants.parameters
        grants.answers
        grants.record
        grants.seal
        grants.indexes
        grants.single_flight
        grants.batches
        grants.copy_complaints
        grants.copy_seal
        grants.copies
        grants.vault
        grants.logout_marks
        grants.idle
        grants.breaker
        grants.stores.stepped
        grants.stores.memory
        grants.stores.rows
        grants.stores.forks
        grants.stores.sqlite_link
        grants.stores.sqlite
        grants.stores.redis_link
        grants.stores.redis
        grants.stores.lost_replies
        grants.stores.sql_statements
        grants.stores.sql_tables
        grants.stores.sql_batches
        grants.stores.sql_errors
        grants.stores.sql_url
        grants.stores.sql_connections
        grants.stores.sql_link
        grants.stores.sql
        grants.stores.paired
        grants.stores.session
        grants.stores.caching
        grants.stores
        grants.refresh
        grants.engine
        grants.outbox
        grants.user_tokens
        grants.mass_ending
        grants.rotation
        grants.key_use
        grants.client_tokens
        grants.exchange
    top: what a Flask developer touches
        config.reading
        config.values
        config.keys
        config.rules
        config.ring
        config.load
        config
        browser_session
        calls
        calls.exchanges
        calls.connections
        calls.origins
        calls.token_auth
        authorized_session
        parts
        state
        meaning
        globals
        destinations
        sealed_cookies
        login.recent
        login.pending
        login.authorization
        login.exchange_code
        endings
        login.used_states
        login.whose
        login.sign_in
        login.accept
        login.flow
        login
        logout
        backchannel_logout
        pages
        views
        decorators
        apis
        workers
        pairing
        doctor
        doctor.finding
        doctor.race
        doctor.store
        doctor.ring
        doctor.provider
        doctor.web
        cli.output
        cli.group
        cli.records
        cli.configured
        cli.servers
        cli.ddl
        cli.grants
        cli.outbox
        cli.revoke
        cli.purge
        cli.keys
        cli.doctor
        cli
        stores
        assembly
        extension
        __init__
    beside: on top of all of it, imported by nothing of it
        ext
        ext.*
        testing.*
        testing
"""

# "top: *" is a whole floor. The rooms beside authorized_session and extension are parts of them.
_API_CALLS = ["calls.*", "authorized_session"]
_TESTING = ["testing", "testing.*"]

DOORS = {
    "authlib": ["login.flow", *_TESTING],
    "blinker": ["signals"],
    "cachelib": ["grants.stores.caching"],
    "click": ["cli", "cli.*"],
    "cryptography": ["oauth.keys", "grants.seal"],
    "flask": ["top: *", "grants.stores.session", *_TESTING],
    "flask_caching": ["grants.stores.caching"],
    "grpc": ["ext.grpc"],
    "httpx": ["ext.httpx"],
    "jinja2": ["top: *"],
    "joserfc": _TESTING,  # comes with Authlib
    "jwt": ["oauth.keys", "oauth.client_auth", "oauth.dpop", "oauth.id_token"],
    "markupsafe": ["top: *"],
    "opentelemetry": ["ext.otel"],
    "pytest": _TESTING,
    "redis": ["grants.stores.redis_link"],
    "requests": ["oauth.back_channel", *_API_CALLS, "assembly", "extension", *_TESTING],
    "sqlalchemy": ["grants.stores.sql_*"],
    "urllib3": ["oauth.wire", "oauth.back_channel", *_API_CALLS],
    "werkzeug": ["errors", "top: *", "grants.stores.session", *_TESTING],
}

MUTABLE_CALLS = {"Counter", "OrderedDict", "WeakKeyDictionary", "WeakSet", "WeakValueDictionary"}
MUTABLE_CALLS |= {"bytearray", "count", "defaultdict", "deque", "dict", "list", "local", "set"}
MUTABLE_CALLS |= {"Condition", "Event", "Lock", "Queue", "RLock", "Semaphore", "SimpleQueue"}
MUTABLE_LITERALS = (ast.Dict, ast.DictComp, ast.List, ast.ListComp, ast.Set, ast.SetComp)
READ_ONLY = ("Mapping[", "Sequence[")


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """One file of the package: its name without ``flask_atm.``, and what it says."""

    name: str
    path: Path
    tree: ast.Module

    def at(self, node: ast.AST) -> str:
        """Name the place of a node as ``path:line``."""
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@cache
def modules() -> tuple[Module, ...]:
    """Read every file of the package."""
    return tuple(
        Module(name=_name(path), path=path, tree=ast.parse(path.read_text("utf-8")))
        for path in sorted(PACKAGE.rglob("*.py"))
    )


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@cache
def rooms() -> tuple[tuple[str, str], ...]:
    """Give the list above as pairs of floor and pattern."""
    found, floor = [], ""
    for line in ROOMS.strip().splitlines():
        title, colon, _ = line.strip().partition(":")
        if colon:
            floor = title
        else:
            found.append((floor, title))
    return tuple(found)


def place(module: str) -> int | None:
    """Give the height of a module; an exact line counts before a pattern."""
    patterns = [pattern for _, pattern in rooms()]
    if module in patterns:
        return patterns.index(module)
    return next((i for i, p in enumerate(patterns) if fnmatchcase(module, p)), None)


def imports(module: Module) -> Iterator[tuple[ast.stmt, str]]:
    """Give every import that runs, also inside functions, by its full name."""
    waiting: list[ast.AST] = [module.tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module.at(node)}: import by the full name"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def own(target: str) -> str | None:
    """Give the module of ours behind a full name; ``None`` if it is not ours."""
    if target.partition(".")[0] != "flask_atm":
        return None
    names = {module.name for module in modules()}
    rest = target.removeprefix("flask_atm").removeprefix(".")
    while rest and rest not in names:
        rest = rest.rpartition(".")[0]
    return rest or "__init__"


def test_every_module_has_its_place() -> None:
    lost = [module.name for module in modules() if place(module.name) is None]
    assert not lost, f"place these in ROOMS of {Path(__file__).name}: {', '.join(lost)}"


def test_imports_go_down_only() -> None:
    bad = []
    for module in modules():
        here = place(module.name)
        for node, target in imports(module):
            name = own(target)
            there = None if name is None else place(name)
            if name == module.name or here is None or there is None:
                continue
            if there > here or (there == here and "*" not in rooms()[here][1]):
                bad.append(f"{module.at(node)}: {module.name} imports {name}, which lies above it")
    assert not bad, "\n".join(sorted(set(bad)))


def test_libraries_come_in_by_their_doors() -> None:
    bad = []
    for module in modules():
        libraries = {t.partition(".")[0]: node for node, t in imports(module)}
        for library, node in libraries.items():
            if library == "flask_atm" or library in sys.stdlib_module_names:
                continue
            if not _may_import(module.name, library):
                doors = ", ".join(DOORS.get(library, ["none: give it a line in DOORS"]))
                bad.append(f"{module.at(node)}: {library} has its doors in {doors}")
    assert not bad, "\n".join(bad)


def _may_import(module: str, library: str) -> bool:
    here = place(module)
    if here is None:
        return True  # test_every_module_has_its_place speaks of it
    names = (module, f"{rooms()[here][0]}: {module}")
    return any(fnmatchcase(name, door) for door in DOORS.get(library, []) for name in names)


def test_every_module_lists_its_names_in_order() -> None:
    bad = [m.at(m.tree) for m in modules() if m.tree.body[1:] and not _in_order(_public_names(m))]
    assert not bad, f"needs an __all__, sorted as `ruff check --fix` does it: {', '.join(bad)}"


def _public_names(module: Module) -> list[str] | None:
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            assert isinstance(names, list)
            return [str(name) for name in names]
    return None


def _in_order(names: list[str] | None) -> bool:
    """Constants, then classes, then the rest, as ruff's RUF022 sorts them."""
    return names is not None and names == sorted(
        names, key=lambda n: (0 if n.isupper() else 1 if n[:1].isupper() else 2, n)
    )


def test_nothing_catches_everything() -> None:
    bad = [
        module.at(node)
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler) and not _is_particular(node)
    ]
    assert not bad, f"name what can happen, or end with `raise`: {', '.join(bad)}"


def _is_particular(handler: ast.ExceptHandler) -> bool:
    caught = ast.unparse(handler.type).strip("()").split(", ") if handler.type else ["Exception"]
    if "Exception" in caught:
        return False
    last = handler.body[-1]
    return "BaseException" not in caught or (isinstance(last, ast.Raise) and last.exc is None)


@pytest.mark.parametrize("library", ["dill", "marshal", "pickle", "shelve"])
def test_nothing_is_pickled(library: str) -> None:
    bad = [m.at(n) for m in modules() for n, t in imports(m) if t.partition(".")[0] == library]
    assert not bad, f"a pickle from a store runs code: {', '.join(bad)}"


def test_modules_keep_no_state() -> None:
    bad = [m.at(n) for m in modules() for n in ast.walk(m.tree) if isinstance(n, ast.Global)]
    bad += [m.at(n) for m in modules() for n in m.tree.body if _is_state(n)]
    bad += [m.at(n) for m in modules() for n in ast.walk(m.tree) if _writes_to_a_table(n)]
    assert not bad, f"state belongs to app.extensions or g, tables are Final: {', '.join(bad)}"


def _is_state(node: ast.stmt) -> bool:
    """Whether a line makes something that can change, and that is no table either."""
    if isinstance(node, ast.AnnAssign):
        kind = ast.unparse(node.annotation)
    elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) != "__all__":
        kind = ""
    else:
        return False
    if isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func).rpartition(".")[2] in MUTABLE_CALLS
    empty = ast.unparse(node.value) in ("{}", "[]") if node.value else False
    table = any(word in kind for word in READ_ONLY) or ("Final" in kind and not empty)
    return isinstance(node.value, MUTABLE_LITERALS) and not table


def _writes_to_a_table(node: ast.AST) -> bool:
    if not isinstance(node, ast.Subscript) or isinstance(node.ctx, ast.Load):
        return False
    return isinstance(node.value, ast.Name) and node.value.id.isupper()


def test_tests_mock_nothing() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        if "node_modules" not in path.parts:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                assert "unittest.mock" not in _imported(node), f"{path}: mocks mirror the code"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []
