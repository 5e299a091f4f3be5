"""``flask atm``: what it prints, its exit codes, and what it never prints."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.cli import FlaskGroup, ScriptInfo
from flask.testing import FlaskCliRunner

from flask_atm.cli import atm
from flask_atm.errors import ConfigurationError
from flask_atm.grants.record import token_hash
from flask_atm.grants.stores import MemoryStore
from flask_atm.grants.vault import record_key
from flask_atm.testing import FakeClock, FakeProvider
from flask_atm.tokens import TokenParameters, fingerprint
from tests.servers import OIDCServer, refusing_url

from .support_cli import CANARIES, CLIENT_SECRET, REFRESH_TOKEN, PagedStore, Shop, settings_of, shop

SECRET_KEY = "f3cf1ae79ee3bbd77d3a5a0be2eb1cf26a1f3b7ac7a1d2f5"
TWO: dict[str, Any] = {
    "SECRET_KEY": SECRET_KEY,
    "ATM_STORE": "memory",
    "ATM_ISSUER": "https://id.example.com",
    "ATM_CLIENT_ID": "shop",
    "ATM_CLIENT_SECRET": CLIENT_SECRET,
    "ATM_PROVIDERS": {
        "github": {
            "authorization_endpoint": "https://github.example/authorize",
            "token_endpoint": "https://github.example/token",
            "client_id": 4711,
            "client_secret": CLIENT_SECRET,
            "client_auth": "client_secret_post",
            "sign_in": False,
            "scope": "repo",
        }
    },
    "ATM_CLIENTS": {
        "reports": {
            "token_endpoint": "https://id.example.com/token",
            "client_id": "reports-id",
            "client_secret": CLIENT_SECRET,
            "scope": ["write", "read"],
        },
        "borrowed": {"provider": "github"},
    },
    "ATM_APIS": {
        "invoices": {"base_url": "https://api.example.com/", "scope": "invoices"},
        "repositories": {"base_url": "https://api.github.example/", "provider": "github"},
        "reports": {"base_url": "https://r.example.com/", "token": "client", "client": "reports"},
    },
}


@pytest.fixture
def helsinki(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A local time that is not UTC."""
    monkeypatch.setenv("TZ", "EET-2")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def assert_error(result: Result, exit_code: int, text: str) -> None:
    """Check for one line on stderr, and nothing else."""
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert text in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


# -- what is configured


def test_providers() -> None:
    assert shop(TWO).table("providers") == [
        "Name    Issuer or endpoint            Client ID  Sign-in  Client auth          Default",
        "------  ----------------------------  ---------  -------  -------------------  -------",
        "oidc    https://id.example.com        shop       yes      client_secret_basic  yes",
        "github  https://github.example/token  4711       no       client_secret_post   no",
    ]


def test_providers_as_json() -> None:
    assert shop(TWO).objects("providers")[1] == {
        "name": "github",
        "issuer_or_endpoint": "https://github.example/token",
        "client_id": "4711",
        "sign_in": False,
        "client_auth": "client_secret_post",
        "default": False,
    }


def test_a_callable_that_chooses_the_provider_leaves_none_marked() -> None:
    made = shop(TWO, default_provider=lambda: "oidc")
    assert [one["default"] for one in made.objects("providers")] == [False, False]
    assert made.objects("apis")[0]["source"] is None
    assert_error(made.run("metadata"), 2, "another one for each request")


def test_clients() -> None:
    assert shop(TWO).table("clients") == [
        "Name      Issuer or endpoint            Client ID   Client auth          Scope",
        "--------  ----------------------------  ----------  -------------------  ----------",
        "reports   https://id.example.com/token  reports-id  client_secret_basic  write read",
        "borrowed  https://github.example/token  4711        client_secret_post   -",
    ]


def test_a_client_of_a_provider_that_a_loader_knows() -> None:
    settings = {**TWO, "ATM_CLIENTS": {"borrowed": {"provider": "tenant"}}, "ATM_APIS": {}}
    made = shop(settings, provider_loader=lambda name: None)
    assert made.objects("clients") == [
        {
            "name": "borrowed",
            "issuer_or_endpoint": "provider:tenant",
            "client_id": None,
            "client_auth": None,
            "scope": None,
        }
    ]


