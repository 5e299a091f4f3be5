"""``flask atm grants``, ``revoke``, ``purge``, ``keys``: what they do to a store, and say of it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.cli import FlaskGroup, ScriptInfo
from flask.testing import FlaskCliRunner

from flask_atm.cli import atm
from flask_atm.grants.answers import Tokens
from flask_atm.grants.stores import MemoryStore, SQLiteStore
from flask_atm.grants.user_tokens import NewGrant
from flask_atm.grants.vault import record_key
from flask_atm.signals import user_logged_out
from flask_atm.stores import PairedStore
from flask_atm.testing import FakeClock, FakeProvider
from flask_atm.tokens import Secret, TokenParameters, fingerprint

from .support_cli import CANARIES, REFRESH_TOKEN, Shop, settings_of, shop

OLD, NEW = "a1" * 20, "b2" * 20


@pytest.fixture
def store(tmp_path: Path, fake_clock: FakeClock) -> Iterator[SQLiteStore]:
    fake_clock.set(1_700_000_000)
    store = SQLiteStore(tmp_path / "grants.sqlite3", clock=fake_clock, timeout=10)
    yield store
    store.close()


class Shops:
    """The same application with other settings, over one store."""

    def __init__(self, provider: FakeProvider, store: SQLiteStore, clock: FakeClock) -> None:
        self.provider, self.store, self.clock = provider, store, clock

    def with_keys(self, *keys: str, **options: Any) -> Shop:
        settings = settings_of(self.provider, ATM_ENCRYPTION_KEYS=list(keys), TESTING=True)
        return shop(settings, store=self.store, clock=self.clock, **options)


@pytest.fixture
def shops(fake_provider: FakeProvider, store: SQLiteStore, fake_clock: FakeClock) -> Shops:
    return Shops(fake_provider, store, fake_clock)


@pytest.fixture
def made(shops: Shops) -> Shop:
    return shops.with_keys(OLD)


def assert_error(result: Result, exit_code: int, text: str) -> None:
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert text in result.stderr
    assert result.stderr.startswith("Error: ")


def is_signed_in(made: Shop, grant_id: str) -> bool:
    return made.state.provider().tokens.open(grant_id) is not None


# -- grants: one, and those of a subject


@pytest.mark.parametrize("name", ["key", "beginning", "fingerprint", "grant id"])
def test_m2_one_grant_by_its_key_fingerprint_or_id(made: Shop, name: str) -> None:
    grant_id = made.sign_in()
    made.sign_in()
    key = record_key(grant_id)
    names = {"key": key, "beginning": key[:6], "fingerprint": fingerprint(grant_id)}
    (found,) = made.objects("grants", names.get(name, grant_id))
    assert found == {
        "key": key,
        "kind": "grant",
        "provider": "oidc",
        "state": "ok",
        "version": 1,
        "failures": 0,
        "retry_pause": None,
        "ends_at": 1_700_000_000 + 14 * 86400,
        "slots": 1,
        "refreshable": True,
        "sealed_by": made.state.ring.key_ids[0],
        "signed_in_at": 1_700_000_000,
        "used_at": None,
        "scope": "openid",
        "resources": [],
        "indexed_by": made.state.ring.key_ids[0],
    }
    lines = made.table("grants", key)
    assert lines[2] == f"key           {key}"
    assert lines[3] == "kind          grant"


def test_m2_a_record_that_is_no_grant_is_shown_too(made: Shop) -> None:
    made.state.store_id()
    (found,) = made.objects("grants", "store id")
    assert (found["kind"], found["key"]) == ("other", "store id")
    assert "scope" not in found


@pytest.mark.parametrize(
    ("name", "exit_code", "text"),
    [
        ("0" * 64, 1, "no such record"),
        ("oidc.unknown", 1, "no such record"),
        ("abc", 2, "6 characters"),
        ("twins0", 2, "several records"),
    ],
)
def test_a_name_that_names_no_record(made: Shop, name: str, exit_code: int, text: str) -> None:
    for key in ("twins01", "twins02"):
        made.state.store.create(key, b"", ends_at=made.state.clock() + 99)
    assert_error(made.run("grants", name), exit_code, text)
    assert_error(made.run("revoke", name, "--yes"), exit_code, text)


def test_m2_grants_of_a_subject_by_the_index(made: Shop) -> None:
    mine = {record_key(made.sign_in(subject="alice"))[:8] for _ in range(3)}
    made.sign_in(subject="bob")
    found = made.objects("grants", "--subject", "alice")
    assert {one["key"] for one in found} == mine
    assert made.objects("grants", "--subject", "alice", "--provider", "oidc") == found
    assert made.objects("grants", "--subject", "carol") == []
    result = made.run("grants", "--subject", "alice", "--limit", "2")
    assert len(result.stdout.splitlines()) == 4
    assert "--limit" in result.stderr
    assert_error(made.run("grants", "--subject", "alice", "--provider", "x"), 2, "known: oidc")
    assert_error(made.run("grants", "abcdef", "--subject", "alice"), 2, "not both")


def test_a_provider_that_only_a_loader_knows_can_be_named(
    shops: Shops, fake_provider: FakeProvider
) -> None:
    settings = {
        "issuer": fake_provider.issuer,
        "client_id": "tenant-client",
        "client_secret": "tenant-secret",
    }
    made = shops.with_keys(OLD, provider_loader=lambda name: settings if name == "acme" else None)
    tokens = made.state.provider("acme").tokens
    grant_id = sign_in_at(made, "acme")
    assert [one["kind"] for one in made.objects("grants")] == ["other"]
    found = made.objects("grants", "--subject", "alice", "--provider", "acme")
    assert [(one["kind"], one["provider"]) for one in found] == [("grant", "acme")]
    later = shops.with_keys(NEW, OLD, provider_loader=lambda name: settings)
    assert later.run("keys", "rotate").exit_code == 1
    assert later.objects("keys", "--provider", "acme")[1]["grants"] == 1
    (row,) = later.objects("keys", "rotate", "--provider", "acme")
    assert row["sealed_anew"] == 1
    assert made.objects("revoke", "--all", "--yes")[0]["ended"] == 0
    new = shops.with_keys(NEW, provider_loader=lambda name: settings)
    assert new.objects("revoke", "--all", "--provider", "acme", "--yes")[0]["ended"] == 1
    assert tokens.open(grant_id) is None


def sign_in_at(made: Shop, provider: str) -> str:
    tokens = Tokens(
        access_token=Secret("access"),
        token_type="Bearer",
        lifetime=300,
        refresh_token=Secret(REFRESH_TOKEN),
        scope=None,
    )
    new = NewGrant(
        tokens=tokens, claims={"sub": "alice"}, scope=("openid",), requested_at=made.state.clock()
    )
    return made.state.provider(provider).tokens.create(new)


# -- revoke


def test_m2_revoke_one_by_the_beginning_of_its_key(made: Shop, fake_provider: FakeProvider) -> None:
    one, other = made.sign_in(), made.sign_in(subject="bob")
    assert made.table("revoke", fingerprint(one), "--yes") == [
        "Ended  Revoked  To revoke",
        "-----  -------  ---------",
        "1      1        0",
    ]
    assert not is_signed_in(made, one)
    assert is_signed_in(made, other)
    assert fake_provider.count(endpoint="revoke") == 1
    assert_error(made.run("revoke", record_key(one), "--yes"), 1, "no such record")


def test_m2_revoke_by_grant_id(made: Shop) -> None:
    grant_id = made.sign_in()
    made.table("revoke", grant_id, "--yes")
    assert not is_signed_in(made, grant_id)


def test_m2_revoke_those_of_a_subject(made: Shop) -> None:
    mine = [made.sign_in(subject="alice") for _ in range(3)]
    other = made.sign_in(subject="bob")
    (row,) = made.objects("revoke", "--subject", "alice", "--provider", "oidc", "--yes")
    assert row == {"ended": 3, "revoked": 3, "to_revoke": 0}
    assert not any(is_signed_in(made, one) for one in mine)
    assert is_signed_in(made, other)
    assert made.objects("revoke", "--subject", "nobody", "--yes")[0]["ended"] == 0


def test_m2_revoke_finds_what_a_former_key_indexed(shops: Shops) -> None:
    grant_id = shops.with_keys(OLD).sign_in()
    later = shops.with_keys(NEW, OLD)
    assert later.objects("revoke", "--subject", "alice", "--yes")[0]["ended"] == 1
    assert not is_signed_in(later, grant_id)


def test_m2_revoke_all_leaves_client_tokens_and_marks(made: Shop) -> None:
    for number in range(120):
        made.sign_in(subject=f"user {number}")
    made.state.client("reports").get(TokenParameters())
    made.state.store_id()
    (row,) = made.objects("revoke", "--all", "--yes")
    assert row == {"ended": 120, "revoked": 120, "to_revoke": 0}
    assert {one["kind"] for one in made.objects("grants")} == {"client token", "other"}


def test_m2_revoke_all_of_one_provider_only(shops: Shops, fake_provider: FakeProvider) -> None:
    fake_provider.register("second", "second-secret")
    second = {
        "issuer": fake_provider.issuer,
        "client_id": "second",
        "client_secret": "second-secret",
        "sign_in": False,
    }
    settings = settings_of(fake_provider, ATM_PROVIDERS={"second": second})
    made = shop(settings, store=shops.store, clock=shops.clock)
    first, other = made.sign_in(), sign_in_at(made, "second")
    assert made.objects("revoke", "--all", "--provider", "second", "--yes")[0]["ended"] == 1
    assert is_signed_in(made, first)
    assert made.state.provider("second").tokens.open(other) is None


def test_m2_providers_with_one_registration_count_each_sign_in_once(
    shops: Shops, fake_provider: FakeProvider
) -> None:
    settings = settings_of(fake_provider)
    second = {
        "issuer": fake_provider.issuer,
        "client_id": settings["ATM_CLIENT_ID"],
        "client_secret": settings["ATM_CLIENT_SECRET"],
        "sign_in": False,
    }
    settings["ATM_PROVIDERS"] = {"second": second}
    made = shop(settings, store=shops.store, clock=shops.clock)
    made.sign_in()
    sign_in_at(made, "second")
    found = made.objects("grants", "--subject", "alice")
    assert sorted(one["provider"] for one in found) == ["oidc", "second"]
    asked = made.objects("revoke", "--subject", "alice", "--dry-run")
    assert asked == [{"would_end": 2}]
    assert made.objects("revoke", "--subject", "alice", "--yes")[0]["ended"] == 2


def test_m2_revoke_leaves_the_tombstones_of_a_logout(
    made: Shop, fake_provider: FakeProvider
) -> None:
    grant_id = made.sign_in()
    fake_provider.fail(endpoint="revoke", status=503, times=None)
    result = made.run("revoke", "--all", "--yes")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2].split() == ["1", "0", "1"]
    assert "flask atm purge" in result.stderr
    stored = made.state.store.read(record_key(grant_id))
    assert stored is not None
    assert stored.control.tombstone
    # A refresh that comes late does not bring it back.
    arguments: dict[str, Any] = {"expected_version": 1, "commit_id": "late"}
    assert made.state.store.commit(record_key(grant_id), b"", **arguments) == "gone"
    (found,) = made.objects("grants")
    assert found["kind"] == "to revoke"


def test_m2_a_dry_run_changes_nothing(made: Shop) -> None:
    grants = [made.sign_in(subject=name) for name in ("alice", "alice", "bob")]
    for args, expected in (
        (["--all"], 3),
        (["--subject", "alice"], 2),
        ([grants[0]], 1),
        (["--all", "--provider", "oidc"], 3),
    ):
        assert made.objects("revoke", *args, "--dry-run") == [{"would_end": expected}]
    assert all(is_signed_in(made, one) for one in grants)


def test_m2_revoke_does_not_ask_where_nobody_can_answer(made: Shop) -> None:
    grant_id = made.sign_in()
    for args in ([grant_id], ["--subject", "alice"], ["--all"]):
        assert_error(made.run("revoke", *args), 2, "--yes")
    assert is_signed_in(made, grant_id)


@pytest.mark.parametrize(
    "args", [[], ["--all", "--subject", "x"], ["abcdef", "--all"], ["abcdef", "--subject", "x"]]
)
def test_revoke_needs_to_know_whom(made: Shop, args: list[str]) -> None:
    assert_error(made.run("revoke", *args, "--yes"), 2, "name one grant")


def test_revoke_of_what_is_no_sign_in(made: Shop) -> None:
    made.state.client("reports").get(TokenParameters())
    (key,) = [one["key"] for one in made.objects("grants") if one["kind"] == "client token"]
    assert_error(made.run("revoke", key, "--yes"), 1, "no sign-in")


def test_revoke_says_who_was_signed_out(made: Shop) -> None:
    made.sign_in()
    told: list[Any] = []

    def listen(sender: Flask, **details: Any) -> None:
        told.append(details["claims"]["sub"])

    with user_logged_out.connected_to(listen, sender=made.app):
        made.run("revoke", "--all", "--yes")
    assert told == ["alice"]


ASKED = """
from flask import Flask
from tests.top.support_cli import shop
import json, os
app = shop(json.loads(os.environ["SHOP"])).app
"""


@pytest.mark.parametrize(("answer", "ended"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_m2_revoke_asks_on_a_terminal(
    fake_provider: FakeProvider, tmp_path: Path, answer: str, ended: bool
) -> None:
    settings = settings_of(fake_provider, ATM_STORE=f"sqlite:///{tmp_path / 'g.sqlite3'}")
    settings = {**settings, "SECRET_KEY": "f3cf1ae79ee3bbd77d3a5a0be2eb1cf26a1f3b7ac7a1d2f5"}
    made = shop(settings)
    grant_id = made.sign_in()
    (tmp_path / "shop_app.py").write_text(ASKED)
    environment = {
        **os.environ,
        "SHOP": json.dumps(settings),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    ours, theirs = os.openpty()
    os.write(ours, answer.encode())
    command = [sys.executable, "-m", "flask", "--app", "shop_app:app", "atm", "revoke", "--all"]
    done = subprocess.run(
        command,
        stdin=theirs,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    os.close(theirs)
    os.close(ours)
    assert "End 1 sign-ins?" in done.stderr
    assert done.returncode == (0 if ended else 1)
    assert is_signed_in(made, grant_id) is not ended


# -- purge


def test_m2_purge_removes_what_has_ended_in_batches(made: Shop, fake_clock: FakeClock) -> None:
    for number in range(50):
        made.state.store.create(f"{number:03}", b"", ends_at=fake_clock() + 10)
    grant_id = made.sign_in()
    fake_clock.advance(20)
    result = made.run("purge", "--batch", "20")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2].split() == ["50", "0", "0"]
    assert result.stderr.splitlines() == ["20 removed so far.", "40 removed so far."]
    assert is_signed_in(made, grant_id)
    assert made.objects("purge") == [{"removed": 0, "revoked": 0, "to_revoke": 0}]


def test_m2_purge_drains_the_outbox_in_batches(made: Shop, fake_provider: FakeProvider) -> None:
    for number in range(25):
        made.state.provider().tokens.end(made.sign_in(subject=f"user {number}"))
    result = made.run("purge", "--batch", "10", "--json")
    assert '"revoked": 25, "to_revoke": 0' in result.stdout
    assert result.stderr.splitlines() == ["10 revoked so far.", "20 revoked so far."]
    assert made.objects("grants") == []


def test_purge_tells_what_has_to_wait(made: Shop, fake_provider: FakeProvider) -> None:
    made.state.provider().tokens.end(made.sign_in(), revoke_after=60)
    assert made.objects("purge") == [{"removed": 0, "revoked": 0, "to_revoke": 1}]
    assert fake_provider.count(endpoint="revoke") == 0


def test_purge_with_a_provider_that_is_away(made: Shop, fake_provider: FakeProvider) -> None:
    made.state.provider().tokens.end(made.sign_in())
    fake_provider.fail(endpoint="discovery", status=503, times=None)
    result = made.run("purge")
    assert result.stdout.splitlines()[2].split() == ["0", "0", "1"]
    assert result.exit_code == 1
    assert "have to wait: it does not answer" in result.stderr


# -- keys


def test_keys_counts_what_each_key_sealed(shops: Shops) -> None:
    old = shops.with_keys(OLD)
    old.sign_in()
    old.state.provider().tokens.end(old.sign_in())
    old.state.client("reports").get(TokenParameters())
    both = shops.with_keys(NEW, OLD)
    both.sign_in()
    first, second = both.state.ring.key_ids
    assert both.table("keys") == [
        "Key id    Role   Grants  Indexed  To revoke  Passing  Unreadable",
        "--------  -----  ------  -------  ---------  -------  ----------",
        f"{first}  seals  1       1        0          0        0",
        f"{second}  opens  1       1        1          1        0",
    ]
    alone = shops.with_keys(NEW).objects("keys")
    assert [(one["role"], one["unreadable"]) for one in alone] == [("seals", 0), ("missing", 3)]


def test_j5_keys_rotate(shops: Shops) -> None:
    old = shops.with_keys(OLD)
    grant_id = old.sign_in()
    old.state.provider().tokens.end(old.sign_in(subject="bob"))
    both = shops.with_keys(NEW, OLD)
    assert both.table("keys", "rotate") == [
        "Sealed anew  Outbox  Current  Busy  Unreadable",
        "-----------  ------  -------  ----  ----------",
        "1            1       1        0     0",
    ]
    (again,) = both.objects("keys", "rotate")
    assert again == {"sealed_anew": 0, "outbox": 0, "current": 2, "busy": 0, "unreadable": 0}
    new = shops.with_keys(NEW)
    assert is_signed_in(new, grant_id)
    assert new.objects("purge")[0]["revoked"] == 1
    assert new.objects("revoke", "--subject", "alice", "--yes")[0]["ended"] == 1


def test_j5_keys_rotate_says_by_its_exit_code_that_something_is_left(shops: Shops) -> None:
    old = shops.with_keys(OLD)
    grant_id = old.sign_in()
    old.begin(grant_id)
    both = shops.with_keys(NEW, OLD)
    result = both.run("keys", "rotate")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[2].split() == ["0", "0", "0", "1", "0"]
    assert "keep the other keys" in result.stderr
    old.abort(grant_id)
    assert both.run("keys", "rotate").exit_code == 0


def test_j5_keys_rotate_shows_how_far_it_is_and_begins_where_it_is_told(
    shops: Shops,
) -> None:
    old = shops.with_keys(OLD)
    for number in range(1050):
        old.state.store.create(f"{number:04}", b"", ends_at=shops.clock() + 99)
    both = shops.with_keys(NEW, OLD)
    result = both.run("keys", "rotate")
    assert result.stderr == "1000 looked at so far, the last one was 0999\n"
    assert both.objects("keys", "rotate", "--after", "0999")[0]["current"] == 50


def test_j5_keys_rotate_says_that_it_has_left_something_out(shops: Shops) -> None:
    old = shops.with_keys(OLD)
    key = record_key(old.sign_in())
    both = shops.with_keys(NEW, OLD)
    result = both.run("keys", "rotate", "--after", key)
    assert result.exit_code == 0
    assert "run it without --after before you drop a key" in result.stderr
    whole = both.run("keys", "rotate")
    assert whole.exit_code == 0
    assert "--after" not in whole.stderr
    assert whole.stdout.splitlines()[2].split()[0] == "1"


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_no_command_shows_a_secret_or_who_the_users_are(shops: Shops, more: list[str]) -> None:
    made = shops.with_keys(NEW, OLD)
    ended, left = made.sign_in(), made.sign_in()
    made.state.provider().tokens.end(ended, revoke_after=60)
    key = record_key(left)
    commands = (
        ("grants", key),
        ("grants", "--subject", "alice"),
        ("keys",),
        ("keys", "rotate"),
        ("revoke", "--all", "--dry-run"),
        ("revoke", key, "--yes"),
        ("purge",),
    )
    for command in commands:
        result = made.run(*command, *more)
        assert result.exit_code == 0, result.output
        for canary in (*CANARIES, OLD, NEW, left, made.app.config["ATM_CLIENT_SECRET"]):
            assert canary not in result.output, command


@pytest.mark.parametrize(
    "command",
    [
        ["revoke", "--all", "--yes"],
        ["purge"],
        ["keys"],
        ["keys", "rotate"],
        ["grants", "--subject", "x"],
    ],
)
def test_a_store_that_does_not_answer(
    fake_provider: FakeProvider, tmp_path: Path, command: list[str]
) -> None:
    path = tmp_path / "atm.sqlite3"
    path.write_bytes(b"this is no database" * 100)
    made = shop(settings_of(fake_provider, ATM_STORE=f"sqlite:///{path}"))
    assert_error(made.run(*command), 1, "ATM_STORE")


@pytest.mark.parametrize("command", [["revoke", "--all", "--yes"], ["purge"], ["keys"]])
def test_a_store_in_memory_is_not_passed_off_as_all_there_is(
    fake_provider: FakeProvider, command: list[str]
) -> None:
    made = shop(settings_of(fake_provider), store=MemoryStore())
    assert "other processes" in made.run(*command).stderr


class Drawer:
    """A plain store of the application's own."""

    def __init__(self) -> None:
        self.copies: dict[str, bytes] = {}

    def load(self, key: str) -> bytes | None:
        return self.copies.get(key)

    def save(self, key: str, sealed: bytes, *, lifetime: float) -> None:
        self.copies[key] = sealed

    def delete(self, key: str) -> None:
        self.copies.pop(key, None)


