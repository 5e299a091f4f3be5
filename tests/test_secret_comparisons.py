"""J7: what somebody sends and what is secret are compared in constant time."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flask_atm"
#: A word in a name that says that a value is a secret, or made of one.
WORDS = frozenset(
    [
        "code",
        "csrf",
        "digest",
        "handle",
        "hash",
        "hmac",
        "intent",
        "mac",
        "nonce",
        "password",
        "reveal",
        "secret",
        "sent",
        "sig",
        "signature",
        "state",
        "text",
        "token",
        "verifier",
    ]
)
#: Places where ``==`` is right: both sides are ours (a caller of the library, the sealed record,
#: the row of the store) and nobody learns by trying, or a part of the name means something else.
ALLOWED = {
    # Two values of one process: who compares them has both.
    "tokens.py: self.__text == other.__text",
    # A token that the application says was refused, and the one that is sealed.
    "grants/client_tokens.py: local.token.value == rejected",
    "grants/engine.py: slot.token.reveal() != self.want.rejected",
    "grants/record.py: old.token.reveal() != rejected",
    "grants/record.py: slot.token.reveal() != want.rejected",
    "grants/record.py: slot.token.reveal() == want.seen",
    "grants/refresh.py: slot.token.reveal() != attempt.want.rejected",
    "calls/token_auth.py: self.token.value == rejected.value",
    # Hashes of refresh tokens: out of the record, and of what this process has just sent.
    "grants/control.py: control.intent == intent",
    "grants/record.py: dead == token_hash(refresh_token.reveal())",
    "grants/refresh.py: _sent(current.grant) != attempt.intent",
    "grants/refresh.py: current.control.suspect == attempt.intent",
    # Names of issuers, of stores and of providers; ``state`` is that of the extension.
    "destinations.py: provider == callback_provider(state)",
    "globals.py: handle[0] == state.store_id()",
    "login/accept.py: found.reveal() == issuer",
}


def compared(tree: ast.AST) -> list[str]:
    """Give the comparisons by ``==`` and ``!=`` of what is called like a secret."""
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Eq | ast.NotEq)
        and not any(_is_plain(side) for side in (node.left, *node.comparators))
        and any(_is_secret(side) for side in (node.left, *node.comparators))
    ]


def _is_plain(side: ast.expr) -> bool:
    """Tell whether it is written in the source, or an empty or a counted thing."""
    counted = isinstance(side, ast.Call) and ast.unparse(side.func) == "len"
    return isinstance(side, ast.Constant) or counted


def _is_secret(side: ast.expr) -> bool:
    if isinstance(side, ast.Call):
        return _is_secret(side.func) or any(_is_secret(one) for one in side.args)
    if isinstance(side, ast.Subscript):
        return _is_secret(side.slice) or _is_secret(side.value)
    if isinstance(side, ast.Constant):
        return isinstance(side.value, str) and bool(WORDS & set(side.value.split("_")))
    if isinstance(side, ast.Attribute) and side.attr == "value":
        return _is_secret(side.value)
    name = side.attr if isinstance(side, ast.Attribute) else getattr(side, "id", "")
    return bool(WORDS & set(name.strip("_").lower().split("_")))


def found() -> set[str]:
    return {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "testing"
        for text in compared(ast.parse(path.read_text("utf-8")))
    }


def test_j7_secrets_are_compared_by_compare_digest() -> None:
    assert found() - ALLOWED == set(), "use hmac.compare_digest"
    assert ALLOWED - found() == set(), "no longer there: remove it from ALLOWED"


@pytest.mark.parametrize("file", ["logout.py", "oauth/id_token.py"])
def test_j7_what_a_browser_or_a_server_sends_is_compared_in_constant_time(file: str) -> None:
    """The token of the form that signs out; nonce, ``at_hash`` and ``c_hash``."""
    tree = ast.parse((PACKAGE / file).read_text("utf-8"))
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert "compare_digest" in called


@pytest.mark.parametrize(
    "source",
    [
        "state == request.args.get('state')",
        "request.form['csrf_token'] != ours",
        "claims.get('nonce') == nonce",
        "hmac.new(key, value).digest() == given",
        "token_hash(given) != stored",
        "expected == self._signature",
        "secret.reveal() == given",
        "token.value != rejected",
    ],
)
def test_j7_a_comparison_that_leaks_is_found(source: str) -> None:
    assert compared(ast.parse(source)) == [ast.unparse(ast.parse(source))]


def test_j7_a_comparison_in_constant_time_is_fine() -> None:
    assert compared(ast.parse("compare_digest(state, given) and len(token) == 3")) == []