def test_apis() -> None:
    assert shop(TWO).table("apis") == [
        "Name          Base URL                     Token   Source           Scope",
        "------------  ---------------------------  ------  ---------------  --------",
        "invoices      https://api.example.com/     user    provider:oidc    invoices",
        "repositories  https://api.github.example/  user    provider:github  -",
        "reports       https://r.example.com/       client  client:reports   -",
    ]


@pytest.mark.parametrize(
    ("command", "cure"),
    [("providers", "ATM_ISSUER"), ("clients", "ATM_CLIENTS"), ("apis", "ATM_APIS")],
)
def test_nothing_configured_is_said_on_stderr(command: str, cure: str) -> None:
    result = shop({}).run(command)
    assert (result.exit_code, result.stdout) == (0, "")
    assert cure in result.stderr
    assert shop({}).objects(command) == []


@pytest.mark.parametrize(
    ("command", "hook"),
    [
        ("providers", "provider_loader"),
        ("clients", "client_loader"),
        ("grants", "provider_loader"),
        ("grants", "client_loader"),
    ],
)
def test_what_only_a_loader_knows_is_not_hidden_silently(command: str, hook: str) -> None:
    made = shop(TWO, **{hook: lambda name: None})
    assert "loader knows" in made.run(command).stderr
    assert "loader knows" not in shop(TWO).run(command).stderr


# -- what servers say


def test_metadata(oidc: OIDCServer) -> None:
    client = oidc.add_client("http://127.0.0.1:5000/oidc/callback")
    made = shop(
        {
            "SECRET_KEY": SECRET_KEY,
            "ATM_STORE": "memory",
            "ATM_ISSUER": oidc.issuer,
            "ATM_CLIENT_ID": client.client_id,
            "ATM_CLIENT_SECRET": client.client_secret,
        }
    )
    lines = made.table("metadata")
    assert lines[0].split() == ["Member", "Value"]
    assert set(lines[1]) == {"-", " "}
    shown = dict(line.split(maxsplit=1) for line in lines[2:])
    assert shown["provider"] == "oidc"
    assert shown["issuer"] == oidc.issuer
    assert shown["token_endpoint"].startswith(oidc.issuer)
    assert shown["PKCE"] == "S256"
    assert "offline_access" in shown["scopes"].split()
    assert shown["age"] == "0 s"
    assert len({line.index(line.split(maxsplit=1)[1]) for line in lines[2:8]}) == 1


def test_metadata_as_json(fake_provider: FakeProvider, fake_clock: FakeClock) -> None:
    made = shop(settings_of(fake_provider), clock=fake_clock)
    made.objects("metadata")
    fake_clock.advance(42)
    (found,) = made.objects("metadata", "oidc")
    assert found["issuer"] == fake_provider.issuer
    assert found["token_endpoint"] == f"{fake_provider.issuer}/token"
    assert found["pushed_authorization_request_endpoint"] is None
    assert found["code_challenge_methods_supported"] == ["S256"]
    assert found["age"] == 42
    assert fake_provider.count(endpoint="discovery") == 1


def test_metadata_of_configured_endpoints_need_no_server() -> None:
    (found,) = shop(TWO).objects("metadata", "github")
    assert found["token_endpoint"] == "https://github.example/token"
    assert found["issuer"] is None
    assert found["age"] is None


def test_metadata_of_a_server_that_is_away() -> None:
    with refusing_url() as issuer:
        made = shop({**TWO, "ATM_ISSUER": issuer})
        assert_error(made.run("metadata"), 1, "cannot be had now")


def test_metadata_that_are_none(fake_provider: FakeProvider) -> None:
    fake_provider.fail(endpoint="discovery", status=200, times=None, body="<h1>\nhello")
    assert_error(shop(settings_of(fake_provider)).run("metadata"), 1, "no JSON object")


def test_metadata_cannot_move_the_cursor(fake_provider: FakeProvider) -> None:
    document = {
        "issuer": fake_provider.issuer,
        "token_endpoint": f"{fake_provider.issuer}/token",
        "scopes_supported": ["openid\x1b[2J", "a\r\nb"],
    }
    fake_provider.fail(endpoint="discovery", status=200, times=None, body=document)
    result = shop(settings_of(fake_provider)).run("metadata")
    assert result.exit_code == 0
    assert "openid\N{REPLACEMENT CHARACTER}[2J a b\n" in result.stdout
    assert "\x1b" not in result.stdout
    assert "\r" not in result.stdout