def test_j5_copies_are_made_anew_from_what_was_sealed_anew(shops: Shops) -> None:
    drawer = Drawer()
    paired = PairedStore(drawer, shops.store)
    settings = settings_of(shops.provider, TESTING=True)

    def with_keys(*keys: str) -> Shop:
        return shop(
            {**settings, "ATM_ENCRYPTION_KEYS": list(keys)}, store=paired, clock=shops.clock
        )

    grant_id, ended = with_keys(OLD).sign_in(), with_keys(OLD).sign_in(subject="bob")
    with_keys(OLD).state.provider().tokens.end(ended)
    both = with_keys(NEW, OLD)
    (row,) = both.objects("keys", "rotate")
    assert (row["sealed_anew"], row["outbox"], row["busy"]) == (1, 1, 0)
    new = with_keys(NEW)
    assert is_signed_in(new, grant_id)
    assert not is_signed_in(new, ended)
    # The pair is lost: the copy opens, and is found by the new key.
    shops.store.delete(record_key(grant_id))
    assert is_signed_in(new, grant_id)
    assert new.objects("revoke", "--subject", "alice", "--yes")[0]["ended"] == 1
    assert not is_signed_in(new, grant_id)


@pytest.mark.parametrize("how", ["--all", "--subject", "key"])
@pytest.mark.parametrize("refreshable", [True, False])
def test_m2_no_copy_that_somebody_has_kept_counts_after_revoke(
    shops: Shops, how: str, refreshable: bool
) -> None:
    """Nor after purge, when nothing is left to revoke."""
    drawer = Drawer()
    settings = settings_of(shops.provider, TESTING=True)
    made = shop(settings, store=PairedStore(drawer, shops.store), clock=shops.clock)
    grant_id = made.sign_in(refreshable=refreshable)
    kept = dict(drawer.copies)
    which = {"--all": ["--all"], "--subject": ["--subject", "alice"]}
    chosen = which.get(how, [record_key(grant_id)])
    assert made.objects("revoke", *chosen, "--yes")[0]["ended"] == 1
    made.objects("purge")
    drawer.copies.update(kept)
    assert kept
    assert not is_signed_in(made, grant_id)
    assert drawer.copies == {}