def test_metadata_of_an_unknown_provider() -> None:
    assert_error(shop(TWO).run("metadata", "gitlab"), 2, "known: github, oidc")


# -- tokens of clients


def test_token(fake_provider: FakeProvider, fake_clock: FakeClock, helsinki: None) -> None:
    fake_clock.set(1_700_000_000)
    made = shop(settings_of(fake_provider), clock=fake_clock)
    lines = made.table("token", "reports")
    token = made.state.client("reports").get(TokenParameters())
    assert lines == [
        "Client   Type    Scope       Expires at                 Fingerprint",
        "-------  ------  ----------  -------------------------  -----------",
        f"reports  Bearer  read write  2023-11-15T00:18:20+02:00  {fingerprint(token.value)}",
    ]
    assert made.objects("token", "reports") == [
        {
            "client": "reports",
            "type": "Bearer",
            "scope": "read write",
            "expires_at": 1_700_000_300,
            "fingerprint": fingerprint(token.value),
        }
    ]
    assert fake_provider.count("client_credentials") == 1


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_token_is_revealed_on_a_terminal_only(
    fake_provider: FakeProvider, more: list[str]
) -> None:
    made = shop(settings_of(fake_provider))
    assert_error(made.run("token", "reports", "--reveal", *more), 2, "terminal")
    assert fake_provider.count() == 0


@pytest.mark.parametrize(
    ("failure", "exit_code", "text"),
    [
        ({"status": 503}, 1, ""),
        ({"status": 401, "body": {"error": "invalid_client"}}, 1, "invalid_client"),
    ],
)
def test_token_that_cannot_be_had(
    fake_provider: FakeProvider, failure: dict[str, Any], exit_code: int, text: str
) -> None:
    fake_provider.fail(times=None, **failure)
    made = shop(settings_of(fake_provider))
    result = made.run("token", "reports")
    assert_error(result, exit_code, text)
    assert "503 Service" not in result.stderr


def test_token_of_an_unknown_client() -> None:
    assert_error(shop(TWO).run("token", "report"), 2, "known: borrowed, reports")


# -- grants


def grant(made: Shop, grant_id: str) -> dict[str, Any]:
    """Give what is shown of one grant."""
    prefix = record_key(grant_id)[:8]
    (found,) = [one for one in made.objects("grants") if one["key"] == prefix]
    return found


@pytest.fixture
def made(fake_provider: FakeProvider, fake_clock: FakeClock) -> Shop:
    fake_clock.set(1_700_000_000)
    store = MemoryStore(clock=fake_clock)
    return shop(settings_of(fake_provider), store=store, clock=fake_clock)


def test_grants(made: Shop, helsinki: None) -> None:
    key = record_key(made.sign_in())[:8]
    header, dashes, *lines = made.table("grants")
    assert header == (
        "Key       Kind          Provider        State       Version  Failures  Retry pause"
        "  Ends at                    Slots  Refreshable"
    )
    assert dashes.split() == ["-" * n for n in (8, 12, 14, 10, 7, 8, 11, 25, 5, 11)]
    assert lines == [
        f"{key}  grant         oidc            ok          1        0         -          "
        "  2023-11-29T00:13:20+02:00  1      yes"
    ]


def test_a_grant_without_refresh_token(made: Shop) -> None:
    assert grant(made, made.sign_in(refreshable=False)) | {"key": ""} == {
        "key": "",
        "kind": "grant",
        "provider": "oidc",
        "state": "ok",
        "version": 1,
        "failures": 0,
        "retry_pause": None,
        "ends_at": 1_700_000_000 + 14 * 86400,
        "slots": 1,
        "refreshable": False,
    }


def test_a_grant_that_is_being_refreshed_and_then_in_doubt(
    made: Shop, fake_clock: FakeClock
) -> None:
    grant_id = made.sign_in()
    made.begin(grant_id)
    assert grant(made, grant_id)["state"] == "refreshing"
    fake_clock.advance(11)
    assert grant(made, grant_id)["state"] == "in doubt"


def test_a_grant_that_failed_to_be_refreshed(made: Shop) -> None:
    grant_id = made.sign_in()
    made.begin(grant_id)
    made.abort(grant_id, pause=30, failures=2)
    found = grant(made, grant_id)
    assert (found["state"], found["failures"], found["retry_pause"]) == ("ok", 2, 30)
    assert "  30 s  " in made.table("grants")[-1]


def test_a_dead_grant(made: Shop) -> None:
    grant_id = made.sign_in()
    made.begin(grant_id)
    made.abort(grant_id, dead=token_hash(REFRESH_TOKEN))
    assert grant(made, grant_id)["state"] == "dead"


def test_a_grant_that_was_revoked_at_the_server(made: Shop, fake_provider: FakeProvider) -> None:
    grant_id = made.sign_in()
    made.state.provider().tokens.end(grant_id)
    found = grant(made, grant_id)
    assert (found["kind"], found["state"]) == ("to revoke", "ended")


def test_a_grant_with_nothing_to_revoke(made: Shop) -> None:
    grant_id = made.sign_in()
    made.state.store.delete(record_key(grant_id), keep=b"")
    found = grant(made, grant_id)
    assert (found["kind"], found["state"]) == ("grant", "ended")


def test_a_grant_of_a_former_client_id(made: Shop, fake_clock: FakeClock) -> None:
    grant_id = made.sign_in()
    settings = {**made.app.config, "ATM_CLIENT_ID": "another"}
    now = shop(settings, store=made.state.store, clock=fake_clock)
    found = grant(now, grant_id)
    assert (found["kind"], found["provider"], found["state"]) == ("grant", "oidc", "ended")


def test_records_that_are_no_grants(made: Shop, helsinki: None) -> None:
    made.state.store_id()
    client = made.state.client("reports")
    client.forget()
    client.get(TokenParameters())
    made.state.provider().client_tokens.get(TokenParameters())
    shown = {(one["kind"], one["provider"], one["state"]) for one in made.objects("grants")}
    assert shown == {
        ("client token", "client:reports", "ok"),
        ("client token", "provider:oidc", "ok"),
        ("other", None, None),
    }
    store_id = next(line for line in made.table("grants") if line.startswith("store id  "))
    assert "  never  " in store_id