def test_m2_revoke_of_a_subject_ends_what_no_key_opens_too(shops: Shops) -> None:
    """Whoever puts the key back must not bring these users back."""
    old = shops.with_keys(OLD)
    grant_id = old.sign_in()
    both = shops.with_keys(NEW, OLD)
    both.objects("keys", "rotate")
    stored = both.state.store.read(record_key(grant_id))
    assert stored is not None
    strange = b"\0" * len(stored.sealed)
    both.state.store.update(record_key(grant_id), strange, expected_version=2)
    both.run("revoke", "--subject", "alice", "--yes")
    assert both.state.store.read(record_key(grant_id)) is None


def test_j5_keys_rotate_documents_its_exit_codes() -> None:
    text = FlaskCliRunner(Flask("plain")).invoke(atm, ["keys", "rotate", "--help"]).stdout
    assert "0  the other keys can be dropped" in text
    assert "--json" in text


def test_options_of_a_command_in_a_group_are_not_read_from_the_environment(shops: Shops) -> None:
    shops.with_keys(OLD).sign_in()
    made = shops.with_keys(NEW, OLD)
    flask = FlaskGroup(load_dotenv=False, add_default_commands=False)
    flask.add_command(atm)
    environment = {
        "FLASK_ATM_KEYS_ROTATE_AFTER": "z",
        "FLASK_ATM_KEYS_ROTATE_AS_JSON": "1",
        "FLASK_ATM_REVOKE_YES": "1",
        "FLASK_RUN_FROM_CLI": "true",
    }
    script = ScriptInfo(create_app=lambda: made.app)
    run = FlaskCliRunner(made.app).invoke
    result = run(flask, ["atm", "keys", "rotate"], obj=script, env=environment)
    assert result.stdout.splitlines()[2].split()[0] == "1"
    result = run(flask, ["atm", "revoke", "--all"], obj=script, env=environment)
    assert result.exit_code == 2