def test_what_no_key_opens_is_shown_and_nothing_is_logged(
    made: Shop, fake_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    grant_id = made.sign_in()
    settings = {**made.app.config, "SECRET_KEY": SECRET_KEY}
    other = shop(settings, store=made.state.store, clock=fake_clock)
    assert grant(other, grant_id)["kind"] == "other"
    assert not caplog.records


def test_a_large_store_is_read_in_pages(fake_provider: FakeProvider) -> None:
    store = PagedStore()
    for number in range(250):
        store.create(f"{number:03}", b"", ends_at=time.time() + 60)
    made = shop(settings_of(fake_provider), store=store)
    assert len(made.objects("grants", "--limit", "240")) == 240
    assert store.pages.limits == [100, 100, 40, 1]
    assert "more than these 240" in made.run("grants", "--limit", "240").stderr
    result = made.run("grants", "--limit", "250")
    assert "more than" not in result.stderr
    assert len(result.stdout.splitlines()) == 252
    assert len(made.table("grants")) == 102


def test_a_store_in_memory_is_not_passed_off_as_all_there_is(tmp_path: Path) -> None:
    assert "other processes" in shop(TWO).run("grants").stderr
    sqlite = shop({**TWO, "ATM_STORE": f"sqlite:///{tmp_path / 'atm.sqlite3'}"})
    result = sqlite.run("grants")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_store_that_does_not_answer(tmp_path: Path, more: list[str]) -> None:
    path = tmp_path / "atm.sqlite3"
    path.write_bytes(b"this is no database" * 100)
    result = shop({**TWO, "ATM_STORE": f"sqlite:///{path}"}).run("grants", *more)
    assert_error(result, 1, "ATM_STORE")


# -- all of them


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_no_command_shows_a_secret_or_who_the_users_are(made: Shop, more: list[str]) -> None:
    ended = made.sign_in()
    made.sign_in()
    made.state.provider().tokens.end(ended)
    token = made.state.client("reports").get(TokenParameters()).value
    secret_key = made.app.config["SECRET_KEY"]
    commands = ("providers", "clients", "apis", "metadata", "grants", "token reports")
    for command in commands:
        result = made.run(*command.split(), *more)
        assert result.exit_code == 0
        for canary in (*CANARIES, token, secret_key, made.app.config["ATM_CLIENT_SECRET"]):
            assert canary not in result.output, command


@pytest.mark.parametrize(
    "command", ["providers", "clients", "apis", "metadata", "grants", "purge", "keys", "doctor"]
)
def test_an_application_without_atm(command: str) -> None:
    result = FlaskCliRunner(Flask("plain")).invoke(atm, [command])
    assert_error(result, 2, "no ATM: call atm.init_app(app)")


def test_an_application_that_is_misconfigured() -> None:
    def create_app() -> Flask:
        raise ConfigurationError(["ATM_ISSUER: missing", "ATM_CLIENT_ID:\n missing"])

    result = FlaskCliRunner(Flask("plain")).invoke(
        atm, ["providers"], obj=ScriptInfo(create_app=create_app)
    )
    assert_error(result, 2, "ATM_ISSUER: missing; ATM_CLIENT_ID: missing")


@pytest.mark.parametrize("args", [["grants", "--limit", "0"], ["unknown"], ["token"]])
def test_a_mistake_in_the_call(args: list[str]) -> None:
    result = shop(TWO).run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr


def test_help_documents_exit_codes_and_commands() -> None:
    result = FlaskCliRunner(Flask("plain")).invoke(atm, ["--help"])
    assert result.exit_code == 0
    for text in ("Exit codes:\n    0  fine\n    1  a problem", "    2  a mistake"):
        assert text in result.stdout
    for command in atm.commands:
        assert f"\n  {command} " in result.stdout
        assert "--json" in FlaskCliRunner(Flask("plain")).invoke(atm, [command, "--help"]).stdout


def test_options_are_not_read_from_the_environment(
    made: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "true")
    flask = FlaskGroup(load_dotenv=False, add_default_commands=False)
    flask.add_command(atm)
    made.sign_in()
    made.sign_in()
    environment = {
        "FLASK_ATM_AS_JSON": "1",
        "FLASK_ATM_GRANTS_AS_JSON": "1",
        "FLASK_ATM_GRANTS_LIMIT": "1",
        "FLASK_ATM_GRANTS_HELP": "1",
        "FLASK_ATM_HELP": "1",
    }
    script = ScriptInfo(create_app=lambda: made.app)
    result = FlaskCliRunner(made.app).invoke(flask, ["atm", "grants"], obj=script, env=environment)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 4


# -- the real thing

SCRIPT = """
from flask import Flask
from tests.top.support_cli import shop
import json, os
app = shop(json.loads(os.environ["SHOP"])).app
"""


@pytest.fixture
def flask_in(tmp_path: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Give the arguments that run ``flask`` for an application, as a process of its own."""
    (tmp_path / "shop_app.py").write_text(SCRIPT)

    def arguments(settings: dict[str, Any]) -> dict[str, Any]:
        environment = {
            **os.environ,
            "SHOP": json.dumps(settings),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        return {"cwd": tmp_path, "env": environment}

    return arguments


FLASK = [sys.executable, "-m", "flask", "--app", "shop_app:app", "atm"]


def test_the_command_comes_with_the_installation(
    flask_in: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    done = subprocess.run(
        [*FLASK, "providers"], capture_output=True, text=True, check=False, **flask_in(TWO)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == shop(TWO).table("providers")


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_token_is_revealed_on_a_terminal(
    fake_provider: FakeProvider,
    flask_in: Callable[[dict[str, Any]], dict[str, Any]],
    more: list[str],
) -> None:
    settings = settings_of(fake_provider)
    ours, theirs = os.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        done = subprocess.run(
            [*FLASK, "token", "reports", "--reveal", *more],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
            check=False,
            **flask_in(settings),
        )
        os.close(theirs)
        shown = terminal.read(65536).decode().replace("\r\n", "\n")
    assert (done.returncode, done.stderr) == (0, b"")
    value = json.loads(shown)[0]["token"] if more else shown.splitlines()[-1]
    assert fake_provider.introspect(value)["active"]
    assert fingerprint(value) in shown
